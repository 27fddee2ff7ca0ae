"""Blocks that the requests in flight ought to hold, from the ledger's tokens."""

from dataclasses import dataclass

from vllm_capacity.compare.capacity import is_hybrid, planned
from vllm_capacity.observe.engine_snapshot import EngineSnapshot
from vllm_capacity.observe.token_ledger import LedgerReading
from vllm_capacity.predict import KVCachePlan, Prediction


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Blocks that ought to be in use, and bounds that should hold the used ones 95 times of 100."""

    blocks: float
    low: float
    high: float


def predicted_occupancy(
    ledger: LedgerReading, snapshot: EngineSnapshot, prediction: Prediction | None
) -> Occupancy | None:
    """Blocks in use, as they follow from tokens alone; the used blocks are never looked at.

    With one group of layers: tokens over block size, and half a block for each request, since the
    last one is half empty on average. With several groups the plan knows what a request holds.
    None where the ledger knows nothing, or the cache is hybrid and no model config was given.
    """
    tokens, running = ledger.resident_tokens, ledger.running_requests
    block_size = snapshot.block_size_tokens
    if tokens is None or running is None or not block_size:
        return None
    if running == 0:
        return Occupancy(0.0, 0.0, 0.0)
    low, high = ledger.resident_tokens_low, ledger.resident_tokens_high
    low, high = tokens if low is None else low, tokens if high is None else high
    plan = planned(prediction)
    if plan is not None and len(plan.groups) > 1:
        blocks = _blocks_of_cohorts(ledger, plan)
        share = blocks / tokens if tokens else 0.0
        return Occupancy(blocks, low * share, high * share)
    if is_hybrid(snapshot):
        return None
    half_empty = running * (block_size - 1) / (2 * block_size)
    return Occupancy(*(each / block_size + half_empty for each in (tokens, low, high)))


def _blocks_of_cohorts(ledger: LedgerReading, plan: KVCachePlan) -> float:
    return sum(
        cohort.resident_requests
        * plan.blocks_for_request(round(cohort.prompt_tokens + cohort.generated_tokens))
        for cohort in ledger.cohorts
    )


def blocks_for_request(
    tokens: float, snapshot: EngineSnapshot, plan: KVCachePlan | None
) -> float | None:
    """Blocks that one request of so many tokens holds at its end."""
    if plan is not None:
        return plan.blocks_for_request(round(tokens))
    if snapshot.block_size_tokens is None or is_hybrid(snapshot):
        return None
    return -(-round(tokens) // snapshot.block_size_tokens)
