"""Weights as the allocator counts them once they are loaded and repacked."""

from collections.abc import Iterator

from vllm_capacity.predict.memory.weights import (
    StageModel,
    Widths,
    allocated_bytes,
    layer_modules,
    module_bytes,
    table_bytes,
    under_quantization,
)
from vllm_capacity.predict.modules import Linear, Module, RoutedExperts
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.predict.quantization.float_schemes import Microscaled
from vllm_capacity.predict.quantization.scheme import gate_up_size
from vllm_capacity.predict.vllm_version import VllmVersion
from vllm_capacity.units import Bytes, round_up

_FLOAT32 = 4
_MX_GROUP = 32
_HOPPER = 9
#: Rows that OpenAI's Triton kernels pad on Hopper, and the rows of their scales.
_EXPERT_ROWS, _SCALE_ROWS, _SCALE_GROUPS = 64, 256, 2
#: Packed columns that they pad to: 0.16 and 0.25 to 0.28 have the first, 0.19 the second.
_PACKED_COLUMNS, _PACKED_COLUMNS_0_19 = 32, 64
_WIDER_COLUMNS = (VllmVersion(0, 18), VllmVersion(0, 21))


def loaded_bytes(
    stage: StageModel, rank: Rank, widths: Widths, version: VllmVersion
) -> tuple[Bytes, Bytes]:
    """Bytes of what stays on one rank after loading, and as the allocator counts them.

    Online quantisation keeps less than was created; latent attention keeps copies of a
    projection; OpenAI's Triton kernels pad their experts differently.

    Source: PyTorch ``c10/cuda/CUDACachingAllocator.cpp``; vLLM 0.19
    ``model_loader/utils.py``, ``process_weights_after_loading``.
    """
    own = counted = _copies(stage, rank, widths)
    for count, module in _counted_modules(stage, rank, widths):
        for size in _tensors(module, widths, version):
            own += count * size
            counted += count * allocated_bytes(size)
    for table in stage.rope_tables(rank):
        size = table_bytes(table, widths)
        own, counted = own + size, counted + allocated_bytes(size)
    return Bytes(own), Bytes(counted)


def _counted_modules(stage: StageModel, rank: Rank, widths: Widths) -> Iterator[tuple[int, Module]]:
    for module in stage.outer_modules(rank):
        yield 1, module
    for count, layer in stage.kinds(widths.quantization):
        for module in layer_modules(layer, rank):
            yield count, module


def _copies(stage: StageModel, rank: Rank, widths: Widths) -> int:
    return widths.element_bytes * sum(
        count * part.after_load_elements(rank)
        for count, layer in stage.kinds()
        for part in layer.parts
    )


def _tensors(module: Module, widths: Widths, version: VllmVersion) -> Iterator[int]:
    """Bytes of every large tensor of a module, the small ones beside the first."""
    width, quantization = widths.element_bytes, widths.quantization
    if isinstance(module, RoutedExperts):
        yield from _expert_tensors(module, widths, version)
    elif isinstance(module, Linear) and not module.is_tied:
        linear = under_quantization(module, widths)
        total = quantization.loaded_linear_bytes(linear, width)
        bias = (linear.element_bytes or width) * linear.bias_elements
        yield total - bias
        yield bias
    else:
        yield module_bytes(module, width, quantization)


def _expert_tensors(experts: RoutedExperts, widths: Widths, version: VllmVersion) -> Iterator[int]:
    yield _FLOAT32 * experts.expert_map_entries
    if takes_openai_kernels(experts, widths):
        yield from _openai_tensors(experts, version)
        return
    total = widths.quantization.loaded_experts_bytes(experts, widths.element_bytes)
    # Gate and up are one tensor, down another.
    shares = 3 if experts.gated else 2
    yield (shares - 1) * total // shares
    yield total - (shares - 1) * total // shares


def takes_openai_kernels(experts: RoutedExperts, widths: Widths) -> bool:
    """Whether gpt-oss's 4-bit experts run on OpenAI's Triton kernels, as on Hopper.

    Source: vLLM 0.11 ``layers/quantization/mxfp4.py``, ``get_mxfp4_backend``; 0.19 and 0.32
    ``layers/fused_moe/oracle/mxfp4.py``.
    """
    scheme, capability = widths.quantization.scheme(experts), widths.capability
    four_bits = isinstance(scheme, Microscaled) and scheme.bits == 4 and experts.bias
    return four_bits and capability is not None and capability[0] == _HOPPER


def keeps_no_workspace(stage: StageModel, rank: Rank, widths: Widths) -> bool:
    """Whether the experts' kernels allocate what they need for themselves.

    Source: vLLM 0.19 ``layers/fused_moe/gpt_oss_triton_kernels_moe.py``, ``is_monolithic``.
    """
    return any(
        takes_openai_kernels(module, widths)
        for _, layer in stage.kinds()
        for module in layer_modules(layer, rank)
        if isinstance(module, RoutedExperts)
    )


def _openai_tensors(experts: RoutedExperts, version: VllmVersion) -> Iterator[int]:
    """Swizzled weights and scales, the scales as loaded, float32 biases.

    Source: vLLM 0.19 ``layers/quantization/utils/mxfp4_utils.py``, ``_swizzle_mxfp4``;
    triton_kernels ``tensor_details/layout_details/hopper_value.py`` and ``hopper_scale.py``.
    """
    wider = _WIDER_COLUMNS[0] <= version < _WIDER_COLUMNS[1]
    packed = _PACKED_COLUMNS_0_19 if wider else _PACKED_COLUMNS
    width = round_up(experts.intermediate_size, _EXPERT_ROWS)
    rows = gate_up_size(experts) // experts.intermediate_size * width
    for outputs, inputs in ((rows, experts.hidden_size), (experts.hidden_size, width)):
        groups = inputs // _MX_GROUP
        scales = round_up(outputs, _SCALE_ROWS) * round_up(groups, _SCALE_GROUPS)
        yield experts.num_experts * outputs * round_up(inputs // 2, packed)
        yield experts.num_experts * scales
        yield experts.num_experts * outputs * groups
        yield experts.num_experts * outputs * _FLOAT32
