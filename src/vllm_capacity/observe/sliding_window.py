"""What counters grew by, and how high a gauge went, within the last while; small and bounded.

Rows of numbers lie in one array: eight bytes a number, some kilobytes an engine whatever the scrape
interval. Growth is always told with the time that it really took, so that late and missed scrapes
change nothing but the resolution.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple


class Growth(NamedTuple):
    """What happened within a window.

    Attributes:
        seconds: how long it was; less than asked for while the history is younger.
        by: by how much each number grew; NaN where it was not known then or now.
    """

    seconds: float
    by: tuple[float, ...]


class SlidingWindow:
    """Numbers of one engine over time, kept every ``spacing_seconds``.

    Args:
        longest_seconds: the longest window that will be asked for.
        spacing_seconds: rows are at least so far apart; windows are exact to half of it.
        levels: so many of the last numbers may fall; another that does is a counter that began
            anew, and so does the window.
    """

    def __init__(self, longest_seconds: float, *, spacing_seconds: float, levels: int = 0) -> None:
        self._longest = longest_seconds - spacing_seconds / 2
        self._spacing = spacing_seconds
        self._levels = levels
        self._rows = array("d")
        self._latest: tuple[float, ...] = ()

    def clear(self) -> None:
        """Begin anew: the engine was restarted."""
        self._rows, self._latest = array("d"), ()

    def record(self, now: float, numbers: Sequence[float]) -> None:
        """Take the numbers of one moment; NaN is unknown. Moments must come in their order."""
        row = (now, *numbers)
        if self._began_anew(row):
            self.clear()
        rows, width = self._rows, len(row)
        self._latest = row
        if not rows or now - rows[-width] >= self._spacing:
            rows.extend(row)
        while len(rows) > width and now - rows[width] >= self._longest:
            del rows[:width]

    def since(self, seconds: float) -> Growth:
        """Growth within the last ``seconds``, or since the first row if that is younger."""
        latest, rows, width = self._latest, self._rows, len(self._latest)
        oldest = latest[0] - seconds + self._spacing / 2
        at = max(0, bisect_right(rows[::width], oldest) - 1) * width
        then = rows[at : at + width]
        elapsed, *by = (a - b for a, b in zip(latest, then, strict=True))
        return Growth(elapsed, tuple(by))

    def _began_anew(self, row: tuple[float, ...]) -> bool:
        if len(row) != len(self._latest):
            return True
        counters = len(row) - self._levels
        return any(a < b for a, b in zip(row[:counters], self._latest[:counters], strict=True))


class SlidingPeak:
    """The largest values of a gauge within windows of up to ``longest_seconds``.

    Only values that no later one has reached are kept, oldest and largest first, at most one a
    ``resolution_seconds``.
    """

    def __init__(self, longest_seconds: float, *, resolution_seconds: float = 0.5) -> None:
        self._longest = longest_seconds
        self._resolution = resolution_seconds
        self._times = array("d")
        self._values = array("d")

    def clear(self) -> None:
        """Begin anew."""
        self._times, self._values = array("d"), array("d")

    def record(self, now: float, value: float | None) -> None:
        """Take one value; None is no value, but time passes."""
        times, values = self._times, self._values
        if value is not None:
            while values and values[-1] <= value:
                del times[-1], values[-1]
            if not times or now - times[-1] >= self._resolution:
                times.append(now)
                values.append(value)
        gone = bisect_left(times, now - self._longest)
        del times[:gone], values[:gone]

    def within(self, now: float, seconds: float) -> float | None:
        """The largest of the last ``seconds``; None if there was none."""
        at = bisect_left(self._times, now - seconds)
        return self._values[at] if at < len(self._values) else None
