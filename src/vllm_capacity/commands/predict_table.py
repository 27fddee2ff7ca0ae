"""The prediction as a table that a person reads."""

from collections.abc import Iterator
from dataclasses import replace

from vllm_capacity.predict import (
    Deployment,
    KVCachePlan,
    MemoryBudget,
    Prediction,
    ResolvedArgs,
    predict,
)
from vllm_capacity.predict.engine_args import EngineArgs
from vllm_capacity.units import KIB, format_gib

_TERMS = (
    ("weights", "weights_bytes"),
    ("activation peak", "activation_peak_bytes"),
    ("outside PyTorch", "non_torch_bytes"),
    ("CUDA graphs", "cuda_graph_bytes"),
)


def fits(deployment: Deployment) -> bool:
    """Whether vLLM would start, as far as can be told."""
    prediction = predict(deployment)
    return prediction.supported and all(plan.error is None for plan in prediction.plans)


def render(deployment: Deployment) -> str:
    """The prediction in lines of text."""
    prediction = predict(deployment)
    if not prediction.supported or prediction.resolved is None:
        return f"not predicted: {prediction.reason}"
    return "\n".join(_lines(deployment, prediction, prediction.resolved))


def _lines(deployment: Deployment, prediction: Prediction, resolved: ResolvedArgs) -> Iterator[str]:
    yield from _heading(deployment, resolved)
    if prediction.budget is not None:
        yield ""
        yield from _budget(prediction.budget, resolved)
    elif prediction.weights_bytes is not None:
        yield f"weights on the fullest GPU  {format_gib(max(prediction.weights_bytes))}"
    if not prediction.plans:
        yield "\nno KV cache plan: give --gpu, --kv-cache-memory-bytes or --num-gpu-blocks-override"
    for plan in prediction.plans:
        yield ""
        yield from _plan(plan, prediction)
    if any(plan.error is not None for plan in prediction.plans):
        yield from _remedies(deployment, prediction)


def _heading(deployment: Deployment, resolved: ResolvedArgs) -> Iterator[str]:
    gpu = deployment.gpu
    gpus = resolved.tensor_parallel_size * resolved.pipeline_parallel_size
    memory = "" if gpu is None else f" of {format_gib(gpu.total_memory_bytes)}"
    name = "no GPU given" if gpu is None else f"{gpus} × {gpu.name or 'GPU'}{memory}"
    version = "newest known release" if deployment.vllm_version is None else "vLLM"
    yield f"{resolved.architecture}, {resolved.dtype}, {resolved.quantization or 'unquantised'}"
    yield f"{name}; {version} {deployment.vllm_version or ''}".rstrip()
    yield (
        f"max_model_len {resolved.max_model_len}, "
        f"max_num_seqs {_or_unknown(resolved.max_num_seqs)}, "
        f"max_num_batched_tokens {_or_unknown(resolved.max_num_batched_tokens)}, "
        f"block_size {_or_unknown(resolved.block_size)}, "
        f"KV cache {resolved.kv_cache_dtype}"
    )


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _budget(budget: MemoryBudget, resolved: ResolvedArgs) -> Iterator[str]:
    """Terms of the tightest GPU, with bounds and where each comes from."""
    requested = format_gib(budget.requested_bytes)
    yield "per GPU (the tightest)         estimate          between              how"
    yield _row("requested", requested, "", f"{resolved.gpu_memory_utilization:g} of the memory")
    for label, name in _TERMS:
        value = getattr(budget, name)
        low, high = getattr(budget, f"{name}_low"), getattr(budget, f"{name}_high")
        origin = budget.origins.get(name.removesuffix("_bytes"), "")
        if name == "activation_peak_bytes":
            origin = f"{budget.activation_peak_phase}: {origin}"
        yield _row(f"− {label}", format_gib(value), _range(low, high), origin)
    left = _range(budget.kv_cache_bytes_low, budget.kv_cache_bytes_high)
    yield _row("= KV cache", format_gib(budget.kv_cache_bytes), left, "")


def _range(low: int, high: int) -> str:
    return "" if low == high else f"{format_gib(low)} … {format_gib(high)}"


def _row(label: str, value: str, between: str, how: str) -> str:
    return f"  {label:<20}{value:>17}   {between:<25} {how}".rstrip()


def _plan(plan: KVCachePlan, prediction: Prediction) -> Iterator[str]:
    tokens = max(prediction.bytes_per_token or (0,))
    yield f"KV cache ({plan.origin}), {tokens / KIB:g} KiB a token and GPU"
    for group in plan.groups:
        yield (
            f"  {group.layers} layers, {group.kind}: blocks of {group.spec.block_size} tokens, "
            f"{group.spec.page_size_bytes / KIB:g} KiB a layer"
        )
    if plan.error is not None:
        yield f"  vLLM would refuse to start: {plan.error}"
        return
    usable = (plan.num_blocks or 1) - 1
    yield f"  {plan.num_blocks} blocks, {usable} of them for requests"
    yield f"  {plan.kv_cache_size_tokens} tokens"
    yield f"  {plan.max_concurrency:.2f} requests of {plan.max_model_len} tokens at once"


def _remedies(deployment: Deployment, prediction: Prediction) -> Iterator[str]:
    """What would make room, each tried by predicting it."""
    yield "\nwhat would help"
    estimated = [plan.estimated_max_model_len for plan in prediction.plans]
    if estimated[0]:
        yield f"  --max-model-len {estimated[0]}: the longest that fits as it is"
    found = False
    for label, changed in _changes(deployment.engine_args, prediction.resolved):
        tried = predict(replace(deployment, engine_args=changed))
        plan = tried.plans[0] if tried.supported and tried.plans else None
        if plan is not None and plan.error is None:
            found = True
            yield f"  {label}: {plan.max_concurrency:.2f} requests of full length at once"
    if not (found or estimated[0]):
        yield "  more GPUs, or a smaller or quantised model: no single argument makes it fit"


def _changes(args: EngineArgs, resolved: ResolvedArgs | None) -> Iterator[tuple[str, EngineArgs]]:
    if resolved is None:
        return
    if (resolved.max_num_seqs or 0) > 256:
        yield "--max-num-seqs 256", replace(args, max_num_seqs=256)
    if resolved.gpu_memory_utilization < 0.95:
        yield "--gpu-memory-utilization 0.95", replace(args, gpu_memory_utilization=0.95)
    if resolved.kv_element_bytes > 1:
        yield "--kv-cache-dtype fp8", replace(args, kv_cache_dtype="fp8")
    doubled = 2 * resolved.tensor_parallel_size
    yield f"--tensor-parallel-size {doubled}", replace(args, tensor_parallel_size=doubled)
