"""What is refused before the application sees it, in the form that its path answers in."""

from collections.abc import Mapping
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope

from vllm_capacity.web.problems import API_PREFIX, Problem, problem_response


def refusal(scope: Scope, status: int, sentence: str, headers: Mapping[str, str]) -> Response:
    """The sentence as text, and to the API as problem details.

    Args:
        scope: of the request.
        status: HTTP's.
        sentence: what to do; holds nothing of the request.
        headers: to send with it.
    """
    request = Request(scope)
    if request.url.path.startswith(API_PREFIX):
        title = HTTPStatus(status).phrase
        return problem_response(request, Problem(status, title, sentence, headers=headers))
    return PlainTextResponse(f"{sentence}\n", status, dict(headers))
