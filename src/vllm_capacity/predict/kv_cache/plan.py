"""Layers → groups → blocks, tokens and concurrency.

Source: vLLM 0.32 ``v1/core/kv_cache_utils.py``, ``get_kv_cache_configs``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_capacity.predict.kv_cache.spec import (
    AttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    Request,
)
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.vllm_version import VllmVersion
from vllm_capacity.units import GIB, Blocks, Bytes, Tokens

_NO_BLOCKS = (
    "No available memory for the cache blocks. Raise gpu_memory_utilization, or spend less on "
    "weights and activations."
)
#: Since then the start-up check keeps the null block's bytes aside.
_RESERVES_NULL_BLOCK = VllmVersion(0, 32)
#: Since then tokens are concurrency × max_model_len; before, blocks × block size.
_TOKENS_FROM_CONCURRENCY = VllmVersion(0, 21)
#: Since then concurrency counts a request's whole blocks.
_CONCURRENCY_IN_BLOCKS = VllmVersion(0, 9)


@dataclass(frozen=True, kw_only=True, slots=True)
class KVCacheGroup:
    """Layers that share one block table.

    Attributes:
        spec: what each of them keeps; ``UniformTypeSpecs`` where they keep unequally much.
        layers: layers of the whole model in the group.
        layers_per_rank: how many of them each rank has.
        bytes_per_rank: bytes of one block in all of them, on each rank.
    """

    spec: KVCacheSpec
    layers: int
    layers_per_rank: tuple[int, ...]
    bytes_per_rank: tuple[Bytes, ...] = ()

    @property
    def kind(self) -> str:
        """The attention kind, by vLLM's name."""
        return self.spec.kind

    def block_bytes(self, rank: int) -> Bytes:
        """Bytes of one block in the group's layers on ``rank``."""
        if self.bytes_per_rank:
            return self.bytes_per_rank[rank]
        return Bytes(self.layers_per_rank[rank] * self.spec.page_size_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class KVCachePlan:
    """The KV cache that vLLM allocates for given bytes.

    Attributes:
        available_bytes: bytes for the cache on every rank.
        bytes_per_block: bytes of one block on every rank.
        num_blocks: blocks of the pool, the null block included; None if none fit.
        kv_cache_size_tokens: what vLLM prints as the size of the cache.
        max_concurrency: requests of ``max_model_len`` that fit at once.
        blocks_per_max_len_request: blocks of such a request in every group.
        max_model_len: as asked, or as fitted where vLLM was told to fit it.
        error: why vLLM would refuse to start, None if it would not.
        estimated_max_model_len: with such an error, the longest request that would fit.
        origin: ``predicted budget``, ``kv_cache_memory_bytes``, ``num_gpu_blocks_override`` or
            ``asked``.
    """

    available_bytes: tuple[Bytes, ...]
    bytes_per_block: tuple[Bytes, ...]
    num_blocks: Blocks | None
    kv_cache_size_tokens: Tokens | None
    max_concurrency: float | None
    blocks_per_max_len_request: tuple[Blocks, ...]
    groups: tuple[KVCacheGroup, ...]
    max_model_len: Tokens
    in_flight_tokens: Tokens
    error: str | None
    estimated_max_model_len: Tokens | None
    origin: str

    def blocks_for_request(self, tokens: int) -> int:
        """Blocks that a request of so many tokens holds over all groups."""
        request = Request(tokens=Tokens(tokens), in_flight_tokens=self.in_flight_tokens)
        return sum(group.spec.blocks_for(request) for group in self.groups)

    @property
    def cache_config_block_size(self) -> Tokens:
        """The ``block_size`` that vLLM's metrics show once groups are made: the smallest."""
        return min(group.spec.block_size for group in self.groups)


@dataclass(frozen=True, kw_only=True, slots=True)
class Planner:
    """Plans the cache of one deployment for any number of bytes.

    Attributes:
        num_blocks_override: ``--num-gpu-blocks-override``.
        fits_max_model_len: whether vLLM may shorten ``max_model_len``.
        block_size: tokens of a block as vLLM settles it before it groups layers.
        kv_cache_dtype: as the cache configuration shows it once layers are built.
        context_parallel_size: ranks over which a request's tokens are distributed.
        refusal: why there are groups and yet no plan can be made; None if one can.
    """

    groups: tuple[KVCacheGroup, ...]
    max_model_len: Tokens
    in_flight_tokens: Tokens
    version: VllmVersion
    num_blocks_override: int | None = None
    fits_max_model_len: bool = False
    block_size: Tokens | None = None
    kv_cache_dtype: str | None = None
    context_parallel_size: int = 1
    refusal: str | None = None

    def bytes_per_block(self) -> tuple[Bytes, ...]:
        """Bytes of one block on every rank: its largest group.

        Source: vLLM 0.32, ``_get_kv_cache_bytes_per_block``.
        """
        ranks = range(len(self.groups[0].layers_per_rank))
        return tuple(Bytes(max(group.block_bytes(rank) for group in self.groups)) for rank in ranks)

    def bytes_per_token(self) -> tuple[Bytes, ...]:
        """What one more token of a long request costs on every rank, padding included.

        Windows count only where nothing else grows; recurrent states never do.
        """
        full = [group for group in self.groups if group.spec.family is FullAttentionSpec]
        growing = full or [each for each in self.groups if isinstance(each.spec, AttentionSpec)]
        shared = self.context_parallel_size
        return tuple(
            Bytes(sum(size // (group.spec.block_size * shared) for group in growing))
            for size in self.bytes_per_block()
        )

    def plan(self, available: Sequence[int], origin: str) -> KVCachePlan:
        """The cache for ``available`` bytes on every rank.

        Raises:
            Refusal: it is not known how much a request may hold.
        """
        if self.refusal is not None:
            raise Refusal(self.refusal)
        per_block = self.bytes_per_block()
        if self.num_blocks_override is not None:
            available = [self.num_blocks_override * size for size in per_block]
        rooms = [
            (self._spendable(size, each), each)
            for size, each in zip(available, per_block, strict=True)
            if each
        ]
        length = self.max_model_len
        if self.fits_max_model_len:
            length = min(self._longest_fitting(*room) for room in rooms) or length
        error, fitting = self._refusal(length, rooms)
        blocks = None if error else self._num_blocks(available, per_block)
        needed = tuple(self._blocks_of(length))
        concurrency = None if blocks is None else self._max_concurrency(blocks, length)
        return KVCachePlan(
            available_bytes=tuple(Bytes(size) for size in available),
            bytes_per_block=per_block,
            num_blocks=blocks,
            kv_cache_size_tokens=self._size_tokens(blocks, concurrency, length),
            max_concurrency=concurrency,
            blocks_per_max_len_request=needed,
            groups=self.groups,
            max_model_len=length,
            in_flight_tokens=self.in_flight_tokens,
            error=error,
            estimated_max_model_len=fitting,
            origin=origin,
        )

    def _spendable(self, available: int, per_block: int) -> int:
        return available - per_block if self.version >= _RESERVES_NULL_BLOCK else available

    def _num_blocks(self, available: Sequence[int], per_block: Sequence[int]) -> Blocks:
        if self.num_blocks_override is not None:
            return Blocks(self.num_blocks_override)
        pairs = zip(available, per_block, strict=True)
        return Blocks(min(size // each for size, each in pairs if each))

    def _blocks_of(self, tokens: int) -> list[Blocks]:
        request = Request(tokens=Tokens(tokens), in_flight_tokens=self.in_flight_tokens)
        return [group.spec.blocks_for(request) for group in self.groups]

    def _max_concurrency(self, blocks: int, length: int) -> float:
        if self.version < _CONCURRENCY_IN_BLOCKS:
            return blocks * self.groups[0].spec.block_size / length
        return blocks / sum(self._blocks_of(length))

    def _size_tokens(
        self, blocks: int | None, concurrency: float | None, length: int
    ) -> Tokens | None:
        if blocks is None or concurrency is None:
            return None
        if self.version >= _TOKENS_FROM_CONCURRENCY:
            return Tokens(int(concurrency * length))
        block_size = min(group.spec.block_size for group in self.groups)
        return Tokens(blocks // len(self.groups) * block_size * self.context_parallel_size)

    def _longest_fitting(self, spendable: int, per_block: int) -> Tokens:
        """The longest request of at most ``max_model_len`` that fits, 0 if none does.

        Source: vLLM 0.32, ``_estimate_max_model_len_from_groups``.
        """
        low, high, longest = 1, self.max_model_len, 0
        while low <= high:
            middle = (low + high) // 2
            if per_block * sum(self._blocks_of(middle)) <= spendable:
                longest, low = middle, middle + 1
            else:
                high = Tokens(middle - 1)
        return Tokens(longest)

    def _refusal(
        self, length: int, rooms: Sequence[tuple[int, int]]
    ) -> tuple[str | None, Tokens | None]:
        """Why the first rank that is too small refuses, and the longest request that fits it.

        Source: vLLM 0.32, ``_check_enough_kv_cache_memory``.
        """
        needed = sum(self._blocks_of(length))
        for room, each in rooms:
            if room <= 0:
                return _NO_BLOCKS, None
            if needed * each > room:
                fitting = self._longest_fitting(room, each)
                return _too_small(length, needed * each, room, fitting), fitting or None
        return None, None


def _too_small(length: int, needed: int, room: int, fitting: int) -> str:
    hint = f" The longest that would fit is {fitting} tokens." if fitting > 0 else ""
    return (
        f"To serve at least one request with the model's max seq len ({length}), "
        f"{needed / GIB:.2f} GiB KV cache is needed, which is larger than the available KV cache "
        f"memory ({room / GIB:.2f} GiB).{hint} Raise gpu_memory_utilization or lower "
        "max_model_len."
    )
