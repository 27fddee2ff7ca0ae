"""What the layers keep → who plans the cache for any number of bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vllm_capacity.predict.kv_cache.args import CacheArgs
from vllm_capacity.predict.kv_cache.block_size import BlockSizes, resolve_block_sizes
from vllm_capacity.predict.kv_cache.groups import Names, Specs, count_specs, group_layers
from vllm_capacity.predict.kv_cache.layer_cache import CompressedIndexerCache, LayerCache
from vllm_capacity.predict.kv_cache.layer_specs import layer_spec
from vllm_capacity.predict.kv_cache.placed_layer import PlacedLayer, place
from vllm_capacity.predict.kv_cache.plan import KVCacheGroup, Planner
from vllm_capacity.predict.kv_cache.releases import check_groups, check_layers, planning_refusal
from vllm_capacity.predict.kv_cache.spec import KVCacheSpec, UniformTypeSpecs
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.units import Bytes, Tokens

Stage = Sequence[tuple[str, LayerCache]]
#: Turing, Ampere, Ada, Hopper, Blackwell for data centres and for desks.
CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))


def make_planner(stages: Sequence[Stage], args: CacheArgs) -> Planner:
    """The planner of one deployment.

    Args:
        stages: of every pipeline stage, the layers that keep anything, in vLLM's order and by
            vLLM's names; layers that share another's cache are left out. All tensor-parallel
            ranks of a stage are alike.
        args: everything else.

    Raises:
        Refusal: vLLM would not start so, or what it would do is not described exactly.
    """
    caches = [kept for stage in stages for _, kept in stage]
    if not caches:
        raise Refusal("no layer of this model keeps anything in the KV cache")
    check_layers(caches, args)
    placed = place(stages, args)
    sizes = _block_sizes(placed, args)
    specs = _specs(placed, sizes, args)
    unified, names = group_layers(
        specs,
        keeps_local_attention=not args.disable_hybrid_kv_cache_manager,
        block_outermost=any(isinstance(kept, CompressedIndexerCache) for kept in caches),
    )
    grouped = [[unified[name] for name in group] for group in names]
    check_groups(grouped, args)
    return Planner(
        groups=_groups(unified, names, stages, args.tensor_parallel_size),
        max_model_len=args.max_model_len,
        in_flight_tokens=args.max_in_flight_tokens or Tokens(0),
        version=args.version,
        num_blocks_override=args.num_gpu_blocks_override,
        fits_max_model_len=args.fits_max_model_len,
        block_size=sizes.block_size,
        kv_cache_dtype=_kv_cache_dtype(placed, args),
        context_parallel_size=args.decode_context_parallel_size,
        refusal=planning_refusal(grouped, args),
    )


def make_planner_for_any_gpu(stages: Sequence[Stage], args: CacheArgs) -> Planner:
    """The planner where the GPU's compute capability is not known, if it does not matter.

    Raises:
        Refusal: it does matter, or no GPU would start so.
    """
    planners: list[Planner] = []
    refusals: list[Refusal] = []
    for capability in CAPABILITIES:
        kernels = replace(args.kernels, capability=capability)
        try:
            planners.append(make_planner(stages, replace(args, kernels=kernels)))
        except Refusal as refused:
            refusals.append(refused)
    if not planners:
        raise refusals[-1]
    if any(planner != planners[0] for planner in planners):
        raise Refusal("the KV cache hangs on the GPU's compute capability; give it")
    return planners[0]


def _block_sizes(placed: Sequence[Sequence[PlacedLayer]], args: CacheArgs) -> BlockSizes:
    """Every rank settles its own sizes; source: ``v1/executor/multiproc_executor.py``."""
    kinds = dict.fromkeys(
        tuple(dict.fromkeys(each.placement for each in stage)) for stage in placed
    )
    sizes = {resolve_block_sizes(placements, args) for placements in kinds}
    if len(sizes) > 1:
        raise Refusal("pipeline stages that settle on unequal block sizes are not described")
    return sizes.pop()


def _specs(
    placed: Sequence[Sequence[PlacedLayer]], sizes: BlockSizes, args: CacheArgs
) -> dict[str, KVCacheSpec]:
    layers = [layer for stage in placed for layer in stage]
    known = {
        placement: layer_spec(placement, sizes, args)
        for placement in dict.fromkeys(layer.placement for layer in layers)
    }
    return {layer.name: known[layer.placement] for layer in layers}


def _kv_cache_dtype(placed: Sequence[Sequence[PlacedLayer]], args: CacheArgs) -> str:
    """Some backends write their own format back into the cache configuration."""
    found = {layer.placement.kv_cache_dtype for stage in placed for layer in stage}
    return "fp8_ds_mla" if "fp8_ds_mla" in found else args.kv_cache_dtype


def _groups(
    specs: Specs, groups: Sequence[Names], stages: Sequence[Stage], ranks_per_stage: int
) -> tuple[KVCacheGroup, ...]:
    stage_of = {name: stage for stage, layers in enumerate(stages) for name, _ in layers}
    return tuple(
        _group(specs, names, [stage_of[name] for name in names], len(stages), ranks_per_stage)
        for names in groups
    )


def _group(
    specs: Specs, names: Names, stage_of: Sequence[int], stages: int, ranks_per_stage: int
) -> KVCacheGroup:
    layers, sizes = [0] * stages, [0] * stages
    for name, stage in zip(names, stage_of, strict=True):
        layers[stage] += 1
        sizes[stage] += specs[name].page_size_bytes
    counts = count_specs(specs[name] for name in names)
    return KVCacheGroup(
        spec=_group_spec(counts),
        layers=len(names),
        layers_per_rank=tuple(each for each in layers for _ in range(ranks_per_stage)),
        bytes_per_rank=tuple(Bytes(each) for each in sizes for _ in range(ranks_per_stage)),
    )


def _group_spec(counts: Mapping[KVCacheSpec, int]) -> KVCacheSpec:
    first = next(iter(counts))
    if all(first.merges_with(spec) for spec in counts):
        return first
    return UniformTypeSpecs(block_size=first.block_size, members=tuple(counts.items()))
