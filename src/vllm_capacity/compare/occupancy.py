"""Blocks that the requests in flight ought to hold, from the ledger's tokens."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vllm_capacity.compare.capacity import is_hybrid, planned
from vllm_capacity.observe.engine_snapshot import EngineSnapshot
from vllm_capacity.observe.histogram_spread import standard_deviation
from vllm_capacity.observe.ledger import LedgerReading, RequestsInFlight
from vllm_capacity.predict import KVCacheLayout, Prediction
from vllm_capacity.predict.kv_cache.held import (
    Slots,
    blocks_of_any_request,
    deviation_of_kept_blocks,
    mean_filled_blocks,
    mean_returned_blocks,
    tokens_per_block,
)
from vllm_capacity.predict.kv_cache.spec import KVCacheSpec, MambaSpec
from vllm_capacity.units import Tokens

# Half the width of the interval, in standard deviations: 95 % of a normal distribution and a bit.
_DEVIATIONS = 2.2
# Less than half of a block, or of a request, is none.
_HALF = 0.5
# Blocks are taken back when the next ones are given, for what was settled then: at the first token
# nothing of the last chunk of the prompt.
# Source: vLLM 0.32 ``KVCacheManager.allocate_slots``, ``remove_skipped_blocks``.
_IN_FLIGHT_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Blocks that ought to be in use, and bounds that should hold the used ones 95 times of 100."""

    blocks: float
    low: float
    high: float

    def within(self, pool: int | None) -> "Occupancy":
        """The same, as there are no more blocks than those of the pool."""
        most = math.inf if pool is None else float(pool)
        return Occupancy(min(most, self.blocks), min(most, self.low), min(most, self.high))


def predicted_occupancy(
    ledger: LedgerReading, snapshot: EngineSnapshot, prediction: Prediction | None
) -> Occupancy | None:
    """Blocks in use, as they follow from tokens alone; the used blocks are never looked at.

    With one group of layers: tokens over block size, and half a block for each request, since the
    last one is half empty on average. With several groups, or layers that let tokens go, the
    layout knows what a request holds. None where ``unknown_occupancy`` says why.
    """
    if unknown_occupancy(ledger, snapshot, prediction) is not None:
        return None
    tokens, running = ledger.resident_tokens or 0.0, ledger.running_requests
    block_size = snapshot.block_size_tokens or 1
    if not running:
        return Occupancy(0.0, 0.0, 0.0)
    layout = fitting_layout(prediction, snapshot)
    if layout is not None and _needs_layout(layout):
        found = _by_layout(layout, ledger, _prompt_spread(snapshot))
    else:
        low, high = _token_bounds(ledger)
        half_empty = running * (block_size - 1) / (2 * block_size)
        found = Occupancy(*(each / block_size + half_empty for each in (tokens, low, high)))
    return found.within(snapshot.total_blocks)


def unknown_occupancy(
    ledger: LedgerReading, snapshot: EngineSnapshot, prediction: Prediction | None
) -> str | None:
    """Why it cannot be said which blocks ought to be in use; None where it can."""
    if ledger.resident_tokens is None or ledger.running_requests is None:
        return ledger.reason
    if not snapshot.block_size_tokens:
        return "the engine does not say how many tokens a block holds"
    layout = fitting_layout(prediction, snapshot)
    if layout is not None or not ledger.running_requests or not is_hybrid(snapshot):
        return None
    if prediction is None:
        return "layers hold unequally many tokens, and only the model's config.json says which"
    if prediction.layout is not None:
        return "blocks have another size than the model's config.json and arguments lead to"
    return prediction.reason or "what layers hold hangs on the GPU: give --gpu"


def fitting_layout(prediction: Prediction | None, snapshot: EngineSnapshot) -> KVCacheLayout | None:
    """What running requests hold, if it is known and the engine's blocks are of that size."""
    layout = None if prediction is None else prediction.layout
    if layout is None or layout.block_size_tokens != snapshot.block_size_tokens:
        return None
    return layout


def _needs_layout(layout: KVCacheLayout) -> bool:
    """Whether tokens over block size is not all there is to say."""
    if len(layout.specs) > 1 or layout.slots_ahead_tokens > 0:
        return True
    spec = layout.specs[0]
    lets_go = mean_returned_blocks(spec, 1e9, 0.0) > 0
    return (
        lets_go
        or blocks_of_any_request(spec) is not None
        or tokens_per_block(spec) != spec.block_size
    )


def _token_bounds(ledger: LedgerReading) -> tuple[float, float]:
    tokens = ledger.resident_tokens or 0.0
    low, high = ledger.resident_tokens_low, ledger.resident_tokens_high
    return tokens if low is None else low, tokens if high is None else high


class _Requests(NamedTuple):
    """Requests of like length that hold blocks; tokens are those of a mean one.

    ``settled_tokens`` are those of which blocks may have been taken back; ``spread`` is the
    standard deviation of one's tokens, ``most_spread`` what it may be at most; each has
    ``least_tokens``.
    """

    requests: float
    tokens: float
    settled_tokens: float
    spread: float
    most_spread: float
    least_tokens: float = 0.0
    is_prefilling: bool = False


def _prompt_spread(snapshot: EngineSnapshot) -> float | None:
    prompts = snapshot.request_prompt_tokens
    return None if prompts is None else standard_deviation(prompts)


