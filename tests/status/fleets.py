"""Targets and fleets as they are published, for the tests of what is told of them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from gpus import attribution, gpu
from recordings import scrapes

from vllm_capacity.compare.fleet import (
    FleetAssessment,
    PredictionStatus,
    SourceHealth,
    TargetAssessment,
)
from vllm_capacity.compare.gpu_watch import GpuWatch
from vllm_capacity.deployment import DeploymentFacts
from vllm_capacity.monitor import Pipeline
from vllm_capacity.observe.measured_memory import MeasuredMemory, MeasuredRank, MeasuredTerm
from vllm_capacity.predict import EngineArgs, gpu_named
from vllm_capacity.units import GIB, Bytes

DATA = Path(__file__).parent.parent / "data"
PAGE = (DATA / "vllm-0.32-metrics.txt").read_text(encoding="utf-8")
LLAMA = json.loads((DATA / "models" / "small-llama" / "config.json").read_bytes())
NOW = 1_700_000_000.0
NO_PREDICTION = PredictionStatus(
    prediction=None, reason="no_config", message="no config.json: give --model-config"
)
UP = SourceHealth().succeeded(at=NOW - 2.0, seconds=0.02)
MEASURED = MeasuredMemory(
    is_started=True,
    tightest=MeasuredRank(
        weights=MeasuredTerm(bytes=Bytes(GIB)),
        activation_peak=MeasuredTerm(bytes=Bytes(GIB // 2)),
        kv_cache=MeasuredTerm(bytes=Bytes(70 * GIB)),
    ),
    ranks=(),
)


def known(**more: Any) -> DeploymentFacts:
    """All that can be known of the recordings' engine, on a GPU of 80 GB."""
    args = EngineArgs.from_mapping({"max_num_seqs": 48})
    facts = DeploymentFacts(config=LLAMA, given_args=args, max_model_len=2048)
    return replace(facts, **{"gpu": gpu_named("h100-80gb"), **more})


NOTHING_KNOWN = DeploymentFacts(given_args=EngineArgs.from_mapping({}))


def target(
    name: str = "a:8000",
    *pages: tuple[float, str],
    facts: DeploymentFacts = NOTHING_KNOWN,
    health: Mapping[str, SourceHealth] | None = None,
    **more: Any,
) -> TargetAssessment:
    """A target after some pages."""
    pipeline = Pipeline()
    engines, page, told = (), None, facts
    for t, text in pages or ((1.0, PAGE),):
        page = pipeline.read(text.encode(), taken_at_seconds=t)
        told = facts.with_labels(page.engines[0].cache_config)
        engines = pipeline.assess(page, told)
    assert page is not None
    return TargetAssessment(
        target=name,
        url=f"http://{name}",
        engines=engines,
        prediction=pipeline.predicted(told)[0],
        vllm_version="0.32.0",
        response_bytes=Bytes(len(PAGE)),
        metric_present=page.metric_present,
        health={"vllm": UP} if health is None else health,
        started_with=pipeline.started_with,
        **more,
    )


@cache
def recorded(
    trace: str, until: float, *, name: str = "a:8000", blind: bool = False
) -> TargetAssessment:
    """A target at a moment of a recording; ``blind``: nothing but its pages is known."""
    pages = [(t, page) for t, page in scrapes(trace) if t <= until]
    return target(name, *pages, facts=NOTHING_KNOWN if blind else known())


def silent(name: str = "c:8000", *, for_seconds: float | None = 240.0) -> TargetAssessment:
    """A target that does not answer, since then or, with None, since ever."""
    before = SourceHealth()
    if for_seconds is not None:
        before = before.succeeded(at=NOW - for_seconds, seconds=0.02)
    down = before.failed(reason="connect", message="connection refused", seconds=0.1)
    return TargetAssessment(
        target=name, url=f"http://{name}", prediction=NO_PREDICTION, health={"vllm": down}
    )


def on_gpu(one: TargetAssessment) -> FleetAssessment:
    """A fleet of one target that has a GPU, and a log that tells what it measured."""
    placed = replace(one, gpus=(attribution(72.0, 1.0),), measured=MEASURED)
    return GpuWatch().assessed([placed], (gpu(73.5),))


def fleet(*targets: TargetAssessment) -> FleetAssessment:
    """Targets without a GPU in sight."""
    return GpuWatch().assessed(targets, ())
