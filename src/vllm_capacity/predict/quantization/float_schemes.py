"""Weights in floats of eight or four bits, with scales per matrix, row, block or group."""

import math
from dataclasses import dataclass, replace

from vllm_capacity.predict.modules import Linear, RoutedExperts
from vllm_capacity.predict.quantization.scheme import (
    FLOAT32,
    FullWidth,
    Scheme,
    expert_bias_elements,
    expert_elements,
    gate_up_size,
)
from vllm_capacity.units import ceil_div, round_up

_FINEST_EXPERT_BLOCK = 32
#: Elements that share a scale in the microscaling formats.
_MX_GROUP = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Float8(Scheme):
    """8-bit floats with scales.

    Attributes:
        scale: ``tensor``, ``channel`` or ``block``.
        block: rows and columns of a block.
        static_input: whether activations have a scale parameter of their own.
        refines: whether experts' blocks become finer where a rank's share is no multiple.
        relaxed: whether fused matrices may end within a block.
        expert_bias: whether biases of experts are loaded.
        scale_bytes: width of a linear layer's weight scales.
        extra_float32s: further parameters of every linear layer.

    Source: vLLM 0.32 ``layers/quantization/fp8.py``, ``modelopt.py``, ``fbgemm_fp8.py`` and
    ``compressed_tensors/schemes/compressed_tensors_w8a8_fp8.py``, ``create_weights``.
    """

    scale: str
    block: tuple[int, int] = (128, 128)
    static_input: bool = False
    refines: bool = True
    relaxed: bool = True
    expert_bias: bool = True
    scale_bytes: int = FLOAT32
    extra_float32s: int = 0

    def linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """One byte a weight and the scales."""
        del element_bytes
        more = self.extra_float32s + (len(linear.output_sizes) if self.static_input else 0)
        scales = self.scale_bytes * self._linear_scales(linear)
        return linear.elements + scales + FLOAT32 * more

    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """One byte a weight, the scales, biases in the model's dtype."""
        scales = self._expert_scales(experts)
        scales += 2 if self.static_input else 0
        bias = expert_bias_elements(experts) if self.expert_bias else 0
        size = expert_elements(experts) + FLOAT32 * experts.num_experts * scales
        return size + element_bytes * bias

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """A block must not straddle two ranks or two fused matrices.

        Source: vLLM 0.32 ``utils/fp8_utils.py``, ``validate_fp8_block_shape``.
        """
        if self.scale != "block":
            return None
        if isinstance(module, RoutedExperts):
            fits = self._expert_block(module) is not None
            return None if fits else _straddles(module.name, module.intermediate_size, self.block)
        return self._linear_refusal(module, split=tensor_parallel > 1)

    def _linear_refusal(self, linear: Linear, *, split: bool) -> str | None:
        rows, columns = self.block
        if split and linear.split == "row" and linear.input_size % columns:
            return _straddles(linear.name, linear.input_size, self.block)
        for size in self._checked_rows(linear, split=split and linear.split == "column"):
            if size % rows:
                return _straddles(linear.name, size, self.block)
        return None

    def _checked_rows(self, linear: Linear, *, split: bool) -> tuple[int, ...]:
        """Sizes of fused matrices that must be whole blocks.

        Source: vLLM 0.32 ``layers/linear.py``, ``_maybe_allow_fp8_block_shape_mismatch``: only
        configs that say ``weight_block_size`` themselves let fused matrices off.
        """
        sizes = linear.output_sizes
        if len(sizes) > 1:
            return () if self.relaxed else sizes if split else sizes[:-1]
        return sizes if split else ()

    def _expert_block(self, experts: RoutedExperts) -> tuple[int, int] | None:
        """The block of expert scales: finer where a rank's share is no multiple of it.

        Source: vLLM 0.32 ``layers/fused_moe/oracle/fp8.py``, ``refine_fp8_moe_block_shape``.
        """
        rows, columns = self.block
        width = experts.intermediate_size
        if width % rows == 0 and not (experts.is_split and width % columns):
            return self.block
        refined = math.gcd(rows, columns, width, experts.hidden_size)
        return (refined, refined) if self.refines and refined >= _FINEST_EXPERT_BLOCK else None

    def _linear_scales(self, linear: Linear) -> int:
        if self.scale == "tensor":
            return len(linear.output_sizes)
        if self.scale == "channel":
            return sum(linear.output_sizes)
        rows, columns = self.block
        return ceil_div(sum(linear.output_sizes), rows) * ceil_div(linear.input_size, columns)

    def _expert_scales(self, experts: RoutedExperts) -> int:
        """Scales of one expert."""
        hidden, width = experts.hidden_size, experts.intermediate_size
        projections = 2 if experts.gated else 1
        if self.scale == "tensor":
            return projections + 1
        if self.scale == "channel":
            return projections * width + hidden
        rows, columns = self._expert_block(experts) or self.block
        gate_up = projections * ceil_div(width, rows) * ceil_div(hidden, columns)
        return gate_up + ceil_div(hidden, rows) * ceil_div(width, columns)


