"""What vLLM makes of its arguments: every default resolved."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_capacity.predict.dtypes import MODEL_DTYPES
from vllm_capacity.predict.engine_args import EngineArgs
from vllm_capacity.predict.gpu import Gpu
from vllm_capacity.predict.model import Model
from vllm_capacity.predict.model_config import ModelConfig
from vllm_capacity.predict.quantization.scheme import Quantization
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.speculative import read_speculative
from vllm_capacity.predict.vllm_version import VllmVersion
from vllm_capacity.units import GIB, Tokens

_UNCOVERED_VARIABLES = ("VLLM_MLA_DISABLE", "VLLM_DCP_Q_REPLICATE", "VLLM_REPLICATE_EMBED")
#: Source: vLLM 0.32 ``models/gemma4_mm.py``, ``_VIDEO_MAX_FRAMES``.
_MAX_FRAMES = 32
_BFLOAT16_CAPABILITY = (8, 0)
_BLACKWELL = 10
#: Source: vLLM 0.32 ``transformers_utils/model_arch_config_convertor.py``, ``get_num_experts``.
_EXPERT_COUNTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
_OTHER_VENDORS = re.compile(r"\b(amd|radeon|instinct|mi\d{2,3}x?|intel|gaudi|tpu)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedArgs:
    """vLLM's arguments after all defaults; None where a default hangs on an unknown.

    Attributes:
        block_size: tokens of a block; None where neither GPU nor bytes are known.
        kv_cache_dtype: as vLLM's cache configuration shows it, ``auto`` for the model's dtype.
        fits_max_model_len: whether ``--max-model-len -1`` lets vLLM shorten it to fit.
        max_concurrent_batches: steps that may be under way at once.
    """

    architecture: str
    dtype: str
    max_model_len: Tokens
    max_num_seqs: int | None
    max_num_batched_tokens: Tokens | None
    block_size: Tokens | None
    kv_cache_dtype: str
    quantization: str | None
    gpu_memory_utilization: float
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    enable_expert_parallel: bool
    enforce_eager: bool
    fits_max_model_len: bool
    max_concurrent_batches: int

    @property
    def max_in_flight_tokens(self) -> Tokens | None:
        """Tokens that may be scheduled and not yet settled.

        Source: vLLM 0.32 ``config/vllm.py``, ``VllmConfig.max_in_flight_tokens``.
        """
        if self.max_num_batched_tokens is None:
            return None
        return Tokens(self.max_concurrent_batches * self.max_num_batched_tokens)


def resolve(
    model: ModelConfig,
    args: EngineArgs,
    *,
    gpu: Gpu | None,
    version: VllmVersion,
    quantization: Quantization,
    env: Mapping[str, str],
) -> ResolvedArgs:
    """Every default as vLLM would take it.

    Raises:
        Refusal: vLLM would not start so, or what it would do is not described exactly.
    """
    built = _built(model)
    if (args.pipeline_parallel_size or 1) > len(built.layers):
        raise Refusal("vLLM refuses to start: more pipeline stages than layers")
    _check_surroundings(gpu, env)
    _check_experts(model, built, args)
    dtype = _dtype(model, args, gpu)
    max_model_len = _max_model_len(model, args, version, env)
    seqs, tokens = _scheduler_limits(args, gpu, version, max_model_len, built.frame_tokens)
    return ResolvedArgs(
        architecture=model.architecture,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=seqs,
        max_num_batched_tokens=None if tokens is None else Tokens(tokens),
        block_size=None,
        kv_cache_dtype=_kv_cache_dtype(built, args, quantization, gpu),
        quantization=quantization.name,
        gpu_memory_utilization=_utilization(args, version),
        tensor_parallel_size=args.tensor_parallel_size or 1,
        pipeline_parallel_size=args.pipeline_parallel_size or 1,
        data_parallel_size=args.data_parallel_size or 1,
        enable_expert_parallel=bool(args.enable_expert_parallel) and built.is_moe,
        enforce_eager=bool(args.enforce_eager),
        fits_max_model_len=args.max_model_len == -1,
        max_concurrent_batches=_max_concurrent_batches(args, version, env),
    )


def _built(model: ModelConfig) -> Model:
    if model.model is None:
        raise Refusal(model.unsupported or "the model is not described exactly")
    return model.model


def _check_surroundings(gpu: Gpu | None, env: Mapping[str, str]) -> None:
    if gpu is not None and _OTHER_VENDORS.search(gpu.name):
        raise Refusal(f"only NVIDIA GPUs are described, not {gpu.name}")
    for variable in _UNCOVERED_VARIABLES:
        if env.get(variable, "0") not in {"", "0"}:
            raise Refusal(f"{variable} changes memory in a way that is not covered")
    if env.get("VLLM_USE_V1") == "0":
        raise Refusal("the V0 engine (VLLM_USE_V1=0) is not described")


def _check_experts(model: ModelConfig, built: Model, args: EngineArgs) -> None:
    """Source: vLLM 0.32 ``config/model.py``, ``_verify_with_expert_parallelism``."""
    if args.enable_expert_parallel and not built.is_moe and not _counts_experts(model):
        raise Refusal("vLLM refuses to start: enable_expert_parallel with a model of no experts")


def _counts_experts(model: ModelConfig) -> bool:
    return any(model.text.get(key) for key in _EXPERT_COUNTS)


def _dtype(model: ModelConfig, args: EngineArgs, gpu: Gpu | None) -> str:
    """Source: vLLM 0.32 ``config/model.py``, ``_get_and_verify_dtype``."""
    asked = (args.dtype or "auto").lower()
    capability = None if gpu is None else gpu.capability
    old = capability is not None and capability < _BFLOAT16_CAPABILITY
    preferred = "float16" if old else "bfloat16"
    if asked == "auto":
        dtype = preferred if model.dtype in {None, "float32"} else str(model.dtype)
        return preferred if dtype == "bfloat16" and old else dtype
    dtype = MODEL_DTYPES.get(asked, "")
    if dtype not in {"bfloat16", "float16", "float32"}:
        raise Refusal(f"dtype {asked} is not described exactly; bfloat16, float16, float32 are")
    if dtype == "bfloat16" and old:
        raise Refusal("vLLM refuses to start: this GPU has no bfloat16; give --dtype half")
    return dtype


def _kv_cache_dtype(
    built: Model, args: EngineArgs, quantization: Quantization, gpu: Gpu | None
) -> str:
    dtype = args.kv_cache_dtype or "auto"
    if dtype == "auto" and quantization.kv_cache_dtype is not None:
        dtype = quantization.kv_cache_dtype
    if dtype == "auto" and gpu is not None and (gpu.capability or (0,))[0] == _BLACKWELL:
        dtype = built.blackwell_cache_dtype or dtype
    if dtype == "fp8_e5m2" and quantization.name in {"fp8", "modelopt"}:
        raise Refusal("vLLM refuses to start: fp8_e5m2 KV cache with an fp8 checkpoint")
    return dtype


def _max_model_len(
    model: ModelConfig, args: EngineArgs, version: VllmVersion, env: Mapping[str, str]
) -> Tokens:
    """Source: vLLM 0.32 ``config/model.py``, ``_get_and_verify_max_len``."""
    default, longest = model.default_max_model_len or 1, model.longest_max_model_len or 1
    is_yarn = _built(model).rope_type == "yarn"
    asked = args.max_model_len
    if asked is None or asked == -1:
        if is_yarn and version < VllmVersion(0, 32):
            raise Refusal("releases before 0.32 lengthen YaRN models; give --max-model-len")
        return Tokens(default)
    allowed = env.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") in {"1", "true", "True"}
    bounded = not is_yarn or version >= VllmVersion(0, 32)
    if asked > longest and bounded and not allowed:
        raise Refusal(
            f"vLLM refuses to start: max_model_len {asked} is longer than the model's {longest} "
            "tokens; VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 would let it"
        )
    return Tokens(asked)


def _utilization(args: EngineArgs, version: VllmVersion) -> float:
    """Source: ``config/cache.py``, ``CacheConfig.gpu_memory_utilization``, since 0.21 0.92."""
    if args.gpu_memory_utilization is not None:
        return args.gpu_memory_utilization
    return 0.92 if version >= VllmVersion(0, 21) else 0.9


def _scheduler_limits(
    args: EngineArgs,
    gpu: Gpu | None,
    version: VllmVersion,
    max_model_len: int,
    frame_tokens: int,
) -> tuple[int | None, int | None]:
    """``max_num_seqs`` and ``max_num_batched_tokens``; a video that must be whole fits a batch.

    Source: vLLM 0.32 ``engine/arg_utils.py``, ``get_batch_defaults`` and
    ``_set_default_max_num_seqs_and_batched_tokens_args``, for the API server.
    """
    default_seqs, default_tokens = _batch_defaults(gpu, version)
    doubled = 2 if args.performance_mode == "throughput" else 1
    seqs, tokens = args.max_num_seqs, args.max_num_batched_tokens
    if seqs is None and default_seqs is not None:
        seqs = default_seqs * doubled
    if tokens is None and default_tokens is not None:
        tokens = default_tokens * doubled
        if args.enable_chunked_prefill is False:
            tokens = max(max_model_len, tokens)
        tokens = max(tokens, frame_tokens * args.video_frames(_MAX_FRAMES))
        tokens = tokens if seqs is None else min(seqs * max_model_len, tokens)
    if args.max_num_seqs is None and seqs is not None and tokens is not None:
        seqs = min(seqs, tokens)
    _check_scheduler(args, seqs, tokens, max_model_len)
    return seqs, tokens


def _check_scheduler(
    args: EngineArgs, seqs: int | None, tokens: int | None, max_model_len: int
) -> None:
    """Source: vLLM 0.32 ``config/scheduler.py``, ``verify_max_model_len``."""
    if tokens is None:
        return
    if seqs is not None and tokens < seqs:
        raise Refusal(
            f"vLLM refuses to start: max_num_batched_tokens {tokens} is below max_num_seqs {seqs}"
        )
    if args.enable_chunked_prefill is False and tokens < max_model_len:
        raise Refusal(
            f"vLLM refuses to start: without chunked prefill, max_num_batched_tokens {tokens} "
            f"must reach max_model_len {max_model_len}"
        )


def _batch_defaults(gpu: Gpu | None, version: VllmVersion) -> tuple[int | None, int | None]:
    if gpu is None or version < VllmVersion(0, 8, 5):
        return None, None
    memory = gpu.total_memory_bytes
    if memory >= 160 * GIB and version >= VllmVersion(0, 26):
        # First seen in 0.28, absent in 0.25.
        return (1024, 16384) if version >= VllmVersion(0, 28) else (None, None)
    if memory >= 70 * GIB and "a100" not in gpu.name.lower():
        return 1024, 8192
    return 256, 2048


def _max_concurrent_batches(args: EngineArgs, version: VllmVersion, env: Mapping[str, str]) -> int:
    """Source: vLLM 0.32 ``config/vllm.py``, ``max_concurrent_batches``.

    Releases up to 0.25 reserve for one batch only.
    """
    stages = args.pipeline_parallel_size or 1
    if version <= VllmVersion(0, 25, 999):
        return 1
    v1_runner = env.get("VLLM_USE_V2_MODEL_RUNNER") in {"0", "false", "False"}
    default = args.distributed_executor_backend in {None, "mp", "uni"}
    speculative = read_speculative(args.speculative_config)
    default = default and (speculative is None or speculative.overlaps)
    overlaps = default if args.async_scheduling is None else args.async_scheduling
    if not overlaps or (v1_runner and stages > 1):
        return stages
    return stages + 1
