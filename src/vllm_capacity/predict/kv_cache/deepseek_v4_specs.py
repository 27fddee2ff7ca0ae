"""What the layers of DeepSeek-V4 keep: windows and compressed vectors, packed side by side.

Source: vLLM 0.32 ``models/deepseek_v4/attention.py`` and ``compressor.py``,
``v1/attention/backends/mla/sparse_swa.py``.
"""

from dataclasses import replace
from typing import TypeVar

from vllm_capacity.predict.kv_cache.args import CacheArgs
from vllm_capacity.predict.kv_cache.block_size import BlockSizes
from vllm_capacity.predict.kv_cache.layer_cache import (
    CompressedIndexerCache,
    CompressedLatentCache,
    CompressorStateCache,
    WindowLatentCache,
)
from vllm_capacity.predict.kv_cache.placed_layer import Placement
from vllm_capacity.predict.kv_cache.spec import KVCacheSpec, MLAAttentionSpec, SlidingWindowMLASpec
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.units import Bytes, Tokens, round_up

#: 448 bytes in fp8, 64 rotary elements of two bytes, 8 bytes of scales.
_ROW_BYTES = Bytes(584)
#: To a multiple of this its pages are padded.
_ALIGNMENT_BYTES = 576
_BLOCK_SIZE = 256
_WINDOW_BLOCK_SIZE = Tokens(64)
#: Tokens of a compressor's block and of its window, by ratio; windows of ratio 4 overlap.
_COMPRESSORS = {4: (Tokens(4), Tokens(8)), 128: (Tokens(8), Tokens(128))}
_Spec = TypeVar("_Spec", MLAAttentionSpec, SlidingWindowMLASpec)


def deepseek_v4_spec(layer: Placement, sizes: BlockSizes, args: CacheArgs) -> KVCacheSpec:
    """The layer's share of a block.

    Raises:
        Refusal: the block size or the ratio is another one than vLLM's own.
    """
    if sizes.block_size != _BLOCK_SIZE:
        raise Refusal(f"DeepSeek-V4 in blocks of {sizes.block_size} tokens is not described")
    match layer.cache:
        case CompressedLatentCache() | CompressedIndexerCache():
            return _padded(_compressed(layer.cache, layer.kv_cache_dtype, sizes))
        case WindowLatentCache():
            return _padded(_window(layer.cache, layer.kv_cache_dtype, args))
        case CompressorStateCache():
            return _padded(_compressor(layer.cache, args))
    raise Refusal("a layer keeps something that is not described")


def _compressed(
    kept: CompressedLatentCache | CompressedIndexerCache, kv_cache_dtype: str, sizes: BlockSizes
) -> MLAAttentionSpec:
    indexer = isinstance(kept, CompressedIndexerCache)
    return MLAAttentionSpec(
        block_size=sizes.block_size,
        head_size=kept.head_size,
        element_bytes=1,
        content_bytes=None if indexer else _ROW_BYTES,
        tokens_per_state=kept.compress_ratio,
        kv_cache_dtype="auto" if indexer else kv_cache_dtype,
        role="indexer" if indexer else "sparse",
    )


def _window(kept: WindowLatentCache, kv_cache_dtype: str, args: CacheArgs) -> SlidingWindowMLASpec:
    return SlidingWindowMLASpec(
        block_size=_WINDOW_BLOCK_SIZE,
        head_size=kept.head_size,
        element_bytes=1,
        content_bytes=_ROW_BYTES,
        sliding_window=Tokens(kept.sliding_window),
        extra_retained_tokens=args.extra_retained_tokens,
        kv_cache_dtype=kv_cache_dtype,
    )


def _compressor(kept: CompressorStateCache, args: CacheArgs) -> SlidingWindowMLASpec:
    if kept.compress_ratio not in _COMPRESSORS:
        raise Refusal(f"vLLM refuses to start: compression ratio {kept.compress_ratio}")
    block_size, window = _COMPRESSORS[kept.compress_ratio]
    return SlidingWindowMLASpec(
        block_size=block_size,
        head_size=kept.state_size,
        element_bytes=4,
        sliding_window=window,
        extra_retained_tokens=args.extra_retained_tokens,
        kv_cache_dtype="float32",
    )


def _padded(spec: _Spec) -> _Spec:
    padded = round_up(spec.unpadded_page_size_bytes, _ALIGNMENT_BYTES)
    return replace(spec, page_size_padded=Bytes(padded))
