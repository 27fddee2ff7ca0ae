"""What is wrong with a request, as RFC 9457 problem details."""

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from vllm_capacity.errors import Fault
from vllm_capacity.secrecy import HIDDEN, is_secret_name, without_secrets

API_PREFIX = "/api/"
_LONGEST_VALUE = 80
_LONGEST_KEY = 80
_LONGEST_PATH = 200
_MOST_FAULTS = 20


class Problem(Exception):  # noqa: N818 (RFC 9457's own word)
    """A request that cannot be answered; raised by an endpoint, sent by ``PROBLEM_HANDLERS``.

    Attributes:
        status: HTTP's.
        title: the kind of problem, the same for every occurrence.
        detail: this occurrence in a sentence, with what to do.
        faults: of the request's parameters, all that were found.
        headers: to send with it, as ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        faults: Iterable[Fault] = (),
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.title, self.detail = status, title, detail
        self.faults, self.headers = tuple(faults), dict(headers or {})
        super().__init__(f"{status} {title}: {detail}")


def bad_request(faults: Iterable[Fault]) -> Problem:
    """The problem of a request whose parameters cannot be used."""
    found = tuple(faults)
    named = ", ".join(dict.fromkeys(_cut(fault.key, _LONGEST_KEY) for fault in found[:5]))
    return Problem(400, "Parameters that cannot be used", f"See faults: {named}.", found)


def problem_response(request: Request, problem: Problem) -> Response:
    """The problem as ``application/problem+json``; no secret and nothing long is repeated."""
    return JSONResponse(
        {
            "type": "about:blank",  # the status and the title say it
            "title": problem.title,
            "status": problem.status,
            "detail": without_secrets(problem.detail),
            "instance": quote(_cut(request.url.path, _LONGEST_PATH)),
            "faults": [_shown(fault) for fault in problem.faults[:_MOST_FAULTS]],
        },
        status_code=problem.status,
        headers={"Cache-Control": "no-store", **problem.headers},
        media_type="application/problem+json",
    )


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101 (registered for nothing else)
    return problem_response(request, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What the router refuses: an unknown path, a method that is not offered."""
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for nothing else)
    headers = dict(error.headers or {})
    if not _is_api(request):
        return PlainTextResponse(f"{error.detail}\n", error.status_code, headers)
    detail = {
        404: "There is no such endpoint; see docs/api.md for those there are.",
        405: "This endpoint is read only: ask with GET.",
    }.get(error.status_code, error.detail)
    title = HTTPStatus(error.status_code).phrase
    return problem_response(request, Problem(error.status_code, title, detail, headers=headers))


async def _on_crash(request: Request, _: Exception) -> Response:
    """A fault of ours: the server logs it whole, the client learns nothing of its insides."""
    if not _is_api(request):
        return PlainTextResponse("Internal Server Error\n", 500)
    detail = "A fault of vllm-capacity's own; its log says which."
    return problem_response(request, Problem(500, "Internal Server Error", detail))


#: For Starlette's ``exception_handlers``.
PROBLEM_HANDLERS: Mapping[Any, Any] = {
    Problem: _on_problem,
    HTTPException: _on_http_error,
    Exception: _on_crash,
}


def _is_api(request: Request) -> bool:
    return request.url.path.startswith(API_PREFIX)


def _shown(fault: Fault) -> dict[str, Any]:
    return {
        "key": _cut(without_secrets(fault.key), _LONGEST_KEY),
        "value": _shown_value(fault),
        "problem": without_secrets(fault.problem),
    }


def _shown_value(fault: Fault) -> Any:
    value = fault.value
    if value is None or isinstance(value, bool):
        return value
    if is_secret_name(fault.key.rpartition(".")[2]):
        return HIDDEN
    if isinstance(value, int | float) and abs(value) < 1e15:
        return value
    return _cut(without_secrets(value if isinstance(value, str) else repr(value)), _LONGEST_VALUE)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
