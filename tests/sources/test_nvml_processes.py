"""Who uses a GPU, and how much: each process once, and nothing where nothing is told."""

import ctypes
from collections.abc import Callable, Iterator

import pytest

from vllm_capacity.observe.gpu_reading import GpuProcess
from vllm_capacity.sources.nvml import Nvml
from vllm_capacity.units import GIB, Bytes

Script = Callable[[str], None]

GPU = "gpu GPU-1 NVIDIA H100 80GB HBM3\n  memory 80 1 19 60\n"
UNKNOWN, NOT_SUPPORTED, FUNCTION_NOT_FOUND, NO_PERMISSION, INSUFFICIENT_SIZE = 999, 3, 13, 4, 7


@pytest.fixture
def processes(driver: Script) -> Iterator[Callable[[str], tuple[GpuProcess, ...] | None]]:
    nvml = Nvml()

    def read(script: str) -> tuple[GpuProcess, ...] | None:
        driver(GPU + script)
        return nvml.read()[0].processes

    yield read
    nvml.close()


Read = Callable[[str], tuple[GpuProcess, ...] | None]


def process(pid: int, gib: int | None, kind: str = "compute") -> GpuProcess:
    used = None if gib is None else Bytes(gib * GIB)
    return GpuProcess(pid=pid, used_bytes=used, kind=kind)  # type: ignore[arg-type]


def line(pid: int, gib: int | str, *rest: object) -> str:
    used = gib if isinstance(gib, str) else gib * GIB
    return " ".join(map(str, ("  process", pid, used, *rest))) + "\n"


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        ("", ()),
        (line(7, 3), (process(7, 3),)),
        (line(7, 3, "graphics"), (process(7, 3, "graphics"),)),
        (line(7, 3, "mps"), (process(7, 3, "mps"),)),
        (line(7, "-"), (process(7, None),)),
        # A context alone takes hundreds of MiB: drivers that say 0 do not know.
        (line(7, 0), (process(7, None),)),
        # the MPS server, and a client in both lists
        (
            line(5, 1) + line(7, 3) + line(7, 3, "mps"),
            (process(5, 1), process(7, 3, "mps")),
        ),
        (line(7, 3) + line(7, 3, "graphics"), (process(7, 3),)),
        (line(7, 3) + line(7, 3), (process(7, 3),)),
        (line(7, "-") + line(7, 3, "graphics"), (process(7, 3),)),
        # seen from a GPU with MIG
        (line(7, 3, "compute", 1, 0) + line(8, 2, "compute", 2, 0), (process(7, 3), process(8, 2))),
        (
            line(7, 3, "compute", 1, 0) + line(7, 3, "mps", 4294967295, 4294967295),
            (process(7, 3, "mps"),),
        ),
    ],
)
def test_each_process_is_told_once_with_all_that_it_holds(
    processes: Read, listed: str, told: tuple[GpuProcess, ...]
) -> None:
    assert processes(listed) == told


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, UNKNOWN])
def test_processes_are_unknown_only_where_those_that_compute_are(
    processes: Read, code: int
) -> None:
    listed = line(7, 3) + line(8, 1, "graphics") + line(9, 2, "mps")
    assert processes(f"{listed}  fail graphics {code}\n  fail mps {code}\n") == (process(7, 3),)
    assert processes(f"{listed}  fail compute {code}\n") is None


def test_processes_that_multiply_while_listed_are_unknown_not_partial(processes: Read) -> None:
    assert processes(f"{line(7, 3)}  fail compute_fill {INSUFFICIENT_SIZE}\n") is None


@pytest.mark.parametrize(("ended", "left"), [(1, (process(7, 3),)), (2, ())])
def test_processes_that_end_while_listed_are_gone(
    processes: Read, ended: int, left: tuple[GpuProcess, ...]
) -> None:
    assert processes(f"{line(7, 3)}{line(8, 1)}  vanish {ended}\n") == left


def test_the_reading_is_not_started_anew_for_a_list_that_a_driver_lacks(
    processes: Read, nvml_stub: ctypes.CDLL
) -> None:
    processes("")
    starts = nvml_stub.stub_init_calls()
    processes(f"  fail mps {FUNCTION_NOT_FOUND}\n")
    assert nvml_stub.stub_init_calls() == starts
