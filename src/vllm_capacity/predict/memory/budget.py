"""GPU memory × utilisation − what start-up consumes = bytes for the KV cache.

Source: vLLM 0.32 ``v1/worker/gpu_worker.py``, ``determine_available_memory``, and
``v1/worker/utils.py``, ``request_memory``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vllm_capacity.predict.gpu import Gpu
from vllm_capacity.predict.memory.activation import ActivationPeak
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.predict.vllm_version import VllmVersion
from vllm_capacity.units import GIB, MIB, Bytes

#: Repacking after load, small pools and what a loader leaves behind.
_WEIGHTS_SLACK_RATIO = 0.004
#: First release whose start-ups measure more: collectives of FlashInfer and symmetric memory.
_MORE_NON_TORCH = VllmVersion(0, 18)
_FIRST_GRAPH_GIB, _GRAPHS_GIB_PER_LAYER, _GRAPHS_ERROR_GIB = 0.35, 0.0155, 0.7
_GRAPH_ESTIMATE_BY_DEFAULT = VllmVersion(0, 21)
_GRAPH_ESTIMATE_VARIABLE = "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS"


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number of bytes with its bounds and where it comes from."""

    bytes: Bytes
    low: Bytes
    high: Bytes
    origin: str

    @classmethod
    def of_gib(cls, value: float, low: float, high: float, origin: str) -> "Estimate":
        """The estimate from numbers in GiB."""
        size, least, most = (Bytes(round(gib * GIB)) for gib in (value, low, high))
        return cls(bytes=size, low=least, high=most, origin=origin)

    def widened(self, other: "Estimate") -> "Estimate":
        """The same value with bounds that also hold ``other``."""
        return replace(self, low=min(self.low, other.low), high=max(self.high, other.high))


NOTHING = Estimate(bytes=Bytes(0), low=Bytes(0), high=Bytes(0), origin="not subtracted")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryBudget:
    """One rank's memory at start-up; all terms sum to ``requested_bytes``.

    Attributes:
        requested_bytes: total × utilisation.
        weights_bytes: parameters and buffers as the allocator counts them; the lower bound is
            their own bytes.
        activation_peak_bytes: peak of the profiling run above the weights.
        activation_peak_phase: what makes that peak.
        non_torch_bytes: CUDA context, NCCL and the like.
        cuda_graph_bytes: what the release sets aside for CUDA graphs, 0 where it does not.
        cuda_graph_is_subtracted: whether the release subtracts them before sizing the cache.
        kv_cache_bytes: what is left; negative where the rest does not fit.
        origins: how each term was obtained.
    """

    requested_bytes: Bytes
    weights_bytes: Bytes
    weights_bytes_low: Bytes
    weights_bytes_high: Bytes
    activation_peak_bytes: Bytes
    activation_peak_bytes_low: Bytes
    activation_peak_bytes_high: Bytes
    activation_peak_phase: str
    non_torch_bytes: Bytes
    non_torch_bytes_low: Bytes
    non_torch_bytes_high: Bytes
    cuda_graph_bytes: Bytes
    cuda_graph_bytes_low: Bytes
    cuda_graph_bytes_high: Bytes
    cuda_graph_is_subtracted: bool
    kv_cache_bytes: Bytes
    kv_cache_bytes_low: Bytes
    kv_cache_bytes_high: Bytes
    origins: Mapping[str, str]


def requested_bytes(gpu: Gpu, utilization: float, version: VllmVersion) -> Bytes:
    """Bytes that the operator lets vLLM have.

    Source: vLLM 0.32 ``v1/worker/utils.py``, ``request_memory``: rounded up since 0.16.
    """
    product = gpu.total_memory_bytes * utilization
    return Bytes(math.ceil(product) if version >= VllmVersion(0, 16) else int(product))


