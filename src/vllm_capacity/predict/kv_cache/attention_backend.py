"""The attention backends of vLLM, and what each of them takes.

Source: vLLM 0.32 ``v1/attention/backend.py``, ``validate_configuration``, and the files under
``v1/attention/backends``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from vllm_capacity.predict.kv_cache.flash_attention import (
    Heads,
    Kernels,
    flash_attention_version,
    reads_fp8,
)
from vllm_capacity.predict.kv_cache.format import TURBOQUANT_DTYPES, is_quantized

_PLAIN = frozenset({"auto", "float16", "bfloat16"})
_FP8 = _PLAIN | {"fp8", "fp8_e4m3"}
_FP8_ALL = _FP8 | {"fp8_e5m2"}
_PER_TOKEN_HEAD = {"int4_per_token_head", "int8_per_token_head", "fp8_per_token_head"}
_LATENT_HEADS = frozenset({320, 512, 576})


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What one layer asks of a backend.

    Attributes:
        heads: sizes, sinks, cache type, and the operator's block size.
        dtype: of the model.
        latent: whether it is multi-head latent attention.
        sparse: whether an indexer picks the tokens.
        cross: whether it attends to an encoder's output.
        num_heads: query heads on one rank.
        qk_nope_head_dim: elements of a latent layer's key without rotary positions.
        qk_rope_head_dim: elements of a latent layer's key with rotary positions.
    """

    heads: Heads
    dtype: str
    latent: bool = False
    sparse: bool = False
    cross: bool = False
    num_heads: int | None = None
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64


def _always(wanted: Wanted, kernels: Kernels) -> bool:
    del wanted, kernels
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """One backend and what it takes.

    Attributes:
        name: vLLM's.
        kernel_blocks: sizes of a block that its kernels read, in tokens.
        any_multiple: whether a kernel reads any multiple of the only size at once; where not, a
            block is split into kernel blocks.
        kv_cache_dtypes: the cache types that it knows.
        majors: generations of GPUs, None for all.
        head_sizes: None for all that ``accepts`` takes.
        accepts: what else it asks.
    """

    name: str
    kernel_blocks: tuple[int, ...] = (16,)
    any_multiple: bool = True
    kv_cache_dtypes: frozenset[str] = _PLAIN
    majors: frozenset[int] | None = None
    head_sizes: frozenset[int] | None = None
    latent: bool = False
    sparse: bool = False
    has_sinks: bool = False
    mm_prefix: bool = False
    cross: bool = False
    context_parallel: bool = False
    float32: bool = False
    needs_flashinfer: bool = False
    accepts: Callable[[Wanted, Kernels], bool] = _always

    def takes_block(self, block_size: int | None) -> bool:
        """Whether blocks of ``block_size`` tokens can be read, whole or split."""
        return block_size is None or any(block_size % size == 0 for size in self.kernel_blocks)

    def takes(self, wanted: Wanted, kernels: Kernels) -> bool:
        """Whether vLLM may take it; source: ``validate_configuration``."""
        heads = wanted.heads
        return (
            (self.majors is None or kernels.major in self.majors)
            and (kernels.flashinfer or not self.needs_flashinfer)
            and heads.kv_cache_dtype in self.kv_cache_dtypes
            and self.takes_block(heads.block_size)
            and (self.head_sizes is None or heads.size in self.head_sizes)
            and (wanted.dtype != "float32" or self.float32)
            and (wanted.latent, wanted.sparse) == (self.latent, self.sparse)
            and all(able or not asked for able, asked in self._abilities(wanted))
            and self.accepts(wanted, kernels)
        )

    def _abilities(self, wanted: Wanted) -> tuple[tuple[bool, bool], ...]:
        return (
            (self.has_sinks, wanted.heads.has_sink),
            (self.mm_prefix, wanted.heads.mm_prefix),
            (self.cross, wanted.cross),
            (self.context_parallel, wanted.heads.context_parallel),
        )


