"""This host's GPUs over time: readings, faults of single ones, an absent driver."""

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

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


def test_a_driver_that_was_seen_is_looked_for_at_every_collection() -> None:
    gpus = FakeGpus()
    monitor = GpuMonitor(gpus)
    asyncio.run(monitor.collect())
    gpus.answer = SourceError("absent", "nothing")
    for _ in range(3):
        asyncio.run(monitor.collect())
    assert gpus.asked == 4


@pytest.mark.parametrize(
    "answer", [SourceError("nvml", "GPU is lost"), (replace(GPU, total_bytes=None),)]
)
def test_the_hardware_stays_known_while_the_driver_does_not_tell_it(
    answer: SourceError | tuple[GpuReading, ...],
) -> None:
    gpus = FakeGpus()
    monitor = GpuMonitor(gpus)
    asyncio.run(monitor.collect())
    known = monitor.first_gpu()
    gpus.answer = answer
    asyncio.run(monitor.collect())
    assert known is not None
    assert monitor.first_gpu() == known


def test_readings_that_nobody_renews_are_withdrawn() -> None:
    now = 100.0
    monitor = GpuMonitor(FakeGpus(), expiry_seconds=30.0, monotonic=lambda: now)
    asyncio.run(monitor.collect())
    now = 130.0
    assert monitor.readings == (GPU,)
    now = 130.1
    assert monitor.readings == ()


class HangingGpus(FakeGpus):
    def __init__(self) -> None:
        super().__init__()
        self.answers, self.closed = threading.Event(), threading.Event()
        self.answers.set()

    def read(self) -> tuple[GpuReading, ...]:
        super().read()
        self.answers.wait()
        return (GPU,)

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def hanging() -> Iterator[HangingGpus]:
    gpus = HangingGpus()
    yield gpus
    gpus.answers.set()


def threads() -> int:
    return sum(thread.name.startswith("nvml") for thread in threading.enumerate())


def test_a_driver_that_hangs_is_asked_once_and_what_it_says_late_is_not_published(
    hanging: HangingGpus,
) -> None:
    async def scenario() -> None:
        monitor = GpuMonitor(hanging, timeout_seconds=0.05)
        await monitor.collect()
        assert monitor.readings == (GPU,)
        hanging.answers.clear()
        for _ in range(3):
            await monitor.collect()
        assert (hanging.asked, threads()) == (2, 1)
        assert monitor.readings == ()
        assert monitor.health.failures == {"timeout": 3}
        hanging.answers.set()
        await asyncio.sleep(0.05)
        assert monitor.readings == ()
        await monitor.collect()
        assert (monitor.readings, hanging.asked) == ((GPU,), 3)
        assert monitor.health.up is True

    asyncio.run(scenario())


def test_a_driver_that_hangs_is_said_once(hanging: HangingGpus) -> None:
    hanging.answers.clear()
    monitor = GpuMonitor(hanging, timeout_seconds=0.01)

    async def scenario() -> None:
        for _ in range(3):
            await monitor.collect()

    with capture_logs() as logs:
        asyncio.run(scenario())
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("source failed", "timeout")]


def test_the_loop_and_the_end_do_not_wait_for_a_driver_that_hangs(hanging: HangingGpus) -> None:
    hanging.answers.clear()
    monitor = GpuMonitor(hanging, timeout_seconds=0.01)
    started = time.monotonic()
    asyncio.run(monitor.collect())
    with capture_logs() as logs:
        monitor.close()
    assert time.monotonic() - started < 5
    assert [entry["event"] for entry in logs] == ["the driver hangs and is left behind"]
    assert not hanging.closed.is_set()


def test_the_end_waits_for_a_reading_under_way_and_then_closes(hanging: HangingGpus) -> None:
    hanging.answers.clear()
    monitor = GpuMonitor(hanging, timeout_seconds=0.01)
    asyncio.run(monitor.collect())
    threading.Timer(0.05, hanging.answers.set).start()
    monitor.close()
    assert hanging.closed.is_set()
