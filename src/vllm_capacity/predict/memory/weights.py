"""The parameters and buffers of every rank, as vLLM constructs them."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from vllm_capacity.predict.dtypes import element_bytes
from vllm_capacity.predict.model import Layer, Model, NamedCache
from vllm_capacity.predict.modules import Linear, Module, Plain, RoutedExperts
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.predict.quantization.module_names import layer_mentions
from vllm_capacity.predict.quantization.scheme import Quantization, Unquantized
from vllm_capacity.predict.rope import RopeTable
from vllm_capacity.units import MIB, Bytes, round_up

#: Four float32 buffers: key, value, query and probability scale.
#: Source: vLLM 0.32 ``layers/attention/attention.py``, ``_init_kv_cache_quant``.
_ATTENTION_SCALE_BYTES = 16
_FLOAT32 = 4
_INTEGER_PACKERS = frozenset({"auto_awq", "auto_gptq", "inc"})
_LARGE_ALLOCATION = 10 * MIB
_SEGMENT = 2 * MIB
_SPLIT_ABOVE = 1 * MIB


@dataclass(frozen=True, kw_only=True, slots=True)
class Widths:
    """What decides how wide parameters are.

    Attributes:
        dtype: the model's.
        flashinfer: whether FlashInfer is installed, for which some rotary tables are float32.
        router_kernels: whether the GPU is one that vLLM has router kernels for, Hopper or
            Blackwell for data centres.
        capability: the GPU's compute capability, None where it is not known.
    """

    dtype: str
    quantization: Quantization
    flashinfer: bool = False
    router_kernels: bool = True
    capability: tuple[int, int] | None = None

    @property
    def element_bytes(self) -> int:
        """Bytes of an element of the model's dtype."""
        return element_bytes(self.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageModel:
    """What one pipeline stage builds of a model."""

    model: Model
    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, model: Model, layers: range) -> "StageModel":
        """The stage that has these layers."""
        return cls(model=model, layers=model.layers[layers.start : layers.stop])

    def outer_modules(self, rank: Rank) -> Iterator[Module]:
        """What the rank holds besides its layers."""
        for each in self.model.outside:
            if each.stages.include(rank):
                yield from each.part.modules(rank, each.path)

    def rope_tables(self, rank: Rank) -> frozenset[RopeTable]:
        """Distinct rotary tables on the rank."""
        outside = [each.part for each in self.model.outside if each.stages.include(rank)]
        parts = (*outside, *(part for _, layer in self.kinds() for part in layer.parts))
        return frozenset(table for part in parts for table in part.ropes())

    def caches(self, rank: Rank) -> Iterator[NamedCache]:
        """What the stage's layers keep in the KV cache, in the order that vLLM builds them."""
        for layer in self.layers:
            for part in layer.parts:
                yield from part.caches(rank, layer.path)

    def kinds(self, quantization: Quantization | None = None) -> Iterator[tuple[int, Layer]]:
        """How many layers of each kind there are, and an example of each.

        Layers are of a kind where they share their parts, and no entry of the quantisation tells
        them apart.
        """
        mentions = None if quantization is None else layer_mentions(quantization.entries)
        count: dict[Hashable, int] = {}
        example: dict[Hashable, Layer] = {}
        for layer in self.layers:
            key = id(layer.parts), None if mentions is None else mentions.of(layer.path)
            count[key] = count.get(key, 0) + 1
            example.setdefault(key, layer)
        return ((count[key], example[key]) for key in example)

    def total(
        self, rank: Rank, measure: Callable[[Module], int], quantization: Quantization | None = None
    ) -> int:
        """The measure summed over the rank; layers of a kind are measured once."""

        def over(modules: Iterable[Module]) -> int:
            return sum(map(measure, modules))

        layers = self.kinds(quantization)
        inner = sum(count * over(layer_modules(layer, rank)) for count, layer in layers)
        return over(self.outer_modules(rank)) + inner


def layer_modules(layer: Layer, rank: Rank) -> Iterator[Module]:
    """What a rank holds of one layer."""
    for part in layer.parts:
        yield from part.modules(rank, layer.path)


