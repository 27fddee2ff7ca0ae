"""What of a prompt is cached already, and what of it is worth finding again."""

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_capacity.simulate.block_pool import Block, BlockPool
from vllm_capacity.simulate.cache_groups import CacheGroup
from vllm_capacity.simulate.requests import LiveRequest

BlockTable = list[Block | None]
"""Blocks of one request in one group, first to last; None where the null block stands."""


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """The tokens of a request that need not be computed.

    Attributes:
        num_tokens: how many, a multiple of the block size.
        tables: the blocks of those that the engine itself has cached, by group.
        external_tokens: those among them that are loaded from outside, into blocks of their own.
        junction_tokens: where the cached prefix ends that some groups hold and others do not,
            0 if they agree: worth keeping the next time.
    """

    num_tokens: int
    tables: tuple[BlockTable, ...]
    external_tokens: int = 0
    junction_tokens: int = 0


class PrefixCache:
    """Finds the longest prefix whose blocks are cached in every group.

    Source: vLLM 0.32 ``v1/core/kv_cache_coordinator.py``, ``find_longest_cache_hit``, and
    ``v1/core/single_type_kv_cache_manager.py``, ``reachable_block_mask``. With drafts the last
    block is computed again, for the draft model wants its hidden states.
    """

    def __init__(
        self,
        pool: BlockPool,
        groups: Sequence[CacheGroup],
        *,
        has_drafts: bool,
        has_external_cache: bool,
    ) -> None:
        self._has_external_cache = has_external_cache
        self._pool, self._groups = pool, groups
        self._full = [i for i, group in enumerate(groups) if group.sliding_window is None]
        self._sliding = [i for i, group in enumerate(groups) if group.sliding_window is not None]
        self._block_size = groups[self._full[0]].block_size
        self._dropped = int(has_drafts)

    def find(self, request: LiveRequest) -> PrefixHit:
        """The longest hit; the last token is computed in any case, for its logits."""
        longest = (request.num_tokens - 1) // self._block_size
        if self._dropped and self._sliding:
            longest = min(longest + 1, request.num_tokens // self._block_size)
        tables: list[BlockTable] = [[] for _ in self._groups]
        of_full = self._leading(request, longest, tables)
        end = self._last_window(request, of_full, tables) if self._sliding else of_full
        for i in self._full:
            del tables[i][end:]
        junction = of_full * self._block_size if of_full > end else 0
        external = self._external(request, end)
        return PrefixHit(end * self._block_size + external, tuple(tables), external, junction)

    def is_worth_keeping(self, request: LiveRequest, group_index: int, block_index: int) -> bool:
        """Whether a later request can resume right behind that block.

        A window is kept only where the same prompt, or the junction found with it, ends.
        """
        group = self._groups[group_index]
        if group.sliding_window is None:
            return True
        need = group.window_blocks + self._dropped
        ends = (end // self._block_size + self._dropped for end in self._resume_at(request))
        return any(end - need <= block_index < end for end in ends)

    def _external(self, request: LiveRequest, end: int) -> int:
        """Whole blocks that a connector has beyond the cached ones; it loads them at once.

        Source: vLLM 0.32 ``v1/core/sched/scheduler.py``, ``get_num_new_matched_tokens``.
        """
        if not self._has_external_cache:
            return 0
        known = min(request.submission.spec.external_tokens, request.num_tokens - 1)
        return max(0, known // self._block_size - end) * self._block_size

    def _resume_at(self, request: LiveRequest) -> list[int]:
        block, prompt = self._block_size, request.prompt_tokens
        ends = [prompt - 1]
        if self._dropped:
            ends = [max(end // block * block - block, 0) for end in (prompt - 1, prompt)]
        return [*ends, request.junction_tokens] if request.junction_tokens else ends

    def _leading(self, request: LiveRequest, longest: int, tables: list[BlockTable]) -> int:
        for index in range(longest):
            found = self._cached(request, index, self._full)
            if found is None:
                break
            for i, block in zip(self._full, found, strict=True):
                tables[i].append(block)
        return max(0, len(tables[self._full[0]]) - self._dropped)

    def _last_window(self, request: LiveRequest, longest: int, tables: list[BlockTable]) -> int:
        """The last place, up to ``longest``, behind a whole cached window."""
        sliding, dropped = self._sliding, self._dropped
        need = self._groups[sliding[0]].window_blocks + dropped
        start = min(longest + dropped, request.num_tokens // self._block_size)
        run: list[list[Block]] = []
        for index in range(start - 1, -1, -1):
            found = self._cached(request, index, sliding)
            if found is None:
                run.clear()
                continue
            run.append(found)
            if len(run) >= need:
                break
        else:
            index = 0
        end = max(0, index + len(run) - dropped) if run else 0
        for place, i in enumerate(sliding):
            held = [found[place] for found in reversed(run)]
            tables[i] = ([None] * index + held)[:end] if run else []
        return end

    def _cached(self, request: LiveRequest, index: int, groups: list[int]) -> list[Block] | None:
        found = []
        for i in groups:
            block = self._pool.cached((i, request.content(index, self._block_size)))
            if block is None:
                return None
            found.append(block)
        return found
