"""How vLLM reads DeepSeek-V4's checkpoints: blocks of 8-bit floats, experts in 4 or 8 bits."""

from dataclasses import replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.quantization.compressed_tensors_schemes import MXFP4_EXPERTS
from vllm_capacity.predict.quantization.float_schemes import Float8, NvFloat4
from vllm_capacity.predict.quantization.listed import ListedQuantization
from vllm_capacity.predict.quantization.scheme import FOUR_SCALES, Quantization, Scheme

_NAME = "deepseek_v4_fp8"


def read_deepseek_v4(
    config: Fields,
    *,
    expert_dtype: str | None,
    ignored: frozenset[str] = frozenset(),
    all_expert_scales: bool = False,
) -> tuple[Quantization | None, str | None]:
    """The quantisation of a DeepSeek-V4 checkpoint, or why it is not described exactly.

    Args:
        config: ``quantization_config``.
        expert_dtype: of ``config.json``, None where the file does not say.
        ignored: names of layers at full width.
        all_expert_scales: whether a rank holds the activation scales of all ranks' experts.

    Source: vLLM 0.32 ``models/deepseek_v4/quant_config.py``, ``DeepseekV4FP8Config``.
    """
    experts_in = expert_dtype or "fp4"
    if experts_in not in {"fp4", "fp8"}:
        return None, f"vLLM refuses to start: expert_dtype {experts_in!r} is not fp4 or fp8"
    block = config.integers("weight_block_size")
    if block is None or len(block) != 2 or min(block) < 1:
        return None, "DeepSeek-V4's fp8 is described exactly with a weight_block_size only"
    if config.text("activation_scheme") != "dynamic":
        return None, "vLLM refuses to start: fp8 blocks need dynamic activations"
    size = (block[0], block[1])
    wide = Float8(scale="block", block=size)
    linear: Scheme = wide
    experts: Scheme = wide
    if experts_in == "fp4":
        # Powers of two, of one byte each.
        linear = replace(wide, scale_bytes=1)
        algorithm = (config.text("moe_quant_algo") or "").upper()
        experts = MXFP4_EXPERTS
        if algorithm == "NVFP4":
            experts = NvFloat4(all_expert_scales=all_expert_scales)
    quantization = ListedQuantization(
        name=_NAME, linear=linear, experts=experts, ignored=ignored, kv_scales=FOUR_SCALES
    )
    return quantization, None
