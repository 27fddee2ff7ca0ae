"""How many tokens a block holds, and to how many bytes odd pages are padded.

Source: vLLM 0.32 ``platforms/interface.py``, ``update_block_size_for_backend``.
"""

from collections.abc import Sequence
from itertools import product
from math import lcm
from typing import NamedTuple

from vllm_capacity.predict.kv_cache.args import CacheArgs
from vllm_capacity.predict.kv_cache.attention_backend import Backend
from vllm_capacity.predict.kv_cache.backend_choice import with_pages
from vllm_capacity.predict.kv_cache.format import (
    TURBOQUANT_DTYPES,
    attention_format,
    storage_bytes,
)
from vllm_capacity.predict.kv_cache.layer_cache import (
    AttentionCache,
    CrossAttentionCache,
    LatentCache,
    StateCache,
)
from vllm_capacity.predict.kv_cache.placed_layer import Placement, heads_of
from vllm_capacity.predict.kv_cache.recurrent_state import state_bytes
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.units import Bytes, Tokens, ceil_div, round_up

#: Decode kernels of latent attention need whole groups of kernel blocks.
_LATENT_HYBRID_TOKENS = 128


class BlockSizes(NamedTuple):
    """What vLLM settles before it asks every layer for its share of a block.

    Attributes:
        block_size: tokens of a block of full attention.
        mamba_block_size: tokens that a recurrent state stands for.
        mamba_page_size_padded: bytes to which states are padded; None for none.
        skip_page_size_padded: bytes to which layers in the model's dtype are padded; None for none.
    """

    block_size: Tokens
    mamba_block_size: Tokens
    mamba_page_size_padded: Bytes | None = None
    skip_page_size_padded: Bytes | None = None


def resolve_block_sizes(layers: Sequence[Placement], args: CacheArgs) -> BlockSizes:
    """The sizes that one rank settles on for its layers.

    Raises:
        Refusal: the backends share no block size, as vLLM would say too.
    """
    backends = _distinct_backends(layers, args)
    sizes = _unaligned(backends, args)
    if not backends:
        return sizes
    pre = sizes.block_size
    if any(isinstance(layer.cache, StateCache) for layer in layers):
        sizes = _align_with_states(sizes, layers, backends, args)
    if args.kv_cache_dtype_skip_layers and args.kernels.capability is not None:
        sizes = _align_with_skipped(sizes, layers, backends[0], args)
    rejecting = [each.name for each in backends if not each.takes_block(sizes.block_size)]
    if rejecting and sizes.block_size != pre:
        raise Refusal(
            f"vLLM refuses to start: {rejecting[0]} takes no blocks of {sizes.block_size} tokens"
        )
    return sizes


def _distinct_backends(layers: Sequence[Placement], args: CacheArgs) -> list[Backend]:
    distinct: dict[tuple[object, ...], Backend] = {}
    for layer in layers:
        if layer.backend is None:
            continue
        backend = layer.backend
        if isinstance(layer.cache, AttentionCache | CrossAttentionCache):
            size = args.head_size or layer.cache.head_size
            backend = with_pages(backend, heads_of(size, args.kv_cache_dtype, args), args.kernels)
        distinct.setdefault((backend.name, backend.kernel_blocks), backend)
    return list(distinct.values())


def _unaligned(backends: Sequence[Backend], args: CacheArgs) -> BlockSizes:
    block_size = args.default_block_size
    if args.block_size is None and args.kernels.capability is not None and backends:
        block_size = _shared_block_size(backends, block_size)
    state = args.mamba_block_size
    if state is None:
        # Source: vLLM 0.32 model_executor/models/config.py, MambaModelConfig.
        state = args.default_block_size if args.enable_prefix_caching else args.max_model_len
    return BlockSizes(Tokens(block_size), Tokens(state))


def _shared_block_size(backends: Sequence[Backend], default: int) -> int:
    """The smallest size that all take; source: ``_preferred_block_size_for_backends``."""
    if all(backend.takes_block(default) for backend in backends):
        return default
    if len(backends) == 1:
        return min(backends[0].kernel_blocks)
    candidates = {lcm(*sizes) for sizes in product(*(each.kernel_blocks for each in backends))}
    shared = [
        size for size in sorted(candidates) if all(each.takes_block(size) for each in backends)
    ]
    if not shared:
        raise Refusal("vLLM refuses to start: the attention backends share no block size")
    return shared[0]


