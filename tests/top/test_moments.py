"""The last minutes: what was not known stays so, and what happened is not lost."""

from __future__ import annotations

import pytest
from documents import MADE, document, drawn, engine, target

from vllm_capacity.top.moments import Moment, columns_of, moments_of
from vllm_capacity.top.pen import ASCII

COLUMNS = {
    "timestamp_seconds": [MADE - 10, MADE - 5, MADE],
    "kv_cache_usage_ratio": [0.1, None, 0.0],
    "predicted_usage_ratio": [0.2, 0.2],
    "waiting_requests": [3, 0, None],
    "preemptions": [0, 2, 0],
    "restarts": [0, 0, 1],
}


def test_a_history_is_read_row_by_row() -> None:
    first, second, third = moments_of({"columns": COLUMNS})
    assert first == Moment(at_seconds=MADE - 10, used=0.1, predicted=0.2, happened=frozenset("q"))
    assert (second.used, second.predicted, second.happened) == (None, 0.2, {"p"})
    assert (third.used, third.predicted, third.happened) == (0.0, None, {"r"})


@pytest.mark.parametrize(
    "odd",
    [None, {}, [], {"columns": None}, {"columns": {"timestamp_seconds": "x"}}, {"columns": {}}],
)
def test_what_is_no_history_holds_nothing(odd: object) -> None:
    assert moments_of(odd) == []


def test_a_picture_has_a_column_for_each_step_and_gaps_stay_gaps() -> None:
    moments = [Moment(at_seconds=at, used=at / 100) for at in (0.0, 5.0, 20.0, 21.0)]
    shown = columns_of(moments, 6, 5.0, 21.0)
    assert [None if m is None else m.used for m in shown] == [None, 0.0, 0.05, None, None, 0.21]
    assert columns_of([], 3, 5.0, 0.0) == [None] * 3


def test_a_column_between_two_collections_that_came_late_is_no_gap() -> None:
    moments = [Moment(at_seconds=at, used=at / 100, happened=frozenset("q")) for at in (0.0, 9.0)]
    shown = columns_of(moments, 3, 5.0, 9.0)
    assert [None if m is None else (m.used, m.happened) for m in shown] == [
        *((0.0, {"q"}), (0.0, set()), (0.09, {"q"}))
    ]
    silent = [*moments[:1], Moment(at_seconds=5.0), *moments[1:]]
    assert [m and m.used for m in columns_of(silent, 3, 5.0, 9.0)] == [0.0, None, 0.09]


def test_what_happened_within_a_column_is_not_lost() -> None:
    marked = {10.0: "q", 11.0: "p", 12.0: ""}
    moments = [Moment(at_seconds=at, happened=frozenset(m)) for at, m in marked.items()]
    (column,) = columns_of(moments, 1, 5.0, 12.0)
    assert column is not None
    assert column.happened == {"q", "p"}


def minutes(*moments: Moment, height: int | None = None) -> list[str]:
    lines = drawn(document(target(engine())), 100, height, glyphs=ASCII, moments=moments)
    first = next(i for i, line in enumerate(lines) if line.startswith("used  "))
    last = next(i for i, line in enumerate(lines) if "min ago" in line)
    return lines[first : last + 1]


def test_used_and_predicted_stand_above_each_other_on_one_scale() -> None:
    moments = [
        Moment(at_seconds=MADE - 5 * i, used=1.0, predicted=0.5) for i in reversed(range(10))
    ]
    used, predicted, axis = minutes(*moments, height=24)
    assert used.endswith("#" * 10 + " 62 %")
    assert predicted.endswith("-" * 10 + " 62 %")
    assert used.index("#") == predicted.index("-")
    assert axis.endswith("now")


def test_queues_preemptions_and_restarts_are_marked_where_they_were() -> None:
    happened = ["", "q", "qp", "r"]
    moments = [
        Moment(at_seconds=MADE - 5 * (3 - i), used=0.5, happened=frozenset(marks))
        for i, marks in enumerate(happened)
    ]
    *_, marks, axis = minutes(*moments, height=24)
    assert marks.rstrip().endswith(" qpr")
    assert "0 to 100 %, r restart, p preemption, q queue  " in axis


def test_an_engine_that_is_silent_has_a_gap_up_to_now() -> None:
    used, *_ = minutes(Moment(at_seconds=MADE - 60, used=1.0), height=24)
    assert used.endswith("#" + " " * 12 + " 62 %")


def test_without_a_history_there_is_no_picture_of_it() -> None:
    assert not any("min ago" in line for line in drawn(document(target(engine()))))
