"""The screen by its meaning: what a reader finds on it, and what is never on it."""

from __future__ import annotations

import json
import re
from itertools import takewhile
from typing import Any

import pytest
from documents import MADE, NOW, VALUES, document, drawn, engine, source, target
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from vllm_capacity.top.feed import Feed
from vllm_capacity.top.moments import Moment
from vllm_capacity.top.pen import ASCII, UNICODE
from vllm_capacity.top.view import View

GIB = 1 << 30


def said(lines: list[str]) -> str:
    """The screen as one line of words."""
    return " ".join(" ".join(lines).split())


def fact(lines: list[str], label: str) -> str:
    """What stands behind a label."""
    for line in lines:
        found = re.search(rf"(?:^|\s){re.escape(label)}\s{{2,}}(\S+(?: \S+)*)", line)
        if found:
            return found[1]
    raise AssertionError(f"{label!r} is not in {lines}")


# ---- one engine ----


def test_the_answer_stands_above_the_numbers() -> None:
    lines = drawn(document(target(engine())))
    headline = lines.index("Room for 14 more requests of the usual size")
    assert "OK" in lines[headline - 1]
    assert "a:8000, engine 0" in lines[headline - 1]
    assert "as predicted; full in about 9 min" in lines[headline + 1]
    assert headline < next(i for i, line in enumerate(lines) if line.startswith("KV cache  "))


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("running, waiting", "33 of 256, 0"),
        ("room: mean, p95, full", "14, 6, 1"),
        ("blocks used, predicted", "5,079, 5,090"),
        ("tokens used, free", "81,264, 49,792"),
        ("capacity, tokens", "131,056"),
        ("error of capacity", "+3.1 %"),
        ("binding limit", "nothing"),
        ("full in", "9 min"),
        ("saturation", "62 %"),
        ("tokens: mean, p95", "unknown, unknown"),
        ("arrived, completed", "unknown, unknown"),
        ("from prefix cache", "unknown"),
        ("ledger", "anchored"),
    ],
)
def test_each_number_is_the_documents(label: str, shown: str) -> None:
    assert fact(drawn(document(target(engine())), width=70), label) == shown


@pytest.mark.parametrize("missing", sorted(VALUES))
def test_a_number_that_is_not_known_is_never_zero(missing: str) -> None:
    """Of every number at once: what is left out leaves "unknown", and no 0 that was not there."""
    with_it = drawn(document(target(engine())), width=70)
    without = drawn(document(target(engine(**{missing: None}))), width=70)
    zeros = re.compile(r"(?<![\d.,])0(?![\d.,])")
    assert len(zeros.findall(said(without))) <= len(zeros.findall(said(with_it)))


def test_an_engine_of_which_nothing_is_known_says_so_everywhere() -> None:
    bare = {"engine": "0", "values": {}}
    lines = drawn(document(target(bare)), width=70)
    text = said(lines[lines.index(next(line for line in lines if line.startswith("KV cache"))) :])
    assert "?" * 40 in text
    assert "used unknown of unknown blocks" in text
    assert "committed unknown" in text
    assert "predicted unknown" in text
    assert not re.search(r"(?<![\d:])0 (?!to 100)", text)


def test_a_cache_that_does_not_fill_is_told_from_one_of_which_that_is_not_known() -> None:
    does_not = drawn(document(target(engine(time_to_exhaustion_seconds="+Inf"))), width=70)
    unknown = drawn(document(target(engine(time_to_exhaustion_seconds=None))), width=70)
    now = drawn(document(target(engine(time_to_exhaustion_seconds=0.0))), width=70)
    assert [fact(lines, "full in") for lines in (does_not, unknown, now)] == [
        "not filling",
        "unknown",
        "now",
    ]


def test_more_asked_for_than_there_is_is_said_as_it_is() -> None:
    lines = drawn(document(target(engine(kv_cache_committed_blocks={"admitted": 1.5 * 8191}))))
    assert "committed 150 %" in said(lines)


def test_the_mark_of_the_prediction_stands_under_its_share_of_the_bar() -> None:
    values = {"kv_cache_used_blocks": 400, "kv_cache_usage_ratio": 0.4, "kv_cache_blocks": 1000}
    known = engine(**values, predicted_kv_cache_used_blocks=400)
    lines = drawn(document(target(known)), width=111, glyphs=ASCII)
    bar = next(line for line in lines if line.startswith("KV cache  "))
    mark = next(line for line in lines if line.startswith("predicted  "))
    assert bar.rindex("#") + 1 == mark.index("^")