def _align_with_states(
    sizes: BlockSizes, layers: Sequence[Placement], backends: Sequence[Backend], args: CacheArgs
) -> BlockSizes:
    """Blocks of attention large enough for a state, states padded to them.

    Source: ``_align_hybrid_block_size``.
    """
    state = max(
        state_bytes(layer.cache, args) for layer in layers if isinstance(layer.cache, StateCache)
    )
    latent = any(isinstance(layer.cache, LatentCache) for layer in layers)
    per_token = _token_bytes(layers, args.kv_cache_dtype, args)
    step = max(min(backends[0].kernel_blocks), sizes.block_size, latent * _LATENT_HYBRID_TOKENS)
    aligned = step * ceil_div(state, step * per_token)
    aligned = round_up(aligned, lcm(*(min(each.kernel_blocks) for each in backends)))
    block_size = Tokens(max(sizes.block_size, aligned))
    page = block_size * per_token
    return sizes._replace(
        block_size=block_size,
        mamba_block_size=block_size if args.enable_prefix_caching else sizes.mamba_block_size,
        mamba_page_size_padded=None if page == state else Bytes(page),
    )


def _align_with_skipped(
    sizes: BlockSizes, layers: Sequence[Placement], backend: Backend, args: CacheArgs
) -> BlockSizes:
    """Blocks of quantised layers large enough for a kernel block of the others.

    Source: ``_align_heterogeneous_kv_block_size``.
    """
    known = args.kv_cache_dtype not in TURBOQUANT_DTYPES or backend.name == "TURBOQUANT"
    # Only the first backend is asked; where it does not know the format, it counts whole bytes.
    asked = args.kv_cache_dtype if known else "fp8"
    primary = _token_bytes(layers, asked, args, per_layer=False)
    plain = _token_bytes(layers, "auto", args, per_layer=False)
    if plain < primary:
        raise Refusal("vLLM refuses to start: layers that skip quantisation must not be smaller")
    if plain == primary:
        return sizes
    kernel_block = min(backend.kernel_blocks)
    step = max(kernel_block, sizes.block_size)
    required = max(plain * kernel_block, sizes.mamba_page_size_padded or 0)
    block_size = Tokens(max(sizes.block_size, step * ceil_div(required, step * primary)))
    page = Bytes(block_size * primary)
    padded = None if sizes.mamba_page_size_padded is None else page
    return sizes._replace(
        block_size=block_size, mamba_page_size_padded=padded, skip_page_size_padded=page
    )


def _token_bytes(
    layers: Sequence[Placement], kv_cache_dtype: str, args: CacheArgs, *, per_layer: bool = True
) -> int:
    """Bytes of one token in one attention layer, by the model's configuration as a whole."""
    for layer in layers:
        if isinstance(layer.cache, LatentCache):
            # Taken without the scales of packed formats, once for hybrids and as keys and values
            # for skipped layers.
            width = storage_bytes(kv_cache_dtype, args.dtype)
            return layer.cache.head_size * width * (1 if per_layer else 2)
    heads, size = _model_heads(layers, args)
    kept = attention_format(kv_cache_dtype, args.dtype, size, size)
    content = kept.content_bytes or 2 * size * kept.element_bytes
    return heads * kept.slots_per_head * content


def _model_heads(layers: Sequence[Placement], args: CacheArgs) -> tuple[int, int]:
    caches = [each.cache for each in layers if isinstance(each.cache, AttentionCache)]
    if args.num_kv_heads is not None and args.head_size is not None:
        return args.num_kv_heads, args.head_size
    shapes = {(each.num_kv_heads, each.head_size) for each in caches}
    if len(shapes) != 1:
        raise Refusal("block sizes of layers with unequal heads need the model's own heads")
    return shapes.pop()


def block_within(backend: Backend, token_bytes: int, page_bytes: int) -> int:
    """The largest block of a window's layer that fits a page, else the smallest that it takes.

    Source: vLLM 0.32 ``model_executor/layers/attention/attention.py``,
    ``_largest_kernel_block_within``.
    """
    fitting = page_bytes // token_bytes
    if backend.any_multiple:
        base = backend.kernel_blocks[0]
        return max(base, fitting // base * base)
    within = [size for size in backend.kernel_blocks if size <= fitting]
    return max(within, default=min(backend.kernel_blocks))
