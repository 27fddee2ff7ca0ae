"""How many more requests fit, and what it is measured by."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_capacity.compare.capacity import is_hybrid, tokens_per_block
from vllm_capacity.compare.occupancy import blocks_for_request
from vllm_capacity.observe.engine_snapshot import EngineSnapshot
from vllm_capacity.observe.request_footprint import RequestFootprint
from vllm_capacity.predict import Prediction

_OBSERVED = ("observed_mean", "observed_p95")
BASES = (*_OBSERVED, "full_length")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of the engine that its metrics do not tell.

    Attributes:
        max_model_len, max_num_seqs, max_num_batched_tokens: vLLM's arguments; None if unknown.
        origins: by argument, where its value came from: "flag", "api" or "predicted".
    """

    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Headroom:
    """What still fits.

    Attributes:
        blocks: free blocks less those that queued requests will take; may be negative.
        tokens: the same in tokens.
        queued_demand_tokens: waiting requests × mean footprint.
        running_requests_limit: by basis, requests of that size that run at once.
        requests: by basis, additional requests of that size before KV cache or sequence limit
            binds, the requests in the engine first granted what they will need.
    """

    blocks: float | None
    tokens: float | None
    queued_demand_tokens: float | None
    running_requests_limit: Mapping[str, int]
    requests: Mapping[str, int]


def headroom(
    snapshot: EngineSnapshot,
    footprint: RequestFootprint | None,
    limits: Limits,
    prediction: Prediction | None,
    *,
    shared_tokens: float = 0.0,
    admitted_blocks: float | None = None,
) -> Headroom:
    """Headroom of one engine now.

    Args:
        snapshot: of the engine.
        footprint: of its finished requests; None if none has.
        limits: its arguments.
        prediction: of its deployment.
        shared_tokens: of an observed request, that requests hold together: taken once. Requests of
            full length are taken to share nothing.
        admitted_blocks: expected at the joint peak of the requests in the engine; None if unknown.
    """
    layout = None if prediction is None else prediction.layout
    hybrid = is_hybrid(snapshot) if layout is None else len(layout.specs) > 1
    shared = 0.0 if hybrid else shared_tokens  # windows and states are held by each
    sizes = _request_sizes(footprint, limits, shared)
    blocks = {
        basis: need
        for basis, tokens in sizes.items()
        if (need := blocks_for_request(tokens, snapshot, prediction))
    }
    once = (blocks_for_request(shared, snapshot, prediction) or 0.0) if shared else 0.0
    queued = _queued_blocks(snapshot, blocks.get("observed_mean"))
    committed = _committed_blocks(snapshot, queued, blocks.get("observed_mean"), once)
    if committed is not None and admitted_blocks is not None:
        committed = max(committed, admitted_blocks)
    free = snapshot.free_blocks
    left = None if free is None or queued is None else free - queued
    per_block = tokens_per_block(snapshot)
    return Headroom(
        blocks=left,
        tokens=None if left is None or per_block is None else left * per_block,
        queued_demand_tokens=_queued_tokens(snapshot, footprint),
        running_requests_limit={
            basis: _bounded(
                math.floor((snapshot.total_blocks - (once if basis in _OBSERVED else 0.0)) / need),
                limits.max_num_seqs,
            )
            for basis, need in blocks.items()
            if snapshot.total_blocks is not None
        },
        requests=_additional(snapshot, blocks, committed, limits.max_num_seqs),
    )


def _request_sizes(
    footprint: RequestFootprint | None, limits: Limits, shared_tokens: float
) -> dict[str, float]:
    """Tokens of a request by basis, those that observed ones share not counted."""
    sizes: dict[str, float] = {}
    if footprint is not None:
        sizes["observed_mean"] = footprint.mean_tokens
        if footprint.p95_tokens is not None:
            sizes["observed_p95"] = max(footprint.p95_tokens, footprint.mean_tokens)
    if limits.max_model_len is not None:
        longest = float(limits.max_model_len)
        sizes = {basis: min(tokens, longest) for basis, tokens in sizes.items()}
    sizes = {basis: max(1.0, tokens - shared_tokens) for basis, tokens in sizes.items()}
    if limits.max_model_len is not None:
        sizes["full_length"] = float(limits.max_model_len)
    return sizes


def _queued_tokens(snapshot: EngineSnapshot, footprint: RequestFootprint | None) -> float | None:
    if snapshot.waiting == 0:
        return 0.0
    if snapshot.waiting is None or footprint is None:
        return None
    return snapshot.waiting * footprint.mean_tokens


def _queued_blocks(snapshot: EngineSnapshot, mean_blocks: float | None) -> float | None:
    if snapshot.waiting == 0:
        return 0.0
    if snapshot.waiting is None or mean_blocks is None:
        return None
    return snapshot.waiting * mean_blocks


def _committed_blocks(
    snapshot: EngineSnapshot,
    queued_blocks: float | None,
    mean_blocks: float | None,
    shared_blocks: float,
) -> float | None:
    """Blocks spoken for: held ones and the queue's, or every request's mean footprint if more."""
    if snapshot.used_blocks is None or queued_blocks is None or snapshot.running is None:
        return None
    held = snapshot.used_blocks + queued_blocks
    if mean_blocks is None or snapshot.waiting is None:
        return held
    return max(held, shared_blocks + (snapshot.running + snapshot.waiting) * mean_blocks)


def _additional(
    snapshot: EngineSnapshot,
    blocks: Mapping[str, float],
    committed: float | None,
    max_num_seqs: int | None,
) -> dict[str, int]:
    if committed is None or snapshot.total_blocks is None or snapshot.running is None:
        return {}
    in_engine = snapshot.running + (snapshot.waiting or 0)
    seats = None if max_num_seqs is None else max_num_seqs - in_engine
    left = snapshot.total_blocks - committed
    return {
        basis: max(0, _bounded(math.floor(left / need), seats)) for basis, need in blocks.items()
    }


def _bounded(number: int, limit: int | None) -> int:
    return number if limit is None else min(number, limit)
