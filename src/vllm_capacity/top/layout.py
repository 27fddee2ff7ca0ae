"""Tables and blocks of lines that fit their place."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from vllm_capacity.top.pen import DIM, Pen

_GAP = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        heading: above it.
        right: whether its cells are aligned right.
        flexible: whether it gives way when the table is too wide; at most one of a table.
        rank: the column of the highest rank is left out first where there is no room.
    """

    heading: str
    right: bool = True
    flexible: bool = False
    rank: int = 0


_LEAST_FLEXIBLE = 26


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int, pen: Pen
) -> list[Text]:
    """A heading and rows, at most that wide; where there is no room columns are left out."""
    shown = list(range(len(columns)))
    widths = [
        max([len(pen.plain(c.heading)), *(row[i].cell_len for row in rows)])
        for i, c in enumerate(columns)
    ]
    flexible = next((i for i, c in enumerate(columns) if c.flexible), None)
    while _least(shown, widths, flexible) > width and any(columns[i].rank for i in shown):
        shown.remove(max(shown, key=lambda i: (columns[i].rank, i)))
    if flexible is not None:
        rest = _least(shown, widths, flexible) - min(widths[flexible], _LEAST_FLEXIBLE)
        widths[flexible] = max(1, min(widths[flexible], width - rest))
    heading = [pen.text(column.heading, DIM) for column in columns]
    return [
        pen.fitted(
            pen.joined(
                *_spaced([pen.padded(row[i], widths[i], right=columns[i].right) for i in shown])
            ),
            width,
        )
        for row in (heading, *rows)
    ]


def _least(shown: Sequence[int], widths: Sequence[int], flexible: int | None) -> int:
    needed = [min(widths[i], _LEAST_FLEXIBLE) if i == flexible else widths[i] for i in shown]
    return sum(needed) + _GAP * (len(needed) - 1)


def _spaced(cells: Sequence[Text]) -> list[Text]:
    gap = Text(" " * _GAP, end="")
    return [piece for cell in cells for piece in (gap, cell)][1:]


def pairs(facts: Sequence[tuple[str, str]], width: int, pen: Pen) -> list[Text]:
    """Labels with their values; in two columns, filled downwards, where both have room."""
    half = -(-len(facts) // 2)
    left, right = _pairs(facts[:half], pen), _pairs(facts[half:], pen)
    widths = [max((line.cell_len for line in block), default=0) for block in (left, right)]
    if sum(widths) + 2 * _GAP > width:
        return [pen.fitted(line, width) for line in _pairs(facts, pen)]
    half_width = (width - _GAP) // 2
    is_even = widths[0] <= half_width and widths[1] <= half_width - _GAP
    return beside(left, right, half_width if is_even else widths[0], pen)


def _pairs(facts: Sequence[tuple[str, str]], pen: Pen) -> list[Text]:
    label_width = max((len(pen.plain(label)) for label, _ in facts), default=0) + _GAP
    return [
        pen.joined(pen.padded(pen.text(label, DIM), label_width), pen.text(value))
        for label, value in facts
    ]


def beside(left: Sequence[Text], right: Sequence[Text], left_width: int, pen: Pen) -> list[Text]:
    """Two blocks of lines next to each other."""
    empty, gap = Text("", end=""), Text(" " * (_GAP + 1), end="")
    return [
        pen.joined(pen.padded(left[i] if i < len(left) else empty, left_width), gap, right[i])
        if i < len(right)
        else left[i]
        for i in range(max(len(left), len(right)))
    ]