class _Share(NamedTuple):
    """Blocks of one request over all groups.

    ``per_token`` are those that one more token adds; ``deviation`` is how far the blocks of one
    may be from those of a mean one.
    """

    blocks: float
    per_token: float
    deviation: float


def _by_layout(layout: KVCacheLayout, ledger: LedgerReading, spread: float | None) -> Occupancy:
    requests = list(_holders(layout, ledger, spread))
    running = sum(each.requests for each in requests)
    tokens = ledger.resident_tokens or 0.0
    known = sum(each.requests * each.tokens for each in requests)
    shared = max(0.0, known - tokens) / running
    blocks = slope = variance = 0.0
    for each in requests:
        share = _share(each, layout, shared)
        blocks += each.requests * share.blocks
        slope += each.requests * share.per_token / running
        variance += each.requests * share.deviation**2
    low, high = _token_bounds(ledger)
    noise = _DEVIATIONS * math.sqrt(variance)
    return Occupancy(
        blocks,
        max(0.0, blocks - (tokens - low) * slope - noise),
        blocks + (high - tokens) * slope + noise,
    )


def _holders(
    layout: KVCacheLayout, ledger: LedgerReading, prompt_spread: float | None
) -> Iterator[_Requests]:
    """Requests past their first token that hold blocks, then those that are still prefilled."""
    chunk = layout.max_num_batched_tokens or math.inf
    known = 0.0
    for cohort in ledger.cohorts:
        if cohort.resident_requests <= 0:
            continue
        tokens = cohort.prompt_tokens + cohort.generated_tokens
        known += cohort.resident_requests * tokens
        just_began = 0.5 <= cohort.generated_tokens < 1.5
        settled = cohort.prompt_tokens - chunk if just_began else tokens - _IN_FLIGHT_TOKENS
        spreads = _spreads(cohort, prompt_spread)
        generated = cohort.generated_tokens
        yield _Requests(
            cohort.resident_requests, tokens, max(0.0, settled), *spreads, least_tokens=generated
        )
    past = sum(cohort.resident_requests for cohort in ledger.cohorts)
    prefilling = (ledger.running_requests or 0) - past
    if prefilling < _HALF:
        return
    tokens = max(0.0, (ledger.resident_tokens or 0.0) - known) / prefilling
    settled = max(0.0, tokens - chunk)
    yield _Requests(prefilling, tokens, settled, tokens / 2, tokens / 2, is_prefilling=True)


def _spreads(cohort: RequestsInFlight, prompt_spread: float | None) -> tuple[float, float]:
    """Standard deviation of one request's tokens from those of its cohort's mean one, and at most.

    The cohort's sum is known, which leaves one request less to differ; a cohort of one that is not
    exact was once part of a larger one. Short prompts differ less, unless among them is a long one.
    """
    if cohort.is_exact:
        return 1.0, 1.0
    even = cohort.prompt_tokens / math.sqrt(3)  # every length up to twice the mean as likely
    spread = even if prompt_spread is None else prompt_spread
    free = math.sqrt(1 - 1 / max(2.0, cohort.requests))
    return min(even, spread) * free, spread * free


def _share(request: _Requests, layout: KVCacheLayout, shared: float) -> _Share:
    """What one request holds of its own, ``shared`` tokens of its prefix being another's."""
    slots, settled = request.tokens + layout.slots_ahead_tokens, request.settled_tokens
    spread, most_spread = request.spread, request.most_spread
    if not settled:  # all hold everything
        spread = most_spread = 0.0
    blocks = per_token = deviation = 0.0
    for spec, groups in layout.distinct_specs:
        fixed = blocks_of_any_request(spec)
        if fixed is not None:
            in_prompt = (_most_blocks(spec, fixed) - fixed) if request.is_prefilling else 0
            blocks += groups * (fixed + in_prompt / 2)
            deviation += groups * in_prompt / 2
            continue
        size = tokens_per_block(spec)
        filled = mean_filled_blocks(spec, slots, request.spread)
        returned = mean_returned_blocks(spec, settled, spread)
        # What a window lets go, it does not share any more.
        blocks += groups * (filled - max(returned, shared / size))
        per_token += groups / size * (returned < _HALF)
        apart = deviation_of_kept_blocks(spec, settled, most_spread, request.least_tokens)
        if apart < _HALF and (returned > _HALF or request.spread <= 1):
            odd = (filled - returned) % 1  # some have a block more than others
            apart += math.sqrt(odd * (1 - odd))
        deviation += groups * apart
    return _Share(blocks, per_token, deviation)


def _most_blocks(spec: KVCacheSpec, fixed: int) -> int:
    return spec.blocks_per_request if isinstance(spec, MambaSpec) else fixed


def blocks_for_request(
    tokens: float, snapshot: EngineSnapshot, prediction: Prediction | None
) -> float | None:
    """Blocks that one request of so many tokens may take: what it needs to be admitted whole.

    Without a plan, what it holds at its end.
    """
    plan, layout = planned(prediction), fitting_layout(prediction, snapshot)
    if plan is not None:
        return plan.blocks_for_request(round(tokens))
    if layout is not None:
        whole = Tokens(round(tokens))
        return layout.held_blocks(Slots(tokens=whole, settled_tokens=whole))
    if snapshot.block_size_tokens is None or is_hybrid(snapshot):
        return None
    return -(-round(tokens) // snapshot.block_size_tokens)
