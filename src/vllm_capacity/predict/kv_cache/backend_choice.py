"""Which attention backend vLLM takes for a layer: block sizes and KV cache types hang on it.

Source: vLLM 0.32 ``platforms/cuda.py``, ``_get_backend_priorities`` and ``get_valid_backends``.
"""

from dataclasses import replace

from vllm_capacity.predict.kv_cache.attention_backend import BACKENDS, Backend, Wanted
from vllm_capacity.predict.kv_cache.flash_attention import (
    HEAD_512_FP8_PAGE_TOKENS,
    Heads,
    Kernels,
    page_tokens,
)
from vllm_capacity.predict.kv_cache.format import is_quantized
from vllm_capacity.predict.refusal import Refusal

_FEW_HEADS = 16
_FP8_CAPABILITY = (8, 9)


def _priorities(wanted: Wanted, kernels: Kernels) -> tuple[str, ...]:
    if kernels.capability is None:
        return () if wanted.latent else ("CPU_ATTN",)
    if wanted.latent and wanted.sparse:
        return _sparse_priorities(wanted, kernels)
    if wanted.latent:
        hopper = ("FLASH_ATTN_MLA", "FLASHMLA", "FLASHINFER_MLA", "TRITON_MLA")
        blackwell = ("FLASHINFER_MLA", "CUTLASS_MLA", *hopper)
        return blackwell if kernels.major == 10 else hopper
    common = ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "FLEX_ATTENTION", "TURBOQUANT")
    if kernels.major == 10:
        images = ("TRITON_FLASHINFER",) if wanted.heads.mm_prefix else ()
        return (*images, "FLASHINFER", *common)
    images = ("TRITON_FLASH_ATTN",) if wanted.heads.mm_prefix and kernels.major == 9 else ()
    return (*images, *common)


def _sparse_priorities(wanted: Wanted, kernels: Kernels) -> tuple[str, ...]:
    if kernels.major == 12:
        return ("FLASHINFER_MLA_SPARSE_SM120",)
    if kernels.major == 10:
        few = wanted.num_heads is not None and wanted.num_heads <= _FEW_HEADS
        both = ("FLASHINFER_MLA_SPARSE", "FLASHMLA_SPARSE")
        return both if few or is_quantized(wanted.heads.kv_cache_dtype) else both[::-1]
    tail = ("FLASH_ATTN_MLA_SPARSE", "FLASHMLA_SPARSE")
    flashinfer = ("FLASHINFER_MLA_SPARSE_SM90",)
    return (*flashinfer, *tail) if wanted.heads.size == 512 else (*tail, *flashinfer)


def choose_backend(wanted: Wanted, kernels: Kernels) -> Backend:
    """The first backend that takes the layer.

    Raises:
        Refusal: none does, or the one that the operator named does not.
    """
    names = (kernels.backend,) if kernels.backend else _priorities(wanted, kernels)
    for name in names:
        backend = BACKENDS.get(name)
        if backend is None:
            raise Refusal(f"attention backend {name} is not described")
        if backend.takes(wanted, kernels):
            _check_fp8(backend, wanted.heads, kernels)
            return backend
    heads = wanted.heads
    given = "" if heads.block_size is None else f", blocks of {heads.block_size} tokens"
    raise Refusal(
        f"vLLM refuses to start: no attention backend takes heads of {heads.size} elements, KV "
        f"cache dtype {heads.kv_cache_dtype}{given} on compute capability "
        f"{'.'.join(map(str, kernels.capability or ('?',)))}"
    )


def _check_fp8(backend: Backend, heads: Heads, kernels: Kernels) -> None:
    """Triton is taken for an fp8 cache on any GPU, and then fails on old ones.

    Source: vLLM 0.32 ``v1/attention/backends/triton_attn.py`` and ``mla/triton_mla.py``.
    """
    old = kernels.capability is not None and kernels.capability < _FP8_CAPABILITY
    if old and backend.name.startswith("TRITON") and heads.kv_cache_dtype.startswith("fp8"):
        raise Refusal(
            "vLLM refuses to start: an fp8 KV cache needs compute capability 8.9 or FlashInfer"
        )


def with_pages(backend: Backend, heads: Heads, kernels: Kernels) -> Backend:
    """The backend with the one page size that FlashAttention 4 needs for some heads.

    Source: vLLM 0.32 ``v1/attention/backends/flash_attn.py``, ``get_supported_kernel_block_sizes``.
    """
    if backend.name not in {"FLASH_ATTN", "TRITON_FLASH_ATTN"}:
        return backend
    tokens = page_tokens(replace(heads, has_sink=False, block_size=None), kernels)
    if tokens is None or (backend.name != "FLASH_ATTN" and tokens != HEAD_512_FP8_PAGE_TOKENS):
        return backend
    return replace(backend, kernel_blocks=(tokens,), any_multiple=False)


def kernels_for_mixed_heads(kernels: Kernels, kv_cache_dtype: str) -> Kernels:
    """One kernel for all layers of Gemma 4, whose windows have smaller heads than the rest.

    Source: vLLM 0.32 ``model_executor/models/config.py``, ``Gemma4Config``.
    """
    if kernels.capability is None or kernels.backend not in {None, "FLASH_ATTN"}:
        return kernels
    if not kernels.has_version_4:
        return replace(kernels, backend=kernels.backend or "TRITON_ATTN")
    if kernels.flash_attention_version or (kernels.major == 9 and kv_cache_dtype.startswith("fp8")):
        return kernels
    return replace(kernels, flash_attention_version=4)
