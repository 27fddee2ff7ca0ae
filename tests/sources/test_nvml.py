"""The real pynvml over a scripted C library; nothing in Python is replaced."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
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
    [("capability", "compute_capability"), ("mig", "mig_enabled"), ("compute", "processes")],
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
    driver(f"{H100}  fail compute_fill 7\n")
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


@pytest.mark.parametrize(
    "call", ["handle", "uuid", "name", "memory_v2", "memory_v1", "compute", "compute_fill", "mps"]
)
def test_a_lost_gpu_leaves_the_others(nvml: Nvml, driver: Script, call: str) -> None:
    older = "  fail memory_v2 3\n" if call == "memory_v1" else ""
    driver(f"{H100}{older}  fail {call} {GPU_LOST}\n{A10}")
    assert nvml.read() == (SECOND,)
    (fault,) = nvml.faults
    assert fault.startswith("NVML: GPU 0: the GPU has fallen off the bus")


@pytest.mark.parametrize("code", [NO_PERMISSION, 10, 999, 12345])
def test_memory_that_cannot_be_read_is_absent_and_named(
    nvml: Nvml, driver: Script, code: int
) -> None:
    driver(f"{H100}  fail memory_v2 {code}\n  fail memory_v1 {code}\n{A10}")
    first, second = nvml.read()
    assert (first.total_bytes, first.used_bytes, first.processes) == (None, None, FIRST.processes)
    assert second == SECOND
    (fault,) = nvml.faults
    assert fault.startswith("NVML: GPU 0: memory: ")
    assert fault.endswith(f"(NVML error {code})")


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
    driver(f"fail {call} {code}\n{H100}")
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
    nvml: Nvml, driver: Script, nvml_stub: ctypes.CDLL
) -> None:
    starts = nvml_stub.stub_init_calls()
    driver(H100)
    for _ in range(5):
        nvml.read()
    nvml.close()
    nvml.close()
    assert nvml_stub.stub_init_calls() - starts == 1
    assert nvml_stub.stub_users() == 0


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


@pytest.mark.parametrize(
    "ill",
    [
        f"{H100}  fail uuid {GPU_LOST}\n{A10}",
        f"{H100}  fail handle 16\n",
        f"fail count 999\n{H100}",
    ],
)
def test_while_a_gpu_is_ill_nvml_is_let_go_so_that_it_can_be_reset(
    nvml: Nvml, driver: Script, nvml_stub: ctypes.CDLL, ill: str
) -> None:
    driver(H100 + A10)
    nvml.read()
    assert nvml_stub.stub_users() == 1
    driver(ill)
    with suppress(SourceError):
        nvml.read()
    assert nvml_stub.stub_users() == 0


@pytest.mark.parametrize("call", ["uuid", "name"])
def test_a_gpu_that_does_not_tell_its_name_is_read_all_the_same(
    nvml: Nvml, driver: Script, call: str
) -> None:
    driver(f"{H100}  fail {call} {NOT_SUPPORTED}\n")
    assert nvml.read() == (replace(FIRST, **{call: ""}),)
    assert nvml.faults == ()


def test_a_name_that_is_no_utf8_is_shown_as_far_as_it_is(nvml: Nvml, driver: Script) -> None:
    driver(H100.replace("H100", "H\udcff100") + "version 5\udcfe0\n")
    (reading,) = nvml.read()
    assert reading.name == "NVIDIA H\ufffd100 80GB HBM3"
    assert reading.uuid == FIRST.uuid


def test_an_error_of_which_even_the_name_is_no_utf8_has_its_number(
    nvml: Nvml, driver: Script
) -> None:
    driver(f"{H100}  fail capability 666\n")
    assert nvml.read()[0].compute_capability is None
    (fault,) = nvml.faults
    assert fault.endswith("(NVML error 666)")


@pytest.mark.parametrize(
    ("said", "version"),
    [("version 580.95.05\n", "580.95.05"), ("", None), ("fail version 999\n", None)],
)
def test_the_drivers_version_is_told_where_it_is_known(
    nvml: Nvml, driver: Script, said: str, version: str | None
) -> None:
    driver(said + H100)
    assert nvml.read() == (replace(FIRST, driver_version=version),)


def test_gpus_that_come_and_go_are_read_as_they_are(nvml: Nvml, driver: Script) -> None:
    driver(H100)
    assert nvml.read() == (FIRST,)
    driver(H100 + A10)
    assert nvml.read() == (FIRST, SECOND)
    driver(A10)
    assert nvml.read() == (replace(SECOND, index=0),)


@pytest.mark.parametrize("code", [2, 6, 28])
def test_a_gpu_that_vanishes_after_the_count_is_named(
    nvml: Nvml, driver: Script, code: int
) -> None:
    driver(f"{H100}{A10}  fail handle {code}\n")
    assert nvml.read() == (FIRST,)
    (fault,) = nvml.faults
    assert fault.startswith("NVML: GPU 1: ")


@pytest.mark.parametrize("code", [UNINITIALIZED, 9, GPU_LOST, 16, 18, 999])
def test_a_driver_may_die_at_any_call_and_the_next_read_is_whole(
    nvml: Nvml, driver: Script, nvml_stub: ctypes.CDLL, code: int
) -> None:
    driver(H100 + A10)
    nvml.read()
    before = nvml_stub.stub_calls()
    nvml.read()
    for call in range(nvml_stub.stub_calls() - before + 1):
        driver(f"die {nvml_stub.stub_calls() + call} {code}\n{H100}{A10}")
        with suppress(SourceError):
            for reading in nvml.read():
                known = (FIRST, SECOND)[reading.index]
                assert reading.used_bytes in (known.used_bytes, None)
                assert reading.processes in (known.processes, None)
        driver(H100 + A10)
        assert nvml.read() == (FIRST, SECOND)
        assert nvml.faults == ()


def test_a_read_of_many_gpus_starts_and_ends_nothing(
    nvml: Nvml, driver: Script, nvml_stub: ctypes.CDLL
) -> None:
    driver(H100 * 8)
    nvml.read()
    starts, modules = nvml_stub.stub_init_calls(), set(sys.modules)
    assert len(nvml.read()) == 8
    assert nvml_stub.stub_init_calls() == starts
    assert set(sys.modules) == modules


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
    assert "GpuProcess(pid=4242, used_bytes=80000000000, kind='compute')" in said