def memory_budget(
    *,
    requested: Bytes,
    loaded: Bytes,
    allocated: Bytes,
    beside: Sequence[Estimate] = (),
    activation: ActivationPeak,
    non_torch: Estimate,
    cuda_graph: Estimate,
) -> MemoryBudget:
    """The budget of one rank.

    Args:
        requested: see :func:`requested_bytes`.
        loaded: the model's parameters and buffers as they stay after loading.
        allocated: the same as the allocator counts them.
        beside: what stands beside them: LoRA slots, a draft model, offloaded weights (negative).
        activation: the peak of the profiling run.
        non_torch: see :func:`non_torch`.
        cuda_graph: see :func:`cuda_graphs`.
    """
    uncounted = round(loaded * _WEIGHTS_SLACK_RATIO) + 16 * MIB
    heavier = Bytes(allocated + sum(each.high for each in beside) + uncounted)
    weights = Bytes(loaded + sum(each.low for each in beside))
    allocated = Bytes(allocated + sum(each.bytes for each in beside))
    return MemoryBudget(
        requested_bytes=requested,
        weights_bytes=allocated,
        weights_bytes_low=weights,
        weights_bytes_high=heavier,
        activation_peak_bytes=activation.bytes,
        activation_peak_bytes_low=activation.low,
        activation_peak_bytes_high=activation.high,
        activation_peak_phase=activation.phase.name,
        non_torch_bytes=non_torch.bytes,
        non_torch_bytes_low=non_torch.low,
        non_torch_bytes_high=non_torch.high,
        cuda_graph_bytes=cuda_graph.bytes,
        cuda_graph_bytes_low=cuda_graph.low,
        cuda_graph_bytes_high=cuda_graph.high,
        cuda_graph_is_subtracted=cuda_graph.high > 0,
        kv_cache_bytes=Bytes(
            requested - allocated - activation.bytes - non_torch.bytes - cuda_graph.bytes
        ),
        kv_cache_bytes_low=Bytes(
            requested - heavier - activation.high - non_torch.high - cuda_graph.high
        ),
        kv_cache_bytes_high=Bytes(
            requested - weights - activation.low - non_torch.low - cuda_graph.low
        ),
        origins={
            "weights": ", ".join(
                ("parameters and buffers of the model class", *(each.origin for each in beside))
            ),
            "activation_peak": activation.phase.origin,
            "non_torch": non_torch.origin,
            "cuda_graph": cuda_graph.origin,
        },
    )


def non_torch(rank: Rank, version: VllmVersion) -> Estimate:
    """CUDA context, NCCL buffers and communicators outside PyTorch's allocator.

    Measured on H100, not derived: see docs/method.md. Communicators that pipeline stages set up
    alone stand before the first snapshot, and are not counted.
    """
    if rank.tp_size > 1:
        return _tensor_parallel(rank.tp_size, version)
    beside = max(rank.moe_tensor_parallel, rank.expert_parallel) > rank.tp_size
    if rank.pp_size > 1:
        return Estimate.of_gib(0.07, 0.02, 0.6, "measured at PP 2 and 4 with 0.19")
    value, high, when = (0.13, 0.4, "before") if version < _MORE_NON_TORCH else (0.25, 0.5, "since")
    origin = f"measured at TP 1 {when} 0.18"
    return Estimate.of_gib(value, 0.02, high + (1.0 if beside else 0.0), origin)


def _tensor_parallel(size: int, version: VllmVersion) -> Estimate:
    if version < _MORE_NON_TORCH:
        return Estimate.of_gib(0.55, 0.4, 1.0, "measured at TP 2 before 0.18")
    # Seven runs at TP 2: 2.06 to 2.10; one at TP 4; TP 8 is the most that was seen.
    value = {2: 2.07, 3: 2.12, 4: 2.17}.get(size, 2.21)
    return Estimate.of_gib(value, 1.0, value + 0.33, f"measured with 0.19 at TP {min(size, 8)}")


def cuda_graphs(
    version: VllmVersion,
    env: Mapping[str, str],
    *,
    enforce_eager: bool,
    num_layers: int,
    max_num_seqs: int,
) -> Estimate:
    """What the release sets aside for graph capture before it sizes the cache.

    vLLM captures two graphs of every kind and adds the first's bytes to the second's for every
    further size. How many they are is the driver's affair, so this is a line through 30 start-ups
    of 0.19 on H100: 17 lie within 20 % of it, all within the bounds.

    Source: vLLM 0.19 ``v1/worker/gpu_model_runner.py``, ``profile_cudagraph_memory``.
    """
    if enforce_eager or not subtracts_cuda_graphs(version, env):
        return NOTHING
    further = num_layers * _captured_sizes(max_num_seqs) / _captured_sizes(256)
    value = _FIRST_GRAPH_GIB + _GRAPHS_GIB_PER_LAYER * further
    low, high = max(0.02, value - _GRAPHS_ERROR_GIB), value + _GRAPHS_ERROR_GIB
    return Estimate.of_gib(value, low, high, "by layers and sizes, as start-ups of 0.19 on H100")


def _captured_sizes(max_num_seqs: int) -> int:
    """How many batch sizes are captured.

    Source: vLLM 0.32 ``config/vllm.py``, ``_set_cudagraph_sizes``.
    """
    largest = min(2 * max_num_seqs, 512)
    small = sum(size <= largest for size in (1, 2, 4))
    return small + min(largest, 255) // 8 + max(0, largest - 240) // 16


def subtracts_cuda_graphs(version: VllmVersion, env: Mapping[str, str]) -> bool:
    """Whether the release sets the graphs' estimate aside before it sizes the cache."""
    asked = env.get(_GRAPH_ESTIMATE_VARIABLE)
    if asked is not None:
        return asked in {"1", "true", "True"} and version >= VllmVersion(0, 18)
    return version >= _GRAPH_ESTIMATE_BY_DEFAULT
