"""The last minutes of one engine, as ``/api/v1/history`` tells them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_capacity.top.reading import number


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """One engine at one time. None is unknown.

    Attributes:
        at_seconds: Unix time, by the clock of whoever watched.
        used, predicted: shares of the pool that were and ought to have been held.
        happened: what is marked: some of "q" (a queue), "p" (preemptions), "r" (a restart).
    """

    at_seconds: float
    used: float | None = None
    predicted: float | None = None
    happened: frozenset[str] = frozenset()


_MARKS = {"waiting_requests": "q", "preemptions": "p", "restarts": "r"}


def moments_of(history: object) -> list[Moment]:
    """What a history holds, oldest first; none where it is not what it should be."""
    columns = history.get("columns") if isinstance(history, Mapping) else None
    times = columns.get("timestamp_seconds") if isinstance(columns, Mapping) else None
    if not isinstance(columns, Mapping) or not isinstance(times, list | tuple):
        return []
    rows = (_row(columns, i) for i in range(len(times)))
    return [
        _moment(row, at) for row in rows if (at := number(row, "timestamp_seconds")) is not None
    ]


def _row(columns: Mapping[Any, Any], index: int) -> dict[str, Any]:
    known = ((n, c) for n, c in columns.items() if isinstance(c, list | tuple))
    return {name: cells[index] for name, cells in known if index < len(cells)}


def _moment(row: Mapping[str, Any], at_seconds: float) -> Moment:
    return Moment(
        at_seconds=at_seconds,
        used=number(row, "kv_cache_usage_ratio"),
        predicted=number(row, "predicted_usage_ratio"),
        happened=frozenset(mark for name, mark in _MARKS.items() if number(row, name)),
    )


def columns_of(
    moments: Sequence[Moment], columns: int, step_seconds: float, end_seconds: float
) -> list[Moment | None]:
    """Moments by columns of a picture; None where nothing is known.

    Of several moments in one column the last is shown, with what happened in any of them.

    Args:
        moments: oldest first.
        columns: of the picture.
        step_seconds: that one column stands for.
        end_seconds: of the last column.
    """
    found: list[Moment | None] = [None] * columns
    for moment in moments:
        back = int((end_seconds - moment.at_seconds) / step_seconds + 0.5)
        if 0 <= back < columns:
            before = found[columns - 1 - back]
            happened = moment.happened | (before.happened if before else frozenset())
            found[columns - 1 - back] = replace(moment, happened=happened)
    return [_between(found, i) if moment is None else moment for i, moment in enumerate(found)]


def _between(found: Sequence[Moment | None], index: int) -> Moment | None:
    """For a column that fell between two collections, the one before: nothing was missed."""
    if not 0 < index < len(found) - 1 or found[index + 1] is None:
        return None
    before = found[index - 1]
    return None if before is None else replace(before, happened=frozenset())
