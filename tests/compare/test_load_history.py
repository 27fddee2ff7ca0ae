"""Arrivals, speed and preemptions of the last minute."""

from dataclasses import replace

import pytest
from engines import engine

from vllm_capacity.compare.load_history import LoadHistory


def watched(
    seconds: int, *, rate: float, every: int = 1, running: int = 4, speed: float = 20.0
) -> LoadHistory:
    history = LoadHistory()
    for t in range(0, seconds, every):
        snapshot = engine(
            at=t, running=running, first_tokens=rate * t, generated=speed * running * t
        )
        history.record(snapshot, without_first_token=0.0, restarted=False)
    return history


@pytest.mark.parametrize("every", [1, 2, 5, 15])
def test_a_steady_stream_is_told_for_some_time_whatever_the_interval(every: int) -> None:
    found = watched(121, rate=2.0, every=every).arrivals(samples=1.0)
    longest = max(found, key=lambda a: a.seconds)
    assert longest.seconds >= 45
    assert 1.4 <= longest.requests_per_second <= 2.0


def test_a_few_at_once_are_no_stream_and_a_crowd_is() -> None:
    def rate_after(arrived: int) -> float:
        history = watched(60, rate=0.0)
        history.record(
            engine(at=60, first_tokens=arrived), without_first_token=0.0, restarted=False
        )
        return max(a.requests_per_second for a in history.arrivals(samples=1.0))

    assert rate_after(1) == 0
    assert rate_after(2) < 0.3
    assert rate_after(20) > 7


def test_the_samples_of_one_request_come_together_and_are_less_of_a_stream() -> None:
    history = watched(60, rate=1.0)
    alone = history.arrivals(samples=1.0)[-1].requests_per_second
    assert history.arrivals(samples=4.0)[-1].requests_per_second < alone


def test_who_gets_a_first_token_had_arrived_before() -> None:
    history = watched(60, rate=0.0)
    for t, first, queued in ((60, 0, 9), (61, 4, 5), (62, 9, 0)):
        history.record(
            engine(at=t, first_tokens=first), without_first_token=queued, restarted=False
        )
    [_, *longer] = history.arrivals(samples=1.0)
    assert all(a.requests_per_second * a.seconds == pytest.approx(18) for a in longer)


def test_speed_is_that_of_one_running_request() -> None:
    assert watched(60, rate=1.0, running=7).tokens_per_second() == pytest.approx(20.0)
    assert watched(60, rate=1.0, running=0).tokens_per_second() == 0.0


def test_only_preemptions_of_the_last_minute_count() -> None:
    history = LoadHistory()
    for t in range(200):
        snapshot = engine(at=t, preemptions=min(t, 100), first_tokens=2 * t)
        history.record(snapshot, without_first_token=0.0, restarted=False)
    assert history.preempted_requests() == (0, 120)


def test_a_restart_begins_a_new_history() -> None:
    history = watched(60, rate=5.0)
    history.record(engine(at=60), without_first_token=0.0, restarted=True)
    assert history.arrivals(samples=1.0) == []
    assert history.preempted_requests() == (0, 0)


def test_scrapes_in_quick_succession_do_not_grow_it() -> None:
    history, page = LoadHistory(), engine()
    for i in range(20_000):
        snapshot = replace(page, taken_at_seconds=i * 0.01, first_tokens=i * 0.02)
        history.record(snapshot, without_first_token=0.0, restarted=False)
    assert len(history._past) < 100
    assert history.arrivals(samples=1.0)[-1].requests_per_second == pytest.approx(1.65, rel=0.1)
