"""The prediction as a table that a person reads."""

from collections.abc import Iterator

from vllm_capacity.commands.predict_answers import Question, render_answers
from vllm_capacity.predict import (
    Deployment,
    KVCachePlan,
    MemoryBudget,
    Prediction,
    ResolvedArgs,
    predict,
)
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


def render(deployment: Deployment, question: Question) -> str:
    """The prediction and the answers around it in lines of text."""
    prediction = predict(deployment)
    if not prediction.supported or prediction.resolved is None:
        return f"not predicted: {prediction.reason}"
    lines = list(_lines(deployment, prediction, prediction.resolved))
    if prediction.plans:
        lines += render_answers(deployment, prediction, question)
    return "\n".join(lines)


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
