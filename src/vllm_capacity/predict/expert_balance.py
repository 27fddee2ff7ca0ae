"""Copies of busy experts (expert parallelism load balancing, EPLB).

Source: vLLM 0.32 ``config/parallel.py``, ``EPLBConfig`` and ``ParallelConfig``, and
``layers/fused_moe/layer.py``, ``FusedMoEFactory``.
"""

from vllm_capacity.predict.engine_args import EngineArgs
from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model
from vllm_capacity.predict.quantization.scheme import Quantization
from vllm_capacity.predict.refusal import Refusal

_MAX_REDUNDANT = 1 << 12
#: Files whose classes hand the number of copies on to every layer of experts.
_BALANCED = frozenset(
    {
        "deepseek_v2.py",
        "ernie45_moe.py",
        "glm4_moe.py",
        "llama4.py",
        "mimo_v2.py",
        "mixtral.py",
        "mllama4.py",
        "qwen3_moe.py",
        "qwen3_vl_moe.py",
    }
)
#: Quantisations whose experts can be copied, and full width.
_BALANCED_QUANTIZATIONS = frozenset({None, "fp8"})


def redundant_experts(args: EngineArgs, model: Model, quantization: Quantization) -> int:
    """How many experts every layer gets beside its own, over all ranks.

    Raises:
        Refusal: vLLM would not start so, or it is not described exactly.
    """
    config = Fields(args.eplb_config or {}, path="eplb_config.", faults=[])
    copies = config.integer("num_redundant_experts", minimum=0, maximum=_MAX_REDUNDANT) or 0
    if config.faults:
        fault = config.faults[0]
        raise Refusal(f"eplb_config: {fault.key} {fault.problem}")
    if not args.enable_eplb:
        if copies:
            raise Refusal("vLLM refuses to start: num_redundant_experts without --enable-eplb")
        return 0
    ranks = (args.tensor_parallel_size or 1) * (args.data_parallel_size or 1)
    if not args.enable_expert_parallel or ranks == 1:
        raise Refusal("vLLM refuses to start: --enable-eplb needs expert parallelism over GPUs")
    if model.source not in _BALANCED or quantization.name not in _BALANCED_QUANTIZATIONS:
        raise Refusal(f"--enable-eplb with {model.source} is not described exactly yet")
    return copies
