"""A layer with the KV cache type and the attention backend that vLLM gives it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from vllm_capacity.predict.kv_cache.args import CacheArgs
from vllm_capacity.predict.kv_cache.attention_backend import Backend, Wanted
from vllm_capacity.predict.kv_cache.backend_choice import choose_backend
from vllm_capacity.predict.kv_cache.flash_attention import Heads
from vllm_capacity.predict.kv_cache.format import is_quantized
from vllm_capacity.predict.kv_cache.layer_cache import (
    AttentionCache,
    BlockIndexerCache,
    BlockSparseCache,
    CompressedIndexerCache,
    CompressedLatentCache,
    CompressorStateCache,
    CrossAttentionCache,
    IndexerCache,
    LatentCache,
    LayerCache,
    StateCache,
    WindowLatentCache,
)
from vllm_capacity.predict.refusal import Refusal

#: Backends that belong to a layer and are never chosen.
#: Source: vLLM 0.32 ``v1/attention/backends/mla/indexer.py`` and ``sparse_swa.py``,
#: ``models/deepseek_v4/sparse_mla.py`` and ``compressor.py``, ``flash_attn_diffkv.py``,
#: ``models/minimax_m3/common/sparse_attention.py`` and ``indexer.py``.
_OWN_BACKENDS: dict[type, Backend | None] = {
    StateCache: None,
    IndexerCache: Backend(name="DEEPSEEK_V32_INDEXER", kernel_blocks=(64,), any_multiple=False),
    CompressedIndexerCache: Backend(
        name="DEEPSEEK_V4_INDEXER", kernel_blocks=(256,), any_multiple=False
    ),
    CompressedLatentCache: Backend(
        name="FLASHMLA_SPARSE_DSV4", kernel_blocks=(256,), any_multiple=False
    ),
    WindowLatentCache: Backend(name="DEEPSEEK_SPARSE_SWA", kernel_blocks=(32,)),
    CompressorStateCache: Backend(name="CompressorBackend", kernel_blocks=(1,)),
    BlockSparseCache: Backend(name="MINIMAX_M3_SPARSE", kernel_blocks=(128,), any_multiple=False),
    BlockIndexerCache: Backend(
        name="MINIMAX_M3_SPARSE_INDEXER", kernel_blocks=(128,), any_multiple=False
    ),
}
_UNEQUAL_HEADS = Backend(name="FLASH_ATTN_DIFFKV")
#: What that backend keeps in a byte an element.
_WHOLE_BYTES = {
    "fp8",
    "fp8_e4m3",
    "fp8_per_token_head",
    "int4_per_token_head",
    "int8_per_token_head",
}
_V4 = CompressedLatentCache | CompressedIndexerCache | WindowLatentCache | CompressorStateCache
#: The only format of DeepSeek-V4's latent vectors with its default backend.
#: Source: vLLM 0.32 ``models/deepseek_v4/attention.py``, ``_resolve_dsv4_kv_cache_dtype``.
_PACKED_FP8 = "fp8_ds_mla"


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """What equal layers share.

    Attributes:
        cache: what each keeps.
        kv_cache_dtype: in which format.
        backend: which backend reads it; None for recurrent layers.
    """

    cache: LayerCache
    kv_cache_dtype: str
    backend: Backend | None


class PlacedLayer(NamedTuple):
    """One layer on one rank.

    Attributes:
        name: vLLM's module path.
    """

    name: str
    placement: Placement


def place(
    stages: Sequence[Iterable[tuple[str, LayerCache]]], args: CacheArgs
) -> list[list[PlacedLayer]]:
    """Every layer of every pipeline stage with its format and backend, in vLLM's order.

    Raises:
        Refusal: no backend takes a layer.
    """
    known: dict[tuple[LayerCache, str], Placement] = {}

    def placement(name: str, kept: LayerCache) -> Placement:
        key = (kept, _kv_cache_dtype(name, kept, args))
        if key not in known:
            known[key] = _placement(*key, args)
        return known[key]

    return [[PlacedLayer(name, placement(name, kept)) for name, kept in each] for each in stages]


def _placement(kept: LayerCache, kv_cache_dtype: str, args: CacheArgs) -> Placement:
    backend = _backend(kept, kv_cache_dtype, args)
    return Placement(kept, _canonical(kv_cache_dtype, backend), backend)


def _kv_cache_dtype(name: str, kept: LayerCache, args: CacheArgs) -> str:
    """Source: vLLM 0.32 ``model_executor/layers/attention/attention.py``, ``Attention``."""
    if isinstance(kept, _V4):
        if args.kv_cache_dtype != "auto" and not args.kv_cache_dtype.startswith("fp8"):
            raise Refusal("vLLM refuses to start: DeepSeek-V4 keeps its cache in fp8")
        return _PACKED_FP8
    skipped = args.kv_cache_dtype_skip_layers
    if not skipped or isinstance(
        kept, StateCache | IndexerCache | BlockIndexerCache | BlockSparseCache
    ):
        return args.kv_cache_dtype
    windowed = isinstance(kept, AttentionCache) and kept.sliding_window is not None
    if windowed and "sliding_window" in skipped:
        return "auto"
    numbers = [word for word in name.split(".") if word.isdigit()]
    return "auto" if numbers and str(int(numbers[0])) in skipped else args.kv_cache_dtype


def _canonical(kv_cache_dtype: str, backend: Backend | None) -> str:
    """Source: vLLM 0.32 ``mla_attention.py``, ``_canonicalize_sparse_mla_kv_cache_dtype``."""
    name = None if backend is None else backend.name
    quantized = is_quantized(kv_cache_dtype) and kv_cache_dtype != "nvfp4_ds_mla"
    if name == "FLASHMLA_SPARSE" and quantized:
        return _PACKED_FP8
    if name == "FLASHINFER_MLA_SPARSE_SM120" and kv_cache_dtype != "bfloat16":
        return _PACKED_FP8
    return kv_cache_dtype


def _backend(kept: LayerCache, kv_cache_dtype: str, args: CacheArgs) -> Backend | None:
    if isinstance(kept, BlockSparseCache):
        return _OWN_BACKENDS[BlockSparseCache]
    if isinstance(kept, AttentionCache) and kept.head_size != kept.head_size_v:
        if kv_cache_dtype not in _WHOLE_BYTES and is_quantized(kv_cache_dtype):
            raise Refusal(
                f"a {kv_cache_dtype} KV cache of unequal keys and values is not described"
            )
        return _UNEQUAL_HEADS
    if isinstance(kept, AttentionCache | CrossAttentionCache | LatentCache):
        return choose_backend(_wanted(kept, kv_cache_dtype, args), args.kernels)
    return _OWN_BACKENDS[type(kept)]


def _wanted(
    kept: AttentionCache | CrossAttentionCache | LatentCache, kv_cache_dtype: str, args: CacheArgs
) -> Wanted:
    heads = heads_of(kept.head_size, kv_cache_dtype, args)
    match kept:
        case AttentionCache():
            images = args.mm_prefix and kept.attention_chunk_size is None
            asked = replace(heads, has_sink=kept.has_sink, mm_prefix=images)
            return Wanted(heads=asked, dtype=args.dtype)
        case CrossAttentionCache():
            return Wanted(heads=heads, dtype=args.dtype, cross=True)
        case LatentCache():
            return Wanted(
                heads=heads,
                dtype=args.dtype,
                latent=True,
                sparse=kept.sparse,
                num_heads=kept.num_heads,
                qk_nope_head_dim=kept.qk_nope_head_dim,
                qk_rope_head_dim=kept.qk_rope_head_dim,
            )


def heads_of(head_size: int, kv_cache_dtype: str, args: CacheArgs) -> Heads:
    """What the choice of a kernel hangs on, for heads of ``head_size`` elements."""
    return Heads(
        size=head_size,
        soft_cap=args.soft_cap,
        kv_cache_dtype=kv_cache_dtype,
        block_size=args.block_size,
        context_parallel=args.decode_context_parallel_size > 1,
    )
