"""What one layer keeps in the KV cache: one small class per attention kind, as in vLLM.

Source: vLLM 0.32 ``v1/kv_cache_interface.py``.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

from vllm_capacity.units import Blocks, Bytes, Tokens, ceil_div


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """The longest request that a pool must hold.

    Attributes:
        tokens: prompt and output together.
        in_flight_tokens: tokens scheduled and not yet settled.
    """

    tokens: Tokens
    in_flight_tokens: Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class KVCacheSpec(ABC):
    """One layer's share of a block.

    Attributes:
        block_size: tokens of a block.
        page_size_padded: bytes to which a page is padded; None for none.
    """

    kind: ClassVar[str]
    block_size: Tokens
    page_size_padded: Bytes | None = None

    @property
    @abstractmethod
    def unpadded_page_size_bytes(self) -> Bytes:
        """Bytes of one block in this layer, on one rank, that hold anything."""

    @abstractmethod
    def blocks_for(self, request: Request) -> Blocks:
        """Blocks that ``request`` may hold at once in a group of such layers."""

    @property
    @abstractmethod
    def family(self) -> Hashable:
        """Layers of equal family and block size need the same number of blocks.

        Source: ``is_uniform_with_collection`` of each spec.
        """

    @property
    def page_size_bytes(self) -> Bytes:
        """Bytes of one block in this layer, on one rank."""
        return (
            self.unpadded_page_size_bytes
            if self.page_size_padded is None
            else self.page_size_padded
        )

    def merges_with(self, other: "KVCacheSpec") -> bool:
        """Whether one block table may serve both layers; source: ``merge`` of each spec."""
        return self == other


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSpec(KVCacheSpec, ABC):
    """Keys and values, in whichever format the backend packs them.

    Attributes:
        num_kv_heads: heads on one rank.
        head_size: elements of a key.
        element_bytes: bytes of one element.
        head_size_v: elements of a value; None for as many as of a key.
        kv_cache_dtype: vLLM's name of the format; layers of two formats never merge.
        content_bytes: bytes of one key and value, where not ``element_bytes`` for each element.
        slots_per_head: where keys and values are kept apart, 2.
        states_per_token: states that a token stands for.
        tokens_per_state: tokens that one state stands for.
        context_parallel_size: ranks over which a request's tokens are distributed.
    """

    num_kv_heads: int
    head_size: int
    element_bytes: int
    head_size_v: int | None = None
    kv_cache_dtype: str = "auto"
    content_bytes: Bytes | None = None
    slots_per_head: int = 1
    states_per_token: int = 1
    tokens_per_state: int = 1
    context_parallel_size: int = 1

    @property
    def state_content_bytes(self) -> int:
        """Bytes of one state in one head slot."""
        if self.content_bytes is not None:
            return self.content_bytes
        values = self.head_size if self.head_size_v is None else self.head_size_v
        return (self.head_size + values) * self.element_bytes

    @property
    def unpadded_page_size_bytes(self) -> Bytes:
        """Head slots × states × bytes of a state."""
        states = self.block_size * self.states_per_token // self.tokens_per_state
        slots = self.num_kv_heads * self.slots_per_head
        return Bytes(slots * states * self.state_content_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class FullAttentionSpec(AttentionSpec):
    """Every token of a request stays.

    Attributes:
        sliding_window: of a layer that attends to a window and keeps everything all the same.
        attention_chunk_size: the same of a layer that attends within chunks.
    """

    kind: ClassVar[str] = "full_attention"
    sliding_window: Tokens | None = None
    attention_chunk_size: Tokens | None = None

    def blocks_for(self, request: Request) -> Blocks:
        """All tokens, in whole blocks."""
        tokens = ceil_div(request.tokens, self.context_parallel_size)
        return Blocks(ceil_div(tokens, self.block_size))

    @property
    def family(self) -> Hashable:
        """All full attention, latent or not."""
        return FullAttentionSpec

    def merges_with(self, other: KVCacheSpec) -> bool:
        """Equal but for a window: one layer may have one and the other none."""
        if type(other) is not type(self):
            return False
        plain = replace(self, sliding_window=None, attention_chunk_size=None)
        return plain == replace(other, sliding_window=None, attention_chunk_size=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class MLAAttentionSpec(FullAttentionSpec):
    """One latent vector for keys and values of all heads.

    Attributes:
        role: ``sparse`` for latent vectors, ``indexer`` for the keys that pick tokens.
        has_indexer: whether the layer has its own indexer.
    """

    kind: ClassVar[str] = "mla_attention"
    num_kv_heads: int = 1
    head_size_v: int | None = 0
    role: str = "sparse"
    has_indexer: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class SlidingWindowSpec(AttentionSpec):
    """Only the last ``sliding_window`` tokens, and what is in flight, stay.

    Attributes:
        sliding_window: tokens that a token attends to, itself included.
        extra_retained_tokens: tokens before the window that a chain of drafters may read again.
    """

    kind: ClassVar[str] = "sliding_window"
    sliding_window: Tokens
    extra_retained_tokens: int = 0

    def blocks_for(self, request: Request) -> Blocks:
        """The window and the tokens in flight, never more than the request."""
        kept = self.sliding_window - 1 + self.extra_retained_tokens + request.in_flight_tokens
        # +1: the window may start inside a block.
        return Blocks(ceil_div(min(kept, request.tokens), self.block_size) + 1)

    @property
    def family(self) -> Hashable:
        """Equal windows."""
        return SlidingWindowSpec, self.sliding_window


@dataclass(frozen=True, kw_only=True, slots=True)
class SlidingWindowMLASpec(SlidingWindowSpec):
    """A window of latent vectors."""

    kind: ClassVar[str] = "sliding_window_mla"
    num_kv_heads: int = 1
    head_size_v: int | None = 0

    @property
    def family(self) -> Hashable:
        """Equal windows of latent vectors."""
        return SlidingWindowMLASpec, self.sliding_window


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkedLocalAttentionSpec(AttentionSpec):
    """Only the current chunk, and what is in flight, stay.

    Attributes:
        attention_chunk_size: tokens of a chunk.
    """

    kind: ClassVar[str] = "chunked_local_attention"
    attention_chunk_size: Tokens

    def blocks_for(self, request: Request) -> Blocks:
        """One chunk and the tokens in flight, never more than the request."""
        held = min(self.attention_chunk_size + request.in_flight_tokens, request.tokens)
        return Blocks(ceil_div(held, self.block_size))

    @property
    def family(self) -> Hashable:
        """Equal chunks."""
        return ChunkedLocalAttentionSpec, self.attention_chunk_size


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossAttentionSpec(AttentionSpec):
    """The encoder's output, for which vLLM reserves its longest input whatever comes.

    Attributes:
        encoder_tokens: ``max_num_encoder_input_tokens``.
        input_tokens: that one input has, and a running request holds; None where unknown.
    """

    kind: ClassVar[str] = "cross_attention"
    encoder_tokens: Tokens
    input_tokens: Tokens | None = None

    def blocks_for(self, request: Request) -> Blocks:
        """The longest encoder input."""
        del request
        return Blocks(ceil_div(self.encoder_tokens, self.block_size))

    @property
    def family(self) -> Hashable:
        """All cross attention."""
        return CrossAttentionSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class MambaSpec(KVCacheSpec):
    """A recurrent state: its size does not depend on the tokens of a block.

    Attributes:
        states: shape and bytes of an element of every tensor, to tell layers apart.
        mamba_type: vLLM's name of the kind.
        blocks_per_request: states that a request may hold at once.
        num_speculative_blocks: states for drafted tokens, held all the time.
    """

    kind: ClassVar[str] = "mamba"
    states: tuple[tuple[tuple[int, ...], int], ...]
    mamba_type: str
    blocks_per_request: Blocks
    num_speculative_blocks: int = 0

    @property
    def unpadded_page_size_bytes(self) -> Bytes:
        """All tensors of one state."""
        return Bytes(sum(prod(shape) * width for shape, width in self.states))

    def blocks_for(self, request: Request) -> Blocks:
        """The same for every request."""
        del request
        return self.blocks_per_request

    @property
    def family(self) -> Hashable:
        """Equal pages and equally many of them."""
        return MambaSpec, self.page_size_bytes, self.blocks_per_request


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformTypeSpecs(KVCacheSpec):
    """Layers of unequal size that need the same blocks, in one group.

    Source: ``UniformTypeKVCacheSpecs``.

    Attributes:
        members: the distinct layers and how many there are of each.
    """

    members: tuple[tuple[KVCacheSpec, int], ...]

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The members' kind; ``full_attention`` where full attention is of several kinds."""
        kinds = {spec.kind for spec, _ in self.members}
        return kinds.pop() if len(kinds) == 1 else FullAttentionSpec.kind

    @property
    def unpadded_page_size_bytes(self) -> Bytes:
        """All members' pages."""
        return Bytes(sum(spec.page_size_bytes * count for spec, count in self.members))

    def blocks_for(self, request: Request) -> Blocks:
        """What the neediest member needs."""
        return max(spec.blocks_for(request) for spec, _ in self.members)

    @property
    def family(self) -> Hashable:
        """The members'."""
        return self.members[0][0].family
