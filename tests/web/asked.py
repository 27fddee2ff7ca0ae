"""An application asked in process, and a target to ask it about."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CollectorRegistry
from starlette.routing import BaseRoute

from vllm_capacity.compare.fleet import FleetAssessment, SourceHealth, TargetAssessment
from vllm_capacity.deployment import DeploymentFacts
from vllm_capacity.export.collector import CapacityCollector
from vllm_capacity.monitor import Pipeline
from vllm_capacity.predict import EngineArgs
from vllm_capacity.web.application import web_application

DATA = Path(__file__).parent.parent / "data"
PAGE = (DATA / "vllm-0.32-metrics.txt").read_bytes()
#: Of a server whose cache was given in bytes, not in blocks.
PAGE_BY_BYTES = PAGE.replace(b'num_gpu_blocks_override="350"', b'num_gpu_blocks_override="None"')
CONFIG = json.loads((DATA / "models" / "small-llama" / "config.json").read_bytes())
GEMMA = json.loads((DATA / "models" / "small-gemma3" / "config.json").read_bytes())
UP = SourceHealth().succeeded(at=1_795_280_000.0, seconds=0.02)


def target(
    name: str = "a:8000", page: bytes = PAGE, config: dict[str, Any] | None = CONFIG, **args: Any
) -> TargetAssessment:
    """A recorded server with what is predicted for it."""
    pipeline = Pipeline()
    snapshot = pipeline.read(page, taken_at_seconds=1.0)
    facts = DeploymentFacts(
        config=config,
        given_args=EngineArgs.from_mapping(args),
        cache_config=snapshot.engines[0].cache_config,
        max_model_len=2048,
    )
    engines = pipeline.assess(snapshot, facts)
    return TargetAssessment(
        target=name,
        url=f"http://{name}",
        engines=engines,
        prediction=pipeline.predicted(facts)[0],
        health={"vllm": UP},
    )


def fleet(*targets: TargetAssessment) -> FleetAssessment:
    return FleetAssessment(targets=targets or (target(),))


def named(whole: TargetAssessment, *engines: str) -> TargetAssessment:
    """The same with its one engine under these names."""
    [one] = whole.engines
    snapshots = (replace(one.snapshot, engine=name) for name in engines)
    return replace(whole, engines=tuple(replace(one, snapshot=each) for each in snapshots))


def get(
    path: str,
    published: FleetAssessment,
    routes: Sequence[BaseRoute],
    *,
    method: str = "GET",
    **headers: str,
) -> httpx.Response:
    return get_all([path], published, routes, method=method, **headers)[0]


def get_all(
    paths: Sequence[str],
    published: FleetAssessment,
    routes: Sequence[BaseRoute],
    *,
    method: str = "GET",
    **headers: str,
) -> list[httpx.Response]:
    """All of them at the same time."""
    registry = CollectorRegistry()
    registry.register(CapacityCollector(lambda: published, with_target=False))
    application = web_application(registry, lambda: published, more_routes=routes)

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=application, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as client:
            asked = (client.request(method, path, headers=headers) for path in paths)
            return await asyncio.gather(*asked)

    return asyncio.run(ask())


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The RFC 9457 problem that a response is."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    found: dict[str, Any] = response.json()
    assert set(found) == {"type", "title", "status", "detail", "instance", "faults"}
    assert found["status"] == status
    return found


def keys(found: dict[str, Any]) -> set[str]:
    return {fault["key"] for fault in found["faults"]}
