"""How fast the cache fills over minutes, told only where two windows agree on it.

Occupancy is a sawtooth: requests grow, and let go of everything at once. A line through part of a
tooth promises exhaustion that never comes. So blocks are averaged over ten seconds, and a trend
counts only where it is seen over two minutes and over ten, each time by a multiple of what the
averages stray from the line: a sawtooth strays by 0.3 of its height, and over more than one tooth
its line rises by less than its height.
"""

import math
from collections import deque
from typing import NamedTuple

_SPACING_SECONDS = 10.0
_SHORT_SECONDS, _LONG_SECONDS = 120.0, 600.0
# So much of the long window must have been seen.
_LEAST_SECONDS = 300.0
_FEWEST_POINTS = 6
# The lines rise by more than so many standard deviations of what strays from them.
_SHORT_DEVIATIONS, _LONG_DEVIATIONS = 2.0, 4.0
# Of the pool, over the long window: less is no trend, however straight.
_LEAST_RISE_RATIO = 0.02


class _Trend(NamedTuple):
    """Blocks a second, by how much they rose over the long window, and what there was lately."""

    slope: float
    rise: float
    level: float


class FillTrend:
    """The blocks of one engine over the last ten minutes."""

    def __init__(self) -> None:
        self._means: deque[tuple[float, float]] = deque()
        self._trend: _Trend | None = None
        self._began = -math.inf
        self._sum = self._count = 0.0

    def clear(self) -> None:
        """Begin anew: the engine was restarted."""
        self.__init__()  # type: ignore[misc]

    def record(self, now: float, blocks: float) -> None:
        """Take one value into account."""
        if now - self._began >= _SPACING_SECONDS:
            if self._count:
                self._means.append((self._began, self._sum / self._count))
                while self._means[0][0] < now - _LONG_SECONDS:
                    self._means.popleft()
                self._trend = _trend(list(self._means))
            self._began, self._sum, self._count = now, 0.0, 0.0
        self._sum += blocks
        self._count += 1

    def seconds_to(self, limit: float) -> float | None:
        """When the trend reaches so many blocks, some hours ahead at most; None without one."""
        trend = self._trend
        if trend is None or trend.rise <= _LEAST_RISE_RATIO * limit:
            return None
        return max(0.0, (limit - trend.level) / trend.slope)


def _trend(means: list[tuple[float, float]]) -> _Trend | None:
    """What two minutes and ten agree on; None if they do not, or too little of them was seen."""
    seen = means[-1][0] - means[0][0] if means else 0.0
    recent = [mean for mean in means if mean[0] >= means[-1][0] - _SHORT_SECONDS]
    if seen < _LEAST_SECONDS or len(recent) < _FEWEST_POINTS:
        return None
    short, strays_short = _line(recent)
    long, strays_long = _line(means)
    if short * _SHORT_SECONDS <= _SHORT_DEVIATIONS * strays_short:
        return None
    if long * seen <= _LONG_DEVIATIONS * strays_long:
        return None
    level = sum(blocks for _, blocks in recent[-3:]) / 3
    return _Trend(min(short, long), long * seen, level)


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Blocks a second of the line through the points, and how far they stray from it."""
    count = len(points)
    mean_time = sum(time for time, _ in points) / count
    mean_blocks = sum(blocks for _, blocks in points) / count
    times = sum((time - mean_time) ** 2 for time, _ in points)
    slope = sum((time - mean_time) * (blocks - mean_blocks) for time, blocks in points) / times
    strays = sum((b - mean_blocks - slope * (t - mean_time)) ** 2 for t, b in points) / count
    return slope, math.sqrt(strays)
