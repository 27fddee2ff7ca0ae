"""Recordings of a real vLLM and simulated troubles: every alert in time, and silent otherwise."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "alerts_played"))

from judged import Firing, judged
from played import RECORDINGS, SIMULATED, Played, all_played, played, watched
from report import FORESEEN, PAGE, delays, false_alarms, firsts, table, with_table
from scaled_rules import FACTOR, RULES_PATH, scaled
from stack import MOST_SECONDS, heard

from vllm_capacity.predict import EngineArgs

pytestmark = pytest.mark.real

SATURATED = "VLLMKVCacheSaturated"
#: The rule's window: a minute of queue and 45 s, at most two evaluations more.
WINDOW_SECONDS = 120 / FACTOR + 1
LONGEST_LAG_SECONDS = 6.0

Fired = dict[str, list[Firing]]


@pytest.fixture(scope="module")
def plays() -> dict[str, Played]:
    return {play.name: play for play in all_played()}


@pytest.fixture(scope="module")
def fired(plays: dict[str, Played], tmp_path_factory: pytest.TempPathFactory) -> Fired:
    return judged(plays.values(), tmp_path_factory.mktemp("promtool"))


def test_a_preemption_is_foreseen_ten_seconds_ahead_wherever_load_climbs(
    plays: dict[str, Played], fired: Fired
) -> None:
    climbing = [play for play in plays.values() if play.climbs_before_preempting]
    leads = {
        play.name: play.first_preemption - firsts(fired[play.name])[FORESEEN].first
        for play in climbing
        if play.first_preemption is not None
    }
    assert len(leads) >= 4
    assert {name: lead for name, lead in leads.items() if lead < 10} == {}


def test_a_restart_of_a_quiet_server_pages_while_it_is_down_and_nothing_else(fired: Fired) -> None:
    assert {firing.alert for firing in fired["restart"]} == {"VLLMCapacityTargetDown"}


def test_nothing_at_all_fires_on_a_steady_load(fired: Fired) -> None:
    assert fired["steady"] == []


@pytest.mark.parametrize("name", [*RECORDINGS, *SIMULATED])
def test_a_queue_for_blocks_that_lasts_pages_within_one_window(
    plays: dict[str, Played], fired: Fired, name: str
) -> None:
    pages = [firing for firing in fired[name] if firing.alert == SATURATED]
    for queue in plays[name].queues:
        full = plays[name].full.get(queue.engine, ())
        lasts = queue.end - queue.begin > WINDOW_SECONDS
        if lasts and any(queue.begin - 60 <= t <= queue.begin + 1 for t in full):
            told = [page for page in pages if page.engine == queue.engine]
            assert told
            assert min(page.first for page in told) <= queue.begin + WINDOW_SECONDS


@pytest.mark.parametrize("name", [*RECORDINGS, *SIMULATED])
def test_no_page_comes_without_a_symptom(plays: dict[str, Played], fired: Fired, name: str) -> None:
    false = false_alarms(plays[name], fired[name])
    assert [firing for firing in false if firing.severity == "page"] == []


def test_one_hot_engine_among_eight_is_seen_and_named(fired: Fired) -> None:
    found = {(firing.alert, firing.engine) for firing in fired["hot-engine"]}
    assert {engine for alert, engine in found if alert == SATURATED} == {"0"}
    assert ("VLLMEngineImbalance", "") in found


def test_a_full_engine_beside_an_empty_one_pages_for_itself(tmp_path: Path) -> None:
    page = played("dp-ramp").pages[-1].engine or ""
    said = {
        "vllm:kv_cache_usage_perc": {"0": 0.97, "1": 0.11},
        "vllm:num_requests_running": {"0": 20, "1": 2},
        "vllm:num_requests_waiting": {"0": 30, "1": 0},
        "vllm:num_requests_waiting_by_reason": {"0": 30, "1": 0},
    }
    for name, values in said.items():
        for engine, value in values.items():
            series = rf'^({name}\{{engine="{engine}",(?![^}}]*"deferred")[^}}]*\}}) \S+$'
            page = re.sub(series, rf"\1 {value}", page, flags=re.MULTILINE)
    pages = [(float(second), page) for second in range(30)]
    fired = judged([watched("hot", iter(pages), EngineArgs())], tmp_path)["hot"]
    paged = {(f.alert, f.engine): f.first for f in fired if f.severity == "page"}
    assert paged.keys() == {(SATURATED, "0")}
    assert paged[SATURATED, "0"] <= WINDOW_SECONDS


def test_each_trouble_gets_its_own_alert(fired: Fired) -> None:
    assert "VLLMLedgerDrifting" in firsts(fired["leak"])
    assert "VLLMCapacityRegressionAfterRestart" in firsts(fired["smaller-pool"])
    sequences = firsts(fired["too-few-sequences"])
    assert "VLLMQueueWithoutKVPressure" in sequences
    assert SATURATED not in sequences
    only_leaks = [name for name, some in fired.items() if "VLLMLedgerDrifting" in firsts(some)]
    assert only_leaks == ["leak"]


def test_the_table_of_the_runbook_is_what_was_measured(
    plays: dict[str, Played], fired: Fired
) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, table(list(plays.values()), fired)) == page, "run make alert-report"


def test_a_real_alertmanager_calls_the_webhook_when_promtool_says(
    plays: dict[str, Played], fired: Fired, tmp_path: Path
) -> None:
    notified = heard(list(plays.values()), tmp_path)
    early = {name: [f for f in some if f.first < MOST_SECONDS - 60] for name, some in fired.items()}
    lags = [(name, firing.alert, lag) for firing, name, lag in delays(early, notified)]
    assert len(lags) > 40
    late = [row for row in lags if row[2] is None or abs(row[2]) > LONGEST_LAG_SECONDS]
    # An alert that hangs on one sample may fall between the scrapes of a busy machine.
    assert len(late) <= len(lags) / 10, late
    assert {h.alert for h in notified if h.played == "steady"} == set()


def test_durations_are_scaled_and_nothing_else() -> None:
    rules = RULES_PATH.read_text("utf-8")
    assert scaled(rules, 1) != rules  # 2m is written as 120s
    assert scaled(scaled(rules, 1), 1) == scaled(rules, 1)
    assert scaled("  for: 2m\n  expr: x[1h] offset 1d > 1800", 15) == (
        "  for: 8s\n  expr: x[240s] offset 5760s > 1800"
    )
    assert scaled("    for: 30s", 90) == "    for: 333ms"
