"""The state of an engine in one word, which does not flap.

A worse state is entered when its reason has held for two seconds, and left when the milder
thresholds that keep it have not been met for fifteen. Both are times, not numbers of scrapes.
"""

from dataclasses import dataclass
from typing import Literal

EngineState = Literal["idle", "ok", "tight", "saturated", "thrashing", "unknown"]
ENGINE_STATES: tuple[EngineState, ...] = (
    "idle",
    "ok",
    "tight",
    "saturated",
    "thrashing",
    "unknown",
)
_BY_LEVEL: tuple[EngineState, ...] = ("ok", "tight", "saturated", "thrashing")

_ENTER_SECONDS, _LEAVE_SECONDS = 2.0, 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Pressure:
    """What a state follows from. None is unknown.

    Attributes:
        is_idle: nothing runs and nothing waits.
        usage_ratio: share of the pool in use.
        saturation_ratio: demand over capacity, of the tightest resource.
        committed_ratio: expected demand at the joint peak over the pool.
        queued_requests: waiting for room.
        preempted_requests: within the last minute, and those that wait for their blocks now.
        begun_requests: that got their first token within the last minute.
    """

    is_idle: bool
    usage_ratio: float
    saturation_ratio: float
    committed_ratio: float | None
    queued_requests: int
    preempted_requests: float
    begun_requests: float

    def level(self, *, staying: bool) -> int:
        """How bad it is: 0 ok, 1 tight, 2 saturated, 3 thrashing; ``staying``: to remain so."""
        share = self.preempted_requests / max(1.0, self.begun_requests)
        if self.preempted_requests >= 3 and share >= (0.05 if staying else 0.1):
            return 3
        if self.queued_requests or self.usage_ratio >= (0.85 if staying else 0.95):
            return 2
        committed = self.committed_ratio or 0.0
        if committed >= (0.85 if staying else 1.0):
            return 1
        return int(self.saturation_ratio >= (0.7 if staying else 0.8))


class EngineStateWatch:
    """The state of one engine."""

    def __init__(self) -> None:
        self._level = 0
        self._worse_since: float | None = None
        self._better_since: float | None = None
        self._better_level = 0

    def record(self, now: float, pressure: Pressure | None) -> EngineState:
        """Take one moment into account; None: it could not be told."""
        if pressure is None:
            self.__init__()  # type: ignore[misc]
            return "unknown"
        if pressure.is_idle:
            self.__init__()  # type: ignore[misc]
            return "idle"
        self._worsen(now, pressure.level(staying=False))
        self._improve(now, pressure.level(staying=True))
        return _BY_LEVEL[self._level]

    def _worsen(self, now: float, level: int) -> None:
        if level <= self._level:
            self._worse_since = None
            return
        if self._worse_since is None:
            self._worse_since = now
        if now - self._worse_since >= _ENTER_SECONDS:
            self._level, self._worse_since = level, None

    def _improve(self, now: float, level: int) -> None:
        if level >= self._level:
            self._better_since, self._better_level = None, 0
            return
        if self._better_since is None:
            self._better_since = now
        self._better_level = max(self._better_level, level)
        if now - self._better_since >= _LEAVE_SECONDS:
            self._level = self._better_level
            self._better_since, self._better_level = None, 0
