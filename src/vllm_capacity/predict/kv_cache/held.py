"""Blocks that a running request holds, which are fewer than those it was admitted for.

Every group of layers gives a request a block whenever its last one is full, and takes back those
that it will not read again. The same rules on average, for requests whose length is known as a
mean: where in its block a request stands matters as much as which block it is.

Source: vLLM 0.32 ``v1/core/single_type_kv_cache_manager.py``, ``allocate_new_blocks`` and
``remove_skipped_blocks``; ``v1/core/kv_cache_manager.py``, ``allocate_slots``.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from vllm_capacity.predict.kv_cache.spec import (
    AttentionSpec,
    ChunkedLocalAttentionSpec,
    CrossAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    SlidingWindowSpec,
    UniformTypeSpecs,
)
from vllm_capacity.units import Blocks, Tokens, ceil_div

# So far from its mean a normal number may be: nothing beyond counts.
_DEVIATIONS = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Slots:
    """Where a running request stands.

    Attributes:
        tokens: that have a slot: computed, in flight, and drafted ahead.
        settled_tokens: of those, computed and no longer in flight when slots were last given.
        lookahead_tokens: of those, for what drafts; recurrent states need none there.
    """

    tokens: Tokens
    settled_tokens: Tokens
    lookahead_tokens: int = 0


@dataclass(frozen=True, kw_only=True)  # no slots: it remembers
class KVCacheLayout:
    """What the groups of a cache ask of a running request; no bytes, no number of blocks.

    Attributes:
        specs: what a layer keeps, of every group.
        slots_ahead_tokens: slots beyond the prompt and the delivered tokens, on average.
        max_num_batched_tokens: of one step; None where unknown.
    """

    specs: tuple[KVCacheSpec, ...]
    slots_ahead_tokens: float = 0.0
    max_num_batched_tokens: Tokens | None = None

    @property
    def block_size_tokens(self) -> Tokens:
        """The ``block_size`` that vLLM's metrics show: the smallest."""
        return min(spec.block_size for spec in self.specs)

    def held_blocks(self, slots: Slots) -> Blocks:
        """Blocks over all groups."""
        return Blocks(sum(held_blocks(spec, slots) for spec in self.specs))

    @cached_property
    def distinct_specs(self) -> tuple[tuple[KVCacheSpec, int], ...]:
        """Every spec once, and how many groups there are of it."""
        return tuple(Counter(self.specs).items())


def held_blocks(spec: KVCacheSpec, slots: Slots) -> Blocks:
    """Blocks that a request holds in one group.

    Of a recurrent state in the middle of a prompt it is the most that may be held.
    """
    fixed = blocks_of_any_request(spec)
    if fixed is not None and not isinstance(spec, MambaSpec):
        return fixed
    tokens = slots.tokens
    if isinstance(spec, MambaSpec):
        tokens = Tokens(tokens - slots.lookahead_tokens)
    filled = ceil_div(tokens, tokens_per_block(spec))
    returned = max(0, first_token_read(spec, slots.settled_tokens)) // tokens_per_block(spec)
    kept = filled - min(filled, returned)
    if isinstance(spec, MambaSpec):
        # One more than vLLM reserves: the state that a step in flight starts from.
        return Blocks(min(kept + spec.num_speculative_blocks, spec.blocks_per_request + 1))
    return Blocks(kept)


def blocks_of_any_request(spec: KVCacheSpec) -> Blocks | None:
    """Blocks of every request past its prompt, however long it is; None where that matters."""
    match spec:
        case UniformTypeSpecs():
            return blocks_of_any_request(spec.members[0][0])
        case MambaSpec():
            return Blocks(1 + spec.num_speculative_blocks)
        case CrossAttentionSpec():
            tokens = spec.encoder_tokens if spec.input_tokens is None else spec.input_tokens
            return Blocks(ceil_div(tokens, spec.block_size))
    return None


def tokens_per_block(spec: KVCacheSpec) -> int:
    """Tokens of a request between one block and the next."""
    if isinstance(spec, UniformTypeSpecs):
        return tokens_per_block(spec.members[0][0])
    return spec.block_size * (spec.context_parallel_size if isinstance(spec, AttentionSpec) else 1)


