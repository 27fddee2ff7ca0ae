"""What comes next for one engine: time to exhaustion, what binds, saturation, and its state.

Everything here may look at the used blocks; none of it flows back into their prediction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_capacity.compare.binding_limit import BindingLimit, binding_limit, queued_for_capacity
from vllm_capacity.compare.demand import Demand
from vllm_capacity.compare.engine_state import EngineState, EngineStateWatch, Pressure
from vllm_capacity.compare.exhaustion import FillTrend
from vllm_capacity.compare.headroom import Headroom, Limits
from vllm_capacity.observe.engine_snapshot import EngineSnapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What comes next. None is unknown.

    Attributes:
        time_to_exhaustion_seconds: until no block is free; infinite while the cache does not fill.
        binding_limit: what stops the next request.
        state: of the engine.
        saturation_ratio: demand over capacity of the tightest resource, the queue's included and
            the peak of the last minute; above 1 when more is asked for than there is.
        headroom_ratio: by resource, the share of it that nobody holds or waits for, 0 to 1.
    """

    time_to_exhaustion_seconds: float | None
    binding_limit: BindingLimit | None
    state: EngineState
    saturation_ratio: float | None
    headroom_ratio: Mapping[str, float] = field(default_factory=dict)


class OutlookWatch:
    """The outlook of one engine, from one snapshot after another."""

    def __init__(self) -> None:
        self._trend = FillTrend()
        self._state = EngineStateWatch()

    def record(
        self,
        snapshot: EngineSnapshot,
        demand: Demand,
        headroom: Headroom,
        limits: Limits,
        *,
        usage_peak_ratio: float | None,
        restarted: bool,
    ) -> Outlook:
        """Take one snapshot and what is known of it into account.

        Args:
            snapshot: of the engine.
            demand: of its requests.
            headroom: what still fits.
            limits: its arguments.
            usage_peak_ratio: the largest share of the pool in use within the last minute.
            restarted: whether the engine began anew since the snapshot before.
        """
        if restarted:
            self._trend.clear()
        ratios = demand_ratios(snapshot, headroom, limits)
        known = [*ratios.values(), *([] if usage_peak_ratio is None else [usage_peak_ratio])]
        saturation = max(known, default=None)
        return Outlook(
            time_to_exhaustion_seconds=self._exhaustion(snapshot, demand),
            binding_limit=binding_limit(snapshot, limits, demand),
            state=self._state.record(
                snapshot.taken_at_seconds, _pressure(snapshot, saturation or 0.0, demand)
            ),
            saturation_ratio=saturation,
            headroom_ratio={name: max(0.0, 1.0 - ratio) for name, ratio in ratios.items()},
        )

    def _exhaustion(self, snapshot: EngineSnapshot, demand: Demand) -> float | None:
        used, total = snapshot.used_blocks, snapshot.total_blocks
        if used is None or total is None:
            return None
        self._trend.record(snapshot.taken_at_seconds, used)
        if used >= total:
            return 0.0
        soon = None if demand.committed is None else demand.committed.seconds_to_exhaustion
        if soon is not None:
            return soon
        later = self._trend.seconds_to(total)
        return math.inf if later is None else later


def demand_ratios(
    snapshot: EngineSnapshot, headroom: Headroom, limits: Limits
) -> Mapping[str, float]:
    """Held and asked for, over what there is, by resource; what is unknown is left out."""
    ratios = {}
    total, free = snapshot.total_blocks, headroom.blocks
    if free is None:
        free = snapshot.free_blocks
    if total and free is not None:
        ratios["kv_cache"] = (total - free) / total
    if limits.max_num_seqs and snapshot.running is not None:
        ratios["sequences"] = (snapshot.running + (snapshot.waiting or 0)) / limits.max_num_seqs
    return ratios


def _pressure(snapshot: EngineSnapshot, saturation: float, demand: Demand) -> Pressure | None:
    used, total = snapshot.used_blocks, snapshot.total_blocks
    queued = queued_for_capacity(snapshot)
    if not total or used is None or queued is None or snapshot.running is None:
        return None
    return Pressure(
        is_idle=snapshot.running == 0 and snapshot.waiting == 0,
        usage_ratio=used / total,
        saturation_ratio=saturation,
        committed_ratio=None if demand.committed is None else demand.committed.blocks / total,
        queued_requests=queued,
        preempted_requests=demand.preemptions_last_minute + demand.preempted_requests,
        begun_requests=demand.begun_last_minute,
    )