def _flash(wanted: Wanted, kernels: Kernels) -> bool:
    """Source: ``v1/attention/backends/flash_attn.py``, ``supports_combination`` and others."""
    heads, size = wanted.heads, wanted.heads.size or 0
    if kernels.major < 8 or size % 8 or size > (512 if kernels.has_version_4 else 256):
        return False
    quantized = is_quantized(heads.kv_cache_dtype)
    if quantized and not (reads_fp8(Heads(), kernels) and reads_fp8(heads, kernels)):
        return False
    newest = flash_attention_version(heads, kernels) == 4
    if heads.mm_prefix and not (newest and not (quantized and kernels.major == 9)):
        return False
    return not heads.has_sink or flash_attention_version(Heads(), kernels) >= 3


def _flash_beside_triton(wanted: Wanted, kernels: Kernels) -> bool:
    """Source: ``v1/attention/backends/triton_flash_attn.py``."""
    causal = replace(wanted, heads=replace(wanted.heads, mm_prefix=False))
    return _flash(causal, kernels) and flash_attention_version(causal.heads, kernels) >= 3


def _triton(wanted: Wanted, kernels: Kernels) -> bool:
    del kernels
    return (wanted.heads.size or 0) >= 32


def _flashinfer(wanted: Wanted, kernels: Kernels) -> bool:
    """Source: ``v1/attention/backends/flashinfer.py``, ``supports_kv_cache_dtype`` and others."""
    heads = wanted.heads
    if heads.kv_cache_dtype.startswith("nvfp4") and kernels.major != 10:
        return heads.kv_cache_dtype == "nvfp4" and heads.size != 64 and not heads.has_sink
    return not heads.has_sink or kernels.major in {9, 10, 12}


def _flashinfer_latent(wanted: Wanted, kernels: Kernels) -> bool:
    del kernels
    return wanted.qk_nope_head_dim in {64, 128, 192}


def _flashinfer_sparse(wanted: Wanted, kernels: Kernels) -> bool:
    del kernels
    if wanted.qk_rope_head_dim == 0:
        return wanted.qk_nope_head_dim == 256 and wanted.heads.size == 512
    return wanted.qk_nope_head_dim in {128, 192}


def _flashmla_sparse(wanted: Wanted, kernels: Kernels) -> bool:
    """Source: ``v1/attention/backends/mla/flashmla_sparse.py``, ``supports_combination``."""
    kv_cache_dtype = wanted.heads.kv_cache_dtype
    if kv_cache_dtype == "nvfp4_ds_mla" and kernels.major != 10:
        return False
    if wanted.dtype != "bfloat16":
        return False
    if wanted.heads.size != 512:
        return True
    known = kv_cache_dtype in _PLAIN or kv_cache_dtype == "fp8_ds_mla"
    return known and kernels.major == 9 and wanted.qk_rope_head_dim == 0


