"""What an attention-like layer keeps, before any block size is known, on one rank."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCache:
    """Keys and values of every token, or of a window or a chunk.

    Attributes:
        num_kv_heads: heads on one rank.
        head_size: elements of a key.
        head_size_v: elements of a value.
        sliding_window: tokens that a token attends to, itself included; None for all.
        attention_chunk_size: tokens of a chunk that attends only to itself; None for none.
    """

    num_kv_heads: int
    head_size: int
    head_size_v: int
    sliding_window: int | None = None
    attention_chunk_size: int | None = None


LayerCache = AttentionCache
