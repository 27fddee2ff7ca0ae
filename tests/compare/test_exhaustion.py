"""A trend over minutes, and a sawtooth that is none."""

import random

import pytest

from vllm_capacity.compare.exhaustion import FillTrend

POOL = 1000.0


def told(blocks_at: list[float], *, interval: float = 1.0) -> list[float | None]:
    trend, answers = FillTrend(), []
    for i, blocks in enumerate(blocks_at):
        trend.record(i * interval, blocks)
        if i % 10 == 9 or i == len(blocks_at) - 1:
            answers.append(trend.seconds_to(POOL))
    return answers


def sawtooth(period: float, low: float, high: float, seconds: int) -> list[float]:
    return [low + (high - low) * (t % period) / period for t in range(seconds)]


@pytest.mark.parametrize("interval", [1.0, 5.0, 15.0, 60.0])
def test_a_steady_rise_is_told_with_its_end_whatever_the_interval(interval: float) -> None:
    count = round(900 / interval) + 1
    last = told([200 + 0.5 * i * interval for i in range(count)], interval=interval)[-1]
    assert last is not None or interval == 60.0
    if last is not None:
        assert last == pytest.approx((POOL - 650) / 0.5, rel=0.1)


def test_a_rise_is_told_only_after_minutes_of_it() -> None:
    answers = told([200 + 0.5 * t for t in range(400)])
    assert answers[:30] == [None] * 30
    assert answers[-1] is not None


@pytest.mark.parametrize("period", [7, 20, 45, 60, 90, 120, 180, 240])
def test_no_part_of_a_sawtooth_promises_exhaustion(period: float) -> None:
    assert set(told(sawtooth(period, 200, 900, 3600))) == {None}


def test_a_rise_under_a_sawtooth_is_told() -> None:
    teeth = sawtooth(20, 0, 100, 1200)
    last = told([blocks + 0.5 * t for t, blocks in enumerate(teeth)])[-1]
    assert last == pytest.approx((POOL - 650) / 0.5, rel=0.2)


def test_noise_about_a_level_is_no_trend() -> None:
    noise = random.Random(7)  # noqa: S311 (not for secrets)
    level = 500.0
    walk = [level := level + noise.gauss(0, 15) - 0.05 * (level - 500) for _ in range(20_000)]
    answers = told(walk)
    assert sum(answer is not None for answer in answers) <= 0.01 * len(answers)


@pytest.mark.parametrize("slope", [0.0, -0.5])
def test_level_and_falling_caches_do_not_fill(slope: float) -> None:
    assert told([600 + slope * t for t in range(900)])[-1] is None


def test_after_a_restart_the_rise_before_it_counts_no_more() -> None:
    trend = FillTrend()
    for t in range(600):
        trend.record(t, 200 + 0.5 * t)
    assert trend.seconds_to(POOL) is not None
    trend.clear()
    trend.record(600, 10)
    assert trend.seconds_to(POOL) is None


def test_a_creep_of_less_than_two_percent_of_the_pool_is_no_trend() -> None:
    assert told([300 + 0.05 * t for t in range(900)])[-1] is not None
    assert told([300 + 0.03 * t for t in range(900)])[-1] is None