def _bfloat16(wanted: Wanted, kernels: Kernels) -> bool:
    del kernels
    return wanted.dtype == "bfloat16"


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            name="FLASH_ATTN",
            kv_cache_dtypes=_FP8,
            has_sinks=True,
            mm_prefix=True,
            cross=True,
            context_parallel=True,
            accepts=_flash,
        ),
        Backend(
            name="FLASHINFER",
            kernel_blocks=(16, 32, 64),
            any_multiple=False,
            kv_cache_dtypes=_FP8_ALL | {"nvfp4", "nvfp4_4over6"},
            majors=frozenset({8, 9, 10, 11, 12}),
            head_sizes=frozenset({64, 128, 256, 512}),
            has_sinks=True,
            context_parallel=True,
            needs_flashinfer=True,
            accepts=_flashinfer,
        ),
        Backend(
            name="TRITON_ATTN",
            kv_cache_dtypes=_FP8_ALL | _PER_TOKEN_HEAD,
            has_sinks=True,
            mm_prefix=True,
            cross=True,
            float32=True,
            accepts=_triton,
        ),
        Backend(name="FLEX_ATTENTION", mm_prefix=True, float32=True),
        Backend(
            name="TURBOQUANT",
            kernel_blocks=(16, 32, 64, 128),
            any_multiple=False,
            kv_cache_dtypes=TURBOQUANT_DTYPES,
        ),
        # The CPU platform asks nothing of its only backend.
        Backend(
            name="CPU_ATTN",
            kernel_blocks=(32,),
            kv_cache_dtypes=_FP8_ALL,
            majors=frozenset({0}),
            has_sinks=True,
            mm_prefix=True,
            cross=True,
            float32=True,
        ),
        Backend(
            name="TRITON_FLASH_ATTN",
            kv_cache_dtypes=_FP8,
            majors=frozenset({9}),
            head_sizes=frozenset({256, 512}),
            mm_prefix=True,
            accepts=_flash_beside_triton,
        ),
        Backend(
            name="TRITON_FLASHINFER",
            kernel_blocks=(64,),
            any_multiple=False,
            kv_cache_dtypes=_FP8_ALL,
            majors=frozenset({10}),
            head_sizes=frozenset({256, 512}),
            mm_prefix=True,
            needs_flashinfer=True,
        ),
        Backend(
            name="FLASH_ATTN_MLA",
            majors=frozenset({9}),
            head_sizes=_LATENT_HEADS,
            latent=True,
            context_parallel=True,
        ),
        Backend(
            name="FLASHMLA",
            kernel_blocks=(64,),
            any_multiple=False,
            kv_cache_dtypes=_FP8,
            majors=frozenset({9}),
            head_sizes=_LATENT_HEADS,
            latent=True,
            context_parallel=True,
        ),
        Backend(
            name="FLASHINFER_MLA",
            kernel_blocks=(32, 64),
            any_multiple=False,
            kv_cache_dtypes=_FP8,
            majors=frozenset({10}),
            head_sizes=_LATENT_HEADS,
            latent=True,
            context_parallel=True,
            needs_flashinfer=True,
            accepts=_flashinfer_latent,
        ),
        Backend(
            name="CUTLASS_MLA",
            kernel_blocks=(128,),
            any_multiple=False,
            kv_cache_dtypes=_FP8,
            majors=frozenset({10}),
            head_sizes=_LATENT_HEADS,
            latent=True,
            context_parallel=True,
        ),
        Backend(name="TRITON_MLA", kv_cache_dtypes=_FP8, latent=True, context_parallel=True),
        Backend(
            name="FLASH_ATTN_MLA_SPARSE",
            kernel_blocks=(64,),
            majors=frozenset({9}),
            latent=True,
            sparse=True,
        ),
        Backend(
            name="FLASHMLA_SPARSE",
            kernel_blocks=(64,),
            kv_cache_dtypes=frozenset({"auto", "bfloat16", "fp8", "fp8_ds_mla", "nvfp4_ds_mla"}),
            majors=frozenset({9, 10}),
            head_sizes=frozenset({512, 576}),
            latent=True,
            sparse=True,
            context_parallel=True,
            accepts=_flashmla_sparse,
        ),
        Backend(
            name="FLASHINFER_MLA_SPARSE",
            kernel_blocks=(32,),
            kv_cache_dtypes=_FP8,
            majors=frozenset({10}),
            head_sizes=frozenset({512, 576}),
            latent=True,
            sparse=True,
            context_parallel=True,
            needs_flashinfer=True,
            accepts=_flashinfer_sparse,
        ),
        Backend(
            name="FLASHINFER_MLA_SPARSE_SM90",
            kernel_blocks=(64,),
            kv_cache_dtypes=_FP8 - {"float16"},
            majors=frozenset({9}),
            head_sizes=frozenset({512, 576}),
            latent=True,
            sparse=True,
            needs_flashinfer=True,
            accepts=_bfloat16,
        ),
        Backend(
            name="FLASHINFER_MLA_SPARSE_SM120",
            kernel_blocks=(64,),
            kv_cache_dtypes=frozenset({"auto", "fp8", "fp8_e4m3", "fp8_ds_mla"}),
            majors=frozenset({12}),
            head_sizes=frozenset({512, 576}),
            latent=True,
            sparse=True,
            needs_flashinfer=True,
            accepts=_bfloat16,
        ),
    )
}
