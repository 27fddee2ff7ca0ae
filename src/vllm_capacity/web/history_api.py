"""``GET /api/v1/history``: the last hour of one engine."""

import math
import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vllm_capacity.compare.fleet import FleetAssessment
from vllm_capacity.errors import Fault
from vllm_capacity.status.history import HOUR_SECONDS, History
from vllm_capacity.web.json_response import json_response
from vllm_capacity.web.problems import bad_request
from vllm_capacity.web.query import engine_asked, query_parameters, target_asked

_PARAMETERS = ("target", "engine", "since")


def history_route(
    history: History,
    published: Callable[[], FleetAssessment],
    *,
    wall: Callable[[], float] = time.time,
) -> Route:
    """The endpoint.

    Args:
        history: what is kept.
        published: what is known now, for the targets and engines that there are.
        wall: the clock by which the history is kept.
    """

    async def answer(request: Request) -> Response:
        given, faults = query_parameters(request, _PARAMETERS)
        since = _since(given.get("since"), faults)
        target = target_asked(published(), given.get("target"), faults)
        there = (*history.engines(target.target), *(e.snapshot.engine for e in target.engines))
        engine = engine_asked(given.get("engine"), there, faults)
        if faults:
            raise bad_request(faults)
        oldest = max(since, wall() - HOUR_SECONDS)
        return json_response(
            request,
            {
                "target": target.target,
                "engine": engine,
                "step_seconds": history.step_seconds,
                "columns": history.columns(target.target, engine, since=oldest),
            },
        )

    return Route("/api/v1/history", answer)


def _since(text: str | None, faults: list[Fault]) -> float:
    if text is None:
        return -math.inf
    try:
        since = float(text)
    except ValueError:
        since = math.nan
    if not math.isfinite(since):
        faults.append(Fault("since", text, "must be a time in Unix seconds, as in 1795280000.5"))
    return since
