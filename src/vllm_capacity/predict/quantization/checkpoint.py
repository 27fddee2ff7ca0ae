"""Reads which quantisation a checkpoint declares, or the operator asks for."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.quantization.compressed_tensors import read_compressed_tensors
from vllm_capacity.predict.quantization.compressed_tensors_schemes import MXFP4_EXPERTS
from vllm_capacity.predict.quantization.deepseek_v4 import read_deepseek_v4
from vllm_capacity.predict.quantization.float_schemes import AtLoad, Float8, Microscaled
from vllm_capacity.predict.quantization.gptq import (
    GptqQuantization,
    awq_layout,
    read_auto_round,
    read_gptq,
)
from vllm_capacity.predict.quantization.listed import ListedQuantization
from vllm_capacity.predict.quantization.modelopt import read_modelopt
from vllm_capacity.predict.quantization.module_names import Renaming
from vllm_capacity.predict.quantization.packed import Integer8, PackedExpertsOnly
from vllm_capacity.predict.quantization.quark import read_quark
from vllm_capacity.predict.quantization.scheme import FOUR_SCALES, Quantization, Unquantized

_Read = tuple[Quantization | None, str | None]
#: ``--quantization`` values by which vLLM 0.32 loads what a checkpoint calls differently.
#: Source: ``config/model.py``, ``_verify_quantization``; each class's
#: ``override_quantization_method``.
_ACCEPTED = {
    "awq": {"awq", "awq_marlin", "auto_awq", "marlin", "moe_wna16"},
    "gptq": {"gptq", "gptq_marlin", "auto_gptq", "marlin", "moe_wna16"},
}
#: Checkpoints whose own method wins over any ``--quantization``.
_MODELOPT = frozenset({"modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed"})
_INSISTENT = _MODELOPT | {"auto-round", "gpt_oss_mxfp4"}
_BLACKWELL = (10, 0)
_TENSORRT_TILE = _CUTLASS_TILE = 128


def read_quantization(
    config: Mapping[str, Any] | None,
    *,
    argument: str | None,
    model_type: str | None = None,
    expert_dtype: str | None = None,
    capability: tuple[int, int] | None = None,
    flashinfer: bool = False,
    cutlass: bool = False,
    renaming: Renaming | None = None,
    allow_deprecated: bool = False,
) -> tuple[Quantization | None, str | None]:
    """The quantisation of a checkpoint, or one sentence why it is not described exactly.

    Args:
        config: ``quantization_config`` as published, None without one.
        argument: ``--quantization``.
        model_type: of config.json; a few models read their checkpoints differently.
        expert_dtype: of config.json, which DeepSeek-V4 has.
        capability: compute capability of the GPU, None where it is not known.
        flashinfer: whether FlashInfer is installed.
        cutlass: whether it is known to be, beside a Hopper GPU.
        renaming: how the model class renames modules.
        allow_deprecated: ``--allow-deprecated-quantization``.
    """
    argument = None if argument is None else argument.lower()
    blackwell = flashinfer and capability is not None and capability >= _BLACKWELL
    if config is None:
        return (
            (_unquantized(capability, blackwell=blackwell), None)
            if argument is None
            else _at_load(argument)
        )
    name = str(config.get("quant_method") or "").lower()
    name = name.replace("compressed_tensors", "compressed-tensors")
    if not name or _says_nothing(config):
        return _unquantized(capability, blackwell=blackwell), None
    name = _by_model(name, config, model_type)
    accepted = _ACCEPTED.get(name, {name})
    if argument is not None and argument not in accepted and name not in _INSISTENT:
        return None, (
            f"vLLM refuses to start: --quantization {argument} does not match the checkpoint's "
            f"{name}"
        )
    return _checkpoint(
        name,
        Fields(config, path="quantization_config.", faults=[]),
        renaming or Renaming(),
        capability=capability,
        all_expert_scales=blackwell,
        experts_only=argument == "moe_wna16",
        allow_deprecated=allow_deprecated,
        expert_dtype=expert_dtype,
        cutlass=cutlass,
    )


def _unquantized(capability: tuple[int, int] | None, *, blackwell: bool) -> Unquantized:
    """FlashInfer's TensorRT-LLM kernels pad experts; they exist for GPUs of capability 10.x."""
    fits = blackwell and capability is not None and capability[0] == _BLACKWELL[0]
    return Unquantized(expert_multiple=_TENSORRT_TILE if fits else 1)


def _says_nothing(config: Mapping[str, Any]) -> bool:
    """Whether hf_quant_config.json quantises the KV cache alone, which vLLM then overlooks.

    Source: vLLM 0.32 ``transformers_utils/model_arch_config_convertor.py``,
    ``_normalize_quantization_config``: without an algorithm there is no method.
    """
    inner = config.get("quantization")
    return "producer" in config and isinstance(inner, Mapping) and not inner.get("quant_algo")


