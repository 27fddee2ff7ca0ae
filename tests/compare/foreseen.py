"""How long before the first preemption of a recording the committed demand passed the pool."""

from itertools import pairwise
from typing import NamedTuple

from recordings import Moments

# An alarm is false if no preemption follows within so long, and none has just been.
FOLLOWS_SECONDS, JUST_SECONDS = 60.0, 5.0


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
