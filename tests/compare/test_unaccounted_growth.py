"""A leak is told from the noise, the spikes and the starts around it."""

import random
from dataclasses import replace

import pytest
from gpus import attribution, gpu, size
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.compare.gpu_memory import GpuMemoryStack, Occupant, gpu_memory_stacks
from vllm_capacity.compare.memory_terms import MemoryTerms
from vllm_capacity.compare.unaccounted_growth import GrowthWatch
from vllm_capacity.units import MIB, Bytes

KEY = "0/GPU-0/"
NOISE = random.Random(5)  # noqa: S311


def stack(unaccounted_mib: float, *, weights_gib: float = 15.0) -> GpuMemoryStack:
    used = weights_gib + unaccounted_mib / 1024
    occupant = Occupant(
        target="a",
        attribution=attribution(used, 0.0),
        measured=MemoryTerms(
            weights_bytes=size(weights_gib),
            kv_cache_bytes=Bytes(0),
            activation_peak_bytes=Bytes(0),
        ),
    )
    (one,) = gpu_memory_stacks(gpu(used), (occupant,))
    return one


def slope_mib(watch: GrowthWatch, seconds: list[float], unaccounted: list[float]) -> float | None:
    slopes: dict[str, float] = {}
    for now, size_mib in zip(seconds, unaccounted, strict=True):
        slopes = watch.record(now, (stack(size_mib),))
    return slopes[KEY] / MIB if KEY in slopes else None


@pytest.mark.parametrize("interval", [1.0, 5.0, 60.0])
@pytest.mark.parametrize("leak", [0.0, 0.05, -0.2])
def test_a_leak_is_told_as_bytes_a_second_in_spite_of_noise_and_spikes(
    interval: float, leak: float
) -> None:
    seconds = [i * interval for i in range(3600)][: int(7200 / interval)]
    held = [500 + leak * now + NOISE.uniform(-2, 2) for now in seconds]
    for i in range(0, len(held), 17):
        held[i] += 900
    assert slope_mib(GrowthWatch(), seconds, held) == pytest.approx(leak, abs=0.004)


def test_a_step_is_no_leak() -> None:
    seconds = [5.0 * i for i in range(600)]
    held = [500.0 if now < 600 else 700.0 for now in seconds]
    assert slope_mib(GrowthWatch(), seconds, held) == 0.0


def test_of_few_readings_nothing_is_known() -> None:
    watch = GrowthWatch()
    assert slope_mib(watch, [5.0 * i for i in range(7)], [500.0 + i for i in range(7)]) is None
    assert slope_mib(watch, [35.0], [507.0]) == pytest.approx(0.2)


def test_another_account_begins_a_new_history() -> None:
    watch = GrowthWatch()
    assert slope_mib(watch, [5.0 * i for i in range(9)], [500.0 + i for i in range(9)]) is not None
    assert watch.record(50.0, (stack(500.0, weights_gib=16.0),)) == {}


def test_a_reading_that_fails_takes_nothing_away() -> None:
    watch = GrowthWatch()
    slope_mib(watch, [5.0 * i for i in range(9)], [500.0 + i for i in range(9)])
    assert watch.record(45.0, ()) == {}
    assert slope_mib(watch, [50.0], [510.0]) == pytest.approx(0.2)
    watch.record(5000.0, ())
    assert watch._watched == {}


def test_what_is_not_attributed_has_no_growth() -> None:
    (unattributed,) = gpu_memory_stacks(gpu(20.0), ())
    watch = GrowthWatch()
    assert all(watch.record(float(i), (unattributed,)) == {} for i in range(20))


@given(st.lists(st.floats(0.0, 600.0), min_size=1, max_size=400))
def test_a_history_stays_small_and_forgets_what_is_older_than_its_window(
    pauses: list[float],
) -> None:
    watch, now = GrowthWatch(), 0.0
    for pause in pauses:
        now += pause
        watch.record(now, (replace(stack(500.0), gpu=0),))
    readings = watch._watched[KEY]._readings
    assert len(readings) <= 64
    assert now - readings[0][0] <= 3600.0 + 600.0
