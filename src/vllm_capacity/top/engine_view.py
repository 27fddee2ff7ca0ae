"""One engine: the verdict, the pool, its last minutes, its numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from vllm_capacity.top import bars
from vllm_capacity.top.entries import Entry
from vllm_capacity.top.moments import Moment, columns_of
from vllm_capacity.top.pen import DIM, SEVERITY_STYLES, Pen
from vllm_capacity.top.reading import number, records, text, texts
from vllm_capacity.top.words import UNKNOWN, age, count, share

_LABEL = 11  # of a picture, in front of it


def name_of(entry: Entry) -> str:
    """An engine as it is told from others."""
    engine = text(entry.engine, "engine")
    target = text(entry.target, "target") or "a server without a name"
    return target if engine is None else f"{target}, engine {engine}"


def heading(entry: Entry, width: int, pen: Pen) -> list[Text]:
    """The state, which engine it is, and how old that is where it is not new."""
    state = text(entry.engine, "state") or ("no answer" if entry.engine is None else UNKNOWN)
    version = text(entry.target, "vllm_version")
    facts = [
        name_of(entry),
        text(entry.engine, "model_name") or "",
        f"vLLM {version}" if version else "",
    ]
    line = pen.joined(
        pen.text(state.upper(), f"{SEVERITY_STYLES[entry.severity]} reverse"),
        Text(" ", end=""),
        pen.listed([fact for fact in facts if fact], "bold"),
        Text(" ", end=""),
        stale_mark(entry, pen),
    )
    return [pen.fitted(line, width)]


def stale_mark(entry: Entry, pen: Pen) -> Text:
    """The age of numbers that are older than they should be."""
    if entry.engine is None or not entry.is_stale or entry.age_seconds is None:
        return pen.text("")
    return pen.text(f"{age(entry.age_seconds)} old", "bold yellow")


def verdict(entry: Entry, width: int, pen: Pen) -> list[Text]:
    """What there is to say of it, the answer first."""
    if entry.engine is None:
        return pen.wrapped(silence(entry), width, "bold")
    headline = text(entry.engine, "verdict", "headline") or "No verdict"
    parts = texts(entry.engine, "verdict", "parts")
    lines = pen.wrapped(headline, width, "bold")
    return lines + (pen.wrapped("; ".join(parts), width) if parts else [])


def silence(entry: Entry) -> str:
    """Why a server shows no engine."""
    for source in records(entry.target, "sources"):
        if text(source, "source") == "vllm" and text(source, "last_error"):
            since = "" if entry.age_seconds is None else f" for {age(entry.age_seconds)}"
            return f"No answer{since}: {text(source, 'last_error')}"
    return "No answer yet"


def pool(entry: Entry, width: int, pen: Pen) -> list[Text]:
    """What is held, asked for and free as a bar, beneath it what ought to be held, and in words."""
    values = entry.values
    used = _now(entry)
    committed = _of_pool(values, "kv_cache_committed_blocks", "admitted")
    should = _should(entry)
    bound = "predicted_kv_cache_used_blocks_bound"
    low, high = _of_pool(values, bound, "low"), _of_pool(values, bound, "high")
    bar_width = max(1, width - _LABEL)
    glyphs = pen.glyphs
    blocks = number(values, "kv_cache_blocks")
    pieces = (
        (glyphs.parts[-1], bars.USED, f"used {share(used)} of {count(blocks)} blocks"),
        (
            glyphs.committed,
            "bold red" if (committed or 0) > 1 else bars.COMMITTED,
            f"committed {share(committed)}",
        ),
        (glyphs.free, bars.FREE, "free"),
        (
            glyphs.low + glyphs.marker + glyphs.high,
            bars.PREDICTED,
            _predicted(should, low, high),
        ),
    )
    return [
        _labelled("KV cache", bars.pool_bar(bar_width, used, committed, pen), pen),
        _labelled("predicted", bars.marker(bar_width, low, should, high, pen), pen),
        *_legend(pieces, bar_width, pen),
    ]


def _predicted(should: float | None, low: float | None, high: float | None) -> str:
    said = f"predicted {share(should)}"
    if low is None or high is None or share(low) == share(high):
        return said
    return f"{said} ({share(low)} to {share(high)})"


def _of_pool(values: Mapping[str, Any], *path: str) -> float | None:
    blocks, total = number(values, *path), number(values, "kv_cache_blocks")
    return None if blocks is None or not total else blocks / total


def _labelled(label: str, picture: Text, pen: Pen) -> Text:
    return pen.joined(pen.padded(pen.text(label, DIM), _LABEL), picture)


def _legend(pieces: Sequence[tuple[str, str, str]], width: int, pen: Pen) -> list[Text]:
    """What the characters mean, with their numbers, on as many lines as it takes."""
    lines: list[Text] = []
    for mark, style, words in pieces:
        piece = pen.joined(Text(mark, style, end=""), _SPACE, pen.text(words))
        if lines and lines[-1].cell_len + 2 + piece.cell_len <= width:
            lines[-1] = pen.joined(lines[-1], _SPACE, _SPACE, piece)
        else:
            lines.append(piece)
    return [_labelled("", pen.fitted(line, width), pen) for line in lines]


_SPACE = Text(" ", end="")


def last_minutes(
    entry: Entry, moments: Sequence[Moment], width: int, pen: Pen, *, height: int = 1
) -> list[Text]:
    """What was held and ought to have been, one above the other on one scale."""
    if not moments:
        return []
    columns = max(1, width - _LABEL - _TAIL)
    step = max(_STEP_SECONDS, number(entry.document, "scrape_interval_seconds") or _STEP_SECONDS)
    shown = columns_of(moments, columns, step, _end_seconds(entry, moments, step))
    used = [None if m is None else m.used for m in shown]
    predicted = [None if m is None else m.predicted for m in shown]
    marks = "".join(_mark(moment) for moment in shown)
    lines = [
        *_curve("used", _now(entry), bars.curve(used, height, bars.USED, pen), pen),
        *_curve(
            "predicted", _should(entry), bars.curve(predicted, height, bars.PREDICTED, pen), pen
        ),
        *([_labelled("", Text(marks, "red", end=""), pen)] if marks.strip() else []),
        _labelled("", _axis(columns, step, marks), pen),
    ]
    return [pen.fitted(line, width) for line in lines]


_STEP_SECONDS = 5.0
_TAIL = 11  # the value now, behind its curve
_LATE_STEPS = 3.0


def _end_seconds(entry: Entry, moments: Sequence[Moment], step_seconds: float) -> float:
    """The last step while steps come, which is a little ago; else when the document was made."""
    last = moments[-1].at_seconds
    made = number(entry.document, "generated_timestamp_seconds")
    return last if made is None or made - last < _LATE_STEPS * step_seconds else made


def _now(entry: Entry) -> float | None:
    return number(entry.values, "kv_cache_usage_ratio")


def _should(entry: Entry) -> float | None:
    return _of_pool(entry.values, "predicted_kv_cache_used_blocks")


def _curve(label: str, now: float | None, lines: Sequence[Text], pen: Pen) -> list[Text]:
    """A curve with what is true now behind it: its own last step may be some seconds old."""
    *above, last = lines
    foot = pen.joined(_labelled(label, last, pen), _SPACE, pen.text(share(now)))
    return [*(_labelled("", line, pen) for line in above), foot]


_HAPPENED = {"r": "restart", "p": "preemption", "q": "queue"}  # the rarest first


def _mark(moment: Moment | None) -> str:
    """What happened; the rarest where it was more than one thing."""
    happened = frozenset() if moment is None else moment.happened
    return next((mark for mark in _HAPPENED if mark in happened), " ")


def _axis(columns: int, step_seconds: float, marks: str) -> Text:
    words = [f"{mark} {word}" for mark, word in _HAPPENED.items() if mark in marks]
    left = f"{columns * step_seconds / 60:.0f} min ago, 0 to 100 %" + "".join(
        f", {word}" for word in words
    )
    return Text(left + "now".rjust(columns - len(left)), DIM, end="")
