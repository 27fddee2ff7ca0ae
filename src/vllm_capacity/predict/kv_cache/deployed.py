"""The planner of a deployment's KV cache, from its model, its arguments and where it runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vllm_capacity.predict.engine_args import EngineArgs
from vllm_capacity.predict.gpu import Gpu
from vllm_capacity.predict.kv_cache.args import CacheArgs
from vllm_capacity.predict.kv_cache.backend_choice import kernels_for_mixed_heads
from vllm_capacity.predict.kv_cache.flash_attention import Kernels
from vllm_capacity.predict.kv_cache.format import TURBOQUANT_DTYPES
from vllm_capacity.predict.kv_cache.layer_cache import AttentionCache, LayerCache, StateCache
from vllm_capacity.predict.kv_cache.plan import Planner
from vllm_capacity.predict.kv_cache.planner import make_planner, make_planner_for_any_gpu
from vllm_capacity.predict.model import Model, NamedCache
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.resolved import ResolvedArgs
from vllm_capacity.predict.speculative import Speculative
from vllm_capacity.predict.vllm_version import VllmVersion

Stages = Sequence[Sequence[NamedCache]]
#: GPUs for which vLLM prefers FlashInfer, which its image ships.
_PREFERS_FLASHINFER = (10, 0)
_PROTECTED_LAYERS = 2
_HYBRID_CHUNKS_VARIABLE = "VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE"
_LAYOUT_VARIABLE = "VLLM_KV_CACHE_LAYOUT"


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """Where a deployment runs.

    Attributes:
        gpu: None where there is none or it is unknown.
        flashinfer: whether FlashInfer is installed; None for what the release's image ships.
        env: environment variables that vLLM reads.
    """

    gpu: Gpu | None
    flashinfer: bool | None
    env: Mapping[str, str]
    version: VllmVersion


def deployed_planner(
    model: Model,
    stages: Stages,
    *,
    draft: Sequence[NamedCache],
    args: EngineArgs,
    resolved: ResolvedArgs,
    speculative: Speculative | None,
    where: Surroundings,
) -> Planner:
    """The planner; bytes without a GPU are how a vLLM on a CPU declares its cache.

    Args:
        model: the target model.
        stages: what its layers keep, by pipeline stage.
        draft: what a draft model's layers keep, on the last stage.
        args: as given.
        resolved: with all defaults.
        speculative: what drafts.
        where: where it runs.

    Raises:
        Refusal: vLLM would not start so, or what it would do is not described exactly.
    """
    on_cpu = where.gpu is None and args.kv_cache_memory_bytes is not None
    if model.replicates_queries and (args.decode_context_parallel_size or 1) > 1:
        raise Refusal(f"context parallelism of {model.source} is not described exactly yet")
    if args.mamba_cache_mode not in {None, "none", "align"}:
        raise Refusal(
            f"mamba_cache_mode {args.mamba_cache_mode} is not described; vLLM 0.32 takes none "
            "or align"
        )
    turbo = resolved.kv_cache_dtype in TURBOQUANT_DTYPES
    if turbo and (draft or any(isinstance(c.cache, StateCache) for s in stages for c in s)):
        raise Refusal("a TurboQuant KV cache beside states or a drafter is not described")
    if args.disable_sliding_window:
        raise Refusal("--disable-sliding-window is not covered yet")
    if where.env.get(_LAYOUT_VARIABLE):
        raise Refusal(f"{_LAYOUT_VARIABLE} is not covered yet")
    whole = [*stages[:-1], [*stages[-1], *draft]]
    asked = _cache_args(model, whole, args, resolved, speculative, where)
    if on_cpu:
        try:
            return make_planner(whole, asked)
        except Refusal:  # blocks that no CPU reads: a GPU with --kv-cache-memory-bytes
            return make_planner_for_any_gpu(whole, asked)
    planners = list(_planners(model, whole, asked, where))
    if any(planner != planners[0] for planner in planners):
        raise Refusal("the KV cache hangs on whether FlashAttention 4 is installed; not covered")
    return planners[0]


def _planners(
    model: Model, stages: Stages, asked: CacheArgs, where: Surroundings
) -> Iterator[Planner]:
    """One planner for each set of kernels that may be installed; a refusal if none starts."""
    refused: Refusal | None = None
    for found in _kernel_sets(where):
        kernels = found
        if asked.kv_cache_dtype in TURBOQUANT_DTYPES:
            # Source: vLLM 0.32 engine/arg_utils.py, create_engine_config.
            kernels = replace(found, flash_attention_version=2)
        args = replace(asked, kernels=kernels)
        if model.mixed_heads:
            args = replace(args, kernels=kernels_for_mixed_heads(kernels, asked.kv_cache_dtype))
        known = kernels.capability is not None
        try:
            yield make_planner(stages, args) if known else make_planner_for_any_gpu(stages, args)
        except Refusal as refusal:
            refused = refusal
        else:
            if where.flashinfer is not None or not _has_large_heads(stages):
                return
    if refused is not None:
        raise refused


def _has_large_heads(stages: Stages) -> bool:
    """Whether FlashAttention 4 could make a difference."""
    return any(
        isinstance(named.cache, AttentionCache) and named.cache.head_size > 128
        for stage in stages
        for named in stage
    )


def _kernel_sets(where: Surroundings) -> Iterator[Kernels]:
    """What may be installed, the likeliest first; what is said is taken to be all there is."""
    capability = None if where.gpu is None else where.gpu.capability
    if where.flashinfer is not None:
        yield Kernels(capability=capability, flashinfer=where.flashinfer)
        return
    flashinfer = capability is not None and capability >= _PREFERS_FLASHINFER
    yield Kernels(capability=capability, flashinfer=flashinfer)
    yield Kernels(capability=capability, flashinfer=flashinfer, flash_attention_4=True)


def _cache_args(  # noqa: PLR0917 (one deployment)
    model: Model,
    stages: Stages,
    args: EngineArgs,
    resolved: ResolvedArgs,
    speculative: Speculative | None,
    where: Surroundings,
) -> CacheArgs:
    caches = [named.cache for stage in stages for named in stage]
    recurrent = bool(caches) and all(isinstance(cache, StateCache) for cache in caches)
    chunked = any(isinstance(c, AttentionCache) and c.attention_chunk_size for c in caches)
    drafts = 0 if speculative is None else speculative.num_speculative_tokens
    reads_ahead = speculative is not None and speculative.reads_ahead
    caching = args.enable_prefix_caching
    caching = not recurrent if caching is None else caching
    _check_chunks(caches, args, caching=caching)
    state_dtype = args.mamba_ssm_cache_dtype or "auto"
    return CacheArgs(
        dtype=resolved.dtype,
        max_model_len=resolved.max_model_len,
        kernels=Kernels(capability=None),
        version=where.version,
        kv_cache_dtype=resolved.kv_cache_dtype,
        kv_cache_dtype_skip_layers=frozenset(args.kv_cache_dtype_skip_layers or ())
        | _protected_layers(model, resolved.kv_cache_dtype),
        block_size=args.block_size,
        max_num_batched_tokens=resolved.max_num_batched_tokens,
        max_in_flight_tokens=resolved.max_in_flight_tokens,
        fits_max_model_len=resolved.fits_max_model_len,
        num_gpu_blocks_override=args.num_gpu_blocks_override,
        enable_prefix_caching=caching,
        disable_hybrid_kv_cache_manager=bool(args.disable_hybrid_kv_cache_manager)
        or (chunked and (reads_ahead or where.env.get(_HYBRID_CHUNKS_VARIABLE) == "0")),
        mamba_block_size=args.mamba_block_size,
        mamba_cache_dtype=args.mamba_cache_dtype or "auto",
        mamba_ssm_cache_dtype=model.state_dtype or "auto" if state_dtype == "auto" else state_dtype,
        num_speculative_tokens=drafts,
        num_prefill_lookahead_tokens=1 if reads_ahead else 0,
        tensor_parallel_size=resolved.tensor_parallel_size,
        decode_context_parallel_size=args.decode_context_parallel_size or 1,
        num_kv_heads=_per_rank(model.num_kv_heads, resolved.tensor_parallel_size),
        head_size=model.head_size,
        mm_prefix=model.mm_prefix,
        soft_cap=model.soft_cap,
    )


def _check_chunks(caches: Sequence[LayerCache], args: EngineArgs, *, caching: bool) -> None:
    """Source: vLLM 0.32 ``models/config.py``, ``MambaModelConfig``."""
    stateful = any(isinstance(cache, StateCache) for cache in caches)
    if stateful and caching and args.enable_chunked_prefill is False:
        raise Refusal(
            "vLLM refuses to start: states are cached only with chunked prefill; "
            "leave out enable_chunked_prefill or give --no-enable-prefix-caching"
        )


def _protected_layers(model: Model, kv_cache_dtype: str) -> frozenset[str]:
    """The first and last two layers, which TurboQuant leaves in the model's dtype.

    Source: vLLM 0.32 ``layers/quantization/turboquant/config.py``, ``get_boundary_skip_layers``.
    """
    if kv_cache_dtype not in TURBOQUANT_DTYPES:
        return frozenset()
    count = len(model.layers)
    ends = min(_PROTECTED_LAYERS, count // 2)
    return frozenset(map(str, (*range(ends), *range(count - ends, count))))


def _per_rank(num_kv_heads: int | None, tensor_parallel: int) -> int | None:
    return None if num_kv_heads is None else max(1, num_kv_heads // tensor_parallel)