def first_token_read(spec: KVCacheSpec, settled_tokens: int) -> int:
    """The first token that is still needed once so many are settled; blocks before it return.

    Source: ``get_num_skipped_tokens`` of each manager.
    """
    match spec:
        case UniformTypeSpecs():
            return first_token_read(spec.members[0][0], settled_tokens)
        case SlidingWindowSpec():
            return settled_tokens + 1 - spec.sliding_window - spec.extra_retained_tokens
        case ChunkedLocalAttentionSpec():
            chunk = spec.attention_chunk_size
            return settled_tokens // chunk * chunk
        case MambaSpec():
            return settled_tokens - 1
    return 0


def mean_filled_blocks(spec: KVCacheSpec, tokens: float, spread: float) -> float:
    """Blocks in which ``tokens`` have slots, on average over requests that differ by ``spread``."""
    size = tokens_per_block(spec)
    return _mean_floor((tokens + size - 0.5) / size, spread / size)


def mean_returned_blocks(spec: KVCacheSpec, settled_tokens: float, spread: float) -> float:
    """Blocks that were taken back, on average over requests that differ by ``spread``.

    Args:
        spec: what a layer of the group keeps.
        settled_tokens: computed and no longer in flight, of a mean request.
        spread: standard deviation of the requests' tokens.
    """
    size = tokens_per_block(spec)
    match spec:
        case UniformTypeSpecs():
            return mean_returned_blocks(spec.members[0][0], settled_tokens, spread)
        case SlidingWindowSpec():
            first = settled_tokens + 1 - spec.sliding_window - spec.extra_retained_tokens
            return _mean_floor((first + 0.5) / size, spread / size)
        case ChunkedLocalAttentionSpec():
            chunk = spec.attention_chunk_size
            return _mean_floor((settled_tokens + 0.5) / chunk, spread / chunk) * (chunk / size)
    return 0.0


def deviation_of_kept_blocks(
    spec: KVCacheSpec, settled_tokens: float, spread: float, least_tokens: float = 0.0
) -> float:
    """Standard deviation of what one request keeps beyond, or short of, its mean.

    A request within its window keeps every token, one beyond it none more: what differs from one
    request to the next is what is missing to a full window.

    Args:
        spec: what a layer of the group keeps.
        settled_tokens: of a mean request.
        spread: standard deviation of the requests' tokens.
        least_tokens: that every one of them has.
    """
    size = tokens_per_block(spec)
    match spec:
        case UniformTypeSpecs():
            first = spec.members[0][0]
            return deviation_of_kept_blocks(first, settled_tokens, spread, least_tokens)
        case SlidingWindowSpec():
            window = spec.sliding_window + spec.extra_retained_tokens - 1
            missing = window - settled_tokens
            return _deviation_of_excess(missing, spread, window - least_tokens) / size
        case ChunkedLocalAttentionSpec():
            return min(spread, spec.attention_chunk_size / math.sqrt(12)) / size
    return 0.0


def _deviation_of_excess(mean: float, spread: float, most: float) -> float:
    """Standard deviation of what a normal number is above 0, and nothing where it is below.

    Nor is it above ``most``, which bounds the variance by what the mean leaves on either side.
    """
    if most <= 0:
        return 0.0
    spread = max(spread, 1e-6)
    z = mean / spread
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    above = _share_below(mean, spread)
    first = z * above + density
    variance = spread**2 * ((1 + z * z) * above + z * density - first * first)
    excess = min(most / 2, spread * first)
    return math.sqrt(max(0.0, min(variance, excess * (most - excess))))


def _mean_floor(mean: float, spread: float) -> float:
    """Mean of ⌊x⌋ where positive, of a normal x.

    By the chance to have reached each whole number; of a wide spread, by the integral. Tokens are
    whole: callers add half a token, so that a bound that is just reached counts.
    """
    spread = max(spread, 1e-6)
    if spread > 1:
        return _mean_excess(mean - 0.5, spread)
    low = max(0, math.floor(mean - _DEVIATIONS * spread))
    high = math.floor(mean + _DEVIATIONS * spread)
    return low + sum(_share_below(mean - k, spread) for k in range(low + 1, high + 1))


def _mean_excess(mean: float, spread: float) -> float:
    """Mean of what a normal number is above 0, and nothing where it is below."""
    density = math.exp(-((mean / spread) ** 2) / 2) / math.sqrt(2 * math.pi)
    return mean * _share_below(mean, spread) + spread * density


def _share_below(mean: float, spread: float) -> float:
    """The chance of a normal number of this mean to be above 0."""
    return 0.5 * (1 + math.erf(mean / (spread * math.sqrt(2))))
