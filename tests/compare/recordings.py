"""Recordings of a real vLLM through the daemon's pipeline, and how close it came to the truth."""

import json
import lzma
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import NamedTuple

from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.deployment import DeploymentFacts
from vllm_capacity.monitor import Pipeline
from vllm_capacity.predict import EngineArgs

DATA = Path(__file__).parent.parent / "data"
TRACES = DATA / "traces"
RECORDINGS = sorted(path.name.removesuffix(".jsonl.xz") for path in TRACES.glob("*.jsonl.xz"))
# What a recording of layers that let tokens go was served with.
CONFIGS = {"swa-ramp": "small-gemma3"}
# Clients are started at once, and the first pages are of an engine that warms up.
_BEGIN_SECONDS = 15.0

Moments = list[tuple[float, EngineAssessment]]


class Accuracy(NamedTuple):
    """How close the predicted blocks of one engine came to the used ones, in shares of the pool.

    Attributes:
        scrapes: compared.
        median, p95, largest: of |used − predicted|.
        held: share of scrapes whose interval holds the used blocks.
        width: of the interval, on average.
        anchored: share of scrapes in that state.
        largest_anchored: of |used − predicted| in it.
        left_blocks: |used − predicted| after the last request.
    """

    scrapes: int
    median: float
    p95: float
    largest: float
    held: float
    width: float
    anchored: float
    largest_anchored: float
    left_blocks: float


@cache
def assessed(name: str, *, every: int = 1) -> dict[str, Moments]:
    """A recording through the daemon's pipeline, by engine; of every so many scrapes one."""
    pipeline, engines = Pipeline(), dict[str, Moments]()
    facts = DeploymentFacts(config=_config(name), given_args=EngineArgs())
    for t, metrics in list(scrapes(name))[::every]:
        page = pipeline.read(metrics.encode(), taken_at_seconds=t)
        for assessment in pipeline.assess(page, facts.with_labels(page.engines[0].cache_config)):
            engines.setdefault(assessment.snapshot.engine, []).append((t, assessment))
    return engines


def _config(name: str) -> dict[str, object] | None:
    if name not in CONFIGS:
        return None
    found: dict[str, object] = json.loads(
        (DATA / "models" / CONFIGS[name] / "config.json").read_bytes()
    )
    return found


def scrapes(name: str) -> Iterator[tuple[float, str]]:
    """The pages of a recording."""
    with lzma.open(TRACES / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
        for line in lines:
            scrape = json.loads(line)
            if scrape["metrics"] is not None:
                yield scrape["t"], scrape["metrics"]


def accuracy(moments: Moments) -> Accuracy:
    """How close the predicted blocks came, without the first 15 seconds."""
    errors, held, widths, anchored = [], [], [], []
    for t, a in moments:
        occupancy, used, pool = a.occupancy, a.snapshot.used_blocks, a.snapshot.total_blocks
        if t < _BEGIN_SECONDS or occupancy is None or used is None or not pool:
            continue
        errors.append(abs(used - occupancy.blocks) / pool)
        held.append(occupancy.low - 1e-6 <= used <= occupancy.high + 1e-6)
        widths.append((occupancy.high - occupancy.low) / pool)
        if a.ledger.state == "anchored":
            anchored.append(errors[-1])
    last = moments[-1][1]
    return Accuracy(
        len(errors),
        median(errors),
        quantiles(errors, n=20)[-1],
        max(errors),
        fmean(held),
        fmean(widths),
        len(anchored) / len(errors),
        max(anchored, default=0.0),
        abs((last.snapshot.used_blocks or 0.0) - (last.predicted_used_blocks or 0.0)),
    )
