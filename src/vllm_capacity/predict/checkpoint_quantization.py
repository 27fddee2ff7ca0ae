"""Reads which quantisation a checkpoint declares."""

from collections.abc import Mapping
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.packed_quantization import (
    Awq,
    CompressedTensorsInt8,
    CompressedTensorsPacked,
    Gptq,
)
from vllm_capacity.predict.quantization import (
    CompressedTensorsFp8,
    Fp8,
    ModelOptFp8,
    Quantization,
    Unquantized,
)

_Read = tuple[Quantization | None, str | None]
#: ``--quantization`` values by which vLLM 0.32 loads what a checkpoint calls differently.
_ACCEPTED = {
    "awq": {"awq", "awq_marlin", "auto_awq", "marlin"},
    "gptq": {"gptq", "gptq_marlin", "auto_gptq", "marlin"},
}


def read_quantization(
    config: Mapping[str, Any] | None, *, argument: str | None
) -> tuple[Quantization | None, str | None]:
    """The quantisation of a checkpoint, or one sentence why it is not described exactly.

    Args:
        config: ``quantization_config`` as published, None without one.
        argument: ``--quantization``.
    """
    if config is None:
        if argument is not None:
            return None, f"quantising at load (--quantization {argument}) is not covered yet"
        return Unquantized(), None
    method = config.get("quant_method")
    name = str(method).lower().replace("compressed_tensors", "compressed-tensors")
    if argument is not None and argument not in _ACCEPTED.get(name, {name}):
        return None, f"--quantization {argument} over a {name} checkpoint is not covered"
    readers = {
        "fp8": _fp8,
        "compressed-tensors": _compressed_tensors,
        "modelopt": _modelopt,
        "awq": _awq,
        "gptq": _gptq,
    }
    if name not in readers:
        return None, f"quantisation {name} is not described exactly yet"
    return readers[name](Fields(config, path="quantization_config.", faults=[]))


def _fp8(config: Fields) -> _Read:
    scheme = config.text("activation_scheme")
    if scheme not in {"static", "dynamic"} or config.has("store_dtype"):
        return None, "this fp8 checkpoint's activation_scheme is not understood"
    ignored = config.texts("ignored_layers") or config.texts("modules_to_not_convert") or ()
    block = config.integers("weight_block_size")
    if block is None and config.has("weight_block_size"):
        return None, "weight_block_size must be two whole numbers"
    if block is None:
        return Fp8(
            scale="tensor", static_input=scheme == "static", ignored=frozenset(ignored)
        ), None
    if len(block) != 2 or min(block) < 1 or scheme == "static":
        return None, "fp8 blocks need two sizes and dynamic activations"
    return Fp8(scale="block", block=(block[0], block[1]), ignored=frozenset(ignored)), None


def _modelopt(config: Fields) -> _Read:
    inner = config.mapping("quantization") or config
    algorithm = inner.text("quant_algo")
    if algorithm != "FP8" or inner.has("quantized_layers"):
        return None, f"ModelOpt algorithm {algorithm} is not described exactly yet"
    ignored = inner.texts("exclude_modules") or inner.texts("ignore") or ()
    if any(entry != "lm_head" for entry in ignored):
        return None, "ModelOpt with modules excluded besides lm_head is not covered yet"
    cache = inner.text("kv_cache_quant_algo")
    if cache not in {None, "FP8"}:
        return None, f"ModelOpt KV cache algorithm {cache} is not described exactly yet"
    return ModelOptFp8(
        scale="tensor",
        static_input=True,
        ignored=frozenset(ignored),
        kv_cache_dtype="fp8_e4m3" if cache == "FP8" else None,
    ), None


def _awq(config: Fields) -> _Read:
    bits, group = config.integer("bits"), config.integer("group_size")
    plain = config.boolean("zero_point") is True and not config.values.get("lm_head")
    if bits != 4 or group is None or not plain or config.text("version") not in {None, "gemm"}:
        return None, "this AWQ layout is not described exactly yet"
    ignored = frozenset(config.texts("modules_to_not_convert") or ())
    return Awq(bits=bits, group_size=group, ignored=ignored), None


def _gptq(config: Fields) -> _Read:
    bits, group = config.integer("bits"), config.integer("group_size")
    plain = config.boolean("sym") is True and config.boolean("desc_act") is False
    other = ("lm_head", "dynamic", "modules_in_block_to_quantize")
    if bits not in {4, 8} or group is None or not plain or any(map(config.values.get, other)):
        return None, "this GPTQ layout is not described exactly yet"
    return Gptq(bits=bits or 4, group_size=group), None


def _compressed_tensors(config: Fields) -> _Read:
    groups = config.mapping("config_groups")
    if groups is None or len(groups.values) != 1:
        return None, "compressed-tensors with other than one group is not described exactly yet"
    if any(config.values.get(key) for key in ("kv_cache_scheme", "transform_config")):
        return None, "compressed-tensors with a KV cache scheme or transforms is not covered yet"
    group = groups.mapping(next(iter(groups.values)))
    weights = group.mapping("weights") if group is not None else None
    if group is None or weights is None or group.texts("targets") != ("Linear",):
        return None, "compressed-tensors groups other than all Linear layers are not covered"
    if group.values.get("output_activations"):
        return None, "compressed-tensors with quantised outputs is not covered yet"
    ignored = frozenset(config.texts("ignore") or ())
    scheme = _scheme(config.text("format"), weights, group.mapping("input_activations"), ignored)
    if scheme is None:
        return None, "this compressed-tensors scheme is not described exactly yet"
    return scheme, None


def _scheme(
    layout: str | None, weights: Fields, inputs: Fields | None, ignored: frozenset[str]
) -> Quantization | None:
    kind = (layout, weights.text("type"), weights.integer("num_bits"))
    strategy = weights.text("strategy")
    static = inputs is not None and inputs.boolean("dynamic") is False
    by_output = strategy in {"channel", "tensor"} and inputs is not None
    if kind == ("float-quantized", "float", 8) and by_output:
        return CompressedTensorsFp8(scale=strategy or "", static_input=static, ignored=ignored)
    symmetric = weights.boolean("symmetric") is True
    plain = symmetric and (inputs is None or inputs.boolean("symmetric") is True)
    if kind == ("int-quantized", "int", 8) and by_output and plain:
        return CompressedTensorsInt8(
            per_channel=strategy == "channel", static_input=static, ignored=ignored
        )
    if layout != "pack-quantized" or kind[1] != "int" or inputs is not None or not symmetric:
        return None
    return _packed(weights, strategy, ignored)


def _packed(
    weights: Fields, strategy: str | None, ignored: frozenset[str]
) -> CompressedTensorsPacked | None:
    bits, group = weights.integer("num_bits"), weights.integer("group_size", minimum=-1)
    ordered = weights.values.get("actorder") not in {None, False, "weight", "static"}
    if (
        bits not in {4, 8}
        or ordered
        or (strategy, group is None or group < 1)
        not in {
            ("channel", True),
            ("group", False),
        }
    ):
        return None
    size = group if strategy == "group" else None
    return CompressedTensorsPacked(bits=bits or 4, group_size=size, ignored=ignored)
