"""The pool of KV-cache blocks: free queue, reference counts and the prefix cache."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

from vllm_capacity.units import Blocks


class Block:
    """One block.

    Attributes:
        block_id: its place in the pool; 0 is the null block.
        ref_count: requests that hold it.
        content: what a full block holds, as the prefix cache names it; None if not cached.
    """

    __slots__ = ("block_id", "content", "ref_count")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_count = 0
        self.content: Hashable | None = None


class BlockPool:
    """Blocks of one engine. A free block keeps its content until it is handed out again.

    Free blocks queue up: those without content at the front, newest first, then those with
    content, least recently used first.

    Source: vLLM 0.32 ``v1/core/block_pool.py``, ``BlockPool``.
    """

    def __init__(self, num_gpu_blocks: int, *, enable_caching: bool) -> None:
        self._enable_caching = enable_caching
        self._num_usable = num_gpu_blocks - 1
        blocks = [Block(block_id) for block_id in range(num_gpu_blocks)]
        # Block 0 is the null block: it stands for no block and is never handed out.
        self._free: OrderedDict[Block, None] = OrderedDict.fromkeys(blocks[1:])
        # Two requests may compute the same content at once; both blocks are kept.
        self._cached: dict[Hashable, dict[Block, None]] = {}

    @property
    def num_free_blocks(self) -> Blocks:
        """Blocks that can be handed out, cached or not."""
        return Blocks(len(self._free))

    @property
    def num_used_blocks(self) -> Blocks:
        """Distinct blocks held by requests; the null block is not counted."""
        return Blocks(self._num_usable - len(self._free))

    @property
    def usage_ratio(self) -> float:
        """Share of the usable blocks that is held, 0 to 1: ``1 - free / (N - 1)``."""
        return 1.0 - len(self._free) / self._num_usable

    def cached(self, content: Hashable) -> Block | None:
        """A block that holds ``content``, oldest first; None if none does."""
        blocks = self._cached.get(content)
        return next(iter(blocks)) if blocks else None

    def allocate(self, count: int) -> list[Block]:
        """Hand out ``count`` blocks, forgetting what they held.

        Raises:
            ValueError: fewer are free; the caller must ask ``num_free_blocks`` first.
        """
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked, {len(self._free)} blocks free")
        return [self._hand_out() for _ in range(count)]

    def touch(self, blocks: Iterable[Block]) -> None:
        """Hold ``blocks`` once more; a free one leaves the free queue."""
        for block in blocks:
            if block.ref_count == 0:
                del self._free[block]
            block.ref_count += 1

    def remember(self, block: Block, content: Hashable) -> None:
        """Let the prefix cache find ``block`` by what it holds."""
        if self._enable_caching:
            block.content = content
            self._cached.setdefault(content, {})[block] = None

    def release(self, blocks: Sequence[Block]) -> None:
        """Let go of one request's blocks, given first to last.

        The last are handed out again first, for a prefix is of use only from its start.
        """
        empty = []
        for block in reversed(blocks):
            block.ref_count -= 1
            if block.ref_count:
                continue
            self._free[block] = None
            if block.content is None:
                empty.append(block)
        for block in reversed(empty):
            self._free.move_to_end(block, last=False)

    def _hand_out(self) -> Block:
        block, _ = self._free.popitem(last=False)
        if block.content is not None:
            holders = self._cached[block.content]
            del holders[block]
            if not holders:
                del self._cached[block.content]
            block.content = None
        block.ref_count = 1
        return block