def _by_model(name: str, config: Mapping[str, Any], model_type: str | None) -> str:
    """Models that load a method by classes of their own.

    Source: vLLM 0.32 ``model_executor/models/config.py``, ``verify_and_update_model_config``.
    """
    if model_type == "gpt_oss" and name == "mxfp4":
        return "gpt_oss_mxfp4"
    if model_type in {"deepseek_v4", "deepseek_v41"} and name == "fp8":
        return "deepseek_v4_fp8"
    packed = config.get("format") == "mxfp4-pack-quantized"
    if model_type == "kimi_k3" and name == "compressed-tensors" and packed:
        return "mxfp4"
    return name


def _checkpoint(
    name: str,
    config: Fields,
    renaming: Renaming,
    *,
    capability: tuple[int, int] | None,
    all_expert_scales: bool,
    experts_only: bool,
    allow_deprecated: bool,
    expert_dtype: str | None,
    cutlass: bool,
) -> _Read:
    readers: dict[str, Callable[[], _Read]] = {
        "fp8": lambda: _fp8(config, renaming),
        "deepseek_v4_fp8": lambda: _deepseek(
            config, renaming, expert_dtype=expert_dtype, all_expert_scales=all_expert_scales
        ),
        "fbgemm_fp8": lambda: _fbgemm(config, renaming, allowed=allow_deprecated),
        "awq": lambda: _awq(config, renaming, experts_only=experts_only),
        "gptq": lambda: _gptq(config, renaming, experts_only=experts_only),
        "auto-round": lambda: read_auto_round(config, renaming),
        "inc": lambda: read_auto_round(config, renaming),
        "mxfp4": lambda: _mxfp4("mxfp4"),
        "gpt_oss_mxfp4": lambda: _mxfp4("gpt_oss_mxfp4", cutlass=cutlass),
        "mxfp8": lambda: _mxfp8(config, renaming),
        "quark": lambda: read_quark(config, renaming),
        "compressed-tensors": lambda: read_compressed_tensors(
            config, renaming, capability=capability
        ),
    }
    for modelopt in _MODELOPT:
        readers[modelopt] = lambda: read_modelopt(
            config, renaming, all_expert_scales=all_expert_scales
        )
    reader = readers.get(name)
    if reader is None:
        return None, f"quantisation {name} is not described exactly"
    return reader()


def _ignored(config: Fields, renaming: Renaming, *keys: str) -> "frozenset[str] | None":
    """The first list that is not empty, None where one is malformed."""
    for key in keys:
        listed = config.texts(key)
        if listed is None and config.has(key):
            return None
        if listed:
            return frozenset(renaming.apply_all(listed))
    return frozenset()


def _fp8(config: Fields, renaming: Renaming) -> tuple[ListedQuantization | None, str | None]:
    activations = config.text("activation_scheme")
    if activations not in {"static", "dynamic"} or config.has("store_dtype"):
        return None, "this fp8 checkpoint's activation_scheme is not understood"
    ignored = _ignored(config, renaming, "ignored_layers", "modules_to_not_convert")
    if ignored is None:
        return None, "the layers that fp8 leaves alone must be a list of names"
    block = config.integers("weight_block_size")
    if block is None and config.has("weight_block_size"):
        return None, "weight_block_size must be two whole numbers"
    if block is not None and (len(block) != 2 or min(block) < 1 or activations == "static"):
        return None, "vLLM refuses to start: fp8 blocks need two sizes and dynamic activations"
    scheme = Float8(
        scale="tensor" if block is None else "block",
        block=(128, 128) if block is None else (block[0], block[1]),
        static_input=activations == "static",
    )
    return ListedQuantization(
        name="fp8", linear=scheme, experts=scheme, ignored=ignored, kv_scales=FOUR_SCALES
    ), None


def _deepseek(
    config: Fields, renaming: Renaming, *, expert_dtype: str | None, all_expert_scales: bool
) -> _Read:
    blocks, reason = _fp8(config, renaming)
    if blocks is None:
        return None, reason
    return read_deepseek_v4(
        config,
        expert_dtype=expert_dtype,
        ignored=blocks.ignored,
        all_expert_scales=all_expert_scales,
    )


def _fbgemm(config: Fields, renaming: Renaming, *, allowed: bool) -> _Read:
    ignored = _ignored(config, renaming, "modules_to_not_convert")
    if not allowed:
        return None, (
            "vLLM refuses to start: fbgemm_fp8 is deprecated, give --allow-deprecated-quantization"
        )
    if ignored is None or not config.has("activation_scale_ub"):
        return None, "fbgemm_fp8 needs activation_scale_ub and names in modules_to_not_convert"
    scheme = Float8(scale="channel", extra_float32s=1)
    return ListedQuantization(name="fbgemm_fp8", linear=scheme, experts=None, ignored=ignored), None


