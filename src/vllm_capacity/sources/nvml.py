"""NVML → GpuReading, through the real ``pynvml``."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType

from vllm_capacity.errors import SourceError
from vllm_capacity.observe.gpu_reading import GpuReading
from vllm_capacity.sources.nvml_device import read_gpu
from vllm_capacity.sources.nvml_questions import Questions, is_lost, sentence


class Nvml:
    """The GPUs of this machine, read again and again.

    Whatever fails, the next ``read`` starts NVML anew if need be: a driver that was reloaded,
    a GPU that was reset or a library that was installed later is found without a restart.
    While a GPU is ill NVML is let go between reads, for a GPU in use cannot be reset.
    Calls block, for ever where a driver hangs: call from a thread, and no two at a time.

    Attributes:
        faults: one line for each GPU, or question to one, that the latest ``read`` had to leave
            out; not for what the GPU or its driver does not support.
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
            readings, faults = self._read_gpus(pynvml)
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

    def _read_gpus(self, nvml: ModuleType) -> tuple[tuple[GpuReading, ...], tuple[str, ...]]:
        count = nvml.nvmlDeviceGetCount()
        driver = Questions(nvml, "NVML")
        version = driver.text("driver version", nvml.nvmlSystemGetDriverVersion)
        readings, faults, lost = [], driver.faults, False
        for index in range(count):
            questions = Questions(nvml, f"NVML: GPU {index}")
            try:
                readings.append(read_gpu(questions, index, version))
                faults += questions.faults
            except nvml.NVMLError as error:
                faults.append(f"NVML: GPU {index}: {sentence(nvml, error)}")
                lost = lost or is_lost(nvml, error)
        if lost:
            self.close()
        return tuple(readings), tuple(faults)

    @contextmanager
    def _translated_errors(self, nvml: ModuleType) -> Iterator[None]:
        try:
            yield
        except nvml.NVMLError_LibraryNotFound as error:
            self.close()
            raise SourceError("absent", f"NVML: {sentence(nvml, error)}") from error
        except nvml.NVMLError as error:
            self.close()
            raise SourceError("nvml", f"NVML: {sentence(nvml, error)}") from error
