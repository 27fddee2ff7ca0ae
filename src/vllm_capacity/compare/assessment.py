"""Everything known of one engine at one moment, as one value."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vllm_capacity.compare.capacity import (
    Capacity,
    derived_capacity,
    predicted_capacity,
    reported_capacity,
    tokens_per_block,
)
from vllm_capacity.compare.demand import Demand, DemandWatch
from vllm_capacity.compare.headroom import Headroom, Limits, headroom
from vllm_capacity.compare.occupancy import Occupancy, predicted_occupancy, unknown_occupancy
from vllm_capacity.compare.outlook import Outlook, OutlookWatch
from vllm_capacity.compare.prediction_error import PredictionError, prediction_errors
from vllm_capacity.compare.workload import SharingSavings, footprint_blocks, sharing_savings
from vllm_capacity.observe.engine_snapshot import EngineSnapshot
from vllm_capacity.observe.ledger import LedgerReading, TokenLedger
from vllm_capacity.observe.recent_history import RecentHistory, RecentReading
from vllm_capacity.observe.request_footprint import FootprintWindow, RequestFootprint
from vllm_capacity.predict import Prediction


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineAssessment:
    """Prediction and observation of one engine side by side. None is unknown.

    Attributes:
        snapshot: what the engine said.
        reported, derived, predicted: its capacity by vLLM's own account, as it follows from the
            reported blocks, and as predicted.
        ledger: tokens in flight.
        occupancy: blocks that ought to be in use.
        used_tokens, free_tokens: the pool's blocks in tokens.
        footprint: how large requests are.
        footprint_blocks: blocks that one of that size holds, by basis ("mean", "p95").
        sharing: what shared prefixes save.
        headroom: what still fits.
        demand: what requests ask for.
        outlook: what comes next.
        recent: peaks, rates and shares of the last minutes.
        limits: what bounds the engine besides its cache.
        errors: by quantity.
        restarts: of the engine, seen by this assessor.
        occupancy_reason: why ``occupancy`` is unknown; None where it is known.
        gpu_memory_headroom_ratio: share of its fullest GPU that nobody holds, 0–1; None where its
            GPUs are not known.
    """

    snapshot: EngineSnapshot
    reported: Capacity
    derived: Capacity
    predicted: Capacity
    ledger: LedgerReading
    occupancy: Occupancy | None
    used_tokens: float | None
    free_tokens: float | None
    footprint: RequestFootprint | None
    footprint_blocks: Mapping[str, float]
    sharing: SharingSavings | None
    headroom: Headroom
    demand: Demand
    outlook: Outlook
    recent: RecentReading
    limits: Limits
    errors: Mapping[str, PredictionError]
    restarts: int = 0
    occupancy_reason: str | None = None
    gpu_memory_headroom_ratio: float | None = None

    @property
    def predicted_used_blocks(self) -> float | None:
        """Blocks that ought to be in use, without their bounds."""
        return None if self.occupancy is None else self.occupancy.blocks


class EngineAssessor:
    """Turns the snapshots of one engine, one after another, into assessments."""

    def __init__(self) -> None:
        self._ledger = TokenLedger()
        self._footprints = FootprintWindow()
        self._history = RecentHistory()
        self._demand = DemandWatch()
        self._outlook = OutlookWatch()
        self._restarts = 0

    def assess(
        self, snapshot: EngineSnapshot, prediction: Prediction | None, limits: Limits
    ) -> EngineAssessment:
        """Assess one snapshot; snapshots must come in the order in which they were taken."""
        ledger = self._ledger.record(snapshot)
        self._restarts += ledger.restarted
        footprint = self._footprints.record(snapshot, restarted=ledger.restarted)
        recent = self._history.record(snapshot, ledger)
        reported = reported_capacity(snapshot)
        derived = derived_capacity(snapshot, prediction, limits.max_model_len)
        predicted = predicted_capacity(prediction)
        occupancy = predicted_occupancy(ledger, snapshot, prediction)
        per_block = tokens_per_block(snapshot)
        demand = self._demand.record(snapshot, ledger, limits, prediction)
        committed = demand.committed
        room = headroom(
            snapshot,
            footprint,
            limits,
            prediction,
            shared_tokens=demand.shared_prompt_tokens,
            admitted_blocks=None if committed is None else committed.admitted_blocks,
        )
        return EngineAssessment(
            snapshot=snapshot,
            reported=reported,
            derived=derived,
            predicted=predicted,
            ledger=ledger,
            occupancy=occupancy,
            used_tokens=_times(snapshot.used_blocks, per_block),
            free_tokens=_times(snapshot.free_blocks, per_block),
            footprint=footprint,
            footprint_blocks=footprint_blocks(footprint, snapshot, prediction),
            sharing=sharing_savings(ledger, snapshot, prediction),
            headroom=room,
            demand=demand,
            outlook=self._outlook.record(
                snapshot,
                demand,
                room,
                limits,
                usage_peak_ratio=recent.usage_peak_ratio.get("1m"),
                restarted=ledger.restarted,
            ),
            recent=recent,
            limits=limits,
            errors=prediction_errors(
                measured=_measured(reported, derived),
                predicted=predicted,
                used_blocks=snapshot.used_blocks,
                predicted_used_blocks=None if occupancy is None else occupancy.blocks,
            ),
            restarts=self._restarts,
            occupancy_reason=unknown_occupancy(ledger, snapshot, prediction),
        )


def _measured(reported: Capacity, derived: Capacity) -> Capacity:
    """What vLLM says, and where it is silent what follows from its blocks."""
    return replace(
        reported,
        tokens=reported.tokens if reported.tokens is not None else derived.tokens,
        bytes_per_gpu=derived.bytes_per_gpu,
        full_length_concurrency=reported.full_length_concurrency
        if reported.full_length_concurrency is not None
        else derived.full_length_concurrency,
    )


def _times(number: int | None, factor: float | None) -> float | None:
    return None if number is None or factor is None else number * factor