# ---- several engines ----


def hot(label: str, usage: float, **more: Any) -> dict[str, Any]:
    return engine(label, kv_cache_usage_ratio=usage, saturation_ratio=usage, **more)


def rows(lines: list[str]) -> list[str]:
    """Lines of the table."""
    first = next(i for i, line in enumerate(lines) if line.split()[:1] == ["engine"])
    return list(takewhile(re.compile(r"[▶> ]  \S").match, lines[first + 1 :]))


def test_engines_of_one_server_are_neither_added_up_nor_averaged() -> None:
    lines = drawn(document(target(hot("0", 0.97, severity="critical"), hot("1", 0.11))))
    first, second, *_ = rows(lines)
    assert "engine 0" in first
    assert "97 %" in first
    assert "engine 1" in second
    assert "11 %" in second
    assert not any(share in said(lines) for share in ("54 %", "108 %", "1.08"))


def test_the_hottest_stands_first_and_is_shown() -> None:
    lines = drawn(
        document(
            target(hot("0", 0.9), name="a:1"),
            target(hot("0", 0.3, severity="critical"), name="b:2"),
            target(name="c:3", sources=[source(age=None, error="cannot connect")]),
            target(hot("0", 0.95, severity="warning"), name="d:4"),
        )
    )
    assert [re.findall(r"[abcd]:\d", row)[0] for row in rows(lines)[:4]] == [
        *("b:2", "d:4", "c:3", "a:1")
    ]
    assert any("b:2, engine 0" in line and "vLLM 0.32.0" in line for line in lines)


def test_a_silent_server_has_no_numbers_and_says_since_when_and_why() -> None:
    silent = target(sources=[source(age=240.0, error="cannot connect: refused")])
    lines = drawn(document(silent))
    assert "No answer for 4 min: cannot connect: refused" in said(lines)
    assert not re.search(r"\d %", said(lines))


def test_as_many_engines_as_fit_and_the_number_of_the_others() -> None:
    shown = document(*(target(hot("0", i / 100), name=f"host{i:02}:1") for i in range(64)))
    lines = drawn(shown, height=24)
    assert len(lines) <= 24
    listed = [line for line in lines if re.match(r"[▶ ]  host\d\d:1", line)]
    assert 1 < len(listed) < 24
    assert f"and {64 - len(listed)} more" in said(lines)
    assert len([line for line in drawn(shown) if re.match(r"[▶ ]  host\d\d:1", line)]) == 64


def test_the_chosen_engine_is_always_among_those_listed() -> None:
    shown = document(*(target(hot("0", i / 100), name=f"host{i:02}:1") for i in range(64)))
    for i in (0, 20, 63):
        view = View(selected=("", f"host{i:02}:1", "0"))
        lines = drawn(shown, height=24, view=view)
        assert any(line.startswith("▶") and f"host{i:02}:1" in line for line in lines)


@pytest.mark.parametrize(
    ("order", "first"), [("by name", "a:1"), ("least room first", "b:2"), ("hottest first", "c:3")]
)
def test_engines_stand_in_the_order_that_was_chosen(order: str, first: str) -> None:
    shown = document(
        target(hot("0", 0.2, headroom_requests={"observed_mean": 5}), name="a:1"),
        target(hot("0", 0.3, headroom_requests={"observed_mean": 2}), name="b:2"),
        target(hot("0", 0.4, headroom_requests={}), name="c:3"),
    )
    assert first in rows(drawn(shown, view=View(order=order)))[0]


# ---- ages ----


def test_numbers_that_are_old_are_shown_with_their_age_at_every_width() -> None:
    old = document(target(engine(), sources=[source(age=34.0)]), target(engine(), name="b:1"))
    for width in (60, 80, 200):
        lines = drawn(old, width=width)
        (row,) = (r for r in rows(lines) if "a:8000" in r)
        assert row.rstrip().endswith("34 s")
        alone = drawn(document(target(engine(), sources=[source(age=34.0)])), width=width)
        assert "34 s old" in said(alone)


