"""The last hour of an engine: what a step keeps, gaps, forgetting, and that it is bounded."""

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "compare"))

from engines import engine
from recordings import assessed

from vllm_capacity.compare.assessment import EngineAssessment, EngineAssessor
from vllm_capacity.compare.fleet import PredictionStatus, SourceHealth, TargetAssessment
from vllm_capacity.compare.headroom import Limits
from vllm_capacity.status.history import HOUR_SECONDS, History, Step

NOW = 1_795_280_000.0
UP = SourceHealth().succeeded(at=NOW, seconds=0.01)
DOWN = UP.failed(reason="connect", message="refused", seconds=0.01)
BARE = EngineAssessor().assess(engine(), None, Limits())


def seen(**what: Any) -> EngineAssessment:
    """One engine at one moment; its counters are as given."""
    restarts = what.pop("restarts", 0)
    name = what.pop("name", "0")
    snapshot = replace(engine(**what), engine=name)
    return replace(BARE, snapshot=snapshot, restarts=restarts)


def target(*engines: EngineAssessment, health: SourceHealth = UP) -> TargetAssessment:
    return TargetAssessment(
        target="a:8000",
        url="http://a:8000",
        engines=engines,
        prediction=PredictionStatus(prediction=None, reason="no_config", message="none"),
        health={"vllm": health},
    )


def kept(history: History, since: float = 0.0, name: str = "0") -> dict[str, list[Any]]:
    return history.columns("a:8000", name, since=since)


def told(moments: Iterable[tuple[float, EngineAssessment | None]], interval: float) -> History:
    """A history of one engine; None is a collection that failed."""
    history = History(interval)
    for at, assessment in moments:
        whole = target(health=DOWN) if assessment is None else target(assessment)
        history.record(whole, NOW + at)
    return history


def test_every_collection_is_a_row_where_they_are_five_seconds_apart_or_more() -> None:
    history = told(((5.0 * i, seen(used=i)) for i in range(10)), 5.0)
    assert kept(history)["kv_cache_usage_ratio"] == [i / 100 for i in range(10)]
    assert kept(history)["timestamp_seconds"] == [NOW + 5.0 * i for i in range(10)]


@pytest.mark.parametrize(
    ("interval", "step"), [(0.5, 5.0), (1.0, 5.0), (3.0, 6.0), (4.0, 8.0), (5.0, 5.0), (60.0, 60.0)]
)
def test_a_step_is_as_many_intervals_as_make_five_seconds(interval: float, step: float) -> None:
    assert told([], interval).step_seconds == step


def test_a_step_keeps_the_last_value_the_peak_the_longest_queue_and_the_sums() -> None:
    moments = [
        (0.0, seen(used=10, waiting=1, running=1, preemptions=7)),
        (1.0, seen(used=90, waiting=0, running=2, preemptions=9)),
        (2.0, seen(used=20, waiting=5, running=3, preemptions=9, restarts=1)),
        (3.0, seen(used=30, waiting=2, running=4, preemptions=10, restarts=1)),
        (4.0, seen(used=40, waiting=3, running=5, preemptions=10, restarts=2)),
    ]
    columns = kept(told(moments, 1.0))
    assert {name: column for name, column in columns.items() if column != [None]} == {
        "timestamp_seconds": [NOW + 4.0],
        "kv_cache_usage_ratio": [0.4],
        "usage_peak_ratio": [0.9],
        "running_requests": [5],
        "waiting_requests": [5],
        "preemptions": [3],
        "restarts": [2],
    }


def test_a_row_never_changes_once_it_was_given() -> None:
    moments = [(float(i), seen(used=i)) for i in range(60)]
    given = [kept(told(moments[:count], 1.0))["kv_cache_usage_ratio"] for count in range(61)]
    for earlier, later in pairwise(given):
        assert later[: len(earlier)] == earlier


def test_what_happened_before_the_first_row_is_unknown_and_not_none() -> None:
    columns = kept(told([(0.0, seen(preemptions=7, restarts=3))], 5.0))
    assert columns["preemptions"] == columns["restarts"] == [None]


