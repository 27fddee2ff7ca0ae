"""Which tensor-parallel ranks may share the tokens of a request (decode context parallelism).

Source: vLLM 0.32 ``config/model.py``, ``verify_with_parallel_config``, and
``config/parallel.py``, ``ParallelConfig``.
"""

from vllm_capacity.predict.model import Model
from vllm_capacity.predict.parts import SelfAttention

_REFUSES = "vLLM refuses to start: decode_context_parallel_size"


def context_parallel_refusal(
    model: Model, tensor_parallel: int, context_parallel: int
) -> str | None:
    """Why vLLM would not distribute requests so, None if it would.

    Latent attention keeps one head on every rank and may be distributed over all of them.
    """
    if context_parallel == 1:
        return None
    if tensor_parallel % context_parallel:
        return f"{_REFUSES} {context_parallel} must divide tensor_parallel_size {tensor_parallel}"
    layers = [part for part in model.parts() if isinstance(part, SelfAttention) and part.cached]
    if not layers:
        return None
    heads = max(layer.num_heads for layer in layers)
    kv_heads = model.num_kv_heads or max(layer.num_kv_heads for layer in layers)
    copies = tensor_parallel // kv_heads
    if tensor_parallel <= kv_heads or context_parallel > copies:
        return (
            f"{_REFUSES} {context_parallel} needs as many copies of {kv_heads} KV heads, and "
            f"tensor_parallel_size {tensor_parallel} makes {copies}"
        )
    if heads // kv_heads % context_parallel:
        return f"{_REFUSES} {context_parallel} must divide {heads // kv_heads} queries a KV head"
    return None
