"""Growth and peaks within the last while, whatever the scrape interval."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.observe.sliding_window import SlidingPeak, SlidingWindow


def window(**arguments: float) -> SlidingWindow:
    return SlidingWindow(300.0, **{"spacing_seconds": 5.0, **arguments})  # type: ignore[arg-type]


def test_growth_is_told_with_the_time_that_it_took() -> None:
    history = window()
    for t, count in ((0.0, 100.0), (47.0, 130.0)):
        history.record(t, [count])
    assert history.since(60.0) == (47.0, (30.0,))


@pytest.mark.parametrize("interval", [0.2, 1.0, 4.9, 15.0, 30.0, 60.0])
@pytest.mark.parametrize("seconds", [60.0, 300.0])
def test_a_window_is_exact_to_half_a_spacing_or_two_scrapes(
    interval: float, seconds: float
) -> None:
    history = window()
    for count in range(round(1000 / interval)):
        history.record(count * interval, [3 * count * interval])
    elapsed, (grown,) = history.since(seconds)
    assert seconds - 2.5 <= elapsed <= seconds + max(2.5, 2 * interval)
    assert grown == pytest.approx(3 * elapsed)


@given(st.lists(st.floats(0.1, 400.0), min_size=2, max_size=60))
def test_a_steady_rate_stays_that_rate_however_irregular_the_scrapes(gaps: list[float]) -> None:
    history, t = window(), 0.0
    for gap in gaps:
        t += gap
        history.record(t, [7 * t])
    elapsed, (grown,) = history.since(60.0)
    assert grown == pytest.approx(7 * elapsed, abs=1e-6)


def test_a_counter_that_fell_begins_the_window_anew() -> None:
    history = window()
    for t, count in ((0.0, 100.0), (10.0, 120.0), (20.0, 3.0), (30.0, 8.0)):
        history.record(t, [count])
    assert history.since(300.0) == (10.0, (5.0,))


def test_a_level_may_fall() -> None:
    history = window(levels=1)
    for t, count, level in ((0.0, 100.0, 9.0), (10.0, 120.0, 4.0)):
        history.record(t, [count, level])
    assert history.since(300.0) == (10.0, (20.0, -5.0))


def test_what_was_not_known_then_or_now_has_no_growth() -> None:
    history = window()
    history.record(0.0, [math.nan, 1.0])
    history.record(10.0, [5.0, 2.0])
    _, (unknown, known) = history.since(60.0)
    assert math.isnan(unknown)
    assert known == 1.0


def test_numbers_that_come_and_go_begin_the_window_anew() -> None:
    history = window()
    history.record(0.0, [1.0, 1.0])
    history.record(10.0, [2.0])
    assert history.since(60.0) == (0.0, (0.0,))


@given(
    st.lists(st.tuples(st.integers(1, 90), st.floats(0, 1)), min_size=1, max_size=80),
    st.sampled_from([60.0, 300.0]),
)
def test_a_peak_is_the_largest_value_of_its_window(
    scrapes: list[tuple[int, float]], seconds: float
) -> None:
    peak, seen, now = SlidingPeak(300.0), [], 0.0
    for gap, value in scrapes:
        now += gap
        seen.append((now, value))
        peak.record(now, value)
    assert peak.within(now, seconds) == max(v for t, v in seen if t >= now - seconds)


def test_a_peak_without_values_is_unknown_and_old_ones_are_forgotten() -> None:
    peak = SlidingPeak(300.0)
    assert peak.within(0.0, 60.0) is None
    peak.record(0.0, 0.9)
    peak.record(400.0, None)
    assert peak.within(400.0, 300.0) is None