def test_numbers_that_are_new_are_not_called_old() -> None:
    assert " old" not in said(drawn(document(target(engine(), sources=[source(age=4.0)]))))


def test_a_daemon_that_falls_silent_leaves_what_it_said_with_its_age() -> None:
    shown = document(target(engine()))
    feed = Feed(origin="http://m:8935", document=shown, made_seconds=NOW - 40, problem="no answer")
    text = said(drawn([feed]))
    assert "no answer; below is what it said 40 s ago" in text
    assert "42 s old" in text  # its page was 2 s old then


def test_clocks_that_disagree_make_nothing_old() -> None:
    """The document's own times are compared with each other, never with ours."""
    text = said(drawn(document(target(engine())), age=1.0))
    assert "vllm ok 3 s ago" in text
    assert " old" not in text


def test_a_source_that_fails_says_why_and_when_it_last_worked() -> None:
    failing = [source(), source("config", age=90.0, error="gone")]
    assert "config failed: gone (last worked 90 s ago)" in said(
        drawn(document(target(engine(), sources=failing)))
    )


# ---- memory ----

GPU = {
    "gpu": 0,
    "gpu_uuid": "GPU-0",
    "mig_uuid": None,
    "name": "H100",
    "total_bytes": 80 * GIB,
    "used_bytes": 60 * GIB,
    "free_bytes": 20 * GIB,
    "budget_bytes": 72 * GIB,
    "held": {
        "weights": 16 * GIB,
        "kv_cache": 40 * GIB,
        "unaccounted": -GIB,
        "other_processes": 5 * GIB,
    },
    "engines": [["a:8000", "0"]],
}


def test_a_gpu_is_a_stack_against_its_budget() -> None:
    lines = drawn(document(target(engine()), gpus=[GPU]), width=80, glyphs=ASCII)
    bar = next(line for line in lines if set(line) == set("WKO."))
    assert {letter: bar.count(letter) for letter in "WKO."} == {"W": 16, "K": 40, "O": 5, ".": 19}
    assert lines[lines.index(bar) + 1].index("^") == 72
    text = said(lines)
    assert "60.00 GiB used of 80.00 GiB" in text
    assert "U unaccounted -1.00 GiB" in text


def test_gpu_memory_that_is_old_carries_its_age() -> None:
    for seconds, shown in ((4.0, False), (50.0, True)):
        watched = target(engine(), sources=[source(), source("nvml", age=seconds)])
        text = said(drawn(document(watched, gpus=[GPU])))
        assert ("GPU memory as it was 50 s ago" in text) == shown


def test_of_a_gpu_that_tells_no_total_no_stack_is_drawn() -> None:
    lines = drawn(document(target(engine()), gpus=[{**GPU, "total_bytes": None}]), glyphs=ASCII)
    assert not any(set(line) <= set("WKO.") for line in lines if line)
    assert "60.00 GiB used of unknown" in said(lines)


def test_only_the_gpus_of_the_engine_that_is_shown_are_drawn() -> None:
    other = {**GPU, "gpu": 7, "engines": [["b:1", "0"]]}
    text = said(drawn(document(target(engine()), gpus=[GPU, other])))
    assert "GPU 0" in text
    assert "GPU 7" not in text


def test_predicted_terms_stand_beside_reported_ones() -> None:
    terms = [
        {
            "term": "weights",
            "predicted_bytes": 15 * GIB,
            "predicted_low_bytes": 14 * GIB,
            "predicted_high_bytes": 16 * GIB,
            "reported_bytes": 16 * GIB,
            "error_ratio": 0.0625,
        },
        {"term": "cuda_graph", "predicted_bytes": None, "reported_bytes": GIB, "error_ratio": None},
    ]
    lines = drawn(document(target(engine(), memory_terms=terms)))
    weights = next(line for line in lines if line.startswith("weights"))
    graphs = next(line for line in lines if line.startswith("CUDA graphs"))
    assert re.split(r"\s{2,}", weights) == [
        *("weights", "15.00 GiB", "14.00 GiB to 16.00 GiB", "16.00 GiB", "+6.2 %")
    ]
    assert re.split(r"\s{2,}", graphs) == ["CUDA graphs", "?", "1.00 GiB", "?"]


