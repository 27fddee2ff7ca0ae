"""The state of an engine, and how it changes."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.compare.engine_state import EngineStateWatch, Pressure

OK = Pressure(
    is_idle=False,
    usage_ratio=0.3,
    saturation_ratio=0.3,
    committed_ratio=0.5,
    queued_requests=0,
    preempted_requests=0,
    begun_requests=60,
)
IDLE = replace(OK, is_idle=True)
COMMITTED = replace(OK, committed_ratio=1.2)
BUSY = replace(OK, saturation_ratio=0.85)
QUEUED = replace(OK, queued_requests=2)
FULL = replace(OK, usage_ratio=0.97)
THRASH = replace(OK, preempted_requests=9)


def states(*pressures: Pressure | None, interval: float = 1.0) -> list[str]:
    watch = EngineStateWatch()
    return [watch.record(i * interval, pressure) for i, pressure in enumerate(pressures)]


@pytest.mark.parametrize(
    ("pressure", "state"),
    [
        (IDLE, "idle"),
        (OK, "ok"),
        (COMMITTED, "tight"),
        (BUSY, "tight"),
        (QUEUED, "saturated"),
        (FULL, "saturated"),
        (THRASH, "thrashing"),
        (None, "unknown"),
    ],
)
def test_what_lasts_becomes_the_state(pressure: Pressure | None, state: str) -> None:
    assert states(*[pressure] * 5)[-1] == state


def test_idle_and_unknown_are_facts_and_need_no_time() -> None:
    assert states(*[THRASH] * 5, IDLE, None) == [*["ok"] * 2, *["thrashing"] * 3, "idle", "unknown"]


def test_a_single_bad_scrape_changes_nothing() -> None:
    assert set(states(OK, OK, QUEUED, OK, OK, FULL, OK)) == {"ok"}


def test_a_state_is_left_only_after_a_quarter_of_a_minute_of_better() -> None:
    told = states(*[QUEUED] * 5, *[OK] * 30)
    assert told[4:19] == ["saturated"] * 15
    assert told[20:] == ["ok"] * 15


def test_a_sawtooth_about_a_threshold_does_not_flap() -> None:
    teeth = [replace(OK, usage_ratio=0.86 + 0.1 * (i % 10) / 9) for i in range(600)]
    told = states(*teeth)
    changes = sum(1 for a, b in pairwise(told) if a != b)
    assert changes <= 1


def test_what_is_left_is_left_for_the_worst_of_the_time_between() -> None:
    told = states(*[THRASH] * 5, *[QUEUED] * 8, *[OK] * 8, *[OK] * 20)
    assert told[21] == "saturated"
    assert told[-1] == "ok"


def test_the_interval_of_the_scrapes_does_not_matter() -> None:
    fast = states(*[QUEUED] * 60, *[OK] * 60)
    slow = states(*[QUEUED] * 4, *[OK] * 4, interval=15.0)
    assert fast[::15] == slow


def test_one_preemption_in_a_minute_is_no_thrash() -> None:
    assert states(*[replace(OK, preempted_requests=1, begun_requests=1)] * 5)[-1] == "ok"


@given(
    usage=st.floats(0, 1),
    committed=st.floats(0, 3),
    queued=st.integers(0, 5),
    preempted=st.floats(0, 20),
    more=st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 3), st.floats(0, 9)),
)
def test_more_load_is_never_a_better_state(
    usage: float, committed: float, queued: int, preempted: float, more: tuple[float, ...]
) -> None:
    here = replace(
        OK,
        usage_ratio=usage,
        saturation_ratio=usage,
        committed_ratio=committed,
        queued_requests=queued,
        preempted_requests=preempted,
    )
    there = replace(
        OK,
        usage_ratio=min(1.0, usage + more[0]),
        saturation_ratio=usage + more[0],
        committed_ratio=committed + more[1],
        queued_requests=queued + int(more[2]),
        preempted_requests=preempted + more[3],
    )
    for staying in (True, False):
        assert there.level(staying=staying) >= here.level(staying=staying)
    assert here.level(staying=True) >= here.level(staying=False)
