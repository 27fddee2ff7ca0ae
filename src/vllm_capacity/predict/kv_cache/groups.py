"""Layers → groups that share one block table.

Source: vLLM 0.32 ``v1/core/kv_cache_utils.py``, ``get_kv_cache_groups``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from vllm_capacity.predict.kv_cache.packed_groups import pack
from vllm_capacity.predict.kv_cache.spec import (
    AttentionSpec,
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
)
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.units import Bytes, Tokens, ceil_div

#: Where the commonest kind has fewer layers than so many times the rarest, it sets the size.
_FEW_MORE = 1.5

Specs = Mapping[str, KVCacheSpec]
Names = Sequence[str]


def group_layers(
    specs: Specs, *, keeps_local_attention: bool, block_outermost: bool
) -> tuple[Specs, list[Names]]:
    """The names of the layers of every group, and the specs with their pages made equal.

    Args:
        specs: of all layers of the whole model, in vLLM's order.
        keeps_local_attention: whether windows and chunks may have groups of their own.
        block_outermost: whether pages of unequal size stand side by side in a block.

    Raises:
        Refusal: vLLM cannot group these layers.
    """
    if not keeps_local_attention:
        specs = _promote(specs)
    distinct = list(count_specs(specs.values()))
    if _all_merge(distinct) or is_uniform(distinct):
        return specs, [list(specs)]
    if block_outermost and len({spec.page_size_bytes for spec in distinct}) > 1:
        return specs, pack(specs)
    unified = _unify_pages(specs, distinct)
    if unified is None:
        return _all_as_full_attention(specs)
    return unified, _groups_of_equal_pages(unified)


def count_specs(specs: Iterable[KVCacheSpec]) -> dict[KVCacheSpec, int]:
    """The distinct specs in order, and how often each occurs."""
    same: dict[int, list[KVCacheSpec]] = {}
    for spec in specs:
        # By identity first: layers that are alike share one object, and hashing it costs.
        same.setdefault(id(spec), []).append(spec)
    counts: dict[KVCacheSpec, int] = {}
    for layers in same.values():
        counts[layers[0]] = counts.get(layers[0], 0) + len(layers)
    return counts


def is_uniform(specs: Iterable[KVCacheSpec]) -> bool:
    """Whether all need the same number of blocks; source: ``UniformTypeKVCacheSpecs``."""
    return len({(spec.block_size, spec.family) for spec in specs}) <= 1


def _all_merge(distinct: Sequence[KVCacheSpec]) -> bool:
    """Whether one spec can stand for all; source: ``is_kv_cache_spec_uniform``."""
    full = [spec for spec in distinct if type(spec) is FullAttentionSpec]
    if len(full) == len(distinct) and len(_windows(full)) > 1:
        raise Refusal("vLLM refuses to start: windows of unequal size in one group")
    return all(distinct[0].merges_with(spec) for spec in distinct)


def _windows(specs: Iterable[FullAttentionSpec]) -> set[int]:
    return {spec.sliding_window for spec in specs if spec.sliding_window is not None}


def _promote(specs: Specs) -> Specs:
    """Local attention that keeps every token; source: ``_promote_local_kv_cache_specs``."""
    distinct = list(count_specs(specs.values()))
    if _all_merge(distinct) or is_uniform(distinct):
        return specs
    sizes = {spec.block_size for spec in distinct if isinstance(spec, FullAttentionSpec)}
    promoted = _changed(specs, lambda spec: _promoted(spec, sizes) if sizes else spec)
    new = list(count_specs(promoted.values()))
    if not (_all_merge(new) or is_uniform(new)):
        raise Refusal("vLLM refuses to start: these layers need the hybrid KV cache manager")
    return promoted


def _changed(specs: Specs, change: Callable[[KVCacheSpec], KVCacheSpec]) -> Specs:
    new: dict[int, KVCacheSpec] = {}
    for spec in specs.values():
        if id(spec) not in new:
            new[id(spec)] = change(spec)
    return {name: new[id(spec)] for name, spec in specs.items()}


def _promoted(spec: KVCacheSpec, full_block_sizes: set[Tokens]) -> KVCacheSpec:
    if not isinstance(spec, SlidingWindowSpec | ChunkedLocalAttentionSpec):
        return spec
    if isinstance(spec, SlidingWindowMLASpec):
        raise Refusal("vLLM refuses to start: windows of latent attention need the hybrid manager")
    block_size = min(full_block_sizes) if len(full_block_sizes) == 1 else spec.block_size
    padded = spec.page_size_padded
    if padded is not None:
        unpadded = spec.unpadded_page_size_bytes * block_size // spec.block_size
        padded = Bytes(max(padded, unpadded))
    return FullAttentionSpec(
        block_size=block_size,
        page_size_padded=padded,
        num_kv_heads=spec.num_kv_heads,
        head_size=spec.head_size,
        element_bytes=spec.element_bytes,
        head_size_v=spec.head_size_v,
        kv_cache_dtype=spec.kv_cache_dtype,
        content_bytes=spec.content_bytes,
        slots_per_head=spec.slots_per_head,
        states_per_token=spec.states_per_token,
        tokens_per_state=spec.tokens_per_state,
        context_parallel_size=spec.context_parallel_size,
        sliding_window=getattr(spec, "sliding_window", None),
        attention_chunk_size=getattr(spec, "attention_chunk_size", None),
    )


def _unify_pages(specs: Specs, distinct: Sequence[KVCacheSpec]) -> Specs | None:
    """Pages as large as the largest; None where they cannot be made so.

    Source: ``unify_kv_cache_spec_page_size``.
    """
    largest = max(spec.page_size_bytes for spec in distinct)
    if not all(_reaches_page(spec, largest) for spec in distinct):
        return None
    return _changed(specs, lambda spec: _with_page(spec, largest))


def _reaches_page(spec: KVCacheSpec, page: Bytes) -> bool:
    """Whether its page can be made ``page`` bytes by padding or by more tokens."""
    padded = isinstance(spec, MambaSpec | AttentionSpec) and not isinstance(spec, MLAAttentionSpec)
    return padded or page % spec.page_size_bytes == 0


def _with_page(spec: KVCacheSpec, page: Bytes) -> KVCacheSpec:
    if spec.page_size_bytes == page:
        return spec
    ratio, rest = divmod(page, spec.page_size_bytes)
    if isinstance(spec, MambaSpec) or rest:
        return replace(spec, page_size_padded=page)
    if spec.page_size_padded is not None:
        raise Refusal("vLLM refuses to start: padded pages of unequal size")
    return replace(spec, block_size=Tokens(spec.block_size * ratio))


def _all_as_full_attention(specs: Specs) -> tuple[Specs, list[Names]]:
    """One group that keeps every token, for latent attention beside windows.

    Source: ``_try_get_full_allocation_fallback_groups``.
    """
    kinds = set(map(type, specs.values()))
    if SlidingWindowSpec in kinds and not kinds & {SlidingWindowMLASpec, ChunkedLocalAttentionSpec}:
        promoted = _promote(specs)
        if is_uniform(promoted.values()):
            return promoted, [list(promoted)]
    raise Refusal("vLLM refuses to start: pages of latent attention cannot be padded")


def _groups_of_equal_pages(specs: Specs) -> list[Names]:
    """Source: ``_get_kv_cache_groups_uniform_page_size``."""
    buckets = _mergeable(specs)
    fewest, most = min(map(len, buckets)), max(map(len, buckets))
    size = most if most < fewest * _FEW_MORE else fewest
    groups: list[Names] = []
    for names in buckets:
        count = ceil_div(len(names), size)
        # Every count-th layer: so pipeline stages hold equally much of every group.
        groups += [names[start::count] for start in range(count)]
    return groups


def _mergeable(specs: Specs) -> list[list[str]]:
    by_spec: dict[KVCacheSpec, list[str]] = {}
    for name, spec in specs.items():
        by_spec.setdefault(spec, []).append(name)
    buckets: list[tuple[list[KVCacheSpec], list[str]]] = []
    for spec, names in by_spec.items():
        for members, layers in buckets:
            if members[0].merges_with(spec) and _one_window([*members, spec]):
                members.append(spec)
                layers.extend(names)
                break
        else:
            buckets.append(([spec], list(names)))
    return [layers for _, layers in buckets]


def _one_window(specs: Iterable[KVCacheSpec]) -> bool:
    full = [spec for spec in specs if isinstance(spec, FullAttentionSpec)]
    chunks = {each.attention_chunk_size for each in full if each.attention_chunk_size is not None}
    return len(_windows(full)) + len(chunks) <= 1