def _awq(config: Fields, renaming: Renaming, *, experts_only: bool) -> _Read:
    bits = config.integer("w_bit") or config.integer("bits")
    group = config.integer("q_group_size") or config.integer("group_size")
    zero_points = config.boolean("zero_point")
    ignored = _ignored(config, renaming, "modules_to_not_convert")
    if group is None or zero_points is None or ignored is None:
        return None, "AWQ needs group_size and zero_point, and names in modules_to_not_convert"
    if bits != 4:
        return None, f"vLLM refuses to start: AWQ of {bits} bits has no kernel"
    scheme = awq_layout(bits, group, zero_points=zero_points)
    return ListedQuantization(
        name="moe_wna16" if experts_only else "auto_awq",
        linear=scheme,
        experts=PackedExpertsOnly(packed=scheme) if experts_only else scheme,
        head=scheme if config.boolean("lm_head") and not experts_only else None,
        ignored=ignored,
        by_substring=True,
    ), None


def _gptq(config: Fields, renaming: Renaming, *, experts_only: bool) -> _Read:
    read = read_gptq(config, renaming)
    quantization = read[0]
    if not experts_only or not isinstance(quantization, GptqQuantization):
        return read
    if quantization.rules or quantization.modules:
        return None, "--quantization moe_wna16 over GPTQ with rules is not described exactly"
    base = quantization.base
    return ListedQuantization(
        name="moe_wna16", linear=base, experts=PackedExpertsOnly(packed=base)
    ), None


def _mxfp4(name: str, *, cutlass: bool = False) -> _Read:
    """Experts alone; nothing that is read here leaves any out.

    Which kernels run decides the padding; what is described is Marlin's and TensorRT-LLM's, and
    that of CUTLASS where FlashInfer is said to be installed beside a Hopper GPU.
    Source: vLLM 0.32 ``layers/quantization/mxfp4.py``, ``Mxfp4Config``;
    ``layers/fused_moe/oracle/mxfp4.py``, ``_get_priority_backends_for_gpt_oss``.
    """
    experts = replace(MXFP4_EXPERTS, hidden_multiple=_CUTLASS_TILE) if cutlass else MXFP4_EXPERTS
    return ListedQuantization(name=name, linear=None, experts=experts), None


def _mxfp8(config: Fields, renaming: Renaming) -> _Read:
    """Checkpoints that call ModelOpt's layout mxfp8.

    Source: vLLM 0.32 ``modelopt.py``, ``ModelOptMxFp8Config.from_config``.
    """
    if not config.has("quantization") and not config.values.get("quant_algo"):
        inner = {
            "quant_algo": "MXFP8",
            "kv_cache_quant_algo": config.values.get("kv_cache_quant_algo"),
            "exclude_modules": config.values.get("ignored_layers") or [],
        }
        values = {"quant_method": "modelopt", "quantization": inner}
        config = Fields(values, path=config.path, faults=config.faults)
    return read_modelopt(config, renaming, all_expert_scales=False, called="mxfp8")


def _at_load(argument: str) -> _Read:
    """Quantising a checkpoint at full width while it loads.

    Source: vLLM 0.32 ``layers/quantization/online/`` and ``config/quantization.py``,
    ``_ONLINE_SHORTHANDS``; ``model_loader/weight_utils.py``, ``get_quant_config``.
    """
    tensor, channel = Float8(scale="tensor"), Float8(scale="channel")
    block = Float8(scale="block", refines=False)
    per_byte = Integer8(per_channel=True)
    known = {
        "fp8": AtLoad(linear=tensor, experts=tensor),
        "fp8_per_tensor": AtLoad(linear=tensor, experts=tensor),
        "fp8_per_channel": AtLoad(linear=channel, experts=channel),
        "fp8_per_block": AtLoad(
            linear=block, experts=block, hidden_multiple=128, intermediate_multiple=128
        ),
        "mxfp8": AtLoad(linear=Microscaled(bits=8), experts=Microscaled(bits=8)),
        "mxfp4": AtLoad(
            linear=Microscaled(bits=4),
            experts=Microscaled(bits=4),
            hidden_multiple=256,
            intermediate_multiple=128,
        ),
        "int8_per_channel_weight_only": AtLoad(linear=None, experts=per_byte),
        "experts_int8": AtLoad(linear=None, experts=per_byte),
    }
    scheme = known.get(argument)
    if scheme is None:
        return None, f"quantising at load by --quantization {argument} is not described exactly"
    return ListedQuantization(name=argument, linear=scheme, experts=scheme), None
