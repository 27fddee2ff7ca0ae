"""Bytes of a recurrent layer's state, and how many states a request holds.

Source: vLLM 0.32 ``model_executor/layers/mamba/mamba_utils.py`` and ``abstract.py``.
"""

from vllm_capacity.predict.dtypes import element_bytes
from vllm_capacity.predict.kv_cache.args import CacheArgs
from vllm_capacity.predict.kv_cache.layer_cache import State, StateCache, StateKind
from vllm_capacity.predict.kv_cache.spec import MambaSpec
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.units import Blocks, Bytes, Tokens


def mamba_spec(
    kept: StateCache, args: CacheArgs, *, block_size: Tokens, page_size_padded: Bytes | None
) -> MambaSpec:
    """The layer's share of a block."""
    return MambaSpec(
        block_size=block_size,
        page_size_padded=page_size_padded,
        states=tuple((_shape(state, args), _width(state, kept, args)) for state in kept.states),
        mamba_type=kept.kind,
        blocks_per_request=_blocks_per_request(kept, args),
        num_speculative_blocks=args.num_speculative_tokens,
    )


def state_bytes(kept: StateCache, args: CacheArgs) -> Bytes:
    """Bytes of one state, before any padding."""
    anywhere = Tokens(args.max_model_len)
    return mamba_spec(kept, args, block_size=anywhere, page_size_padded=None).page_size_bytes


def _shape(state: State, args: CacheArgs) -> tuple[int, ...]:
    if not state.grows_with_drafts:
        return state.shape
    return (state.shape[0] + args.num_speculative_tokens, *state.shape[1:])


def _width(state: State, kept: StateCache, args: CacheArgs) -> int:
    """Source: ``MambaStateDtypeCalculator``."""
    convolution = args.dtype if args.mamba_cache_dtype == "auto" else args.mamba_cache_dtype
    if state.role == "conv" or kept.kind is StateKind.LINEAR:
        return element_bytes(convolution)
    recurrent = args.mamba_ssm_cache_dtype
    if kept.kind is not StateKind.KIMI_DELTA:
        return element_bytes(convolution if recurrent == "auto" else recurrent)
    if recurrent not in {"auto", "float32", "bfloat16"}:
        raise Refusal(f"vLLM refuses to start: no {recurrent} states of Kimi's delta attention")
    return element_bytes("float32" if recurrent == "auto" else recurrent)


def _blocks_per_request(kept: StateCache, args: CacheArgs) -> Blocks:
    """Source: vLLM 0.32 ``v1/kv_cache_interface.py``, ``MambaSpec.max_memory_usage_bytes``."""
    if args.enable_prefix_caching:
        return Blocks(2 + args.num_speculative_tokens + _saves_prefill_state(kept, args))
    return Blocks(1 + args.num_speculative_tokens)


def _saves_prefill_state(kept: StateCache, args: CacheArgs) -> bool:
    """Source: vLLM 0.32 ``models/kimi_k3/nvidia/kda.py``, ``is_flashkda_supported``."""
    if not kept.saves_prefill_state or kept.kind is not StateKind.KIMI_DELTA:
        return kept.saves_prefill_state
    return args.kernels.major in {9, 10, 12} and args.dtype == "bfloat16"
