"""A driver killed and restored a hundred times: nothing leaks, and engines are watched on."""

import asyncio
import ctypes
import gc
import os
import resource
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from vllm_capacity.gpu_monitor import GpuMonitor
from vllm_capacity.monitor import Monitor
from vllm_capacity.sources.model_files import read_model_config
from vllm_capacity.sources.nvml import Nvml
from vllm_capacity.sources.vllm_http import ServedModel
from vllm_capacity.target_settings import TargetSettings

Script = Callable[[str], None]
Kill = Callable[[int], None]

PAGE = (Path(__file__).parent / "data" / "vllm-0.32-metrics.txt").read_bytes()
FIRST = """\
gpu GPU-1 NVIDIA H100 80GB HBM3
  memory 85520809984 642777088 4000000000 80878032896
  process 4242 80000000000
"""
SECOND = """\
gpu GPU-2 NVIDIA A100-SXM4-40GB
  memory 42949672960 600000000 42349672960 0
  mig 1
  instance MIG-a 2 0 NVIDIA A100-SXM4-40GB MIG 3g.20gb
"""
GPUS = FIRST + SECOND
FOR_EVER = 20_000  # milliseconds; or until the script says otherwise
LIBRARY_GONE = ""
DEATHS = (
    LIBRARY_GONE,
    "driver {number} 1\n" + GPUS,  # reloaded: NVML must be started anew
    "driver {number} 9\nfail init 9\n",
    "driver {number} 18\nfail init 18\n",
    "fail count 999\n" + GPUS,
    f"{FIRST}  fail memory_v2 15\n{SECOND}    fail uuid 15\n",
    f"slow count {FOR_EVER}\n" + GPUS,
    f"{FIRST}  slow compute {FOR_EVER}\n{SECOND}",
)
KILLS = 100


@pytest.fixture
def kill(driver: Script) -> Kill:
    def kill(number: int) -> None:
        death = DEATHS[number % len(DEATHS)]
        if death == LIBRARY_GONE:
            Path(os.environ["NVML_STUB"]).unlink()
        else:
            driver(death.format(number=number))

    return kill


class Engine:
    """A server that always answers, and knows when it was asked."""

    url = "http://engine:8000"

    def __init__(self) -> None:
        self.asked_at: list[float] = []

    async def metrics(self) -> bytes:
        self.asked_at.append(time.monotonic())
        return PAGE

    async def models(self) -> tuple[ServedModel, ...]:
        return ()

    async def version(self) -> str | None:
        return "0.32.0"


@asynccontextmanager
async def repeated(seconds: float, job: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    async def for_ever() -> None:
        while True:
            await job()
            await asyncio.sleep(seconds)

    task = asyncio.create_task(for_ever())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not what():  # noqa: ASYNC110 (what is waited for tells nobody)
            await asyncio.sleep(0.001)


async def kill_and_restore(gpus: GpuMonitor, driver: Script, kill: Kill, times: int) -> None:
    """So many times, each until the monitor has seen both."""
    for number in range(times):
        kill(number)
        await until(lambda: not gpus.readings)
        driver(GPUS)
        await until(lambda: len(gpus.readings) == 2)


def held() -> tuple[int, int, int]:
    """Open files and threads of this process, and bytes that Python allocated."""
    gc.collect()
    files = len(list(Path("/proc/self/fd").iterdir()))
    return files, threading.active_count(), tracemalloc.get_traced_memory()[0]


def resident_bytes() -> int:
    """What C allocated as well."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
def test_a_driver_killed_a_hundred_times_leaks_nothing(
    driver: Script, kill: Kill, nvml_stub: ctypes.CDLL
) -> None:
    gpus = GpuMonitor(Nvml(), timeout_seconds=0.02)

    async def kills(times: int) -> None:
        driver(GPUS)
        async with repeated(0.001, gpus.collect):
            await until(lambda: len(gpus.readings) == 2)
            await kill_and_restore(gpus, driver, kill, times)
        gpus.close()

    asyncio.run(kills(2 * len(DEATHS)))
    (files, threads, allocated), resident = held(), resident_bytes()
    asyncio.run(kills(KILLS))
    files_after, threads_after, allocated_after = held()
    assert files_after <= files  # fewer where a thread of the warm-up has ended since
    assert threads_after <= threads
    assert allocated_after - allocated < KILLS * 500  # a reading, a call or its thread is more
    assert resident_bytes() < 1.05 * resident
    assert nvml_stub.stub_users() == 0
    assert sum(gpus.health.failures.values()) >= KILLS + 2 * len(DEATHS)


def test_while_the_driver_dies_and_hangs_an_engine_is_scraped_on_time(
    driver: Script, kill: Kill
) -> None:
    engine = Engine()
    gpus = GpuMonitor(Nvml(), timeout_seconds=0.02)
    monitor = Monitor(
        "engine",
        TargetSettings(url=engine.url),
        engine=engine,
        read_config=read_model_config,
        gpu=gpus.first_gpu,
    )

    async def scenario() -> None:
        driver(GPUS)
        async with repeated(0.005, gpus.collect), repeated(0.01, monitor.collect_engine):
            await until(lambda: len(gpus.readings) == 2 and bool(engine.asked_at))
            await kill_and_restore(gpus, driver, kill, KILLS)

    asyncio.run(scenario())
    gpus.close()
    waits = [later - earlier for earlier, later in pairwise(engine.asked_at)]
    assert len(waits) > KILLS
    assert max(waits) < FOR_EVER / 1000 / 4
    assert monitor.current().health["vllm"].failures == {}
    assert [e.snapshot.engine for e in monitor.current().engines] == ["0"]
    assert set(gpus.health.failures) == {"absent", "nvml", "timeout"}
