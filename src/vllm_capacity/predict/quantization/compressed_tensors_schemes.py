"""What compressed-tensors' formats make of a layer.

Source: vLLM 0.32 ``compressed_tensors/compressed_tensors.py`` and
``compressed_tensors_moe/compressed_tensors_moe.py``.
"""

from dataclasses import dataclass
from typing import Self

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.quantization.float_schemes import Float8, Microscaled, NvFloat4
from vllm_capacity.predict.quantization.packed import CompressedTensorsPacked, Integer8
from vllm_capacity.predict.quantization.scheme import FLOAT32, Refused, Scheme

#: Formats whose activations may be quantised.
#: Source: vLLM 0.32 ``compressed_tensors/utils.py``, ``is_activation_quantization_format``.
_ACTIVATION_FORMATS = frozenset(
    {"naive-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized"}
)
_PACKED = "pack-quantized"
#: Widths, and with zero points, for which vLLM brings kernels of its own.
#: Source: vLLM 0.32 ``utils/marlin_utils.py``, ``query_marlin_supported_quant_types``.
_PACKED_KINDS = frozenset({(4, True), (4, False), (8, True)})
_HOPPER = (9, 0)
#: Source: vLLM 0.32 ``compressed_tensors/schemes/compressed_tensors_w4a8_fp8.py``.
_W4A8_GROUP = 128
_LOST_ORDERS = frozenset({"group", "dynamic"})


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorFormat:
    """How one kind of tensor is quantised.

    Attributes:
        kind: ``int`` or ``float``.
        strategy: which elements share a scale.
        dynamic: whether scales are found at run time; never so for weights.
        byte_scales: whether scales are stored in bytes.

    Source: compressed-tensors' ``QuantizationArgs``.
    """

    bits: int
    kind: str
    strategy: str
    group_size: int | None
    symmetric: bool
    dynamic: bool
    block: tuple[int, int] | None
    byte_scales: bool

    @classmethod
    def read(cls, fields: Fields) -> "Self | None":
        """The format of one tensor, None where it is malformed."""
        bits = 8 if not fields.has("num_bits") else fields.integer("num_bits", maximum=64)
        group = fields.integer("group_size", minimum=-1)
        block = fields.integers("block_structure")
        if bits is None or (group is None and fields.has("group_size")) or group == 0:
            return None
        if fields.has("block_structure") and (block is None or len(block) != 2 or min(block) < 1):
            return None
        if str(fields.values.get("actorder")).lower() in _LOST_ORDERS:
            return None
        default = "tensor" if group is None else "channel" if group == -1 else "group"
        return cls(
            bits=bits,
            kind=(fields.text("type") or "int").lower(),
            strategy=(fields.text("strategy") or default).lower(),
            group_size=None if group == -1 else group,
            symmetric=fields.values.get("symmetric", True) is True,
            dynamic=bool(fields.values.get("dynamic")),
            block=None if block is None else (block[0], block[1]),
            byte_scales=fields.text("scale_dtype") == "torch.uint8",
        )

    def is_a(self, kind: str, bits: int, *strategies: str) -> bool:
        """Whether type, width and strategy are these."""
        return (self.kind, self.bits) == (kind, bits) and self.strategy in strategies

    @property
    def is_nvfp4(self) -> bool:
        """Source: ``CompressedTensorsConfig._is_nvfp4_format``."""
        return self.is_a("float", 4, "tensor_group") and self.group_size == 16 and self.symmetric

    def is_microscaled(self, bits: int) -> bool:
        """Source: ``CompressedTensorsConfig._is_mxfp4`` and ``_is_mxfp8``."""
        grouped = self.is_a("float", bits, "group") and self.group_size == 32
        return grouped and self.symmetric and (bits == 4 or self.byte_scales)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Layers that are quantised alike.

    Attributes:
        target: name, ``re:`` pattern, or part of the name of a class.
        inputs, outputs: None where activations are not quantised.
        layout: how the tensors are stored.
    """

    target: str
    weights: TensorFormat
    inputs: TensorFormat | None
    outputs: TensorFormat | None
    layout: str | None


def linear_scheme(group: Group, capability: tuple[int, int] | None) -> Scheme:
    """What a group makes of a linear layer.

    Source: vLLM 0.32 ``CompressedTensorsConfig._get_scheme_from_parts``.
    """
    weights, inputs = group.weights, group.inputs
    if weights.kind == "float":
        return _float_linear(group)
    if group.outputs is not None:
        return _unknown(group)
    if inputs is not None and _is_w4a8_float(weights, inputs):
        return _w4a8_float(group, capability)
    return _packed_linear(group) or _integer8_linear(group) or _unknown(group)


def experts_scheme(group: Group, capability: tuple[int, int] | None) -> Scheme:
    """What a group makes of routed experts.

    Source: vLLM 0.32 ``CompressedTensorsMoEMethod.get_moe_method``.
    """
    weights, inputs = group.weights, group.inputs
    if weights.kind == "float":
        return _float_experts(group)
    if inputs is None:
        return (_packed(weights) if group.layout == _PACKED else None) or _unknown(group)
    if weights.is_a("int", 8, "channel") and inputs.strategy == "token" and inputs.dynamic:
        return Integer8(per_channel=True)
    return _w4a8_float(group, capability)


def _float_linear(group: Group) -> Scheme:
    weights = group.weights
    if weights.is_nvfp4:
        return _nvfp4(group)
    for bits in (4, 8):
        if weights.is_microscaled(bits):
            return Microscaled(bits=bits)
    known = group.outputs is None and group.layout in _ACTIVATION_FORMATS
    return _float8(group) if known else _unknown(group)


def _float_experts(group: Group) -> Scheme:
    weights, inputs = group.weights, group.inputs
    if weights.is_nvfp4:
        return _nvfp4(group)
    if (
        weights.is_microscaled(4)
        and inputs is not None
        and inputs.is_a("float", 8, "token", "group")
    ):
        return MXFP4_EXPERTS
    for bits in (4, 8):
        if weights.is_microscaled(bits):
            return Microscaled(bits=bits)
    return _float8_experts(weights, inputs) or _unknown(group)


#: The experts of gpt-oss and their like, padded for the Marlin and TensorRT-LLM kernels.
MXFP4_EXPERTS = Microscaled(
    bits=4, hidden_multiple=256, intermediate_multiple=128, expert_bias_bytes=2
)


def _nvfp4(group: Group) -> Scheme:
    if group.inputs is not None and not group.inputs.is_nvfp4:
        return Refused("vLLM refuses to start: NVFP4 weights need NVFP4 activations or none")
    return NvFloat4(input_scale_bytes=FLOAT32 if group.inputs is not None else 0)


def _packed_linear(group: Group) -> Scheme | None:
    if group.layout != _PACKED or not (group.inputs is None or _is_dynamic(group.inputs)):
        return None
    return _packed(group.weights)


def _packed(weights: TensorFormat) -> Scheme | None:
    grouped = weights.strategy == "group" and weights.group_size is not None
    by_output = weights.strategy == "channel"
    known = (weights.bits, weights.symmetric) in _PACKED_KINDS
    if not known or weights.dynamic or not (grouped or by_output):
        return None
    return CompressedTensorsPacked(
        bits=weights.bits,
        group_size=weights.group_size if grouped else None,
        symmetric=weights.symmetric,
    )


def _is_w4a8_float(weights: TensorFormat, inputs: TensorFormat) -> bool:
    """Source: ``CompressedTensorsConfig._is_fp8_w4a8``."""
    kinds = weights.is_a("int", 4, "group") and inputs.is_a("float", 8, "token")
    return kinds and weights.symmetric and inputs.symmetric and inputs.dynamic


def _w4a8_float(group: Group, capability: tuple[int, int] | None) -> Scheme:
    """4-bit integers with 8-bit float activations; one generation of GPUs has the kernels."""
    weights, inputs = group.weights, group.inputs
    fits = capability == _HOPPER and weights.group_size == _W4A8_GROUP
    if inputs is None or not fits or not _is_w4a8_float(weights, inputs):
        return _unknown(group)
    return CompressedTensorsPacked(
        bits=4, group_size=_W4A8_GROUP, expert_bias=False, expert_multiple=256
    )


def _is_dynamic(inputs: TensorFormat) -> bool:
    """Source: ``CompressedTensorsConfig._is_wNaM_int``."""
    fits = inputs.kind == "int" and inputs.bits in {4, 8} and inputs.strategy in {"token", "group"}
    return fits and inputs.dynamic and inputs.symmetric


def _float8(group: Group) -> Scheme:
    """8-bit floats; GPUs without them load the same tensors for weight-only kernels."""
    weights, inputs = group.weights, group.inputs
    known = weights.strategy in {"tensor", "channel"} or weights.block is not None
    if weights.bits != 8 or weights.dynamic or not weights.symmetric or not known:
        return _unknown(group)
    static = inputs is not None and not inputs.dynamic
    return Float8(
        scale=weights.strategy if weights.strategy != "block" else "block",
        block=weights.block or (128, 128),
        static_input=static,
        relaxed=False,
    )


def _float8_experts(weights: TensorFormat, inputs: TensorFormat | None) -> Scheme | None:
    if inputs is None or weights.dynamic or inputs.kind != "float":
        return None
    pair = (weights.strategy, inputs.strategy)
    blocks = weights.strategy == "block" and weights.block is not None
    if not (pair in {("tensor", "tensor"), ("channel", "token")} or blocks):
        return None
    if weights.bits != 8 or not weights.symmetric:
        return None
    return Float8(
        scale=weights.strategy,
        block=weights.block or (128, 128),
        static_input=not inputs.dynamic,
        refines=False,
        expert_bias=False,
    )


def _integer8_linear(group: Group) -> Scheme | None:
    weights, inputs = group.weights, group.inputs
    fits = weights.is_a("int", 8, "tensor", "channel") and weights.symmetric
    if not fits or inputs is None or inputs.bits != 8 or group.layout not in _ACTIVATION_FORMATS:
        return None
    static = inputs.strategy == "tensor" and not inputs.dynamic
    if not (static or (inputs.strategy == "token" and inputs.dynamic)):
        return None
    return Integer8(
        per_channel=weights.strategy == "channel",
        static_input=static,
        input_zero_point=static and not inputs.symmetric,
    )


def _unknown(group: Group) -> Refused:
    weights = group.weights
    return Refused(
        f"compressed-tensors {group.layout} with {weights.bits}-bit {weights.kind} weights by "
        f"{weights.strategy} is not described exactly"
    )
