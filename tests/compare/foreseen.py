"""How long before the first preemption of a recording the committed demand passed the pool."""

import json
import lzma
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.deployment import DeploymentFacts
from vllm_capacity.monitor import Pipeline
from vllm_capacity.predict import EngineArgs

TRACES = Path(__file__).parent.parent / "data" / "traces"
# An alarm is false if no preemption follows within so long, and none has just been.
FOLLOWS_SECONDS, JUST_SECONDS = 60.0, 5.0

Moments = list[tuple[float, EngineAssessment]]


class Foreseen(NamedTuple):
    """What committed demand said of one engine before it happened.

    Attributes:
        first_preemption: when the counter moved; None if it never did.
        admitted_lead, lead: seconds by which the demand of admitted requests, and the one with
            those that keep coming, passed the pool before.
        alarms, false_alarms: scrapes at which the latter was above the pool.
        peak: its largest value, in pools.
    """

    first_preemption: float | None
    admitted_lead: float | None
    lead: float | None
    alarms: int
    false_alarms: int
    peak: float


def assessed(name: str, *, every: int = 1) -> dict[str, Moments]:
    """A recording through the daemon's pipeline, by engine; of every so many scrapes one."""
    pipeline, engines = Pipeline(), dict[str, Moments]()
    facts = DeploymentFacts(given_args=EngineArgs())
    for t, metrics in list(_scrapes(name))[::every]:
        page = pipeline.read(metrics.encode(), taken_at_seconds=t)
        for assessment in pipeline.assess(page, facts.with_labels(page.engines[0].cache_config)):
            engines.setdefault(assessment.snapshot.engine, []).append((t, assessment))
    return engines


def _scrapes(name: str) -> Iterator[tuple[float, str]]:
    with lzma.open(TRACES / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
        for line in lines:
            scrape = json.loads(line)
            if scrape["metrics"] is not None:
                yield scrape["t"], scrape["metrics"]


def preemption_times(moments: Moments) -> list[float]:
    """When the counter of preemptions was seen to have moved."""
    return [
        t
        for (_, before), (t, now) in pairwise(moments)
        if (now.snapshot.preemptions or 0) > (before.snapshot.preemptions or 0)
        and not now.ledger.restarted
    ]


def foreseen(moments: Moments) -> Foreseen:
    """What was said of one engine's preemptions."""
    preemptions = preemption_times(moments)
    first = preemptions[0] if preemptions else None
    pool = moments[0][1].snapshot.total_blocks or 1
    known = [(t, a.demand.committed) for t, a in moments if a.demand.committed is not None]
    alarms = [t for t, committed in known if committed.blocks > pool]
    admitted = [t for t, committed in known if committed.admitted_blocks > pool]
    return Foreseen(
        first,
        None if first is None or not admitted else first - admitted[0],
        None if first is None or not alarms else first - alarms[0],
        len(alarms),
        sum(1 for t in alarms if not _is_followed(t, preemptions)),
        max(committed.blocks for _, committed in known) / pool,
    )


def _is_followed(t: float, preemptions: list[float]) -> bool:
    return any(t - JUST_SECONDS < other <= t + FOLLOWS_SECONDS for other in preemptions)
