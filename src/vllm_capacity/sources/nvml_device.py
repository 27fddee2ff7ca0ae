"""One GPU or MIG instance of a started NVML → all that it tells."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from vllm_capacity.observe.gpu_reading import GpuProcess, GpuReading, MigInstance, ProcessKind
from vllm_capacity.sources.nvml_questions import Questions
from vllm_capacity.units import GIB, Bytes

_NOT_AVAILABLE = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE
_LISTS: Mapping[ProcessKind, str] = {
    "compute": "nvmlDeviceGetComputeRunningProcesses",
    "mps": "nvmlDeviceGetMPSComputeRunningProcesses",
    "graphics": "nvmlDeviceGetGraphicsRunningProcesses",
}


def read_gpu(questions: Questions, index: int, driver_version: str | None) -> GpuReading:
    """The GPU of this number, its handle made anew: an old one may mean another GPU by now.

    Raises:
        NVMLError: there is no such GPU, or it is gone.
    """
    nvml = questions.nvml
    device = _Device(questions, nvml.nvmlDeviceGetHandleByIndex(index))
    memory = device.memory()
    mig_enabled = questions.ask("MIG mode", device.mig_enabled)
    return GpuReading(
        index=index,
        uuid=device.uuid(),
        name=device.name() or "",
        total_bytes=memory.total_bytes,
        used_bytes=memory.used_bytes,
        free_bytes=memory.free_bytes,
        reserved_bytes=memory.reserved_bytes,
        compute_capability=questions.ask("compute capability", device.compute_capability),
        mig_enabled=mig_enabled,
        processes=device.processes(),
        mig_instances=()
        if mig_enabled is False
        else tuple(_mig_instances(device, memory.total_bytes)),
        driver_version=driver_version,
    )


def _mig_instances(gpu: "_Device", gpu_bytes: Bytes | None) -> Iterator[MigInstance]:
    for device in gpu.mig_devices():
        instance = _read_mig_instance(device, gpu_bytes)
        if instance.uuid or instance.gpu_instance_id is not None:  # else destroyed meanwhile
            yield instance


def _read_mig_instance(device: "_Device", gpu_bytes: Bytes | None) -> MigInstance:
    memory = device.memory()
    return MigInstance(
        uuid=device.uuid(),
        profile=_profile_in(device.name()) or device.profile_by_size(gpu_bytes),
        gpu_instance_id=device.number("GPU instance", "nvmlDeviceGetGpuInstanceId"),
        compute_instance_id=device.number("compute instance", "nvmlDeviceGetComputeInstanceId"),
        total_bytes=memory.total_bytes,
        used_bytes=memory.used_bytes,
        free_bytes=memory.free_bytes,
        reserved_bytes=memory.reserved_bytes,
        processes=device.processes(),
    )


class _Memory(NamedTuple):
    total_bytes: Bytes | None
    used_bytes: Bytes | None
    free_bytes: Bytes | None
    reserved_bytes: Bytes | None


_UNKNOWN_MEMORY = _Memory(None, None, None, None)


class _Device:
    """A handle of a GPU or of a MIG instance: the same questions can be asked of both."""

    def __init__(self, questions: Questions, handle: Any) -> None:
        self.questions, self.nvml, self.handle = questions, questions.nvml, handle

    def uuid(self) -> str:
        ask = partial(self.nvml.nvmlDeviceGetUUID, self.handle)
        return self.questions.text("UUID", ask) or ""

    def name(self) -> str | None:
        return self.questions.text("name", partial(self.nvml.nvmlDeviceGetName, self.handle))

    def memory(self) -> _Memory:
        return self.questions.ask("memory", self._memory) or _UNKNOWN_MEMORY

    def _memory(self) -> _Memory:
        nvml, handle = self.nvml, self.handle
        newer = Questions(nvml, "")  # since driver 510; why not does not matter if the older works
        told = newer.ask(
            "memory", lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        )
        if told is None:
            told = nvml.nvmlDeviceGetMemoryInfo(handle)
        return _Memory(
            _told(told.total), _told(told.used), _told(told.free), _told(_reserved(told))
        )

    def compute_capability(self) -> tuple[int, int]:
        major, minor = self.nvml.nvmlDeviceGetCudaComputeCapability(self.handle)
        return major, minor

    def mig_enabled(self) -> bool:
        current, _pending = self.nvml.nvmlDeviceGetMigMode(self.handle)
        return bool(current == self.nvml.NVML_DEVICE_MIG_ENABLE)

    def number(self, what: str, function: str) -> int | None:
        return self.questions.ask(what, lambda: int(getattr(self.nvml, function)(self.handle)))

    def mig_devices(self) -> Iterator["_Device"]:
        """The MIG instances; their numbers have gaps."""
        for index in range(self.number("MIG devices", "nvmlDeviceGetMaxMigDeviceCount") or 0):
            questions = self.questions.about(f"MIG device {index}")
            handle = questions.ask("handle", partial(self._mig_handle, index))
            if handle is not None:
                yield _Device(questions, handle)

    def _mig_handle(self, index: int) -> Any:
        try:
            return self.nvml.nvmlDeviceGetMigDeviceHandleByIndex(self.handle, index)
        except (self.nvml.NVMLError_NotFound, self.nvml.NVMLError_InvalidArgument):
            return None  # a gap

    def profile_by_size(self, gpu_bytes: Bytes | None) -> str | None:
        """``3g.40gb`` from slices, and memory in eighths of the GPU's, as NVIDIA names them."""
        sizes = self.questions.ask(
            "MIG attributes", partial(self.nvml.nvmlDeviceGetAttributes_v2, self.handle)
        )
        if sizes is None or not gpu_bytes:
            return None
        eighths = -(-sizes.memorySizeMB * 2**20 * 8 // gpu_bytes)
        gigabytes = int(eighths / 8 * -(-gpu_bytes // GIB) + 0.5)
        gpu, compute = sizes.gpuInstanceSliceCount, sizes.computeInstanceSliceCount
        return f"{'' if gpu == compute else f'{compute}c.'}{gpu}g.{gigabytes}gb"

    def processes(self) -> tuple[GpuProcess, ...] | None:
        """Who uses the device; None if not even who computes on it is told."""
        listed = {
            kind: self.questions.ask(f"{kind} processes", partial(self._listed, function))
            for kind, function in _LISTS.items()
        }
        return None if listed["compute"] is None else _each_once(listed)

    def _listed(self, function: str) -> Sequence[Any]:
        try:
            listed: Sequence[Any] = getattr(self.nvml, f"{function}_v3")(self.handle)
        except self.nvml.NVMLError_FunctionNotFound:  # drivers before 510
            listed = getattr(self.nvml, f"{function}_v2")(self.handle)
        return listed


def _each_once(listed: Mapping[ProcessKind, Sequence[Any] | None]) -> tuple[GpuProcess, ...]:
    """Every process once, though it be listed several times, each time with all that it holds.

    A client of MPS stands in two lists. In one list a process stands twice where the driver looks
    for the caller's count of it among the host's, in a PID namespace (``_gpuiIsPidSavedAlready``).
    With MIG it computes on one instance only.
    """
    kinds: dict[int, ProcessKind] = {}
    held: dict[int, int] = {}
    for kind, processes in listed.items():
        for one in processes or ():
            if kind == "mps" or one.pid not in kinds:
                kinds[one.pid] = kind
            held[one.pid] = max(held.get(one.pid, 0), one.usedGpuMemory or 0)
    return tuple(
        GpuProcess(pid=pid, kind=kind, used_bytes=Bytes(held[pid]) if held[pid] else None)
        for pid, kind in kinds.items()
    )


def _reserved(memory: Any) -> int:
    return getattr(memory, "reserved", _NOT_AVAILABLE)  # not in version 1 of the structure


def _told(value: int) -> Bytes | None:
    return None if value == _NOT_AVAILABLE else Bytes(value)


def _profile_in(name: str | None) -> str | None:
    """``1g.5gb`` of ``NVIDIA A100-SXM4-40GB MIG 1g.5gb``."""
    _, found, profile = (name or "").rpartition(" MIG ")
    return profile.strip() or None if found else None
