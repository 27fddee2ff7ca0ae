"""Integer weights: packed into 32-bit words with scales per group of inputs, or 8 bits wide."""

from dataclasses import dataclass

from vllm_capacity.predict.modules import Linear, RoutedExperts
from vllm_capacity.predict.quantization.scheme import (
    FLOAT32,
    Scheme,
    expert_bias_elements,
    expert_elements,
    gate_up_size,
)
from vllm_capacity.units import ceil_div

_WORD = 4
_WORD_BITS = 32
#: Source: vLLM 0.32 ``utils/marlin_utils.py``, ``check_moe_marlin_supports_config``.
_MARLIN_HIDDEN_MULTIPLE = 128
_MARLIN_GROUPS = frozenset({None, 32, 64, 128})
#: Source: vLLM 0.32 ``layers/quantization/moe_wna16.py``, ``MoeWNA16Method.create_weights``.
_FINEST_EXPERT_GROUP = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedIntegers(Scheme):
    """AWQ's and GPTQ's layout: packed weights, a scale and a packed zero point per group.

    Attributes:
        bits: bits of a weight.
        group_size: inputs that share a scale; None for one scale per output.
        along_outputs: whether a word holds neighbouring outputs (AWQ), else inputs (GPTQ).
        expert_bias: whether experts get biases, which most checkpoints lack.
        zero_points: whether the experts' fallback layout has zero points.

    Source: vLLM 0.32 ``layers/quantization/auto_awq.py`` and ``auto_gptq.py``,
    ``create_weights``.
    """

    bits: int
    group_size: int | None
    along_outputs: bool
    expert_bias: bool
    zero_points: bool

    def linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """Packed weights, packed zero points and scales."""
        return self._matrix_bytes(linear.input_size, sum(linear.output_sizes), element_bytes)

    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Gate and up in one tensor, down in another."""
        if not fits_marlin_experts(experts, self.group_size):
            return self.fallback_bytes(experts, element_bytes)
        hidden, rows = experts.hidden_size, gate_up_size(experts)
        size = self._matrix_bytes(hidden, rows, element_bytes)
        size += self._matrix_bytes(experts.intermediate_size, hidden, element_bytes)
        size += element_bytes * (rows + hidden) if self.expert_bias else 0
        return experts.num_experts * size

    def _matrix_bytes(self, inputs: int, outputs: int, element_bytes: int) -> int:
        groups = 1 if self.group_size is None else inputs // self.group_size
        pack = _WORD_BITS // self.bits
        weights = inputs * (outputs // pack) if self.along_outputs else inputs // pack * outputs
        return _WORD * (weights + groups * (outputs // pack)) + element_bytes * groups * outputs

    def fallback_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Experts that Marlin's kernels do not take: weights in bytes, finer groups.

        Source: vLLM 0.32 ``layers/quantization/moe_wna16.py``, ``create_weights``.
        """
        hidden, rows = experts.hidden_size, gate_up_size(experts)
        group, pack = self.fallback_group(experts) or _FINEST_EXPERT_GROUP, 8 // self.bits
        scales = rows * (hidden // group) + hidden * (experts.intermediate_size // group)
        size = rows * (hidden // pack) + hidden * (experts.intermediate_size // pack)
        if self.zero_points:
            size += rows // pack * (hidden // group)
            size += hidden // pack * (experts.intermediate_size // group)
        return experts.num_experts * (size + element_bytes * scales)

    def fallback_group(self, experts: RoutedExperts) -> int | None:
        """Inputs that share a scale in that layout, None where no group fits."""
        group = self.group_size or 0
        while group >= _FINEST_EXPERT_GROUP:
            if experts.intermediate_size % group == experts.hidden_size % group == 0:
                return group
            group //= 2
        return None

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """Groups and words must not straddle ranks."""
        del tensor_parallel
        if isinstance(module, RoutedExperts):
            if fits_marlin_experts(module, self.group_size) or self.fallback_group(module):
                return None
            return f"vLLM refuses to start: no kernel takes the groups of {module.name}"
        if not self.along_outputs and self.group_size not in _MARLIN_GROUPS:
            return f"vLLM refuses to start: no kernel takes GPTQ groups of {self.group_size}"
        words = sum(module.output_sizes) * self.bits % _WORD_BITS
        words = words or module.input_size * self.bits % _WORD_BITS
        if words or (self.group_size is not None and module.input_size % self.group_size):
            return f"vLLM refuses to start: quantisation groups straddle {module.name} on a rank"
        return None


def fits_marlin_experts(experts: RoutedExperts, group_size: int | None) -> bool:
    """Whether Marlin's kernels take experts of these sizes.

    Source: vLLM 0.32 ``utils/marlin_utils.py``, ``check_moe_marlin_supports_config``.
    """
    grouped = group_size is None or experts.intermediate_size % group_size == 0
    fits = experts.hidden_size % _MARLIN_HIDDEN_MULTIPLE == 0
    return fits and grouped and group_size in _MARLIN_GROUPS


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedExpertsOnly(Scheme):
    """Linear layers as one scheme, experts always in the fallback layout of another.

    Source: vLLM 0.32 ``layers/quantization/moe_wna16.py``, ``MoeWNA16Config``.
    """

    packed: PackedIntegers

    def linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """As AWQ or GPTQ."""
        return self.packed.linear_bytes(linear, element_bytes)

    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Weights in bytes."""
        return self.packed.fallback_bytes(experts, element_bytes)

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """As AWQ or GPTQ, but experts have one layout only."""
        if isinstance(module, RoutedExperts) and not self.packed.fallback_group(module):
            return f"vLLM refuses to start: no kernel takes the groups of {module.name}"
        return self.packed.refusal(module, tensor_parallel=tensor_parallel)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedTensorsPacked(Scheme):
    """compressed-tensors' packed integers.

    Attributes:
        bits: bits of a weight.
        group_size: inputs that share a scale; None for one scale per output.
        symmetric: without zero points.
        expert_bias: whether biases of experts are loaded.
        expert_multiple: what the widths of experts must be multiples of.

    Source: vLLM 0.32 ``compressed_tensors/schemes/compressed_tensors_wNa16.py`` and
    ``compressed_tensors_moe/compressed_tensors_moe_wna16.py``, ``create_weights``.
    """

    bits: int
    group_size: int | None
    symmetric: bool = True
    expert_bias: bool = True
    expert_multiple: int = 1

    def linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """Packed weights, scales, packed zero points, the unpacked shape as two int64."""
        outputs, groups = sum(linear.output_sizes), self._groups(linear.input_size)
        words = outputs * ceil_div(linear.input_size * self.bits, _WORD_BITS)
        if not self.symmetric:
            words += groups * ceil_div(outputs * self.bits, _WORD_BITS)
        return _WORD * words + element_bytes * groups * outputs + 16

    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Packed weights, scales, zero points, and two unpacked shapes in the model's dtype."""
        hidden, width = experts.hidden_size, experts.intermediate_size
        matrices = ((hidden, gate_up_size(experts)), (width, hidden))
        size = sum(self._matrix_bytes(*matrix, element_bytes) for matrix in matrices)
        bias = expert_bias_elements(experts) if self.expert_bias else 0
        return experts.num_experts * (size + 4 * element_bytes) + element_bytes * bias

    def _matrix_bytes(self, inputs: int, outputs: int, element_bytes: int) -> int:
        groups = self._groups(inputs)
        words = outputs * (inputs * self.bits // _WORD_BITS)
        if not self.symmetric:
            words += groups * (outputs * self.bits // _WORD_BITS)
        return _WORD * words + element_bytes * groups * outputs

    def _groups(self, inputs: int) -> int:
        return 1 if self.group_size is None else inputs // self.group_size

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """Groups must not straddle ranks."""
        del tensor_parallel
        if isinstance(module, RoutedExperts):
            sizes = (module.hidden_size, module.intermediate_size)
            fits = not any(size % self.expert_multiple for size in sizes)
            if fits and fits_marlin_experts(module, self.group_size):
                return None
            return f"vLLM refuses to start: no kernel takes the groups of {module.name}"
        if self.group_size is None or module.input_size % self.group_size == 0:
            return None
        return f"vLLM refuses to start: groups of {self.group_size} straddle {module.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Integer8(Scheme):
    """8-bit integers with float32 scales.

    Attributes:
        per_channel: whether every output has its scale, else every matrix.
        static_input: whether activations have a scale parameter.
        input_zero_point: whether they have a zero point too.
        weight_zero_points: whether every weight scale has a zero point of one byte.

    Source: vLLM 0.32 ``compressed_tensors/schemes/compressed_tensors_w8a8_int8.py``,
    ``compressed_tensors_moe_w8a8_int8.py`` and ``quark/schemes/quark_w8a8_int8.py``.
    """

    per_channel: bool
    static_input: bool = False
    input_zero_point: bool = False
    weight_zero_points: bool = False

    def linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """One byte a weight and the scales."""
        del element_bytes
        scales = sum(linear.output_sizes) if self.per_channel else len(linear.output_sizes)
        size = linear.elements + scales * (FLOAT32 + self.weight_zero_points)
        return size + (FLOAT32 + self.input_zero_point if self.static_input else 0)

    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """One byte a weight, a scale per output, biases in the model's dtype."""
        scales = experts.num_experts * (gate_up_size(experts) + experts.hidden_size)
        bias = element_bytes * expert_bias_elements(experts)
        return expert_elements(experts) + FLOAT32 * scales + bias

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """Experts need a scale per output and no static activations."""
        del tensor_parallel
        plain = self.per_channel and not self.static_input and not self.weight_zero_points
        if isinstance(module, Linear) or plain:
            return None
        return f"8-bit integer experts of this kind are not described exactly ({module.name})"
