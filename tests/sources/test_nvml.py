"""The real pynvml over a scripted C library; nothing in Python is replaced."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vllm_capacity.errors import SourceError
from vllm_capacity.observe.gpu_reading import GpuProcess, GpuReading
from vllm_capacity.sources.nvml import Nvml
from vllm_capacity.units import Bytes

H100 = """\
gpu GPU-aaaa NVIDIA H100 80GB HBM3
  memory 85520809984 642777088 4000000000 80878032896
  capability 9 0
  mig 0
  process 4242 80000000000
  process 77 -
"""
A10 = """\
gpu GPU-bbbb NVIDIA A10
  memory 24146608128 300000000 23846608128 0
  capability 8 6
"""
FIRST = GpuReading(
    index=0,
    uuid="GPU-aaaa",
    name="NVIDIA H100 80GB HBM3",
    total_bytes=Bytes(85520809984),
    used_bytes=Bytes(80878032896),
    free_bytes=Bytes(4000000000),
    reserved_bytes=Bytes(642777088),
    compute_capability=(9, 0),
    mig_enabled=False,
    processes=(
        GpuProcess(pid=4242, used_bytes=Bytes(80000000000)),
        GpuProcess(pid=77, used_bytes=None),
    ),
)
SECOND = GpuReading(
    index=1,
    uuid="GPU-bbbb",
    name="NVIDIA A10",
    total_bytes=Bytes(24146608128),
    used_bytes=Bytes(0),
    free_bytes=Bytes(23846608128),
    reserved_bytes=Bytes(300000000),
    compute_capability=(8, 6),
    mig_enabled=None,
    processes=(),
)
GPU_LOST, NOT_SUPPORTED, NO_PERMISSION, UNINITIALIZED = 15, 3, 4, 1

Script = Callable[[str], None]


@pytest.fixture(scope="session")
def stub_library(built_nvml_stub: Callable[..., Path]) -> ctypes.CDLL:
    # Loaded by path first, it is what the name libnvidia-ml.so.1 means from then on.
    return ctypes.CDLL(str(built_nvml_stub()))


@pytest.fixture
def driver(stub_library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Says what the driver answers from now on. Without it there is no driver again."""
    file = tmp_path / "driver"
    monkeypatch.setenv("NVML_STUB", str(file))
    if ctypes.CDLL("libnvidia-ml.so.1")._handle != stub_library._handle:
        pytest.skip("this process has already loaded a real NVIDIA driver library")

    def answers(text: str) -> None:
        file.write_text(text)

    return answers


@pytest.fixture
def nvml(driver: Script) -> Iterator[Nvml]:
    driver("")
    nvml = Nvml()
    yield nvml
    nvml.close()


def test_a_reading_tells_all_that_the_driver_tells(nvml: Nvml, driver: Script) -> None:
    driver(H100 + A10)
    assert nvml.read() == (FIRST, SECOND)
    assert nvml.faults == ()


def test_readings_follow_the_gpu(nvml: Nvml, driver: Script) -> None:
    driver(A10)
    assert nvml.read()[0].used_bytes == 0
    driver(A10.replace("23846608128 0", "13846608128 10000000000"))
    assert nvml.read()[0].used_bytes == 10000000000


@pytest.mark.parametrize(
    ("call", "field"),
    [("capability", "compute_capability"), ("mig", "mig_enabled"), ("processes", "processes")],
)
@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, 13, 999])
def test_what_a_gpu_does_not_tell_is_none_and_the_rest_stays(
    nvml: Nvml, driver: Script, call: str, field: str, code: int
) -> None:
    driver(f"{H100}  fail {call} {code}\n")
    (reading,) = nvml.read()
    assert getattr(reading, field) is None
    assert reading.used_bytes == FIRST.used_bytes


def test_processes_that_multiply_while_listed_are_unknown_not_partial(
    nvml: Nvml, driver: Script
) -> None:
    driver(f"{H100}  fail processes_fill 7\n")
    assert nvml.read()[0].processes is None


@pytest.mark.parametrize("code", [NOT_SUPPORTED, 13, 25])
def test_without_the_second_memory_structure_the_first_serves_and_used_holds_reserved(
    nvml: Nvml, driver: Script, code: int
) -> None:
    driver(f"{H100}  fail memory_v2 {code}\n")
    (reading,) = nvml.read()
    assert reading.reserved_bytes is None
    assert reading.used_bytes == 80878032896 + 642777088


def test_a_gpu_that_shares_the_hosts_memory_has_no_memory_of_its_own(
    nvml: Nvml, driver: Script
) -> None:
    driver(f"{A10}  fail memory_v2 {NOT_SUPPORTED}\n  fail memory_v1 {NOT_SUPPORTED}\n")
    (reading,) = nvml.read()
    assert (reading.total_bytes, reading.used_bytes, reading.free_bytes) == (None, None, None)
    assert reading.name == "NVIDIA A10"


