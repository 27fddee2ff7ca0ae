"""``GET /api/v1/history``: what it answers, how large that is, and what it refuses."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

sys.path.insert(0, str(Path(__file__).parent))

from asked import fleet, get, keys, named, problem, target

from vllm_capacity.compare.fleet import FleetAssessment
from vllm_capacity.status.history import History, Step
from vllm_capacity.web.history_api import history_route

NOW = 1_795_283_600.0
COLUMNS = {"timestamp_seconds", *Step._fields}


def recorded(published: FleetAssessment, steps: int = 3) -> Route:
    """The endpoint after so many collections, the last one now."""
    history = History(5.0)
    for step in range(steps):
        for each in published.targets:
            history.record(each, NOW - 5.0 * (steps - 1 - step))
    return history_route(history, lambda: published, wall=lambda: NOW)


def ask(query: str, published: FleetAssessment | None = None, **headers: str) -> Any:
    published = published or fleet()
    return get(f"/api/v1/history{query}", published, [recorded(published)], **headers)


def test_the_history_of_an_engine_comes_in_columns_of_equal_length() -> None:
    document = ask("?target=a:8000&engine=0").json()
    assert set(document) == {"target", "engine", "step_seconds", "columns"}
    assert (document["target"], document["engine"], document["step_seconds"]) == ("a:8000", "0", 5)
    assert set(document["columns"]) == COLUMNS
    assert {len(column) for column in document["columns"].values()} == {3}
    assert document["columns"]["timestamp_seconds"] == [NOW - 10.0, NOW - 5.0, NOW]
    assert document["columns"]["kv_cache_usage_ratio"] == [round(13 / 349, 5)] * 3


def test_where_there_is_but_one_target_or_engine_it_need_not_be_named() -> None:
    assert ask("").json() == ask("?engine=0").json() == ask("?target=a:8000&engine=0").json()


def test_since_gives_what_came_after_and_is_small() -> None:
    published = fleet()
    route = recorded(published, steps=720)
    whole = get("/api/v1/history", published, [route])
    update = get(f"/api/v1/history?since={NOW - 5.0}", published, [route])
    assert update.json()["columns"]["timestamp_seconds"] == [NOW]
    assert len(update.content) < 500 < len(whole.content) < 60_000
    assert get(f"/api/v1/history?since={NOW}", published, [route]).json()["columns"] == {
        name: [] for name in COLUMNS
    }


def test_nothing_older_than_an_hour_is_told() -> None:
    published, history = fleet(), History(60.0)
    for minute in range(-90, 1):
        history.record(published.targets[0], NOW + 60.0 * minute)
    route = history_route(history, lambda: published, wall=lambda: NOW + 600.0)
    times = get("/api/v1/history", published, [route]).json()["columns"]["timestamp_seconds"]
    assert times[0] == NOW - 49 * 60.0


def test_it_is_compressed_for_those_who_read_that() -> None:
    published = fleet()
    route = recorded(published, steps=100)
    plain = get("/api/v1/history", published, [route], **{"accept-encoding": "identity"})
    packed = get("/api/v1/history", published, [route], **{"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.json() == plain.json()
    assert len(gzip.compress(plain.content)) < len(plain.content) / 4
    assert plain.headers["cache-control"] == packed.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("query", "kind"), [("?target=b:8000", "target"), ("?target=a:8000&engine=9", "engine")]
)
def test_an_unknown_target_or_engine_is_not_found_and_those_there_are_named(
    query: str, kind: str
) -> None:
    found = problem(ask(query), 404)
    assert keys(found) == {kind}
    assert ("a:8000" if kind == "target" else "there are 0") in found["detail"]


def test_which_of_several_must_be_said() -> None:
    several = fleet(named(target("a:8000"), "0", "1"), target("b:8000"))
    assert keys(problem(ask("", several), 400)) == {"target"}
    assert keys(problem(ask("?target=a:8000", several), 400)) == {"engine"}
    assert ask("?target=a:8000&engine=1", several).json()["engine"] == "1"


def test_an_engine_that_vanished_can_still_be_asked_about() -> None:
    published, gone = fleet(named(target(), "new")), fleet(named(target(), "old"))
    history = History(5.0)
    history.record(gone.targets[0], NOW - 5.0)
    history.record(published.targets[0], NOW)
    route = history_route(history, lambda: published, wall=lambda: NOW)
    columns = get("/api/v1/history?engine=old", published, [route]).json()["columns"]
    assert columns["timestamp_seconds"] == [NOW - 5.0, NOW]
    assert columns["running_requests"][1] is None


@pytest.mark.parametrize("since", ["x", "nan", "inf", "-inf", "1e999", "1;2"])
def test_a_since_that_is_no_time_is_refused(since: str) -> None:
    assert keys(problem(ask(f"?since={since}"), 400)) == {"since"}


def test_every_fault_is_told_at_once() -> None:
    found = problem(ask("?since=x&engine=0&engine=1&step=5&target=&unknown=1"), 400)
    assert keys(found) == {"since", "engine", "step", "target", "unknown"}
    assert "there are engine, since, target" in json.dumps(found)


def test_a_query_that_is_longer_than_any_question_is_not_even_read() -> None:
    problem(ask("?" + "a=1&" * 5000), 414)
