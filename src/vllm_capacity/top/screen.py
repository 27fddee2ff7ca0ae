"""The whole screen: what is most asked for stands first, and what does not fit is named."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from vllm_capacity.top import engine_view, fleet_view, health_view, memory_view
from vllm_capacity.top.entries import Entry, entries_of
from vllm_capacity.top.feed import Feed
from vllm_capacity.top.figures import figures
from vllm_capacity.top.layout import beside
from vllm_capacity.top.moments import Moment
from vllm_capacity.top.pen import DIM, Pen
from vllm_capacity.top.reading import text
from vllm_capacity.top.view import KEYS, View, index_of
from vllm_capacity.top.words import age

_TWO_COLUMNS_FROM = 150
_TALL = 36


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where the screen is drawn.

    Attributes:
        width: cells.
        height: lines; None: as many as it takes.
        keys: whether somebody can press one.
    """

    width: int
    height: int | None = None
    keys: bool = False

    @property
    def widths(self) -> tuple[int, int]:
        """Of what is said of an engine, and of its memory and sources, which may stand beside."""
        if not self.has_two_columns:
            return self.width, self.width
        left = self.width // 2
        return left, self.width - left - 3

    @property
    def has_two_columns(self) -> bool:
        """Whether there is room for both beside each other."""
        return self.width >= _TWO_COLUMNS_FROM


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """Lines that are shown together or not at all.

    Attributes:
        name: what is missing where they are not.
        lines: they.
        rank: 0 is always shown; the highest is left out first.
        on_right: whether they stand in the second column, where there is one.
    """

    name: str = ""
    lines: list[Text]
    rank: int = 0
    on_right: bool = False


def screen(
    feeds: Sequence[Feed],
    moments: Sequence[Moment],
    view: View,
    *,
    now: float,
    place: Place,
    pen: Pen,
) -> list[Text]:
    """The lines of the screen, none wider than the place and no more than it holds.

    Args:
        feeds: every source of documents.
        moments: the last minutes of the engine that is shown.
        view: what the reader chose.
        now: by the clock of the feeds.
        place: where it is drawn.
        pen: writes.
    """
    drawing = _Drawing(feeds, moments, view, now, place, pen)
    lines = drawing.help() if view.helps else drawing.engines()
    shown = [pen.fitted(line, place.width) for line in lines[: place.height]]
    for line in shown:
        line.rstrip()
    return shown


