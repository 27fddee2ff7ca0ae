"""A placed layer → its share of a block, once block sizes are known."""

from typing import Any

from vllm_capacity.predict.kv_cache.args import CacheArgs
from vllm_capacity.predict.kv_cache.backend_choice import with_pages
from vllm_capacity.predict.kv_cache.block_size import BlockSizes, block_within
from vllm_capacity.predict.kv_cache.deepseek_v4_specs import deepseek_v4_spec
from vllm_capacity.predict.kv_cache.format import Format, attention_format, latent_format
from vllm_capacity.predict.kv_cache.layer_cache import (
    AttentionCache,
    BlockIndexerCache,
    CrossAttentionCache,
    IndexerCache,
    LatentCache,
    StateCache,
)
from vllm_capacity.predict.kv_cache.placed_layer import Placement, heads_of
from vllm_capacity.predict.kv_cache.recurrent_state import mamba_spec
from vllm_capacity.predict.kv_cache.spec import (
    ChunkedLocalAttentionSpec,
    CrossAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MLAAttentionSpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
)
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.units import Tokens, ceil_div


def layer_spec(layer: Placement, sizes: BlockSizes, args: CacheArgs) -> KVCacheSpec:
    """The layer's share of a block.

    Source: vLLM 0.32 ``get_kv_cache_spec`` of each layer, then ``v1/worker/utils.py``,
    ``customize_attention_spec``.

    Raises:
        Refusal: such a layer is not described under these arguments.
    """
    spec = _spec(layer, sizes, args)
    if spec.page_size_bytes < spec.unpadded_page_size_bytes:
        raise Refusal("vLLM refuses to start: a layer's page exceeds the one that all share")
    return spec


def _spec(layer: Placement, sizes: BlockSizes, args: CacheArgs) -> KVCacheSpec:
    match layer.cache:
        case AttentionCache():
            return _attention(layer, layer.cache, sizes, args)
        case CrossAttentionCache():
            return _cross(layer, layer.cache, sizes, args)
        case LatentCache():
            return _latent(layer, layer.cache, sizes, args)
        case IndexerCache() | BlockIndexerCache():
            return MLAAttentionSpec(
                block_size=sizes.block_size,
                head_size=layer.cache.head_size,
                element_bytes=1 if isinstance(layer.cache, IndexerCache) else 2,
                role="indexer",
                context_parallel_size=args.decode_context_parallel_size,
            )
        case StateCache():
            return mamba_spec(
                layer.cache,
                args,
                block_size=sizes.mamba_block_size,
                page_size_padded=sizes.mamba_page_size_padded,
            )
    _check_not_shared(args)
    return deepseek_v4_spec(layer, sizes, args)


def _packed(kept: Format, layer: Placement) -> dict[str, Any]:
    return {
        "element_bytes": kept.element_bytes,
        "content_bytes": kept.content_bytes,
        "slots_per_head": kept.slots_per_head,
        "kv_cache_dtype": layer.kv_cache_dtype,
    }


def _attention(
    layer: Placement, kept: AttentionCache, sizes: BlockSizes, args: CacheArgs
) -> KVCacheSpec:
    packed = attention_format(layer.kv_cache_dtype, args.dtype, kept.head_size, kept.head_size_v)
    common = _packed(packed, layer) | {
        "num_kv_heads": kept.num_kv_heads,
        "head_size": kept.head_size,
        "head_size_v": kept.head_size_v,
        "states_per_token": kept.states_per_token,
    }
    if kept.sliding_window is not None:
        _check_not_shared(args, window=True)
        return _window(layer, kept, sizes, args, common)
    if kept.attention_chunk_size is not None:
        _check_not_shared(args)
        return ChunkedLocalAttentionSpec(
            block_size=sizes.block_size,
            attention_chunk_size=Tokens(kept.attention_chunk_size),
            **common,
        )
    return FullAttentionSpec(
        block_size=sizes.block_size,
        context_parallel_size=args.decode_context_parallel_size,
        **common,
    )


def _check_not_shared(args: CacheArgs, *, window: bool = False) -> None:
    """Source: vLLM 0.32 ``v1/kv_cache_interface.py``, ``SlidingWindowSpec``."""
    if args.decode_context_parallel_size == 1:
        return
    if window:
        raise Refusal("vLLM refuses to start: decode context parallelism has no sliding windows")
    raise Refusal("context parallelism beside local or cross attention is not described")


def _window(
    layer: Placement,
    kept: AttentionCache,
    sizes: BlockSizes,
    args: CacheArgs,
    common: dict[str, Any],
) -> KVCacheSpec:
    """A window's layer chooses its own block: the largest that fits the page of the others."""
    window = kept.sliding_window or 0
    if kept.states_per_token > 1:
        # One more, so that eviction in whole blocks leaves the window whole.
        window = ceil_div(window, kept.states_per_token) + 1
    spec = SlidingWindowSpec(
        block_size=Tokens(1),
        sliding_window=Tokens(window),
        extra_retained_tokens=args.extra_retained_tokens,
        **(common | {"states_per_token": 1}),
    )
    page = sizes.skip_page_size_padded or spec.page_size_bytes * sizes.block_size
    block_size = sizes.block_size
    if layer.backend is not None:
        heads = heads_of(kept.head_size, layer.kv_cache_dtype, args)
        backend = with_pages(layer.backend, heads, args.kernels)
        block_size = Tokens(block_within(backend, spec.page_size_bytes, page))
    return SlidingWindowSpec(
        block_size=block_size,
        sliding_window=spec.sliding_window,
        extra_retained_tokens=spec.extra_retained_tokens,
        page_size_padded=sizes.skip_page_size_padded,
        **common,
    )


def _cross(
    layer: Placement, kept: CrossAttentionCache, sizes: BlockSizes, args: CacheArgs
) -> KVCacheSpec:
    _check_not_shared(args)
    packed = attention_format(layer.kv_cache_dtype, args.dtype, kept.head_size, kept.head_size)
    return CrossAttentionSpec(
        block_size=sizes.block_size,
        num_kv_heads=kept.num_kv_heads,
        head_size=kept.head_size,
        # Source: vLLM 0.32 config/scheduler.py, max_num_encoder_input_tokens.
        encoder_tokens=args.max_num_batched_tokens or Tokens(0),
        input_tokens=None if kept.input_tokens is None else Tokens(kept.input_tokens),
        **_packed(packed, layer),
    )


def _latent(layer: Placement, kept: LatentCache, sizes: BlockSizes, args: CacheArgs) -> KVCacheSpec:
    packed = _packed(latent_format(layer.kv_cache_dtype, args.dtype), layer)
    if kept.sliding_window is not None:
        _check_not_shared(args)
        return SlidingWindowMLASpec(
            block_size=sizes.block_size,
            head_size=kept.head_size,
            sliding_window=Tokens(kept.sliding_window),
            extra_retained_tokens=args.extra_retained_tokens,
            **packed,
        )
    return MLAAttentionSpec(
        block_size=sizes.block_size,
        head_size=kept.head_size,
        has_indexer=kept.has_indexer,
        context_parallel_size=args.decode_context_parallel_size,
        **packed,
    )
