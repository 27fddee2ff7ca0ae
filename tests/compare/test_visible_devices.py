"""The grammar of the variables that hide GPUs from processes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gpu_attribution import gpu, mig

from vllm_capacity.compare.visible_devices import Device, given_devices, visible_devices
from vllm_capacity.observe.engine_process import DeviceVisibility
from vllm_capacity.observe.gpu_reading import GpuReading

ALIKE = tuple(gpu(index) for index in range(4))
MIXED = (gpu(0), gpu(1, name="NVIDIA L4"))
DIVIDED = (gpu(0), replace(gpu(1), mig_instances=(mig(1, 3), mig(1, 4))))
UNSET = None


def indices(devices: tuple[Device, ...] | None) -> list[int] | None:
    return None if devices is None else [device.gpu for device in devices]


def seen(
    cuda: str | None,
    nvidia: str | None = UNSET,
    *,
    order: str | None = UNSET,
    ours: str | None = UNSET,
    readings: tuple[GpuReading, ...] = ALIKE,
) -> tuple[Device, ...] | None:
    process = DeviceVisibility(
        cuda_visible_devices=cuda, nvidia_visible_devices=nvidia, cuda_device_order=order
    )
    return visible_devices(process, DeviceVisibility(nvidia_visible_devices=ours), readings)


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, None),
        ("", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 3 ", [1, 3]),
        ("-1", []),
        ("0,-1,1", [0]),
        ("1,9,0", [1]),
        ("9", []),
        ("0,,1", [0]),
        ("none", []),
        ("NoDevFiles", []),
        ("1,1", []),
        ("0,1,0", []),
        ("1x,0", [1, 0]),
        ("+1", [1]),
        ("GPU-2222-beef", [2]),
        ("GPU-22,GPU-0", [2, 0]),
        ("GPU-", []),
        ("GPU-3,GPU-9,GPU-1", [3]),
        ("GPU-3,GPU-33", []),
        ("GPU-3,0", [3]),
        ("0,GPU-3", [0]),
        ("MIG-x", []),
    ],
)
def test_cuda_reads_its_variable_as_the_driver_does(
    variable: str | None, expected: list[int] | None
) -> None:
    assert indices(seen(variable)) == expected


@pytest.mark.parametrize(
    ("variable", "order", "expected"),
    [
        ("0", None, None),
        ("0", "FASTEST_FIRST", None),
        ("0", "PCI_BUS_ID", [0]),
        ("GPU-1111-beef", None, [1]),
        ("", None, []),
        ("-1", None, []),
    ],
)
def test_indices_of_unlike_gpus_are_nvmls_only_in_the_order_of_the_bus(
    variable: str, order: str | None, expected: list[int] | None
) -> None:
    assert indices(seen(variable, order=order, readings=MIXED)) == expected


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, None),
        ("all", None),
        ("void", None),
        ("", None),
        ("none", []),
        ("1,3", [1, 3]),
        ("3,1", [1, 3]),
        ("GPU-1111-beef", [1]),
        ("7", None),
        ("0:1", None),
    ],
)
def test_the_container_runtime_reads_its_own(
    variable: str | None, expected: list[int] | None
) -> None:
    assert indices(seen(None, variable)) == expected


def test_cudas_indices_count_within_what_the_container_was_given() -> None:
    assert indices(seen("1", "2,3")) == [3]
    assert indices(seen("2", "2,3")) == []
    assert indices(seen("0", "GPU-3333-beef,GPU-1111-beef")) == [1]


def test_indices_mean_nothing_where_nvml_shows_us_a_part_of_the_machine() -> None:
    assert seen(None, "1", ours="2,3") is None
    assert seen("0", "all", ours="2,3") is None
    assert indices(seen(None, "GPU-1111-beef", ours="2,3")) == [1]


def test_a_container_with_the_same_gpus_as_ours_has_all_that_nvml_shows() -> None:
    assert indices(seen(None, "6,7", ours="6,7", readings=ALIKE[:2])) == [0, 1]
    assert indices(seen("1", "6,7", ours="6,7", readings=ALIKE[:2])) == [1]


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("MIG-14-cafe", ["MIG-14-cafe"]),
        ("MIG-14", ["MIG-14-cafe"]),
        ("MIG-1", []),
        ("MIG-GPU-1111-beef/4/0", ["MIG-14-cafe"]),
        ("MIG-GPU-1111-beef/5/0", []),
        ("1", ["MIG-13-cafe"]),
        ("GPU-1111-beef", ["MIG-13-cafe"]),
        ("0", [None]),
    ],
)
def test_mig_instances_are_named_in_the_old_way_and_the_new(
    variable: str, expected: list[str | None]
) -> None:
    found = seen(variable, readings=DIVIDED)
    assert found is not None
    assert [device.mig_uuid for device in found] == expected


def test_the_runtime_gives_single_mig_instances() -> None:
    found = seen(None, "MIG-14-cafe", readings=DIVIDED)
    assert found is not None
    assert [device.mig_uuid for device in found] == ["MIG-14-cafe"]


def test_a_divided_gpu_that_an_operator_names_is_all_of_its_instances() -> None:
    found = given_devices(["0", "1"], DIVIDED)
    assert found is not None
    assert [device.mig_uuid for device in found] == [None, "MIG-13-cafe", "MIG-14-cafe"]
    assert given_devices(["0", "2"], DIVIDED) is None


@given(st.text(alphabet="019-,GPUMI/ +:all", max_size=20))
def test_no_text_is_too_strange_and_no_gpu_is_seen_twice(text: str) -> None:
    for found in (seen(text), seen(None, text), seen(text, text, readings=DIVIDED)):
        assert found is None or len(set(found)) == len(found)
