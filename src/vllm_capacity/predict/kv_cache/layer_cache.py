"""What an attention-like layer keeps, before any block size is known, on one rank.

One small class per kind of layer, with what the model's class passes to vLLM's layer and no more:
dtypes, block sizes and backends are chosen later, for all layers together.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCache:
    """Keys and values of every token, or of a window or a chunk.

    Source: vLLM 0.32 ``model_executor/layers/attention/attention.py``, ``get_kv_cache_spec``.

    Attributes:
        num_kv_heads: heads on one rank.
        head_size: elements of a key.
        head_size_v: elements of a value.
        sliding_window: tokens that a token attends to, itself included; None for all.
        attention_chunk_size: tokens of a chunk that attends only to itself; None for none.
        has_sink: whether the layer has attention sinks, which few backends know.
        states_per_token: encoder states that one token stands for (Whisper's causal encoder).
    """

    num_kv_heads: int
    head_size: int
    head_size_v: int
    sliding_window: int | None = None
    attention_chunk_size: int | None = None
    has_sink: bool = False
    states_per_token: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossAttentionCache:
    """Keys and values of the encoder's output, in an encoder-decoder model.

    Source: vLLM 0.32 ``model_executor/layers/attention/cross_attention.py``.

    Attributes:
        num_kv_heads: heads on one rank.
        head_size: elements of a key and of a value.
        input_tokens: states that the encoder makes of one input; None where not known.
    """

    num_kv_heads: int
    head_size: int
    input_tokens: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentCache:
    """The latent vector of multi-head latent attention, the same on every tensor-parallel rank.

    Source: vLLM 0.32 ``model_executor/layers/attention/mla_attention.py``.

    Attributes:
        head_size: ``kv_lora_rank + qk_rope_head_dim``.
        sparse: whether an indexer picks the tokens that are attended to.
        has_indexer: whether this very layer has its own indexer; others reuse its choice.
        sliding_window: tokens that a token attends to, itself included; None for all.
        num_heads: query heads on one rank; None where not known.
        qk_nope_head_dim: elements of a key without rotary positions.
        qk_rope_head_dim: elements of a key with rotary positions.
    """

    head_size: int
    sparse: bool = False
    has_indexer: bool = False
    sliding_window: int | None = None
    num_heads: int | None = None
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexerCache:
    """The keys by which sparse attention picks tokens, in eight bits with their scales.

    Source: vLLM 0.32 ``model_executor/models/deepseek_v2.py``, ``DeepseekV32IndexerCache``.

    Attributes:
        head_size: bytes of one key and its scales.
    """

    head_size: int


class StateKind(StrEnum):
    """Kinds of recurrent layers, by vLLM's names.

    Source: vLLM 0.32 ``v1/attention/backends/registry.py``, ``MambaAttentionBackendEnum``.
    """

    MAMBA1 = "mamba1"
    MAMBA2 = "mamba2"
    GATED_DELTA_NET = "gdn_attention"
    KIMI_DELTA = "kda"
    LINEAR = "linear_attention"
    SHORT_CONV = "short_conv"


class State(NamedTuple):
    """One tensor of a recurrent layer's state.

    Attributes:
        shape: on one rank; a convolution's window of tokens is the first axis.
        role: ``conv`` for a convolution's window, ``recurrent`` for what is carried on.
        grows_with_drafts: whether the first axis grows by one for every speculative token.
    """

    shape: tuple[int, ...]
    role: str
    grows_with_drafts: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class StateCache:
    """The state of a recurrent layer: as many bytes however long the request is.

    Source: vLLM 0.32 ``model_executor/layers/mamba/abstract.py`` and ``mamba_utils.py``.

    Attributes:
        kind: it decides dtypes and how many states a request holds.
        states: the tensors of one state.
        saves_prefill_state: whether a state from inside a prefill may be kept, which takes one
            more block: Mamba-2 always, Kimi's delta attention where its gate is bounded, heads
            have 128 elements and the GPU has the kernel.
    """

    kind: StateKind
    states: tuple[State, ...]
    saves_prefill_state: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedLatentCache:
    """A latent vector for every few tokens, as DeepSeek-V4 keeps them.

    Source: vLLM 0.32 ``models/deepseek_v4/attention.py``, ``DeepseekV4Attention``.

    Attributes:
        head_size: elements of one latent vector.
        compress_ratio: tokens that one vector stands for.
    """

    head_size: int
    compress_ratio: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedIndexerCache:
    """An indexer's keys for every few tokens, as DeepSeek-V4 keeps them.

    Source: vLLM 0.32 ``models/deepseek_v4/attention.py``, ``DeepseekV4IndexerCache``.

    Attributes:
        head_size: bytes of one key and its scales.
        compress_ratio: tokens that one key stands for.
    """

    head_size: int
    compress_ratio: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowLatentCache:
    """The uncompressed latent vectors of a window, as DeepSeek-V4 keeps them in every layer.

    Source: vLLM 0.32 ``v1/attention/backends/mla/sparse_swa.py``, ``DeepseekV4SWACache``.

    Attributes:
        head_size: elements of one latent vector.
        sliding_window: tokens that a token attends to, itself included.
    """

    head_size: int
    sliding_window: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressorStateCache:
    """What DeepSeek-V4's compressor has not yet compressed, in float32.

    Source: vLLM 0.32 ``models/deepseek_v4/compressor.py``, ``CompressorStateCache``.

    Attributes:
        state_size: elements of a token's state.
        compress_ratio: tokens that are compressed into one, 4 or 128.
    """

    state_size: int
    compress_ratio: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSparseCache(AttentionCache):
    """Keys and values of every token, of which blocks are attended to, as MiniMax-M3 keeps them.

    Source: vLLM 0.32 ``models/minimax_m3/nvidia/model.py``, ``MiniMaxM3SparseAttention``.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockIndexerCache:
    """The keys by which MiniMax-M3 picks blocks, in bfloat16.

    Source: vLLM 0.32 ``models/minimax_m3/common/indexer.py``, ``MiniMaxM3IndexerCache``.

    Attributes:
        head_size: elements of a key.
    """

    head_size: int


LayerCache = (
    AttentionCache
    | CrossAttentionCache
    | LatentCache
    | IndexerCache
    | StateCache
    | CompressedLatentCache
    | CompressedIndexerCache
    | WindowLatentCache
    | CompressorStateCache
    | BlockIndexerCache
)
