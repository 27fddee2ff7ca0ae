"""The last minute of one engine's load: arrivals, speed and preemptions, whatever the interval."""

import math
from collections import deque
from typing import NamedTuple

from vllm_capacity.observe.engine_snapshot import EngineSnapshot

_KEPT_SECONDS = 60.0
_SPACING_SECONDS = 0.75
_ARRIVAL_WINDOWS_SECONDS = (2.0, 4.0, 8.0, 16.0)
_SPEED_WINDOW_SECONDS = 16.0
# What has gone on for a while is expected to go on for so many times as long. On recordings, with
# two preemptions are seen coming seconds later; with four, some that do not come.
_GOES_ON = 3.0


class Arrivals(NamedTuple):
    """Requests that keep coming: so many a second, for so long."""

    requests_per_second: float
    seconds: float


class _Moment(NamedTuple):
    taken_at_seconds: float
    arrived: float
    generated_tokens: float
    running_seconds: float
    preemptions: float
    first_tokens: float


class LoadHistory:
    """A bounded history of one engine."""

    def __init__(self) -> None:
        self._past: deque[_Moment] = deque()
        self._running = 0

    def record(
        self, snapshot: EngineSnapshot, *, without_first_token: float, restarted: bool
    ) -> None:
        """Take one snapshot into account.

        Args:
            snapshot: taken after all those before.
            without_first_token: requests that have entered the engine and have none yet.
            restarted: whether the counters began anew.
        """
        past = self._past
        if restarted:
            past.clear()
        now, running = snapshot.taken_at_seconds, snapshot.running or 0
        first_tokens = snapshot.first_tokens or 0.0
        arrived, seconds = first_tokens + without_first_token, 0.0
        if past:
            latest = past[-1]
            arrived = max(arrived, latest.arrived)  # who hung up had arrived as well
            mean_running = (running + self._running) / 2
            seconds = latest.running_seconds + mean_running * (now - latest.taken_at_seconds)
        if len(past) > 1 and past[-1].taken_at_seconds - past[-2].taken_at_seconds < (
            _SPACING_SECONDS
        ):
            past.pop()
        past.append(
            _Moment(
                now,
                arrived,
                snapshot.generation_tokens or 0.0,
                seconds,
                snapshot.preemptions or 0.0,
                first_tokens,
            )
        )
        self._running = running
        while len(past) > 2 and past[1].taken_at_seconds <= now - _KEPT_SECONDS:
            past.popleft()

    def arrivals(self, samples: float) -> list[Arrivals]:
        """What several windows say of the requests to come; empty before a second snapshot.

        Of each the rate that the window shows beyond chance, one standard deviation below the
        count: two requests within two seconds are no stream of requests, twenty are. The samples
        of one request (``n``) come together.
        """
        now, found = self._past[-1], []
        for window in _ARRIVAL_WINDOWS_SECONDS:
            then = self._at(window)
            seconds = now.taken_at_seconds - then.taken_at_seconds
            arrived = now.arrived - then.arrived
            if seconds > 0:
                rate = (arrived - math.sqrt(arrived * samples)) / seconds
                found.append(Arrivals(max(0.0, rate), _GOES_ON * seconds))
        return found

    def tokens_per_second(self) -> float:
        """Tokens that one running request generates in a second; 0 where none ran."""
        now, then = self._past[-1], self._at(_SPEED_WINDOW_SECONDS)
        ran = now.running_seconds - then.running_seconds
        return (now.generated_tokens - then.generated_tokens) / ran if ran > 0 else 0.0

    def preempted_requests(self) -> tuple[float, float]:
        """Preemptions within the last minute, and requests that got their first token in it."""
        now, then = self._past[-1], self._past[0]
        return now.preemptions - then.preemptions, now.first_tokens - then.first_tokens

    def _at(self, seconds_ago: float) -> _Moment:
        """The latest moment that is at least so long ago, else the oldest."""
        latest = self._past[-1].taken_at_seconds
        for moment in reversed(self._past):
            if latest - moment.taken_at_seconds >= seconds_ago - _SPACING_SECONDS:
                return moment
        return self._past[0]
