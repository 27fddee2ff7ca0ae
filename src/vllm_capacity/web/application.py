"""The web application: ``/metrics``, ``/-/healthy``, ``/-/ready``, the page, what more there is."""

from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from vllm_capacity.compare.fleet import FleetAssessment, TargetAssessment
from vllm_capacity.web.access import Access
from vllm_capacity.web.metrics_page import MetricsPage
from vllm_capacity.web.problems import PROBLEM_HANDLERS
from vllm_capacity.web.static import page_routes


def web_application(
    registry: CollectorRegistry,
    published: Callable[[], FleetAssessment],
    *,
    telemetry_path: str = "/metrics",
    more_routes: Sequence[BaseRoute] = (),
    access: Access | None = None,
) -> Starlette:
    """The application that serves what was published last; no page waits for an engine.

    Args:
        registry: what ``/metrics`` shows.
        published: what is known now.
        telemetry_path: where the metrics are.
        more_routes: what else is served.
        access: who may read it; None: everybody.
    """
    metrics_page = MetricsPage(registry)

    async def metrics(request: Request) -> Response:
        names = request.query_params.getlist("name[]")
        page, headers = metrics_page.encoded(
            request.headers.get("accept", ""),
            names,
            compressed="gzip" in request.headers.get("accept-encoding", ""),
        )
        return Response(page, headers=headers)

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("vllm-capacity is healthy.\n")

    async def ready(_: Request) -> Response:
        if any(_has_answered(target) for target in published().targets):
            return PlainTextResponse("vllm-capacity is ready.\n")
        return PlainTextResponse("Not ready: no target has answered yet.\n", 503)

    return _Guarded(
        access or Access(),
        routes=[
            Route(telemetry_path, metrics),
            Route("/-/healthy", healthy),
            Route("/-/ready", ready),
            *page_routes(telemetry_path),
            *more_routes,
        ],
        exception_handlers=PROBLEM_HANDLERS,
    )


class _Guarded(Starlette):
    """An application that nobody reaches but through its guard, not even its faults."""

    def __init__(self, access: Access, **options: Any) -> None:
        super().__init__(**options)
        self._guarded = access.guard(super().__call__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self._guarded(scope, receive, send)


def _has_answered(target: TargetAssessment) -> bool:
    vllm = target.health.get("vllm")
    return vllm is not None and vllm.last_success_timestamp_seconds is not None