def _straddles(name: str, size: int, block: tuple[int, int]) -> str:
    return (
        f"vLLM refuses to start: {name} has {size} rows or columns on a rank, which quantisation "
        f"blocks of {block[0]} × {block[1]} do not divide"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Microscaled(Scheme):
    """Microscaling floats: every 32 elements of a row share a scale of one byte.

    Attributes:
        bits: 8 or 4 bits of an element.
        hidden_multiple, intermediate_multiple: experts are padded to these.
        expert_bias_bytes: width of the experts' biases, 0 where they are not loaded.

    Source: vLLM 0.32 ``layers/quantization/mxfp4.py``, ``modelopt.py`` and
    ``compressed_tensors_w4a4_mxfp4.py``, ``create_weights``; padding:
    ``layers/fused_moe/oracle/mxfp4.py``, ``mxfp4_round_up_hidden_size_and_intermediate_size``.
    """

    bits: int
    hidden_multiple: int = 1
    intermediate_multiple: int = 1
    expert_bias_bytes: int = 0

    def linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """Weights and one scale a group."""
        del element_bytes
        return sum(linear.output_sizes) * self._row(linear.input_size)

    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Padded projections, their scales, padded biases."""
        del element_bytes
        hidden = round_up(experts.hidden_size, self.hidden_multiple)
        width = round_up(experts.intermediate_size, self.intermediate_multiple)
        rows = (2 if experts.gated else 1) * width
        bias = self.expert_bias_bytes * (rows + hidden) if experts.bias else 0
        return experts.num_experts * (rows * self._row(hidden) + hidden * self._row(width) + bias)

    def _row(self, columns: int) -> int:
        return columns * self.bits // 8 + columns // _MX_GROUP

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """Groups must not straddle ranks."""
        del tensor_parallel
        if isinstance(module, Linear):
            return _ungrouped(module.name, module.input_size, _MX_GROUP)
        if self.hidden_multiple % _MX_GROUP == 0:
            return None
        hidden = _ungrouped(module.name, module.hidden_size, _MX_GROUP)
        return hidden or _ungrouped(module.name, module.intermediate_size, _MX_GROUP)


@dataclass(frozen=True, kw_only=True, slots=True)
class NvFloat4(Scheme):
    """NVIDIA's 4-bit floats: an 8-bit scale per group and a float32 scale per matrix.

    Attributes:
        group_size: elements that share an 8-bit scale.
        input_scale_bytes: width of a linear layer's activation scales, 0 without them; None for
            the model's dtype.
        all_expert_scales: whether a rank holds the activation scales of all ranks' experts.

    Source: vLLM 0.32 ``layers/quantization/modelopt.py``, ``KNvfp4Static`` and
    ``ModelOptNvFp4FusedMoE.create_weights``; ``compressed_tensors_w4a4_nvfp4.py``.
    """

    group_size: int = 16
    input_scale_bytes: int | None = FLOAT32
    all_expert_scales: bool = False

    def linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """Half a byte a weight and the scales."""
        width = element_bytes if self.input_scale_bytes is None else self.input_scale_bytes
        rows = sum(linear.output_sizes) * self._row(linear.input_size)
        return rows + len(linear.output_sizes) * (FLOAT32 + width)

    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Half a byte a weight and the scales; biases are not loaded."""
        del element_bytes
        hidden, rows = experts.hidden_size, gate_up_size(experts)
        weights = rows * self._row(hidden) + hidden * self._row(experts.intermediate_size)
        everyone = experts.expert_map_entries if self.all_expert_scales else 0
        scaled = experts.num_experts + (everyone or experts.num_experts)
        scales = FLOAT32 * scaled * (3 if experts.gated else 2)
        return experts.num_experts * weights + scales

    def _row(self, columns: int) -> int:
        return columns // 2 + columns // self.group_size

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """Groups must not straddle ranks."""
        del tensor_parallel
        if isinstance(module, RoutedExperts):
            return _ungrouped(module.name, module.intermediate_size, self.group_size)
        return _ungrouped(module.name, module.input_size, self.group_size)


def _ungrouped(name: str, size: int, group: int) -> str | None:
    if size % group == 0:
        return None
    return f"vLLM refuses to start: groups of {group} do not divide the {size} inputs of {name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class AtLoad(FullWidth):
    """Quantised while it loads: created at full width, then replaced.

    Attributes:
        linear, experts: the scheme of what is kept, None for full width.
        hidden_multiple, intermediate_multiple: experts are padded to these from the start.

    Source: vLLM 0.32 ``layers/quantization/online/``, ``create_weights`` and
    ``maybe_roundup_sizes``.
    """

    linear: Scheme | None
    experts: Scheme | None
    hidden_multiple: int = 1
    intermediate_multiple: int = 1

    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Full width, padded."""
        return FullWidth().experts_bytes(self._padded(experts), element_bytes)

    def loaded_linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """What is kept."""
        return (self.linear or FullWidth()).linear_bytes(linear, element_bytes)

    def loaded_experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """What is kept."""
        return (self.experts or FullWidth()).experts_bytes(self._padded(experts), element_bytes)

    def _padded(self, experts: RoutedExperts) -> RoutedExperts:
        return replace(
            experts,
            hidden_size=round_up(experts.hidden_size, self.hidden_multiple),
            intermediate_size=round_up(experts.intermediate_size, self.intermediate_multiple),
        )

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """Groups of the kept format must not straddle ranks; blocks may."""
        kept = self.linear if isinstance(module, Linear) else self.experts
        if isinstance(kept, Microscaled):
            return kept.refusal(module, tensor_parallel=tensor_parallel)
        return None
