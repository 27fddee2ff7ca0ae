"""Pictures of one line: a bar, a marker beneath it, a stack, a curve. Each is exactly as wide."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from vllm_capacity.top.pen import DIM, Glyphs, Pen

USED, COMMITTED, FREE, PREDICTED = "cyan", "yellow", DIM, "bold"


def pool_bar(width: int, used: float | None, committed: float | None, pen: Pen) -> Text:
    """The pool: what is held, what the requests in the engine will need beyond it, what is free.

    Args:
        width: cells.
        used: share of the pool that is held; None if unknown.
        committed: share that will be needed at the joint peak, which may be more than all.
        pen: writes.
    """
    glyphs = pen.glyphs
    if used is None:
        return pen.text("?" * width, DIM)
    filled = _filled(width, used, glyphs)
    asked = _cells(width, committed or 0.0)
    more = max(0, asked - len(filled))
    bar = Text(no_wrap=True, end="")
    bar.append(filled, USED)
    bar.append(glyphs.committed * more, COMMITTED)
    bar.append(glyphs.free * (width - len(filled) - more), FREE)
    return bar


def _cells(width: int, share: float) -> int:
    return math.floor(min(1.0, max(0.0, share)) * width)


def _filled(width: int, share: float, glyphs: Glyphs) -> str:
    """Whole cells and one in part; a sliver is seen, and only what is full looks so."""
    parts = len(glyphs.parts)
    bounded = min(1.0, max(0.0, share))
    steps = math.floor(bounded * width * parts)
    steps = max(steps, 1) if bounded > 0 and width else 0
    whole, part = divmod(steps, parts)
    return glyphs.parts[-1] * whole + (glyphs.parts[part - 1] if part else "")


def marker(
    width: int, low: float | None, value: float | None, high: float | None, pen: Pen
) -> Text:
    """Where the used share ought to be: a mark, and around it the interval if there is one."""
    if value is None:
        return pen.text("")
    glyphs, last = pen.glyphs, max(0, width - 1)
    at = min(last, _cells(width, value))
    cells = [" "] * width
    if low is not None and high is not None:
        left, right = min(at, _cells(width, low)), max(at, min(last, _cells(width, high)))
        cells[left : right + 1] = glyphs.between * (right - left + 1)
        cells[left], cells[right] = glyphs.low, glyphs.high
    if cells:
        cells[at] = glyphs.marker
    return Text("".join(cells), PREDICTED, no_wrap=True, end="")


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A part of a stack.

    Attributes:
        letter: stands for it in the bar; one cell.
        style: its colour.
        size: how much it is, in any unit; not negative.
    """

    letter: str
    style: str
    size: float


def stack_bar(width: int, parts: Sequence[Share], total: float, pen: Pen) -> Text:
    """Parts beside each other, by their letters, and what is left of the total."""
    bar = Text(no_wrap=True, end="")
    drawn = 0.0
    for part in parts:
        drawn += part.size
        ends = _cells(width, drawn / total) if total > 0 else 0
        bar.append(part.letter * max(0, ends - len(bar)), part.style)
    bar.append(pen.glyphs.free * (width - len(bar)), FREE)
    return bar


def curve(shares: Sequence[float | None], height: int, style: str, pen: Pen) -> list[Text]:
    """A curve of shares, 0 to 1, the newest last; where one is unknown nothing is drawn.

    Args:
        shares: one a column.
        height: lines; together they are the whole scale.
        style: its colour.
        pen: writes.
    """
    return [
        Text(
            "".join(_level(share, line, height, pen.glyphs) for share in shares),
            style,
            no_wrap=True,
            end="",
        )
        for line in reversed(range(height))
    ]


def _level(share: float | None, line: int, height: int, glyphs: Glyphs) -> str:
    """One cell of a curve, ``line`` lines above its foot, which is seen at 0 as well."""
    if share is None:
        return glyphs.gap
    levels = len(glyphs.levels)
    steps = max(1, math.ceil(min(1.0, max(0.0, share)) * height * levels)) - line * levels
    return glyphs.levels[min(levels, steps) - 1] if steps > 0 else " "
