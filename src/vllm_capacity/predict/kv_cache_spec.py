"""What one layer keeps in the KV cache: one small class per attention kind, as in vLLM.

Source: vLLM 0.32 ``v1/kv_cache_interface.py``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
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
    """

    kind: ClassVar[str]
    block_size: Tokens

    @property
    @abstractmethod
    def page_size_bytes(self) -> Bytes:
        """Bytes of one block in this layer, on one rank."""

    @abstractmethod
    def blocks_for(self, request: Request) -> Blocks:
        """Blocks that ``request`` may hold at once in a group of such layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSpec(KVCacheSpec, ABC):
    """Keys and values: a page is ``(2, block_size, num_kv_heads, head_size)``.

    Attributes:
        num_kv_heads: heads on one rank.
        element_bytes: bytes of one element.
    """

    num_kv_heads: int
    head_size: int
    element_bytes: int

    @property
    def page_size_bytes(self) -> Bytes:
        """Keys and values of one block."""
        per_token = 2 * self.num_kv_heads * self.head_size * self.element_bytes
        return Bytes(self.block_size * per_token)


@dataclass(frozen=True, kw_only=True, slots=True)
class FullAttentionSpec(AttentionSpec):
    """Every token of a request stays."""

    kind: ClassVar[str] = "full_attention"

    def blocks_for(self, request: Request) -> Blocks:
        """All tokens, in whole blocks."""
        return Blocks(ceil_div(request.tokens, self.block_size))


@dataclass(frozen=True, kw_only=True, slots=True)
class SlidingWindowSpec(AttentionSpec):
    """Only the last ``sliding_window`` tokens, and what is in flight, stay.

    Attributes:
        sliding_window: tokens that a token attends to, itself included.
    """

    kind: ClassVar[str] = "sliding_window"
    sliding_window: Tokens

    def blocks_for(self, request: Request) -> Blocks:
        """The window and the tokens in flight, never more than the request."""
        held = min(self.sliding_window - 1 + request.in_flight_tokens, request.tokens)
        # +1: the window may start inside a block.
        return Blocks(ceil_div(held, self.block_size) + 1)
