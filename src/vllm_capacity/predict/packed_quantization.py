"""Integer weights of few bits, packed into 32-bit words, with scales per group of inputs.

Source: vLLM 0.32 ``layers/quantization/auto_awq.py``, ``auto_gptq.py`` and
``compressed_tensors/schemes/compressed_tensors_wNa16.py``, ``create_weights``.
"""

from dataclasses import dataclass
from typing import ClassVar

from vllm_capacity.predict.modules import Linear, RoutedExperts
from vllm_capacity.predict.quantization import (
    CompressedTensors,
    Quantization,
    Unquantized,
    expert_elements,
)
from vllm_capacity.units import ceil_div

_WORD = 4
#: Thread tiles of the Marlin experts; narrower ones fall to other kernels.
#: Source: vLLM 0.32 ``utils/marlin_utils.py``, ``check_moe_marlin_supports_config``.
_MARLIN_EXPERT_TILE = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedIntegers(Quantization):
    """Packed weights with a scale and a zero point per group.

    Attributes:
        bits: bits of a weight.
        group_size: inputs that share a scale.
        expert_bias: whether routed experts get biases that most checkpoints lack.
    """

    kv_scale_elements: ClassVar[int] = 0
    expert_bias: ClassVar[bool] = False
    bits: int
    group_size: int

    def linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """Packed weights, packed zero points, scales and bias."""
        if not linear.quantizable or self.ignores(linear):
            return Unquantized().linear_bytes(linear, element_bytes)
        grouped = self._grouped_bytes(linear.input_size, sum(linear.output_sizes), element_bytes)
        return grouped + element_bytes * linear.bias_elements

    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Gate and up in one tensor, down in another."""
        hidden, width = experts.hidden_size, experts.intermediate_size
        gate_up = self._grouped_bytes(hidden, 2 * width, element_bytes)
        down = self._grouped_bytes(width, hidden, element_bytes)
        bias = element_bytes * (2 * width + hidden) if self.expert_bias else 0
        return experts.num_experts * (gate_up + down + bias)

    def _grouped_bytes(self, inputs: int, outputs: int, element_bytes: int) -> int:
        groups = inputs // self.group_size
        words = inputs * outputs * self.bits // 32 + groups * (outputs * self.bits // 32)
        return _WORD * words + element_bytes * groups * outputs

    def ignores(self, linear: Linear) -> bool:
        """Whether the checkpoint leaves this layer in the model's dtype."""
        return _contains(linear.name, self.ignored) or all(
            _contains(shard, self.ignored) for shard in linear.shards
        )

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """Groups and words must not straddle ranks; odd shapes take other kernels."""
        del tensor_parallel
        if isinstance(module, RoutedExperts):
            tile = max(self.group_size, _MARLIN_EXPERT_TILE)
            sizes, name = (module.hidden_size, module.intermediate_size), module.name
            fits = not any(size % tile for size in sizes)
            if any("experts" in entry for entry in self.ignored):
                return "checkpoints with some experts unquantised are not described exactly"
            return None if fits else f"{name} does not fit the tiles of the packed kernels"
        if not module.quantizable or self.ignores(module):
            return None
        if module.name.endswith(".gate"):
            return "whether the router is quantised is known only from the checkpoint's tensors"
        words = sum(module.output_sizes) * self.bits % 32 or module.input_size * self.bits % 32
        if module.input_size % self.group_size or words:
            return f"groups of {self.group_size} do not divide {module.name} on a rank"
        return None


def _contains(name: str, entries: frozenset[str]) -> bool:
    return any(entry in name for entry in entries)


@dataclass(frozen=True, kw_only=True, slots=True)
class Awq(PackedIntegers):
    """AWQ, by the Marlin kernels."""

    name: ClassVar[str | None] = "auto_awq"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gptq(PackedIntegers):
    """GPTQ without activation order, by the Marlin kernels."""

    name: ClassVar[str | None] = "auto_gptq"
    expert_bias: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedTensorsPacked(CompressedTensors):
    """compressed-tensors' symmetric packed integers.

    Attributes:
        bits: bits of a weight.
        group_size: inputs that share a scale; None for one scale per output.
    """

    bits: int
    group_size: int | None

    def linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """Packed weights, scales, the unpacked shape as two int64, and bias."""
        if not linear.quantizable or self.ignores(linear):
            return Unquantized().linear_bytes(linear, element_bytes)
        outputs = sum(linear.output_sizes)
        groups = 1 if self.group_size is None else linear.input_size // self.group_size
        words = outputs * ceil_div(linear.input_size * self.bits, 32)
        scales = element_bytes * (groups * outputs + linear.bias_elements)
        return _WORD * words + scales + 16

    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Not reached: experts are refused."""
        return element_bytes * expert_elements(experts)

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """Groups must not straddle ranks; experts have layouts of their own."""
        del tensor_parallel
        if isinstance(module, RoutedExperts):
            return "packed experts of compressed-tensors are not described exactly yet"
        if not module.quantizable or self.ignores(module) or self.group_size is None:
            return None
        if module.input_size % self.group_size:
            return f"vLLM refuses to start: groups of {self.group_size} straddle {module.name}"
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedTensorsInt8(CompressedTensors):
    """compressed-tensors' 8-bit integers for weights and activations.

    Attributes:
        per_channel: whether every output has its scale, else every fused matrix.
        static_input: whether activations have a scale parameter.

    Source: vLLM 0.32 ``compressed_tensors/schemes/compressed_tensors_w8a8_int8.py``.
    """

    per_channel: bool
    static_input: bool

    def linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """One byte a weight, float32 scales, bias in the model's dtype."""
        if not linear.quantizable or self.ignores(linear):
            return Unquantized().linear_bytes(linear, element_bytes)
        scales = sum(linear.output_sizes) if self.per_channel else len(linear.output_sizes)
        scales += 1 if self.static_input else 0
        return linear.elements + _WORD * scales + element_bytes * linear.bias_elements

    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Not reached: experts are refused."""
        return element_bytes * expert_elements(experts)

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """Experts have layouts of their own."""
        del tensor_parallel
        if isinstance(module, RoutedExperts):
            return "8-bit integer experts are not described exactly yet"
        return None
