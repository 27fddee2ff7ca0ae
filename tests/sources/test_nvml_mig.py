"""MIG instances: memory, processes and names of their own, or none, but never the GPU's."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from vllm_capacity.observe.gpu_reading import GpuProcess, GpuReading, MigInstance
from vllm_capacity.sources.nvml import Nvml
from vllm_capacity.units import Bytes

Script = Callable[[str], None]
Read = Callable[[str], GpuReading]

GPU = """\
gpu GPU-1 NVIDIA A100-SXM4-40GB
  memory 42949672960 600000000 10000000000 32349672960
  mig 1
"""
HALF = """\
  instance MIG-a 2 0 NVIDIA A100-SXM4-40GB MIG 3g.20gb
    memory 20937965568 39845888 898119680 20000000000
    process 7 19000000000
"""
SMALL = """\
  instance MIG-b 9 0 NVIDIA A100-SXM4-40GB MIG 1g.5gb
    memory 5100273664 13631488 5086642176 0
"""
FIRST = MigInstance(
    uuid="MIG-a",
    profile="3g.20gb",
    gpu_instance_id=2,
    compute_instance_id=0,
    total_bytes=Bytes(20937965568),
    used_bytes=Bytes(20000000000),
    free_bytes=Bytes(898119680),
    reserved_bytes=Bytes(39845888),
    processes=(GpuProcess(pid=7, used_bytes=Bytes(19000000000)),),
)
SECOND = MigInstance(
    uuid="MIG-b",
    profile="1g.5gb",
    gpu_instance_id=9,
    compute_instance_id=0,
    total_bytes=Bytes(5100273664),
    used_bytes=Bytes(0),
    free_bytes=Bytes(5086642176),
    reserved_bytes=Bytes(13631488),
    processes=(),
)
GAP = "  instance -\n"
NOT_SUPPORTED, NO_PERMISSION, INVALID_ARGUMENT, NOT_FOUND, GPU_LOST = 3, 4, 2, 6, 15


@pytest.fixture
def nvml() -> Iterator[Nvml]:
    nvml = Nvml()
    yield nvml
    nvml.close()


@pytest.fixture
def read(driver: Script, nvml: Nvml) -> Read:
    def read(script: str) -> GpuReading:
        driver(script)
        return nvml.read()[0]

    return read


@pytest.mark.parametrize("gaps", ["", GAP, GAP * 5])
def test_every_instance_tells_its_own(read: Read, nvml: Nvml, gaps: str) -> None:
    reading = read(GPU + HALF + gaps + SMALL)
    assert reading.mig_instances == (FIRST, SECOND)
    assert (reading.mig_enabled, reading.used_bytes) == (True, 32349672960)
    assert nvml.faults == ()


@pytest.mark.parametrize("mode", ["  mig 0\n", "  mig 1\n", ""])
def test_a_gpu_without_instances_has_none(read: Read, mode: str) -> None:
    reading = read(GPU.replace("  mig 1\n", mode))
    assert reading.mig_instances == ()


def test_instances_come_and_go_with_their_gpu_started_once(read: Read) -> None:
    assert read(GPU + SMALL).mig_instances == (SECOND,)
    assert read(GPU + HALF + SMALL).mig_instances == (FIRST, SECOND)
    assert read(GPU.replace("mig 1", "mig 0")).mig_instances == ()


def test_a_container_that_was_given_one_instance_knows_it_and_not_the_gpu(
    read: Read, nvml: Nvml
) -> None:
    denied = "".join(f"  fail {c} {NO_PERMISSION}\n" for c in ("memory_v1", "memory_v2", "compute"))
    reading = read(GPU + denied + HALF)
    assert reading.mig_instances == (FIRST,)
    assert (reading.total_bytes, reading.used_bytes, reading.processes) == (None, None, None)
    assert [fault[:22] for fault in nvml.faults] == [
        "NVML: GPU 0: memory: n",
        "NVML: GPU 0: compute p",
    ]


def test_an_instance_without_memory_of_its_own_has_none_not_the_gpus(
    read: Read, nvml: Nvml
) -> None:
    unknown = SMALL.replace("memory", "ignored")
    (instance,) = read(GPU + unknown).mig_instances
    assert instance == replace(
        SECOND, total_bytes=None, used_bytes=None, free_bytes=None, reserved_bytes=None
    )
    assert nvml.faults == ()


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("gpu_instance", "gpu_instance_id"),
        ("compute_instance", "compute_instance_id"),
        ("compute", "processes"),
        ("name", "profile"),
    ],
)
def test_what_an_instance_does_not_tell_is_none_and_the_rest_stays(
    read: Read, call: str, field: str
) -> None:
    (instance,) = read(f"{GPU}{HALF}    fail {call} {NOT_SUPPORTED}\n").mig_instances
    assert instance == replace(FIRST, **{field: None})  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [INVALID_ARGUMENT, NOT_FOUND])
def test_an_instance_destroyed_in_mid_read_is_left_out(read: Read, code: int) -> None:
    calls = (
        "uuid",
        "name",
        "memory_v1",
        "memory_v2",
        "gpu_instance",
        "compute_instance",
        "compute",
    )
    gone = "".join(f"    fail {call} {code}\n" for call in calls)
    assert read(GPU + HALF + gone + SMALL).mig_instances == (SECOND,)


def test_a_gpu_lost_while_its_instances_are_read_is_lost(driver: Script, nvml: Nvml) -> None:
    driver(f"{GPU}{HALF}    fail compute {GPU_LOST}\ngpu GPU-2 NVIDIA A10\n  memory 4 1 1 2\n")
    (left,) = nvml.read()
    assert (left.index, left.uuid) == (1, "GPU-2")


# Sizes that nvidia-smi's table of MIG profiles gives, in MiB of instance and GPU.
@pytest.mark.parametrize(
    ("slices", "gpu_mib", "profile"),
    [
        ((1, 1, 4864), 40960, "1g.5gb"),
        ((3, 3, 19968), 40960, "3g.20gb"),
        ((3, 1, 19968), 40960, "1c.3g.20gb"),
        ((1, 1, 9984), 81559, "1g.10gb"),
        ((1, 1, 20096), 81559, "1g.20gb"),
        ((7, 7, 81024), 81559, "7g.80gb"),
        ((1, 1, 16384), 143771, "1g.18gb"),
        ((3, 3, 71168), 143771, "3g.71gb"),
    ],
)
def test_a_driver_that_does_not_name_the_profile_tells_its_size(
    read: Read, slices: tuple[int, int, int], gpu_mib: int, profile: str
) -> None:
    gpu = f"gpu GPU-1 NVIDIA\n  memory {gpu_mib * 2**20} 0 0 0\n  mig 1\n"
    sizes = "{} {} {}".format(*slices)
    (instance,) = read(f"{gpu}  instance MIG-a 1 0 NVIDIA\n    slices {sizes}\n").mig_instances
    assert instance.profile == profile
