"""``GET /api/v1/status``: the status document, once or as it changes."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from vllm_capacity.status.document import Selection
from vllm_capacity.web.documents import Form, StatusDocuments, described, gzipped, plain
from vllm_capacity.web.events import EventStream, StatusStreams

#: By whether descriptions are asked for, and whether gzip is taken.
FORMS: Mapping[tuple[bool, bool], Form] = {
    (False, False): plain,
    (False, True): gzipped,
    (True, False): described,
    (True, True): lambda number, document: gzipped(number, described(number, document)),
}
_VARY = {"Vary": "Accept, Accept-Encoding"}


def status_routes(documents: StatusDocuments, streams: StatusStreams) -> list[BaseRoute]:
    """The routes of the status API."""

    async def status(request: Request) -> ASGIApp:
        if request.method == "GET" and _accepts(request, "text/event-stream"):
            return _stream(request)
        return _document(request)

    def _document(request: Request) -> Response:
        gzip = _accepts_gzip(request)
        is_described = request.query_params.get("descriptions") == "true"
        documents.newest()
        body = documents.encoded(_selection(request), FORMS[is_described, gzip])
        return Response(body, media_type="application/json", headers=_headers(gzip=gzip))

    def _stream(request: Request) -> EventStream:
        gzip, last = _accepts_gzip(request), request.headers.get("last-event-id")
        parts = streams.parts(_selection(request), last=last, gzip=gzip)
        return EventStream(streams, parts, _headers(gzip=gzip))

    return [Route("/api/v1/status", status)]


def _selection(request: Request) -> Selection:
    """What is asked for: ``?target=…&engine=…``, each any number of times."""
    asked = request.query_params
    return Selection(
        targets=frozenset(asked.getlist("target")), engines=frozenset(asked.getlist("engine"))
    )


def _accepts(request: Request, media_type: str) -> bool:
    kinds = request.headers.get("accept", "").split(",")
    return media_type in {kind.partition(";")[0].strip().lower() for kind in kinds}


def _accepts_gzip(request: Request) -> bool:
    return "gzip" in request.headers.get("accept-encoding", "")


def _headers(*, gzip: bool) -> dict[str, str]:
    return {**_VARY, **({"Content-Encoding": "gzip"} if gzip else {})}