def test_an_engine_that_began_anew_counts_its_preemptions_from_none() -> None:
    moments = [(0.0, seen(preemptions=7)), (5.0, seen(preemptions=2, restarts=1))]
    columns = kept(told(moments, 5.0))
    assert columns["preemptions"] == [None, 2]
    assert columns["restarts"] == [None, 1]


def test_what_an_engine_does_not_say_is_null_in_its_row() -> None:
    columns = kept(told([(0.0, seen(running=None, waiting=None))], 5.0))
    assert columns["running_requests"] == columns["waiting_requests"] == [None]
    assert columns["predicted_usage_ratio"] == columns["committed_ratio"] == [None]
    assert columns["kv_cache_usage_ratio"] == [0.0]


@pytest.mark.parametrize("ratio", [1e300, math.inf, math.nan])
def test_a_page_of_monstrous_numbers_leaves_a_row_that_json_can_hold(ratio: float) -> None:
    whole = seen()
    monstrous = replace(whole, snapshot=replace(whole.snapshot, kv_cache_usage_ratio=ratio))
    columns = kept(told([(0.0, monstrous)], 5.0))
    assert columns["kv_cache_usage_ratio"] == [None]
    json.dumps(columns, allow_nan=False)


@pytest.mark.parametrize("failures", [1, 20])
def test_a_target_that_is_down_leaves_one_gap_and_no_line(failures: int) -> None:
    moments: list[tuple[float, EngineAssessment | None]] = [(0.0, seen(used=10))]
    moments += [(5.0 * (i + 1), None) for i in range(failures)]
    moments += [(5.0 * (failures + 1), seen(used=20))]
    columns = kept(told(moments, 5.0))
    assert columns["kv_cache_usage_ratio"] == [0.1, None, 0.2]
    assert columns["timestamp_seconds"] == [NOW, NOW + 5.0, NOW + 5.0 * (failures + 1)]
    assert all(columns[name][1] is None for name in Step._fields)


def test_an_exporter_that_slept_leaves_a_gap() -> None:
    columns = kept(told([(0.0, seen(used=10)), (600.0, seen(used=20))], 5.0))
    assert columns["kv_cache_usage_ratio"] == [0.1, None, 0.2]
    assert columns["timestamp_seconds"] == [NOW, NOW + 5.0, NOW + 600.0]


def test_a_target_that_never_answered_has_no_rows_at_all() -> None:
    history = told([(0.0, None), (5.0, None)], 5.0)
    assert history.engines("a:8000") == ()
    assert set(map(len, kept(history).values())) == {0}


def test_engines_have_each_their_own_history() -> None:
    history = History(5.0)
    for i in range(3):
        history.record(target(seen(used=i), seen(used=50, name="1")), NOW + 5.0 * i)
    assert history.engines("a:8000") == ("0", "1")
    assert kept(history, name="1")["kv_cache_usage_ratio"] == [0.5] * 3


def test_an_engine_that_vanished_is_remembered_for_an_hour() -> None:
    history = History(60.0)
    history.record(target(seen(), seen(name="gone")), NOW)
    for minute in range(1, 61):
        history.record(target(seen()), NOW + 60.0 * minute)
        assert history.engines("a:8000") == ("0", "gone")
    history.record(target(seen()), NOW + HOUR_SECONDS + 1.0)
    assert history.engines("a:8000") == ("0",)


def test_a_target_that_renames_its_engines_with_every_page_is_not_kept_whole() -> None:
    history = History(5.0)
    for i in range(1000):
        history.record(target(seen(name=f"engine-{i}")), NOW + i)
    names = history.engines("a:8000")
    assert len(names) == 65
    assert "engine-999" in names
    assert "engine-900" not in names


def test_a_clock_that_is_set_back_begins_the_history_anew() -> None:
    columns = kept(told([(0.0, seen(used=10)), (-3600.0, seen(used=20))], 5.0))
    assert columns["timestamp_seconds"] == [NOW - 3600.0]
    assert columns["kv_cache_usage_ratio"] == [0.2]


