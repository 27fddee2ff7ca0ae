"""All engines: the sentence and the table."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.text import Text

from vllm_capacity.top.engine_view import name_of
from vllm_capacity.top.entries import Entry
from vllm_capacity.top.feed import Feed
from vllm_capacity.top.figures import waiting_requests
from vllm_capacity.top.layout import Column, table
from vllm_capacity.top.pen import DIM, SEVERITY_STYLES, Pen
from vllm_capacity.top.reading import number, seconds_to_full, text
from vllm_capacity.top.words import SHORT_UNKNOWN, age, count, short_share, until

_TROUBLE = "bold yellow"


def sentences(
    feeds: Sequence[Feed], now: float, width: int, pen: Pen, *, with_verdict: bool = True
) -> list[Text]:
    """What each document says of its whole fleet, and which source of documents is silent."""
    return [line for feed in feeds for line in _of_feed(feed, now, width, pen, with_verdict)]


def _of_feed(feed: Feed, now: float, width: int, pen: Pen, with_verdict: bool) -> Iterator[Text]:  # noqa: FBT001
    if feed.problem is not None:
        old = (
            ""
            if feed.document is None
            else f"; below is what it said {age(feed.age_seconds(now))} ago"
        )
        yield from pen.wrapped(f"{feed.problem}{old}", width, _TROUBLE)
    if feed.document is None and feed.problem is None:
        yield pen.fitted(pen.text(f"{feed.origin or 'the servers'}: no answer yet", DIM), width)
    sentence = text(feed.document, "verdict", "sentence")
    if with_verdict and sentence is not None:
        severity = text(feed.document, "verdict", "severity") or "unknown"
        yield from pen.wrapped(sentence, width, SEVERITY_STYLES.get(severity, ""))


_COLUMNS = (
    Column(heading="", right=False),
    Column(heading="engine", right=False, flexible=True),
    Column(heading="model", right=False, rank=6),
    Column(heading="state", right=False),
    Column(heading="used"),
    Column(heading="pred.", rank=2),
    Column(heading="room"),
    Column(heading="run", rank=1),
    Column(heading="wait", rank=1),
    Column(heading="full in", rank=3),
    Column(heading="off by", rank=4),
    Column(heading="age", rank=5),
)
_MODEL_CELLS = 32


def engine_table(
    entries: Sequence[Entry], selected: int, width: int, pen: Pen, *, most_lines: int | None = None
) -> list[Text]:
    """One line an engine, in the order given; around the selected one where not all fit."""
    first, shown = _window(len(entries), selected, most_lines)
    rows = [
        _row(entry, pen, is_selected=first + i == selected)
        for i, entry in enumerate(entries[first : first + shown])
    ]
    lines = table(_columns(entries), rows, width, pen)
    left = len(entries) - shown
    if left:
        lines.append(pen.fitted(pen.text(f"and {left} more", DIM), width))
    return lines


def _columns(entries: Sequence[Entry]) -> Sequence[Column]:
    """Where numbers are old, their age is never left out."""
    if not any(entry.is_stale for entry in entries):
        return _COLUMNS
    return [replace(column, rank=0) if column.heading == "age" else column for column in _COLUMNS]


def _window(total: int, selected: int, most_lines: int | None) -> tuple[int, int]:
    """The first row that is shown, and how many: beside them the heading and "and … more"."""
    if most_lines is None or total + 1 <= most_lines:
        return 0, total
    shown = max(1, most_lines - 2)
    return min(max(0, selected - shown + 1), total - shown), shown


def _row(entry: Entry, pen: Pen, *, is_selected: bool) -> list[Text]:
    values, unknown = entry.values, SHORT_UNKNOWN
    blocks, should = (
        number(values, "kv_cache_blocks"),
        number(values, "predicted_kv_cache_used_blocks"),
    )
    state = text(entry.engine, "state") or ("no answer" if entry.engine is None else unknown)
    old = DIM if entry.is_stale else ""
    cells = (
        count(number(values, "running_requests"), unknown),
        count(waiting_requests(values), unknown),
        until(seconds_to_full(values), unknown),
        _signed_blocks(number(values, "prediction_error_blocks", "kv_cache_used_blocks")),
        unknown if entry.age_seconds is None else age(entry.age_seconds),
    )
    return [
        pen.text(pen.glyphs.selected if is_selected else " "),
        pen.text(name_of(entry), f"bold {old}".strip() if is_selected else old),
        pen.fitted(pen.text(text(entry.engine, "model_name") or unknown, old), _MODEL_CELLS),
        pen.text(state, SEVERITY_STYLES[entry.severity]),
        pen.text(short_share(number(values, "kv_cache_usage_ratio")), old),
        pen.text(short_share(should / blocks if should is not None and blocks else None), old),
        pen.text(count(entry.room, unknown), old),
        *(pen.text(cell, old) for cell in cells),
    ]


def _signed_blocks(blocks: float | None) -> str:
    return SHORT_UNKNOWN if blocks is None else f"{blocks:+,.0f}"
