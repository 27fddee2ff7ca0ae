"""How large requests are, and what the last minutes looked like."""

from dataclasses import replace

import pytest

from vllm_capacity.observe.engine_snapshot import EngineSnapshot, Histogram, snapshots_of_page
from vllm_capacity.observe.exposition import ExpositionParser
from vllm_capacity.observe.metric_names import WANTED_NAMES
from vllm_capacity.observe.recent_history import RecentHistory
from vllm_capacity.observe.request_footprint import FootprintWindow, quantile_tokens

INFINITY = float("inf")


def snapshot(t: float, **fields: object) -> EngineSnapshot:
    samples = ExpositionParser(WANTED_NAMES).parse(b"vllm:num_requests_running 0\n")
    return replace(snapshots_of_page(samples, taken_at_seconds=t).engines[0], **fields)


def histogram(count: float, total: float) -> Histogram:
    return Histogram(count=count, total=total, buckets=((100.0, count), (INFINITY, count)))


@pytest.mark.parametrize(
    ("buckets", "quantile", "expected"),
    [
        (((100.0, 10.0), (200.0, 20.0), (INFINITY, 20.0)), 0.5, 100.0),
        (((100.0, 10.0), (200.0, 20.0), (INFINITY, 20.0)), 0.95, 190.0),
        (((100.0, 0.0), (INFINITY, 20.0)), 0.95, 100.0),
        ((), 0.95, None),
    ],
)
def test_a_quantile_is_interpolated_as_promql_does(
    buckets: tuple[tuple[float, float], ...], quantile: float, expected: float | None
) -> None:
    count = buckets[-1][1] if buckets else 0.0
    measured = quantile_tokens(Histogram(count=count, total=0.0, buckets=buckets), quantile)
    assert measured == (None if expected is None else pytest.approx(expected))


def test_the_mean_is_that_of_the_requests_in_the_window() -> None:
    window = FootprintWindow()
    for t, count, prompt, output in ((0.0, 100, 10_000, 5_000), (60.0, 120, 50_000, 7_000)):
        footprint = window.record(
            snapshot(
                t,
                request_prompt_tokens=histogram(count, prompt),
                request_generation_tokens=histogram(count, output),
            )
        )
    assert footprint is not None
    assert footprint.mean_tokens == pytest.approx(40_000 / 20 + 2_000 / 20)
    assert (footprint.requests, footprint.window_seconds) == (20, 60.0)


def test_with_few_requests_lately_all_since_the_start_count() -> None:
    footprint = FootprintWindow().record(
        snapshot(
            0.0,
            request_prompt_tokens=histogram(4, 400),
            request_generation_tokens=histogram(4, 40),
        )
    )
    assert footprint is not None
    assert (footprint.mean_tokens, footprint.window_seconds) == (110.0, None)


def test_before_the_first_request_has_finished_sizes_are_unknown() -> None:
    nothing = histogram(0, 0)
    window = FootprintWindow()
    assert window.record(snapshot(0.0)) is None
    page = snapshot(1.0, request_prompt_tokens=nothing, request_generation_tokens=nothing)
    assert window.record(page) is None


def test_peaks_are_kept_for_their_window_and_no_longer() -> None:
    history = RecentHistory()
    history.record(snapshot(0.0, kv_cache_usage_ratio=0.9))
    assert history.record(snapshot(30.0, kv_cache_usage_ratio=0.2)).usage_peak_ratio == {
        "1m": 0.9,
        "5m": 0.9,
    }
    assert history.record(snapshot(90.0, kv_cache_usage_ratio=0.3)).usage_peak_ratio == {
        "1m": 0.3,
        "5m": 0.9,
    }
    assert history.record(snapshot(400.0, kv_cache_usage_ratio=0.1)).usage_peak_ratio["5m"] == 0.1


def test_the_preempted_share_counts_preemptions_for_each_request_that_began() -> None:
    history = RecentHistory()
    history.record(snapshot(0.0, preemptions=5.0, first_tokens=100.0))
    reading = history.record(snapshot(60.0, preemptions=8.0, first_tokens=160.0))
    assert reading.preempted_requests_ratio == pytest.approx(0.05)


def test_in_a_thrash_in_which_nobody_begins_every_preemption_counts() -> None:
    history = RecentHistory()
    history.record(snapshot(0.0, preemptions=5.0, first_tokens=100.0))
    reading = history.record(snapshot(60.0, preemptions=9.0, first_tokens=100.0))
    assert reading.preempted_requests_ratio == 4.0


def test_without_new_requests_there_is_no_share() -> None:
    history = RecentHistory()
    reading = history.record(snapshot(0.0, preemptions=5.0, first_tokens=100.0))
    assert reading.preempted_requests_ratio is None
