"""Bytes of linear layers and experts under each quantisation that is described exactly.

What counts are the parameters as vLLM creates them, before any repacking after load.
"""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from vllm_capacity.predict.modules import Linear, RoutedExperts
from vllm_capacity.units import ceil_div

_FLOAT32 = 4
_FINEST_EXPERT_BLOCK = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization(ABC):
    """How a quantisation lays out parameters.

    Attributes:
        name: what vLLM calls it, None for unquantised weights.
        ignored: names or patterns of modules left alone.
        kv_cache_dtype: KV cache type that the checkpoint asks for where the operator does not.
    """

    name: ClassVar[str | None]
    #: Scale parameters that every attention layer gets: elements of the model's dtype, float32s.
    kv_scale_elements: ClassVar[int]
    kv_scale_float32s: ClassVar[int] = 0
    ignored: frozenset[str] = frozenset()
    kv_cache_dtype: str | None = None

    @abstractmethod
    def linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """Bytes of a linear layer's parameters, bias included."""

    @abstractmethod
    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Bytes of a layer's routed experts."""

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """Why vLLM would not build this layer, None if it would."""
        del module, tensor_parallel
        return None

    def attention_bytes(self, element_bytes: int) -> int:
        """Bytes of the scale parameters of one attention layer."""
        return element_bytes * self.kv_scale_elements + _FLOAT32 * self.kv_scale_float32s

    @property
    def treats_layers_alike(self) -> bool:
        """Whether no layer is ignored by its number."""
        return not any(character.isdigit() for name in self.ignored for character in name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Unquantized(Quantization):
    """Every parameter in the model's dtype."""

    name: ClassVar[str | None] = None
    kv_scale_elements: ClassVar[int] = 0

    def linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """Weights and bias."""
        width = linear.element_bytes or element_bytes
        return width * (linear.elements + linear.bias_elements)

    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Gate, up and down projections of every expert."""
        return element_bytes * expert_elements(experts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8(Quantization):
    """8-bit floats with per-tensor, per-channel or per-block scales.

    Attributes:
        scale: ``tensor``, ``channel`` or ``block``.
        block: rows and columns of a block.
        static_input: whether activations have a scale parameter of their own.

    Source: vLLM 0.32 ``layers/quantization/fp8.py``, ``modelopt.py`` and
    ``compressed_tensors/schemes/compressed_tensors_w8a8_fp8.py``, ``create_weights``.
    """

    scale: str
    block: tuple[int, int] = (128, 128)
    static_input: bool = False
    name: ClassVar[str | None] = "fp8"
    kv_scale_elements: ClassVar[int] = 4

    def linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """One byte a weight, float32 scales, bias in the model's dtype."""
        if not linear.quantizable or self.ignores(linear):
            return Unquantized().linear_bytes(linear, element_bytes)
        scales = self._linear_scales(linear)
        if self.static_input:
            scales += len(linear.output_sizes)
        return linear.elements + _FLOAT32 * scales + element_bytes * linear.bias_elements

    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Quantised experts; an ignored block keeps the model's dtype."""
        if any(experts.name in entry for entry in self.ignored if "experts" in entry):
            return Unquantized().experts_bytes(experts, element_bytes)
        return expert_elements(experts) + _FLOAT32 * self._expert_scales(experts)

    def ignores(self, linear: Linear) -> bool:
        """Whether the checkpoint leaves this layer in the model's dtype.

        Source: vLLM 0.32 ``layers/quantization/utils/quant_utils.py``, ``is_layer_skipped``.
        """
        return linear.name in self.ignored or all(shard in self.ignored for shard in linear.shards)

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """A block must not straddle two ranks or two fused matrices.

        Source: vLLM 0.32 ``utils/fp8_utils.py``, ``validate_fp8_block_shape``.
        """
        if self.scale != "block":
            return None
        if isinstance(module, RoutedExperts):
            fits = self._expert_block(module) is not None
            return None if fits else _straddles(module.name, module.intermediate_size, self.block)
        if not module.quantizable or self.ignores(module):
            return None
        return self._linear_refusal(module, split=tensor_parallel > 1)

    def _linear_refusal(self, linear: Linear, *, split: bool) -> str | None:
        # Fused column-split layers may mismatch: layers/linear.py,
        # _maybe_allow_fp8_block_shape_mismatch.
        rows, columns = self.block
        if split and linear.split == "row" and linear.input_size % columns:
            return _straddles(linear.name, linear.input_size, self.block)
        alone = len(linear.output_sizes) == 1
        if split and linear.split == "column" and alone and linear.output_sizes[0] % rows:
            return _straddles(linear.name, linear.output_sizes[0], self.block)
        return None

    def _expert_block(self, experts: RoutedExperts) -> tuple[int, int] | None:
        """The block of expert scales: finer where a rank's share is no multiple of it.

        Source: vLLM 0.32 ``layers/fused_moe/oracle/fp8.py``, ``refine_fp8_moe_block_shape``.
        """
        rows, columns = self.block
        width = experts.intermediate_size
        if width % rows == 0 and not (experts.is_split and width % columns):
            return self.block
        refined = math.gcd(rows, columns, width, experts.hidden_size)
        return (refined, refined) if refined >= _FINEST_EXPERT_BLOCK else None

    def _linear_scales(self, linear: Linear) -> int:
        if self.scale == "tensor":
            return len(linear.output_sizes)
        if self.scale == "channel":
            return sum(linear.output_sizes)
        rows, columns = self.block
        return ceil_div(sum(linear.output_sizes), rows) * ceil_div(linear.input_size, columns)

    def _expert_scales(self, experts: RoutedExperts) -> int:
        hidden, width = experts.hidden_size, experts.intermediate_size
        if self.scale == "block":
            rows, columns = self._expert_block(experts) or self.block
            gate_up = 2 * ceil_div(width, rows) * ceil_div(hidden, columns)
            down = ceil_div(hidden, rows) * ceil_div(width, columns)
            return experts.num_experts * (gate_up + down)
        if self.scale == "channel":
            return experts.num_experts * (2 * width + hidden)
        per_expert = 3 + (2 if self.static_input else 0)
        return experts.num_experts * per_expert


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptFp8(Fp8):
    """NVIDIA ModelOpt's static 8-bit floats."""

    name: ClassVar[str | None] = "modelopt"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedTensors(Quantization, ABC):
    """What all of compressed-tensors' schemes share; every KV scale has a zero point.

    Source: vLLM 0.32 ``compressed_tensors/compressed_tensors.py``,
    ``CompressedTensorsKVCacheMethod``.
    """

    name: ClassVar[str | None] = "compressed-tensors"
    kv_scale_elements: ClassVar[int] = 3
    kv_scale_float32s: ClassVar[int] = 3

    def ignores(self, linear: Linear) -> bool:
        """Exact names or ``re:`` patterns of the checkpoint's modules."""
        return _matches_all(self.ignored, linear)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedTensorsFp8(Fp8):
    """compressed-tensors' 8-bit floats."""

    name: ClassVar[str | None] = "compressed-tensors"
    kv_scale_elements: ClassVar[int] = 3
    kv_scale_float32s: ClassVar[int] = 3

    def ignores(self, linear: Linear) -> bool:
        """Exact names or ``re:`` patterns of the checkpoint's modules."""
        return _matches_all(self.ignored, linear)


def _matches_all(ignored: frozenset[str], linear: Linear) -> bool:
    return all(any(_matches(pattern, shard) for pattern in ignored) for shard in linear.shards)


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return pattern == name


def expert_elements(experts: RoutedExperts) -> int:
    """Gate, up and down projections of the experts on this rank."""
    return 3 * experts.num_experts * experts.hidden_size * experts.intermediate_size


def _straddles(name: str, size: int, block: tuple[int, int]) -> str:
    return (
        f"vLLM refuses to start: {name} has {size} rows or columns on a rank, which quantisation "
        f"blocks of {block[0]} × {block[1]} do not divide"
    )
