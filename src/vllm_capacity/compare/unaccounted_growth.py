"""How fast memory that nothing accounts for grows, as one asks of a leak."""

from collections.abc import Mapping, Sequence
from statistics import median

from vllm_capacity.compare.gpu_memory import GpuMemoryStack

_WINDOW_SECONDS = 3600.0
_FEWEST, _MOST = 8, 64
#: What changes only when an engine starts, sleeps or wakes.
_STEADY = frozenset({"weights", "kv_cache", "cuda_graph", "non_torch"})


class GrowthWatch:
    """Unaccounted bytes of every GPU over the last hour.

    The slope is the median of all slopes between two readings (Theil and Sen): a step, a spike or
    an outlier among steady readings does not tilt it.
    """

    def __init__(self) -> None:
        self._watched: dict[str, _History] = {}

    def record(self, now: float, stacks: Sequence[GpuMemoryStack]) -> dict[str, float]:
        """Take one reading; bytes a second by stack, without those that are not known yet.

        A stack that is missing in between, as where the driver fails, goes on from where it was.
        """
        slopes = {}
        for stack in stacks:
            if "unaccounted" not in stack.held:
                continue
            slope = self._watched.setdefault(stack.key, _History()).record(now, stack)
            if slope is not None:
                slopes[stack.key] = slope
        self._watched = {
            key: history
            for key, history in self._watched.items()
            if now - history.latest <= _WINDOW_SECONDS
        }
        return slopes


class _History:
    """One stack's remainder over time: at most so many readings, evenly thinned."""

    def __init__(self) -> None:
        self._accounted: Mapping[str, int] = {}
        self._readings: list[tuple[float, int]] = []
        self._spacing = 0.0
        self._slope: float | None = None

    @property
    def latest(self) -> float:
        """When it was last recorded."""
        return self._readings[-1][0]

    def record(self, now: float, stack: GpuMemoryStack) -> float | None:
        accounted = {name: stack.held[name] for name in stack.held if name in _STEADY}
        if accounted != self._accounted:  # a start, a restart, a sleep: another account
            self._accounted, self._readings, self._spacing = accounted, [], 0.0
            self._slope = None
        readings = self._readings
        if readings and now - readings[-1][0] < self._spacing:
            return self._slope
        readings.append((now, stack.held["unaccounted"]))
        while now - readings[0][0] > _WINDOW_SECONDS:
            del readings[0]
        if len(readings) > _MOST:
            del readings[1::2]
            self._spacing = (now - readings[0][0]) / len(readings)
        self._slope = _theil_sen(readings) if len(readings) >= _FEWEST else None
        return self._slope


def _theil_sen(readings: Sequence[tuple[float, int]]) -> float | None:
    slopes = [
        (size - earlier_size) / (at - earlier)
        for i, (at, size) in enumerate(readings)
        for earlier, earlier_size in readings[:i]
        if at > earlier
    ]
    return median(slopes) if slopes else None
