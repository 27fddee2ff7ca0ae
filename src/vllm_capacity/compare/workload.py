"""What requests take of the pool, and what sharing prefixes saves of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_capacity.compare.capacity import is_hybrid, planned
from vllm_capacity.compare.occupancy import blocks_for_request
from vllm_capacity.observe.engine_snapshot import EngineSnapshot
from vllm_capacity.observe.ledger import LedgerReading
from vllm_capacity.observe.request_footprint import RequestFootprint
from vllm_capacity.predict import Prediction
from vllm_capacity.units import Bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class SharingSavings:
    """What the running requests would hold more if none shared blocks with another.

    Attributes:
        blocks: how many; from the ledger, never from the used blocks.
        bytes_per_gpu: the same on the fullest rank; None without a model config.
    """

    blocks: float
    bytes_per_gpu: Bytes | None


def sharing_savings(
    ledger: LedgerReading, snapshot: EngineSnapshot, prediction: Prediction | None
) -> SharingSavings | None:
    """What sharing saves now, of requests past their first token.

    Shared blocks are whole blocks, so no rounding is lost. None where the ledger knows nothing, or
    layers differ in what they keep.
    """
    block_size, plan = snapshot.block_size_tokens, planned(prediction)
    hybrid = len(plan.groups) > 1 if plan is not None else is_hybrid(snapshot)
    if ledger.resident_tokens is None or not block_size or hybrid:
        return None
    blocks = ledger.shared_tokens / block_size
    return SharingSavings(
        blocks=blocks,
        bytes_per_gpu=None if plan is None else Bytes(round(blocks * max(plan.bytes_per_block))),
    )


def footprint_blocks(
    footprint: RequestFootprint | None, snapshot: EngineSnapshot, prediction: Prediction | None
) -> Mapping[str, float]:
    """Whole blocks that a request of mean and of 95th percentile size holds at its end."""
    if footprint is None:
        return {}
    sizes = {"mean": footprint.mean_tokens, "p95": footprint.p95_tokens}
    return {
        basis: blocks
        for basis, tokens in sizes.items()
        if tokens is not None
        and (blocks := blocks_for_request(tokens, snapshot, prediction)) is not None
    }
