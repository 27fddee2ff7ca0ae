"""Which generation of FlashAttention vLLM takes for a layer, and what that one can do.

Source: vLLM 0.32 ``v1/attention/backends/fa_utils.py``, ``get_flash_attn_version``.
"""

from dataclasses import dataclass

from vllm_capacity.predict.kv_cache.format import is_quantized

_HOPPER, _BLACKWELL = 9, 10
#: The kernel for heads of 256 elements on Blackwell reads whole pages.
HEAD_256_PAGE_TOKENS = 128
#: The kernel for fp8 caches of 512 elements on Hopper reads whole tiles.
HEAD_512_FP8_PAGE_TOKENS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """Where attention runs, and which optional kernels are installed there.

    Attributes:
        capability: compute capability; None on a CPU.
        flashinfer: whether FlashInfer is installed.
        flash_attention_4: whether FlashAttention 4 is installed, as in vLLM's images.
        flash_attention_version: the one that all layers must take, if any.
        backend: vLLM's name of the backend that all layers must take, if any.
    """

    capability: tuple[int, int] | None
    flashinfer: bool = False
    flash_attention_4: bool = False
    flash_attention_version: int | None = None
    backend: str | None = None

    @property
    def major(self) -> int:
        """Generation of the GPU, 0 on a CPU."""
        return 0 if self.capability is None else self.capability[0]

    @property
    def has_version_4(self) -> bool:
        """Whether FlashAttention 4 is installed and knows this GPU."""
        return self.flash_attention_4 and self.major in {9, 10, 11}


@dataclass(frozen=True, kw_only=True, slots=True)
class Heads:
    """What the choice of a generation hangs on.

    Attributes:
        size: elements of a key; None for a question about the GPU alone.
        size_v: elements of a value; None for as many.
        has_sink: whether the layer has attention sinks.
        soft_cap: whether the model caps attention logits.
        mm_prefix: whether images attend to all of themselves.
        kv_cache_dtype: of the whole cache.
        block_size: as given by the operator, if any.
        context_parallel: whether requests are distributed over ranks.
    """

    size: int | None = None
    size_v: int | None = None
    has_sink: bool = False
    soft_cap: bool = False
    mm_prefix: bool = False
    kv_cache_dtype: str = "auto"
    block_size: int | None = None
    context_parallel: bool = False


def flash_attention_version(heads: Heads, kernels: Kernels) -> int:
    """2, 3 or 4."""
    version = kernels.flash_attention_version or _default(kernels)
    if version == 4 and not kernels.has_version_4:
        return 2
    if version == 3 and kernels.major == _HOPPER and kernels.has_version_4:
        unequal = heads.has_sink and heads.size_v is not None and heads.size != heads.size_v
        version = 4 if unequal or (heads.size or 0) > 256 else 3
    if version == 4 and kernels.major >= _BLACKWELL and (heads.size or 0) > 128:
        return 4 if _fits_blackwell(heads) else 2
    return version


def page_tokens(heads: Heads, kernels: Kernels) -> int | None:
    """Tokens of the only page that a layer's kernel reads, None where any 16 will do.

    Source: vLLM 0.32 ``v1/attention/backends/flash_attn.py``, ``_get_sm90_fa4_fp8_kv_block_size``
    and ``_get_fa4_hd256_block_size``.
    """
    newest = flash_attention_version(heads, kernels) == 4
    fp8 = heads.kv_cache_dtype in {"fp8", "fp8_e4m3"}
    if newest and kernels.major == _HOPPER and fp8 and heads.size == 512:
        return HEAD_512_FP8_PAGE_TOKENS
    if newest and kernels.major >= _BLACKWELL and heads.size == 256:
        return HEAD_256_PAGE_TOKENS
    return None


def reads_fp8(heads: Heads, kernels: Kernels) -> bool:
    """Whether a layer's kernel reads a cache of eight bits.

    Source: vLLM 0.32 ``fa_utils.py``, ``flash_attn_supports_kv_cache_dtype``.
    """
    version = flash_attention_version(heads, kernels)
    if kernels.major == _HOPPER:
        return version == 3 or (version == 4 and heads.size in {None, 512})
    return version == 4 and kernels.major == _BLACKWELL


def _default(kernels: Kernels) -> int:
    if kernels.major == _HOPPER:
        return 3
    return 4 if kernels.major == _BLACKWELL and kernels.has_version_4 else 2


def _fits_blackwell(heads: Heads) -> bool:
    if heads.size == 192:
        return heads.size_v == 128
    if heads.size != 256 or heads.size_v not in {None, 256}:
        return False
    whole_pages = heads.block_size is None or heads.block_size % HEAD_256_PAGE_TOKENS == 0
    special = heads.has_sink or heads.soft_cap or heads.mm_prefix or heads.context_parallel
    return whole_pages and not special and not is_quantized(heads.kv_cache_dtype)
