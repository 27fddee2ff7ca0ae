"""On a real GPU that nobody else uses: every figure against bytes that this test allocated.

Two other processes allocate through libcuda, so that no framework's allocator stands between.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from vllm_capacity.deployment import gpu_of_reading
from vllm_capacity.errors import SourceError
from vllm_capacity.observe.gpu_reading import GpuReading
from vllm_capacity.sources.nvml import Nvml
from vllm_capacity.units import GIB, MIB

pytestmark = pytest.mark.gpu

GRANULARITY = 2 * MIB  # of CUDA's allocations
SLACK = 2 * GRANULARITY  # what is rounded up, and page tables
ALLOCATOR = """\
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def check(code):
    if code:
        sys.exit(f"CUDA error {code}")
device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
free, total = ctypes.c_size_t(), ctypes.c_size_t()
check(cuda.cuInit(0))
check(cuda.cuDeviceGet(ctypes.byref(device), 0))
check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
check(cuda.cuCtxSetCurrent(context))
check(cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
print(total.value, flush=True)
for line in sys.stdin:
    check(cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(int(line))))
    print("allocated", flush=True)
"""


class Allocator:
    """A process with a CUDA context on the GPU of this name."""

    def __init__(self, uuid: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", ALLOCATOR],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": uuid},
        )
        self.pid = self._process.pid
        self.cuda_total_bytes = int(self._line())

    def allocate(self, size_bytes: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{size_bytes}\n")
        self._process.stdin.flush()
        assert self._line() == "allocated"

    def end(self) -> None:
        self._process.communicate(timeout=60)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture
def read() -> Iterator[Callable[[], GpuReading]]:
    nvml = Nvml()

    def read() -> GpuReading:
        time.sleep(0.5)  # the driver accounts for a process a little after it
        return nvml.read()[0]

    try:
        first = nvml.read()[0]
    except SourceError as error:
        pytest.skip(str(error))
    if first.mig_enabled or first.used_bytes is None or first.reserved_bytes is None:
        pytest.skip("needs a whole GPU whose driver tells used and reserved memory")
    yield read
    nvml.close()


def used(reading: GpuReading) -> int:
    assert reading.used_bytes is not None
    return reading.used_bytes


def held_by(allocator: Allocator, reading: GpuReading) -> int | None:
    """What the driver says that it holds; None where its processes are not told as ours are."""
    processes = {process.pid: process for process in reading.processes or ()}
    return processes[allocator.pid].used_bytes if allocator.pid in processes else None


def test_what_is_allocated_is_what_is_read(
    read: Callable[[], GpuReading], capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = (GIB, 3 * GIB + 12_345)
    with ExitStack() as stack:
        empty = read()
        allocators, steps = [], [used(empty)]
        for size in sizes:
            allocator = Allocator(empty.uuid)
            stack.callback(allocator.end)
            allocators.append(allocator)
            with_context = read()
            allocator.allocate(size)
            allocated = read()
            steps += [used(with_context), used(allocated)]
            assert 0 <= used(allocated) - used(with_context) - size <= SLACK
            before, after = held_by(allocator, with_context), held_by(allocator, allocated)
            if before is not None and after is not None:
                assert 0 <= after - before - size <= SLACK
        full = read()
        assert full.total_bytes == used(full) + (full.free_bytes or 0) + (full.reserved_bytes or 0)
        told = [held_by(allocator, full) for allocator in allocators]
    left = used(read())

    cuda_total, gpu = allocators[0].cuda_total_bytes, gpu_of_reading(full)
    assert gpu is not None
    measured = {
        "driver": full.driver_version,
        "total, NVML": full.total_bytes,
        "reserved by the driver": full.reserved_bytes,
        "total, CUDA": cuda_total,
        "total, CUDA, less NVML's total without reserved": cuda_total - gpu.total_memory_bytes,
        "used with nobody there": steps[0],
        "CUDA context of the first process": steps[1] - steps[0],
        "CUDA context of the second process": steps[3] - steps[2],
        "the processes, as the driver tells them": told,
        "used at the most": steps[4],
        "used after all": left,
    }
    with capsys.disabled():
        sys.stdout.write(f"\n| {full.name} | bytes |\n|---|---|\n")
        sys.stdout.writelines(f"| {what} | {value} |\n" for what, value in measured.items())
    assert left - steps[0] < GIB / 8
    assert abs(cuda_total - gpu.total_memory_bytes) < gpu.total_memory_bytes / 100
