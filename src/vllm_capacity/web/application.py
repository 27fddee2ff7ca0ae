"""The web application: ``/metrics``, ``/-/healthy``, ``/-/ready``, the page, what more there is."""

import gzip
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from vllm_capacity.compare.fleet import FleetAssessment, TargetAssessment
from vllm_capacity.web.problems import PROBLEM_HANDLERS
from vllm_capacity.web.static import page_routes

_GZIP_FROM_BYTES = 1024


def web_application(
    registry: CollectorRegistry,
    published: Callable[[], FleetAssessment],
    *,
    telemetry_path: str = "/metrics",
    more_routes: Sequence[BaseRoute] = (),
) -> Starlette:
    """The application that serves what was published last; no page waits for an engine."""

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        names = request.query_params.getlist("name[]")
        page = encode(registry.restricted_registry(names) if names else registry)
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        accepts_gzip = "gzip" in request.headers.get("accept-encoding", "")
        if accepts_gzip and len(page) >= _GZIP_FROM_BYTES:
            page = gzip.compress(page, compresslevel=1)
            headers["Content-Encoding"] = "gzip"
        return Response(page, headers=headers)

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("vllm-capacity is healthy.\n")

    async def ready(_: Request) -> Response:
        if any(_has_answered(target) for target in published().targets):
            return PlainTextResponse("vllm-capacity is ready.\n")
        return PlainTextResponse("Not ready: no target has answered yet.\n", 503)

    return Starlette(
        routes=[
            Route(telemetry_path, metrics),
            Route("/-/healthy", healthy),
            Route("/-/ready", ready),
            *page_routes(telemetry_path),
            *more_routes,
        ],
        exception_handlers=PROBLEM_HANDLERS,
    )


def _has_answered(target: TargetAssessment) -> bool:
    vllm = target.health.get("vllm")
    return vllm is not None and vllm.last_success_timestamp_seconds is not None
