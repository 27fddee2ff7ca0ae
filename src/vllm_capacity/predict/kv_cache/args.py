"""What the plan of the KV cache hangs on besides the model, with all defaults resolved."""

from dataclasses import dataclass, field

from vllm_capacity.predict.kv_cache.flash_attention import Kernels
from vllm_capacity.predict.vllm_version import NEWEST_KNOWN, VllmVersion
from vllm_capacity.units import Tokens

#: Source: vLLM 0.32 ``config/cache.py``, ``CacheConfig.DEFAULT_BLOCK_SIZE``.
DEFAULT_BLOCK_SIZE = 16
#: Source: vLLM 0.32 ``platforms/cpu.py``, ``check_and_update_config``.
DEFAULT_CPU_BLOCK_SIZE = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheArgs:
    """One deployment's arguments, by vLLM's names, and where it runs.

    Attributes:
        dtype: of the model.
        max_model_len: tokens of the longest request.
        kernels: the GPU and what is installed on it.
        version: the release whose rules apply.
        kv_cache_dtype: as the cache configuration shows it, ``auto`` for the model's dtype.
        kv_cache_dtype_skip_layers: layer numbers, or ``sliding_window``, kept in the model's dtype.
        block_size: as the operator gives it; None for vLLM's choice.
        max_num_batched_tokens: of one step; None where unknown.
        max_in_flight_tokens: scheduled and not yet settled; None where unknown.
        fits_max_model_len: whether vLLM may shorten ``max_model_len``.
        num_gpu_blocks_override: blocks whatever the bytes.
        enable_prefix_caching: resolved; recurrent states then follow the blocks.
        disable_hybrid_kv_cache_manager: resolved; local attention then keeps every token.
        mamba_block_size: as the operator gives it.
        mamba_cache_dtype: of convolution states, ``auto`` for the model's dtype.
        mamba_ssm_cache_dtype: of recurrent states, ``auto`` for that of the convolution.
        num_speculative_tokens: drafted in one step.
        num_prefill_lookahead_tokens: tokens that a chain of drafters reads ahead.
        tensor_parallel_size: ranks of a pipeline stage, all alike.
        decode_context_parallel_size: ranks over which a request's tokens are distributed.
        num_kv_heads: heads on one rank by the model's configuration as a whole; None for those of
            its layers, where these are all alike.
        head_size: elements of a head by the model's configuration as a whole; None likewise.
        mm_prefix: whether tokens of an image attend to all of it.
        soft_cap: whether the model caps attention logits.
    """

    dtype: str
    max_model_len: Tokens
    kernels: Kernels
    version: VllmVersion = NEWEST_KNOWN
    kv_cache_dtype: str = "auto"
    kv_cache_dtype_skip_layers: frozenset[str] = field(default_factory=frozenset)
    block_size: int | None = None
    max_num_batched_tokens: Tokens | None = None
    max_in_flight_tokens: Tokens | None = None
    fits_max_model_len: bool = False
    num_gpu_blocks_override: int | None = None
    enable_prefix_caching: bool = True
    disable_hybrid_kv_cache_manager: bool = False
    mamba_block_size: int | None = None
    mamba_cache_dtype: str = "auto"
    mamba_ssm_cache_dtype: str = "auto"
    num_speculative_tokens: int = 0
    num_prefill_lookahead_tokens: int = 0
    tensor_parallel_size: int = 1
    decode_context_parallel_size: int = 1
    num_kv_heads: int | None = None
    head_size: int | None = None
    mm_prefix: bool = False
    soft_cap: bool = False

    @property
    def default_block_size(self) -> int:
        """Tokens of a block before backends are asked."""
        if self.block_size is not None:
            return self.block_size
        on_cpu = self.kernels.capability is None
        return DEFAULT_CPU_BLOCK_SIZE if on_cpu else DEFAULT_BLOCK_SIZE

    @property
    def extra_retained_tokens(self) -> int:
        """Tokens before a window that a chain of drafters may read again.

        Source: vLLM 0.32 ``v1/core/kv_cache_utils.py``, ``get_kv_cache_configs``.
        """
        return max(0, self.num_prefill_lookahead_tokens - 1)