@pytest.mark.parametrize("call", ["handle", "uuid", "name", "memory_v2", "processes"])
def test_a_lost_gpu_leaves_the_others(nvml: Nvml, driver: Script, call: str) -> None:
    driver(f"{H100}  fail {call} {GPU_LOST}\n{A10}")
    assert nvml.read() == (SECOND,)
    (fault,) = nvml.faults
    assert fault.startswith("NVML: GPU 0: the GPU has fallen off the bus")


def test_memory_that_cannot_be_read_is_a_fault_of_its_gpu(nvml: Nvml, driver: Script) -> None:
    driver(f"{H100}  fail memory_v2 999\n  fail memory_v1 999\n{A10}")
    assert nvml.read() == (SECOND,)
    assert nvml.faults == ("NVML: GPU 0: Unknown Error (NVML error 999)",)


def test_when_every_gpu_fails_the_error_names_each(nvml: Nvml, driver: Script) -> None:
    driver(f"{H100}  fail handle {NO_PERMISSION}\n{A10}  fail uuid {GPU_LOST}\n")
    with pytest.raises(SourceError, match=r"GPU 0: no permission.*GPU 1: the GPU has") as caught:
        nvml.read()
    assert caught.value.reason == "nvml"


def test_faults_are_forgotten_when_the_gpu_is_back(nvml: Nvml, driver: Script) -> None:
    driver(f"{H100}  fail uuid {GPU_LOST}\n{A10}")
    nvml.read()
    driver(H100 + A10)
    assert nvml.read() == (FIRST, SECOND)
    assert nvml.faults == ()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (NO_PERMISSION, "no permission"),
        (9, "kernel driver is not loaded"),
        (18, "the driver was upgraded"),
        (999, "Unknown Error"),
    ],
)
@pytest.mark.parametrize("call", ["init", "count"])
def test_a_failing_driver_is_named_and_works_once_it_is_mended(
    nvml: Nvml, driver: Script, call: str, code: int, words: str
) -> None:
    driver(f"{call} {code}\n{H100}")
    with pytest.raises(SourceError, match=words) as caught:
        nvml.read()
    assert caught.value.reason == "nvml"
    driver(H100)
    assert nvml.read() == (FIRST,)


@pytest.mark.parametrize("code", [UNINITIALIZED, 9, GPU_LOST, 18])
def test_after_the_driver_went_away_nvml_is_started_anew(
    nvml: Nvml, driver: Script, code: int
) -> None:
    driver(f"driver 1 {code}\n{H100}")
    assert nvml.read() == (FIRST,)
    driver(f"driver 2 {code}\n{H100}")
    with pytest.raises(SourceError):
        nvml.read()
    assert nvml.read() == (FIRST,)


def test_nvml_is_started_once_and_every_start_is_ended(
    nvml: Nvml, driver: Script, stub_library: ctypes.CDLL
) -> None:
    starts, ends = stub_library.stub_init_calls(), stub_library.stub_shutdown_calls()
    driver(H100)
    for _ in range(5):
        nvml.read()
    nvml.close()
    nvml.close()
    assert stub_library.stub_init_calls() - starts == 1
    assert stub_library.stub_shutdown_calls() - ends == 1


def test_a_closed_nvml_reads_again(nvml: Nvml, driver: Script) -> None:
    driver(H100)
    nvml.read()
    nvml.close()
    assert nvml.read() == (FIRST,)


def test_a_driver_without_a_gpu_for_us_is_absent(nvml: Nvml, driver: Script) -> None:
    driver("")
    with pytest.raises(SourceError, match="shows no GPU") as caught:
        nvml.read()
    assert caught.value.reason == "absent"


READ_IN_A_NEW_PROCESS = """\
from vllm_capacity.errors import SourceError
from vllm_capacity.sources.nvml import Nvml
try:
    print(Nvml().read())
except SourceError as error:
    print(error.reason, error)
"""


def read_in_a_new_process(library: Path, **environment: str) -> str:
    env = {**os.environ, "LD_LIBRARY_PATH": str(library.parent), **environment}
    command = [sys.executable, "-c", READ_IN_A_NEW_PROCESS]
    return subprocess.run(
        command, env=env, check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_without_a_driver_library_nvml_is_absent(tmp_path: Path) -> None:
    # What the loader finds first is no library, so one installed on this machine is not reached.
    broken = tmp_path / "libnvidia-ml.so.1"
    broken.write_bytes(b"not a library" * 100)
    said = read_in_a_new_process(broken)
    assert said.startswith("absent NVML: no NVIDIA driver library (libnvidia-ml.so.1) here")


def test_a_driver_older_than_510_is_read_by_its_older_calls(
    built_nvml_stub: Callable[..., Path], tmp_path: Path
) -> None:
    script = tmp_path / "driver"
    script.write_text(H100)
    said = read_in_a_new_process(built_nvml_stub("OLD_DRIVER"), NVML_STUB=str(script))
    assert "reserved_bytes=None" in said
    assert "GpuProcess(pid=4242, used_bytes=80000000000)" in said
