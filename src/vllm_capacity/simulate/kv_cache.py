"""Gives requests their blocks, in every group of layers, and takes them back."""

from collections.abc import Iterable, Sequence

from vllm_capacity.simulate.block_pool import Block, BlockPool
from vllm_capacity.simulate.config import SimulationConfig
from vllm_capacity.simulate.prefix_cache import PrefixCache, PrefixHit
from vllm_capacity.simulate.requests import LiveRequest


class KVCache:
    """The pool of one engine and the block tables of its requests.

    Source: vLLM 0.32 ``v1/core/kv_cache_manager.py``, ``allocate_slots``, ``free``.
    """

    def __init__(self, config: SimulationConfig) -> None:
        self.pool = BlockPool(config.num_gpu_blocks, enable_caching=config.enable_prefix_caching)
        self._groups = config.cache_groups
        in_flight = config.max_in_flight_tokens
        self._most = [g.most_blocks(config.max_model_len, in_flight) for g in self._groups]
        self._max_model_len = config.max_model_len
        self._lookahead_tokens = config.num_speculative_tokens
        self._is_caching = config.enable_prefix_caching
        self._prefixes = PrefixCache(
            self.pool,
            self._groups,
            has_drafts=config.num_speculative_tokens > 0,
            has_external_cache=config.external_cache,
        )

    def find_prefix(self, request: LiveRequest) -> PrefixHit:
        """The leading tokens of a request that are cached."""
        if not self._is_caching:
            return PrefixHit(0, tuple([] for _ in self._groups))
        return self._prefixes.find(request)

    def admit(self, request: LiveRequest, hit: PrefixHit, num_tokens: int) -> bool:
        """Give a new request what is cached, and blocks for its first tokens.

        False if blocks are short, be it for those tokens or for the whole sequence.
        """
        slots = self._slots(hit.num_tokens + num_tokens)
        whole = self._needed(hit, request.num_tokens, at_most=self._most)
        if max(whole, self._needed(hit, slots)) > self.pool.num_free_blocks:
            return False
        request.junction_tokens = hit.junction_tokens
        request.tables = [self._adopt(i, hit) for i in range(len(self._groups))]
        request.num_cached_blocks = [len(table) for table in request.tables]
        self._extend(request, slots)
        self.remember(request, min(hit.num_tokens + num_tokens, request.num_tokens))
        return True

    def grow(self, request: LiveRequest, num_tokens: int) -> bool:
        """Give a running request blocks for its next tokens; False if blocks are short.

        What has left a window is free before, even if that does not suffice.
        """
        self._drop_skipped(request)
        slots = self._slots(request.num_computed_tokens + num_tokens)
        needed = sum(
            max(0, group.required_blocks(slots) - len(table))
            for group, table in zip(self._groups, request.tables, strict=True)
        )
        if needed > self.pool.num_free_blocks:
            return False
        self._extend(request, slots)
        self.remember(request, min(request.num_computed_tokens + num_tokens, request.num_tokens))
        return True

    def remember(self, request: LiveRequest, num_tokens: int) -> None:
        """Let the prefix cache know the full blocks among a request's first tokens."""
        if not self._is_caching:
            return
        for i, group in enumerate(self._groups):
            start, end = request.num_cached_blocks[i], num_tokens // group.block_size
            for index in range(start, end):
                block = request.tables[i][index]
                if block is not None and self._prefixes.is_worth_keeping(request, i, index):
                    self.pool.remember(block, (i, request.content(index, group.block_size)))
            request.num_cached_blocks[i] = max(start, end)

    def free(self, request: LiveRequest) -> None:
        """Take back all blocks of a request."""
        for table in request.tables:
            self.pool.release(_held(table))
        request.tables.clear()
        request.num_cached_blocks.clear()

    def _slots(self, num_tokens: int) -> int:
        """Tokens to have room for: drafts are written beyond those that are verified."""
        return min(num_tokens + self._lookahead_tokens, self._max_model_len)

    def _needed(self, hit: PrefixHit, num_tokens: int, at_most: Sequence[int] | None = None) -> int:
        """Blocks that a new request takes from the free ones, cached ones that it revives too."""
        needed = 0
        for i, (group, table) in enumerate(zip(self._groups, hit.tables, strict=True)):
            skipped = group.skipped_blocks(hit.num_tokens)
            required = group.required_blocks(num_tokens)
            required = min(required, at_most[i]) if at_most else required
            needed += max(0, required - max(skipped, len(table)))
            needed += sum(block.ref_count == 0 for block in _held(table[skipped:]))
        return needed

    def _adopt(self, group_index: int, hit: PrefixHit) -> list[Block | None]:
        skipped = self._groups[group_index].skipped_blocks(hit.num_tokens)
        kept = hit.tables[group_index][skipped:]
        self.pool.touch(_held(kept))
        return [*([None] * skipped), *kept]

    def _extend(self, request: LiveRequest, num_tokens: int) -> None:
        for group, table in zip(self._groups, request.tables, strict=True):
            missing = group.required_blocks(num_tokens) - len(table)
            if missing > 0:
                table.extend(self.pool.allocate(missing))

    def _drop_skipped(self, request: LiveRequest) -> None:
        processed = max(0, request.num_computed_tokens - request.num_in_flight_tokens)
        for group, table in zip(self._groups, request.tables, strict=True):
            end = min(group.skipped_blocks(processed), len(table))
            start = end
            while start and table[start - 1] is not None:
                start -= 1
            self.pool.release(_held(table[start:end]))
            table[start:end] = [None] * (end - start)


def _held(table: Iterable[Block | None]) -> list[Block]:
    return [block for block in table if block is not None]