STEPS = st.lists(
    st.tuples(
        st.floats(0.1, 40.0),  # seconds after the one before
        st.one_of(st.none(), st.tuples(st.integers(0, 100), st.integers(0, 3))),
    ),
    max_size=60,
)


@given(STEPS, st.sampled_from([0.5, 1.0, 5.0, 15.0]), st.floats(0.0, 600.0))
def test_rows_ascend_and_those_since_a_moment_are_the_end_of_all(
    steps: list[tuple[float, tuple[int, int] | None]], interval: float, since: float
) -> None:
    at, preemptions, moments = 0.0, 0, []
    for seconds, what in steps:
        at += seconds
        preemptions += 0 if what is None else what[1]
        moments.append((at, None if what is None else seen(used=what[0], preemptions=preemptions)))
    history = told(moments, interval)
    columns, later = kept(history), kept(history, NOW + since)
    times = columns["timestamp_seconds"]
    assert times == sorted(times)
    assert {len(column) for column in columns.values()} == {len(times)}
    rows = list(zip(*columns.values(), strict=True))
    for number, row in enumerate(rows):
        assert len(kept(history, row[0])["timestamp_seconds"]) == len(rows) - number - 1
    assert list(zip(*later.values(), strict=True)) == [r for r in rows if r[0] > NOW + since]
    known = [count for count in columns["preemptions"] if count is not None]
    assert sum(known) <= preemptions
    peaks = zip(columns["usage_peak_ratio"], columns["kv_cache_usage_ratio"], strict=True)
    assert all(peak >= last for peak, last in peaks if last is not None)


@pytest.mark.parametrize("interval", [0.5, 1.0, 3.0, 4.0, 5.0, 7.0, 30.0])
def test_an_hour_is_at_most_720_rows_however_the_schedule_trembles(interval: float) -> None:
    at, history = 0.0, History(interval)
    assessment = seen(used=1)
    for number in range(int(1.2 * HOUR_SECONDS / interval)):
        history.record(target(assessment), NOW + at)
        at += interval * (1.0 + 0.1 * math.sin(number**2))
    times = kept(history)["timestamp_seconds"]
    assert len(times) <= 720
    assert times[-1] - times[0] > 0.93 * HOUR_SECONDS
    apart = fmean(b - a for a, b in pairwise(times))
    assert apart == pytest.approx(history.step_seconds, rel=0.06)


def exported(a: EngineAssessment) -> dict[str, float | None]:
    """What the history keeps of a moment, as the catalogue exports it."""
    pool, committed, occupancy = a.snapshot.total_blocks or 1, a.demand.committed, a.occupancy
    return {
        "kv_cache_usage_ratio": a.snapshot.kv_cache_usage_ratio,
        "predicted_usage_ratio": None if occupancy is None else occupancy.blocks / pool,
        "predicted_low_ratio": None if occupancy is None else occupancy.low / pool,
        "predicted_high_ratio": None if occupancy is None else occupancy.high / pool,
        "committed_ratio": None if committed is None else committed.admitted_blocks / pool,
        "running_requests": a.snapshot.running,
        "waiting_requests": a.snapshot.waiting,
    }


@pytest.mark.parametrize("recording", ["longdecode", "restart", "dp-ramp"])
def test_the_rows_of_a_recording_are_what_was_exported_then(recording: str) -> None:
    for name, moments in assessed(recording, every=5).items():
        history = History(5.0)
        for t, assessment in moments:
            history.record(target(assessment), NOW + t)
        columns = kept(history, name=name)
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        then = {round(NOW + t, 3): exported(a) for t, a in moments}
        found = [row for row in rows if row["kv_cache_usage_ratio"] is not None]
        assert len(found) > 0.8 * len(moments)
        for row in found:
            values = then[row["timestamp_seconds"]]
            assert {each: row[each] for each in values} == pytest.approx(values, abs=2e-5)
        last = moments[-1][1]
        assert sum(n for n in columns["restarts"] if n is not None) == last.restarts