def test_sources_that_disagree_on_an_argument_are_named() -> None:
    arguments = [
        {"argument": "max_num_seqs", "value": "256", "source": "flag", "denied_by": {"log": "128"}}
    ]
    text = said(drawn(document(target(engine(), arguments=arguments))))
    assert "max_num_seqs: flag says 256, log says 128" in text


# ---- whatever comes ----

HOSTILE = "\x1b[2J[red]x[/] \N{RIGHT-TO-LEFT OVERRIDE}\r\n\x9b"


def test_names_full_of_markup_and_control_characters_are_text() -> None:
    named = {**engine(HOSTILE), "model_name": HOSTILE, "state": HOSTILE}
    lines = drawn(document(target(named, name=HOSTILE, sources=[source(error=HOSTILE)])))
    assert all(line.isprintable() for line in lines)
    assert "[red]x[/]" in said(lines)


def full() -> dict[str, Any]:
    terms = [{"term": "weights", "predicted_bytes": 15 * GIB, "reported_bytes": 16 * GIB}]
    return document(
        target(engine(), engine("1", severity="critical", state="saturated"), memory_terms=terms),
        target(name="b:1", sources=[source(age=None, error="cannot connect")]),
        gpus=[{**GPU, "gpu": i, "engines": [["a:8000", "0"], ["a:8000", "1"]]} for i in range(3)],
    )


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to everything within a document."""
    found = [path]
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


PLACES = places(full())[1:]
ODD = st.sampled_from(
    [
        None,
        {},
        [],
        "",
        "text",
        HOSTILE,
        0,
        -1,
        1e300,
        -5.5,
        True,
        "+Inf",
        [[]],
        [None],
        {"": None},
        [{}],
    ]
)


def altered(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The full document with something else at one place; with ``...`` nothing at all there."""
    changed: Any = json.loads(json.dumps(full()))
    *way, last = path
    inner = changed
    for key in way:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    result: dict[str, Any] = changed
    return result


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(PLACES),
    st.just(...) | ODD,
    st.integers(1, 220),
    st.none() | st.integers(1, 70),
    st.sampled_from([UNICODE, ASCII]),
    st.booleans(),
)
def test_whatever_is_missing_or_odd_the_screen_stays_in_its_place(  # noqa: PLR0917
    path: tuple[Any, ...], value: Any, width: int, height: int | None, glyphs: Any, helps: bool
) -> None:
    lines = drawn(altered(path, value), width, height, View(helps=helps), glyphs)
    assert all(cell_len(line) <= width for line in lines)
    assert height is None or len(lines) <= height
    assert all(line.isprintable() for line in lines)
    assert glyphs is UNICODE or all(line.isascii() for line in lines)


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("height", [24, 50])
def test_what_does_not_fit_is_named_and_the_verdict_always_fits(width: int, height: int) -> None:
    lines = drawn(full(), width, height, moments=[Moment(at_seconds=MADE, used=0.5)])
    text = said(lines)
    assert "Room for 14 more requests of the usual size" in text
    names = ["pool", "last minutes", "numbers", "GPU memory", "memory terms", "sources"]
    shown = {
        "pool": "KV cache ",
        "last minutes": "min ago",
        "numbers": "running, waiting",
        "GPU memory": "GPU 0",
        "memory terms": "reported error",
        "sources": "vllm ok",
    }
    left_out = next((line for line in lines if line.startswith("no room for: ")), "")
    for name in names:
        assert (shown[name] in text) != (name in left_out)


@pytest.mark.parametrize("feeds", [[], [Feed(origin="http://x")]])
def test_before_anything_is_known_the_screen_says_so(feeds: list[Feed]) -> None:
    assert "nothing yet" in said(drawn(feeds))


def test_two_daemons_and_servers_watched_here_stand_in_one_list() -> None:
    feeds = [
        Feed(origin=origin, document=document(target(engine())), made_seconds=NOW)
        for origin in ("http://one:8935", "http://two:8935", "")
    ]
    assert len(rows(drawn(feeds))[:3]) == 3
    assert "3 engines" in said(drawn(feeds))


def test_the_times_of_the_test_documents_are_as_the_contract_has_them() -> None:
    assert document()["generated_timestamp_seconds"] == MADE
