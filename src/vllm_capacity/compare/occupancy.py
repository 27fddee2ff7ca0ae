"""Blocks that the requests in flight ought to hold, from the ledger's tokens."""

from vllm_capacity.compare.capacity import is_hybrid, planned
from vllm_capacity.observe.engine_snapshot import EngineSnapshot
from vllm_capacity.observe.token_ledger import LedgerReading
from vllm_capacity.predict import KVCachePlan, Prediction


def predicted_used_blocks(
    ledger: LedgerReading, snapshot: EngineSnapshot, prediction: Prediction | None
) -> float | None:
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
        return 0.0
    plan = planned(prediction)
    if plan is not None and len(plan.groups) > 1:
        return running * plan.blocks_for_request(round(tokens / running))
    if is_hybrid(snapshot):
        return None
    return tokens / block_size + running * (block_size - 1) / (2 * block_size)


def blocks_for_request(
    tokens: float, snapshot: EngineSnapshot, plan: KVCachePlan | None
) -> float | None:
    """Blocks that one request of so many tokens holds at its end."""
    if plan is not None:
        return plan.blocks_for_request(round(tokens))
    if snapshot.block_size_tokens is None or is_hybrid(snapshot):
        return None
    return -(-round(tokens) // snapshot.block_size_tokens)