class _Drawing:
    def __init__(  # noqa: PLR0917 (as ``screen`` was asked)
        self,
        feeds: Sequence[Feed],
        moments: Sequence[Moment],
        view: View,
        now: float,
        place: Place,
        pen: Pen,
    ) -> None:
        self._feeds, self._moments, self._view = feeds, moments, view
        self._now, self._place, self._pen = now, place, pen
        self._entries = entries_of(feeds, now, view.order)
        self._at = index_of(view, self._entries)

    def help(self) -> list[Text]:
        """What each key does, in place of the engines."""
        pen = self._pen
        keys = [
            pen.joined(pen.padded(pen.text(key, "bold"), 12), pen.text(words))
            for key, words in KEYS.items()
        ]
        return [*self._title(), pen.text(""), *keys]

    def engines(self) -> list[Text]:
        """The fleet, and the engine that was chosen."""
        if not self._entries:
            return self._title()
        blocks = [block for block in self._blocks(self._entries[self._at]) if block.lines]
        columns = [blocks]
        if self._place.has_two_columns:
            columns = [[b for b in blocks if b.on_right == right] for right in (False, True)]
        if self._place.height is None:
            return self._unbounded(columns)
        return self._within(columns, self._place.height)

    def _title(self) -> list[Text]:
        feeds, now = self._feeds, self._now
        versions = {v for feed in feeds if (v := text(feed.document, "version"))}
        ages = [feed.age_seconds(now) for feed in feeds if feed.document is not None]
        engines = sum(entry.engine is not None for entry in self._entries)
        facts = [
            f"vllm-capacity {', '.join(sorted(versions))}".strip(),
            f"{engines} engine{'s' * (engines != 1)}",
            f"updated {age(max(ages))} ago" if ages else "nothing yet",
            self._view.order if engines > 1 else "",
            "? keys, q quit" if self._place.keys else "",
            *(f"daemon {feed.origin}" for feed in feeds if feed.origin),
        ]
        line = self._pen.listed([fact for fact in facts if fact], DIM)
        several = len(self._entries) != 1
        width = self._place.width
        return [line, *fleet_view.sentences(feeds, now, width, self._pen, with_verdict=several)]

    def _blocks(self, entry: Entry) -> Iterator[_Block]:
        pen, (left, right) = self._pen, self._place.widths
        heading = engine_view.heading(entry, left, pen) + engine_view.verdict(entry, left, pen)
        yield _Block(name="verdict", lines=heading)
        if entry.engine is not None:
            yield _Block(name="pool", lines=engine_view.pool(entry, left, pen), rank=1)
            yield _Block(name="last minutes", lines=self._minutes(entry, left), rank=3)
            yield _Block(name="numbers", lines=figures(entry.values, left, pen), rank=2)
        gpus = memory_view.gpu_stacks(entry, right, pen)
        yield _Block(name="GPU memory", lines=gpus, rank=5, on_right=True)
        terms = memory_view.memory_terms(entry, right, pen)
        yield _Block(name="memory terms", lines=terms, rank=6, on_right=True)
        health = health_view.sources(self._feeds, entry, self._now, right, pen)
        yield _Block(name="sources", lines=health, rank=4, on_right=True)

    def _minutes(self, entry: Entry, width: int) -> list[Text]:
        height = self._place.height
        lines = 2 if height is None or height >= _TALL else 1
        return engine_view.last_minutes(entry, self._moments, width, self._pen, height=lines)

    def _unbounded(self, columns: Sequence[Sequence[_Block]]) -> list[Text]:
        body = self._beside([_stacked(column, spaced=True) for column in columns])
        parts = (self._title(), self._table(None), body)
        return _stacked([_Block(lines=lines) for lines in parts], spaced=True)

    def _within(self, columns: Sequence[Sequence[_Block]], height: int) -> list[Text]:
        """As much as fits: the table shrinks first, then whole blocks give way."""
        title = self._title()
        room = height - len(title)
        rows = 0 if len(self._entries) == 1 else len(self._entries) + 1
        room_for_blocks = room - min(rows, max(4, room // 3))
        chosen = [_chosen(column, room_for_blocks) for column in columns]
        if chosen != list(columns):
            room, room_for_blocks = room - 1, room_for_blocks - 1
            chosen = [_chosen(column, room_for_blocks) for column in columns]
        left_out = [
            b.name
            for column, kept in zip(columns, chosen, strict=True)
            for b in column
            if b not in kept
        ]
        body = self._beside(
            [
                _stacked(kept, spaced=sum(len(b.lines) + 1 for b in kept) <= room_for_blocks)
                for kept in chosen
            ]
        )
        note = [self._pen.text(f"no room for: {', '.join(left_out)}", DIM)] if left_out else []
        return [*title, *self._table(room - len(body)), *body, *note]

    def _table(self, most_lines: int | None) -> list[Text]:
        if len(self._entries) == 1:
            return []
        return fleet_view.engine_table(
            self._entries, self._at, self._place.width, self._pen, most_lines=most_lines
        )

    def _beside(self, stacks: Sequence[list[Text]]) -> list[Text]:
        if len(stacks) == 1:
            return stacks[0]
        return beside(stacks[0], stacks[1], self._place.widths[0], self._pen)


def _chosen(blocks: Sequence[_Block], room: int) -> list[_Block]:
    """What fits, the most asked for first, in the order of the screen."""
    taken = []
    for block in sorted(blocks, key=lambda b: b.rank):
        if block.rank == 0 or len(block.lines) <= room:
            taken.append(block)
            room -= len(block.lines)
    return [block for block in blocks if block in taken]


def _stacked(blocks: Sequence[_Block], *, spaced: bool) -> list[Text]:
    lines: list[Text] = []
    for block in blocks:
        if spaced and lines and block.lines:
            lines.append(Text("", end=""))
        lines += block.lines
    return lines
