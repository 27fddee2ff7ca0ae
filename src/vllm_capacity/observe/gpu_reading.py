"""What a GPU says of its memory."""

from dataclasses import dataclass

from vllm_capacity.units import Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that computes on a GPU.

    Attributes:
        pid: as the host counts it; another number inside a container of its own PID namespace.
        used_bytes: memory that the process holds on the GPU; None where the driver keeps it.
    """

    pid: int
    used_bytes: Bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MigInstance:
    """A part of a GPU with memory of its own. None stands for what the driver does not tell."""

    uuid: str
    profile: str | None
    gpu_instance_id: int | None
    compute_instance_id: int | None
    total_bytes: Bytes | None
    used_bytes: Bytes | None
    free_bytes: Bytes | None
    reserved_bytes: Bytes | None
    processes: tuple[GpuProcess, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """One GPU at one moment. None stands for what the driver does not tell.

    Attributes:
        index: NVML's number of the device; may change when the machine restarts.
        uuid: lasting name of the device, as in ``GPU-8e8f…``.
        name: product, as in ``NVIDIA H100 80GB HBM3``.
        total_bytes: physical memory. None on devices that share the host's memory.
        used_bytes: memory allocated on the device, by anyone; holds ``reserved_bytes``
            as well exactly when that is None.
        free_bytes: memory that can be allocated.
        reserved_bytes: memory the driver and firmware keep. None before driver 510.
        compute_capability: as in ``(9, 0)``.
        mig_enabled: whether the device is divided into MIG instances.
        processes: who computes on it. Empty says nobody, None says unknown.

    Source: NVML ``nvmlMemory_v2_t`` and ``nvmlMemory_t``.
    """

    index: int
    uuid: str
    name: str
    total_bytes: Bytes | None
    used_bytes: Bytes | None
    free_bytes: Bytes | None
    reserved_bytes: Bytes | None
    compute_capability: tuple[int, int] | None
    mig_enabled: bool | None
    processes: tuple[GpuProcess, ...] | None
    mig_instances: tuple[MigInstance, ...] = ()
    driver_version: str | None = None
