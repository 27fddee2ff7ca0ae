"""Metrics of this host's GPUs, of where their memory goes, and of whose it is."""

from collections.abc import Callable, Mapping

from vllm_capacity.compare.fleet import TargetAssessment
from vllm_capacity.compare.gpu_attribution import GpuAttribution
from vllm_capacity.compare.gpu_memory import GpuMemoryStack
from vllm_capacity.export.metric import PREFIX, Metric, Values
from vllm_capacity.observe.gpu_reading import GpuReading, MigInstance


def _gpu(name: str, help_text: str, read: Callable[[GpuReading], float | None]) -> Metric:
    return Metric(PREFIX + name, help_text, "NVML", (), "gpu", lambda gpu: {(): read(gpu)})


def _mig(name: str, help_text: str, read: Callable[[MigInstance], float | None]) -> Metric:
    def values(gpu: GpuReading) -> Values:
        return {(one.uuid,): read(one) for one in gpu.mig_instances}

    return Metric(PREFIX + name, help_text, "NVML", ("mig_uuid",), "gpu", values)


def _mig_info(gpu: GpuReading) -> Values:
    return {
        (one.uuid, one.profile or "", "parent" if one.used_bytes is None else "own"): 1.0
        for one in gpu.mig_instances
    }


GPU = (
    _gpu("gpu_memory_total_bytes", "GPU memory, by NVML.", lambda g: g.total_bytes),
    _gpu("gpu_memory_used_bytes", "GPU memory in use by anyone, by NVML.", lambda g: g.used_bytes),
    _gpu("gpu_memory_free_bytes", "GPU memory free, by NVML.", lambda g: g.free_bytes),
    _gpu(
        "gpu_memory_reserved_bytes",
        "GPU memory that the driver keeps for itself, by NVML.",
        lambda g: g.reserved_bytes,
    ),
    Metric(
        PREFIX + "gpu_mig_info",
        "A MIG instance of the GPU, and whether it tells its own memory or only its parent does; "
        "the value is 1.",
        "NVML",
        ("mig_uuid", "profile", "memory"),
        "gpu",
        _mig_info,
    ),
    _mig("gpu_mig_memory_total_bytes", "Memory of a MIG instance.", lambda m: m.total_bytes),
    _mig("gpu_mig_memory_used_bytes", "Memory in use of a MIG instance.", lambda m: m.used_bytes),
    _mig("gpu_mig_memory_free_bytes", "Memory free of a MIG instance.", lambda m: m.free_bytes),
)


def _components(stack: GpuMemoryStack) -> Values:
    by_source = {
        "nvml": stack.held,
        "reported": stack.reported,
        "predicted": stack.predicted,
    }
    return {
        (component, source): size
        for source, sizes in by_source.items()
        for component, size in sizes.items()
    }


GPU_MEMORY = (
    Metric(
        PREFIX + "gpu_memory_component_bytes",
        "GPU memory by component. Source nvml: what is held now, which sums to the driver's used "
        "bytes, its remainder signed; reported: what vLLM said of it at start-up or by its blocks; "
        "predicted: what no measurement went into.",
        "NVML; the start-up log and vLLM's page; predicted: config.json and engine arguments",
        ("component", "source"),
        "gpu_memory",
        _components,
    ),
    Metric(
        PREFIX + "gpu_memory_budget_bytes",
        "What the engines here may take: GPU memory times gpu_memory_utilization.",
        "the start-up log, else predicted: the GPU's memory and gpu_memory_utilization",
        (),
        "gpu_memory",
        lambda stack: {(): stack.budget_bytes},
    ),
    Metric(
        PREFIX + "gpu_memory_unaccounted_growth_bytes_per_second",
        "By how much unaccounted memory grows, over the last hour or since the engines here "
        "started.",
        "NVML: the trend of what nothing accounts for",
        (),
        "gpu_memory",
        lambda stack: {(): stack.unaccounted_growth},
    ),
)


def _attributed(
    read: Callable[[GpuAttribution], Mapping[tuple[str, ...], float | None]],
) -> Callable[[TargetAssessment], Values]:
    return lambda target: {
        (str(one.gpu), one.gpu_uuid, one.mig_uuid or "", *labels): value
        for one in target.gpus
        for labels, value in read(one).items()
    }


_WHERE = ("gpu", "gpu_uuid", "mig_uuid")
ATTRIBUTION = (
    Metric(
        PREFIX + "gpu_memory_engine_bytes",
        "GPU memory that processes of this vLLM hold; absent where that is not known.",
        "NVML: memory of processes; /proc: whose they are",
        _WHERE,
        "target",
        _attributed(lambda one: {(): one.engine_bytes}),
    ),
    Metric(
        PREFIX + "gpu_memory_attribution_info",
        "How GPU memory was attributed to this vLLM: pid, cgroup, exclusive, or none where it "
        "cannot be; the value is 1.",
        "NVML, /proc, and what the operator says",
        (*_WHERE, "method"),
        "target",
        _attributed(lambda one: {(one.method,): 1.0}),
    ),
)
