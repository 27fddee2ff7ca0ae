"""This host's GPUs over time: readings, faults of single ones, an absent driver."""

import asyncio

import pytest
from structlog.testing import capture_logs

from vllm_capacity.errors import SourceError
from vllm_capacity.gpu_monitor import GpuMonitor
from vllm_capacity.observe.gpu_reading import GpuReading
from vllm_capacity.units import GIB, Bytes

GPU = GpuReading(
    index=0,
    uuid="GPU-1",
    name="NVIDIA H100 80GB HBM3",
    total_bytes=Bytes(80 * GIB),
    used_bytes=None,
    free_bytes=None,
    reserved_bytes=Bytes(GIB),
    compute_capability=(9, 0),
    mig_enabled=None,
    processes=None,
)


class FakeGpus:
    def __init__(self) -> None:
        self.answer: tuple[GpuReading, ...] | SourceError = (GPU,)
        self.faults: tuple[str, ...] = ()
        self.asked = 0

    def read(self) -> tuple[GpuReading, ...]:
        self.asked += 1
        if isinstance(self.answer, SourceError):
            raise self.answer
        return self.answer

    def close(self) -> None:
        pass


def test_a_reading_gives_the_predictor_what_cuda_would_report() -> None:
    monitor = GpuMonitor(FakeGpus())
    assert monitor.first_gpu() is None
    asyncio.run(monitor.collect())
    gpu = monitor.first_gpu()
    assert gpu is not None
    assert (gpu.total_memory_bytes, gpu.compute_capability) == (79 * GIB, "9.0")
    assert monitor.health.up is True


def test_a_gpu_that_drops_out_of_the_reading_is_said_once() -> None:
    gpus = FakeGpus()
    monitor = GpuMonitor(gpus)
    asyncio.run(monitor.collect())
    gpus.faults = ("NVML: GPU 1: GPU is lost",)
    with capture_logs() as logs:
        asyncio.run(monitor.collect())
        asyncio.run(monitor.collect())
    assert [entry["faults"] for entry in logs] == [["NVML: GPU 1: GPU is lost"]]
    assert monitor.readings == (GPU,)


def test_a_failed_reading_withdraws_the_last_one() -> None:
    gpus = FakeGpus()
    monitor = GpuMonitor(gpus)
    asyncio.run(monitor.collect())
    gpus.answer = SourceError("nvml", "GPU is lost")
    asyncio.run(monitor.collect())
    assert monitor.readings == ()
    assert (monitor.health.up, monitor.health.failures) == (False, {"nvml": 1})


@pytest.mark.parametrize(("reason", "asked"), [("absent", 1), ("nvml", 3)])
def test_an_absent_driver_is_not_looked_for_at_every_collection(reason: str, asked: int) -> None:
    gpus = FakeGpus()
    gpus.answer = SourceError(reason, "nothing")
    monitor = GpuMonitor(gpus)
    for _ in range(3):
        asyncio.run(monitor.collect())
    assert gpus.asked == asked