def weights_bytes(stage: StageModel, rank: Rank, widths: Widths) -> Bytes:
    """Bytes of parameters and buffers on one rank, before repacking after load.

    Source: the model classes of vLLM 0.32 ``model_executor/models/``; see ``models/``.
    """
    quantization, width = widths.quantization, widths.element_bytes

    def measure(module: Module) -> int:
        if isinstance(module, Linear):
            module = under_quantization(module, widths)
        return module_bytes(module, width, quantization)

    size = stage.total(rank, measure, quantization)
    return Bytes(size + sum(table_bytes(table, widths) for table in stage.rope_tables(rank)))


def under_quantization(linear: Linear, widths: Widths) -> Linear:
    """The layer as vLLM builds it under this quantisation, where that changes more than bytes.

    Source: vLLM 0.32 ``layers/mamba/gdn/qwen_gdn_linear_attn.py``, ``maybe_disable_tp``,
    ``models/qwen3_next_mtp.py``, ``fc_quant``, and ``layers/fused_moe/router/gate_linear.py``,
    ``GateLinear``.
    """
    if linear.fast_router and not widths.router_kernels:
        linear = replace(linear, element_bytes=_FLOAT32)
    return _packed(linear, widths.quantization)


def _packed(linear: Linear, quantization: Quantization) -> Linear:
    if linear.packed_output_sizes is not None and quantization.name in _INTEGER_PACKERS:
        linear = replace(linear, output_sizes=linear.packed_output_sizes, split="none")
    if quantization.name in linear.kept_from:
        linear = replace(linear, quantizable=False)
    return linear


def table_bytes(table: RopeTable, widths: Widths) -> int:
    """Bytes of a rotary table."""
    if table.wide_with_flashinfer and widths.flashinfer:
        return _FLOAT32 * table.elements
    return (table.element_bytes or widths.element_bytes) * table.elements


def allocated_bytes(size: int) -> int:
    """What PyTorch's allocator counts for one tensor.

    A tensor of 10 MiB or more gets a segment of whole 2 MiB; what is left of it is given to
    others only where it exceeds 1 MiB. Small ones are counted as they are.

    Source: PyTorch ``c10/cuda/CUDACachingAllocator.cpp``, ``get_allocation_size`` and
    ``should_split``.
    """
    if size < _LARGE_ALLOCATION:
        return size
    slack = round_up(size, _SEGMENT) - size
    return size + (slack if slack <= _SPLIT_ABOVE else 0)


def module_bytes(module: Module, width: int, quantization: Quantization) -> int:
    """Bytes of one module on one rank; ``width`` is the model dtype's."""
    if isinstance(module, Plain):
        return module.elements * (module.element_bytes or width)
    if isinstance(module, Linear):
        if module.is_tied:
            return module.bias_elements * width
        return quantization.linear_bytes(module, width)
    if isinstance(module, RoutedExperts):
        mapping = _FLOAT32 * module.expert_map_entries
        return mapping + quantization.experts_bytes(module, width)
    scales = quantization.attention_bytes(width, module) if module.scaled else 0
    return _ATTENTION_SCALE_BYTES + scales


def refusal(stage: StageModel, rank: Rank, quantization: Quantization) -> str | None:
    """Why vLLM would not build the stage on this rank, None if it would."""
    for part in stage.model.parts():
        reason = part.refusal(rank)
        if reason is not None:
            return reason
    if isinstance(quantization, Unquantized):
        return None
    layers = [layer for _, layer in stage.kinds(quantization)]
    inner = (module for layer in layers for module in layer_modules(layer, rank))
    return _quantization_refusal(chain(stage.outer_modules(rank), inner), rank, quantization)


def _quantization_refusal(
    modules: Iterable[Module], rank: Rank, quantization: Quantization
) -> str | None:
    for each in modules:
        module = _packed(each, quantization) if isinstance(each, Linear) else each
        if isinstance(module, Linear | RoutedExperts):
            reason = quantization.refusal(module, tensor_parallel=rank.tp_size)
            if reason is not None:
                return reason
    return None
