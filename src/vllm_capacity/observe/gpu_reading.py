"""What a GPU says of its memory."""

from dataclasses import dataclass
from typing import Literal

from vllm_capacity.units import Bytes

ProcessKind = Literal["compute", "graphics", "mps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that has a context on a GPU.

    Attributes:
        pid: since driver 535.113 as this process counts in its PID namespace, and who is not in
            it is left out; before, as the host counts, even where that is somebody else here.
        used_bytes: memory that the process holds on the GPU. None where the driver does not tell.
            That drivers before 565.57 do with a 0, in a PID namespace that is not the host's:
            they look for the namespace's count of the process among the host's.
        kind: ``mps`` where it computes through NVIDIA's multi-process service.

    Source: NVIDIA's open kernel modules, ``gpuGetProcWithObject`` (who),
    ``gpuFindClientInfoWithPidIterator`` (how much), ``os_find_ns_pid``.
    """

    pid: int
    used_bytes: Bytes | None
    kind: ProcessKind = "compute"


@dataclass(frozen=True, slots=True, kw_only=True)
class MigInstance:
    """One MIG device: a compute instance in a GPU instance. None: the driver does not tell.

    Its memory is that of its GPU instance, which all compute instances in it share: add up what
    several of them say only once for each ``gpu_instance_id``. Where these are None nothing is
    known of the instance; what the GPU says is the whole GPU's, not a stand-in.

    Attributes:
        uuid: as in ``MIG-…``, the name in ``CUDA_VISIBLE_DEVICES``; "" if not told.
        profile: its size, as in ``3g.40gb`` or ``1c.3g.40gb``.
        gpu_instance_id: as ``nvidia-smi`` prints it.
        compute_instance_id: the same.
        total_bytes: memory that it may use.
        used_bytes: as in ``GpuReading``.
        free_bytes: the same.
        reserved_bytes: the same.
        processes: who computes on it; None: unknown.
    """

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
        uuid: lasting name of the device, as in ``GPU-8e8f…``; "" if not told.
        name: product, as in ``NVIDIA H100 80GB HBM3``; "" if not told.
        total_bytes: physical memory. None on devices that share the host's memory, and in a
            container that was given MIG instances only.
        used_bytes: memory allocated on the device, by anyone; holds ``reserved_bytes``
            as well exactly when that is None.
        free_bytes: memory that can be allocated.
        reserved_bytes: memory the driver and firmware keep. None before driver 510.
        compute_capability: as in ``(9, 0)``.
        mig_enabled: whether the device is divided into MIG instances.
        processes: who uses it, each process once. None: unknown. Empty: nobody whom the driver
            shows to this process, which in a PID namespace of its own need not be nobody.
        mig_instances: those that this process may see.
        driver_version: as in ``580.95.05``.

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
