"""NVML → GpuReading, through the real ``pynvml``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from vllm_capacity.errors import SourceError
from vllm_capacity.observe.gpu_reading import GpuProcess, GpuReading
from vllm_capacity.units import Bytes

T = TypeVar("T")


class Nvml:
    """The GPUs of this machine, read again and again.

    Whatever fails, the next ``read`` starts NVML anew if need be: a driver that was reloaded,
    a GPU that was reset or a library that was installed later is found without a restart.
    Calls block, for long when a GPU is ill: call from a thread.

    Attributes:
        faults: one line for each GPU that the latest ``read`` had to leave out.
    """

    def __init__(self) -> None:
        self.faults: tuple[str, ...] = ()
        self._started = False

    def read(self) -> tuple[GpuReading, ...]:
        """Every GPU that answers, in NVML's order; never empty.

        Raises:
            SourceError: ``absent`` where this machine has no NVIDIA driver library or shows
                no GPU; ``nvml`` where the driver or every GPU fails.
        """
        import pynvml  # noqa: PLC0415  costs 6 MB where no GPU is watched

        self.faults = ()
        with self._translated_errors(pynvml):
            self._start(pynvml)
            readings, faults = self._read_devices(pynvml, pynvml.nvmlDeviceGetCount())
        self.faults = faults
        if readings:
            return readings
        if faults:
            raise SourceError("nvml", "; ".join(faults))
        raise SourceError("absent", "NVML: the driver shows no GPU to this process")

    def close(self) -> None:
        """Give NVML back; a later ``read`` starts it again."""
        if not self._started:
            return
        import pynvml  # noqa: PLC0415

        self._started = False
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    def _start(self, nvml: ModuleType) -> None:
        if not self._started:
            nvml.nvmlInit()
            self._started = True

    def _read_devices(
        self, nvml: ModuleType, count: int
    ) -> tuple[tuple[GpuReading, ...], tuple[str, ...]]:
        readings, faults, lost = [], [], False
        for index in range(count):
            try:
                readings.append(_Device(nvml, index).reading())
            except nvml.NVMLError as error:
                faults.append(f"NVML: GPU {index}: {_sentence(nvml, error)}")
                lost = lost or error.value in _lost_codes(nvml)
        if lost:
            self.close()
        return tuple(readings), tuple(faults)

    @contextmanager
    def _translated_errors(self, nvml: ModuleType) -> Iterator[None]:
        try:
            yield
        except nvml.NVMLError_LibraryNotFound as error:
            raise SourceError("absent", f"NVML: {_sentence(nvml, error)}") from error
        except nvml.NVMLError as error:
            self.close()
            raise SourceError("nvml", f"NVML: {_sentence(nvml, error)}") from error


class _Memory(NamedTuple):
    total_bytes: Bytes | None
    used_bytes: Bytes | None
    free_bytes: Bytes | None
    reserved_bytes: Bytes | None


class _Device:
    """One GPU of a started NVML."""

    def __init__(self, nvml: ModuleType, index: int) -> None:
        self._nvml = nvml
        self._index = index
        self._handle: Any = nvml.nvmlDeviceGetHandleByIndex(index)

    def reading(self) -> GpuReading:
        nvml, handle = self._nvml, self._handle
        memory = self._memory()
        return GpuReading(
            index=self._index,
            uuid=nvml.nvmlDeviceGetUUID(handle),
            name=nvml.nvmlDeviceGetName(handle),
            total_bytes=memory.total_bytes,
            used_bytes=memory.used_bytes,
            free_bytes=memory.free_bytes,
            reserved_bytes=memory.reserved_bytes,
            compute_capability=self._if_told(self._compute_capability),
            mig_enabled=self._if_told(self._mig_enabled),
            processes=self._if_told(self._processes),
        )

    def _memory(self) -> _Memory:
        told = self._if_told(self._memory_v2)  # since driver 510
        if told is not None:
            return told
        try:
            return self._memory_v1()
        except self._nvml.NVMLError_NotSupported:
            return _Memory(None, None, None, None)

    def _memory_v2(self) -> _Memory:
        nvml = self._nvml
        memory = nvml.nvmlDeviceGetMemoryInfo(self._handle, version=nvml.nvmlMemory_v2)
        return _Memory(memory.total, memory.used, memory.free, memory.reserved)

    def _memory_v1(self) -> _Memory:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        return _Memory(memory.total, memory.used, memory.free, None)

    def _compute_capability(self) -> tuple[int, int]:
        major, minor = self._nvml.nvmlDeviceGetCudaComputeCapability(self._handle)
        return major, minor

    def _mig_enabled(self) -> bool:
        current, _pending = self._nvml.nvmlDeviceGetMigMode(self._handle)
        return bool(current == self._nvml.NVML_DEVICE_MIG_ENABLE)

    def _processes(self) -> tuple[GpuProcess, ...]:
        try:
            listed = self._nvml.nvmlDeviceGetComputeRunningProcesses_v3(self._handle)
        except self._nvml.NVMLError_FunctionNotFound:  # drivers before 510
            listed = self._nvml.nvmlDeviceGetComputeRunningProcesses_v2(self._handle)
        return tuple(GpuProcess(pid=one.pid, used_bytes=one.usedGpuMemory) for one in listed)

    def _if_told(self, ask: Callable[[], T]) -> T | None:
        """The answer, or None where this GPU, driver or permission does not give it."""
        try:
            return ask()
        except self._nvml.NVMLError as error:
            if error.value in _lost_codes(self._nvml):
                raise
            return None


def _lost_codes(nvml: ModuleType) -> tuple[int, ...]:
    """Codes after which a GPU or NVML itself is gone, and nothing else it says can be used."""
    return (
        nvml.NVML_ERROR_UNINITIALIZED,
        nvml.NVML_ERROR_DRIVER_NOT_LOADED,
        nvml.NVML_ERROR_GPU_IS_LOST,
        nvml.NVML_ERROR_RESET_REQUIRED,
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    )


def _sentence(nvml: ModuleType, error: Any) -> str:
    advice = {
        nvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
            "no NVIDIA driver library (libnvidia-ml.so.1) here, so GPU memory is not watched"
        ),
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: (
            "the NVIDIA kernel driver is not loaded; load it, or give the container the GPU"
        ),
        nvml.NVML_ERROR_NO_PERMISSION: (
            "no permission; let this user open /dev/nvidia* (group or container devices)"
        ),
        nvml.NVML_ERROR_GPU_IS_LOST: (
            "the GPU has fallen off the bus; see the kernel log for Xid 79, then reset or reboot"
        ),
        nvml.NVML_ERROR_RESET_REQUIRED: "the GPU must be reset before it can be read",
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
            "the driver was upgraded but its library here is the old one; "
            "restart this program, or the machine if that does not help"
        ),
        nvml.NVML_ERROR_UNINITIALIZED: "NVML was shut down; it is started again at the next read",
    }
    said = advice.get(error.value, str(error))
    return f"{said} (NVML error {error.value})"
