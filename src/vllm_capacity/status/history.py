"""The last hour of every engine, step by step, in bounded memory."""

import math
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.compare.fleet import TargetAssessment

HOUR_SECONDS = 3600.0
LEAST_STEP_SECONDS = 5.0
# Collections come a tenth of their interval early or late.
_EARLY = 0.9
# After three intervals a source is stale; a line across would be invented.
_GAP_STEPS = 3.0
# Engines of one target that are on its page no more; their labels are the target's to choose.
_MOST_GONE = 64
_UNKNOWN = math.nan


class Step(NamedTuple):
    """What is kept of one step; NaN is unknown.

    Attributes:
        kv_cache_usage_ratio: at the step's last collection.
        usage_peak_ratio: the largest at any of its collections.
        predicted_usage_ratio, predicted_low_ratio, predicted_high_ratio: that ought to be in use,
            and the bounds, as shares of the pool.
        committed_ratio: expected at the joint peak of the requests in the engine, of the pool.
        running_requests: at the last collection.
        waiting_requests: most at any of its collections.
        preemptions, restarts: since the step before.
    """

    kv_cache_usage_ratio: float
    usage_peak_ratio: float
    predicted_usage_ratio: float
    predicted_low_ratio: float
    predicted_high_ratio: float
    committed_ratio: float
    running_requests: float
    waiting_requests: float
    preemptions: float
    restarts: float


_NOTHING = Step(*(_UNKNOWN,) * len(Step._fields))
_COUNTS = frozenset({"running_requests", "waiting_requests", "preemptions", "restarts"})
_WIDTH = len(Step._fields)


class History:
    """The last hour of every engine of every target.

    Args:
        interval_seconds: between two collections.

    Attributes:
        step_seconds: that one row stands for: so many intervals that it is at least five.
    """

    def __init__(self, interval_seconds: float) -> None:
        intervals = math.ceil(LEAST_STEP_SECONDS / interval_seconds)
        self.step_seconds = interval_seconds * intervals
        self._interval_seconds = interval_seconds
        self._targets: dict[str, dict[str, _Track]] = {}

    def record(self, target: TargetAssessment, at: float) -> None:
        """Take one collection from a target into account, a failed one too.

        Args:
            target: as it stands after the collection.
            at: Unix time of the collection.
        """
        at = round(at, 3)  # kept as told, so that who asks for what came since gets no row twice
        tracks = self._targets.setdefault(target.target, {})
        vllm = target.health.get("vllm")
        seen = target.engines if vllm is not None and vllm.up else ()
        for assessment in seen:
            name = assessment.snapshot.engine
            if name not in tracks:
                tracks[name] = _Track(self._interval_seconds, self.step_seconds)
            tracks[name].record(at, assessment)
        gone = sorted(tracks.keys() - {a.snapshot.engine for a in seen})
        for name in gone:
            tracks[name].interrupt(at)
        self._forget(tracks, gone, at - HOUR_SECONDS)

    def engines(self, target: str) -> tuple[str, ...]:
        """Engines of a target of which something is kept."""
        return tuple(self._targets.get(target, ()))

    def columns(self, target: str, engine: str, *, since: float) -> dict[str, list[float | None]]:
        """What is kept of one engine after a moment, oldest first; None is unknown.

        A row of None alone is a gap: the engine did not answer from then on.

        Args:
            target: which; nothing is kept of an unknown one.
            engine: which of its engines.
            since: Unix time; rows after it.
        """
        track = self._targets.get(target, {}).get(engine)
        times, rows = ([], []) if track is None else track.after(since)
        columns: dict[str, list[float | None]] = {"timestamp_seconds": list(times)}
        for index, name in enumerate(Step._fields):
            shown = _count if name in _COUNTS else _ratio
            columns[name] = [shown(row[index]) for row in rows]
        return columns

    def _forget(self, tracks: dict[str, "_Track"], gone: list[str], before: float) -> None:
        gone.sort(key=lambda name: tracks[name].known_at, reverse=True)
        for number, name in enumerate(gone):
            if number >= _MOST_GONE or tracks[name].known_at < before:
                del tracks[name]


class _Track:
    """One engine's steps: rows in a ring, and the step that is still open.

    Attributes:
        known_at: Unix time of the last collection that told of the engine.
    """

    def __init__(self, interval_seconds: float, step_seconds: float) -> None:
        self.known_at = -math.inf
        self._interval, self._step = interval_seconds, step_seconds
        self._capacity = math.ceil(HOUR_SECONDS / step_seconds)
        self._begin()

    def _begin(self) -> None:
        self._times, self._values, self._next = array("d"), array("f"), 0
        self._opened_at, self._open = -math.inf, _NOTHING
        self._counted: tuple[float, float] = (_UNKNOWN, _UNKNOWN)

    def record(self, at: float, assessment: EngineAssessment) -> None:
        """Add one collection to the open step, and close that if the next one will be beyond it."""
        if at < max(self.known_at, self._newest):
            self._begin()  # the clock was set back: what it called the past is none
        if at - self.known_at > _GAP_STEPS * self._step:
            self.interrupt(round(self.known_at + self._step, 3))
        step = _step_of(assessment, self._counted)
        self._counted = _counters(assessment)
        if self._is_open:
            self._open = _merged(self._open, step)
        else:
            self._opened_at, self._open = at, step
        self.known_at = at
        if at - self._opened_at + self._interval >= _EARLY * self._step:
            self._close()

    def interrupt(self, at: float) -> None:
        """Mark that nothing is known from this moment on."""
        self._close()
        if self._times and not _is_gap(self._row(self._next - 1)):
            self._append(max(at, self._newest), _NOTHING)

    def after(self, since: float) -> tuple[list[float], list[Sequence[float]]]:
        """Times and rows of the closed steps after a moment, oldest first."""
        order = [*range(self._next, len(self._times)), *range(self._next)]
        found = [i for i in order if self._times[i] > since]
        return [self._times[i] for i in found], [self._row(i) for i in found]

    @property
    def _newest(self) -> float:
        return self._times[self._next - 1] if self._times else -math.inf

    @property
    def _is_open(self) -> bool:
        return self._opened_at > -math.inf

    def _close(self) -> None:
        if self._is_open:
            self._append(self.known_at, self._open)
            self._opened_at = -math.inf

    def _append(self, at: float, step: Step) -> None:
        if len(self._times) < self._capacity:
            self._times.append(at)
            self._values.extend(step)
        else:
            self._times[self._next] = at
            start = self._next * _WIDTH
            self._values[start : start + _WIDTH] = array("f", step)
        self._next = (self._next + 1) % self._capacity

    def _row(self, index: int) -> Sequence[float]:
        start = index % len(self._times) * _WIDTH
        return self._values[start : start + _WIDTH]


def _step_of(a: EngineAssessment, counted: tuple[float, float]) -> Step:
    usage = a.snapshot.kv_cache_usage_ratio
    pool = a.snapshot.total_blocks
    predicted, committed = a.occupancy, a.demand.committed
    preemptions, restarts = _counters(a)
    preemptions_before, restarts_before = counted
    if preemptions < preemptions_before:  # the engine began anew, at none
        preemptions_before = 0.0
    return Step(
        kv_cache_usage_ratio=_or_unknown(usage),
        usage_peak_ratio=_or_unknown(usage),
        predicted_usage_ratio=_share(None if predicted is None else predicted.blocks, pool),
        predicted_low_ratio=_share(None if predicted is None else predicted.low, pool),
        predicted_high_ratio=_share(None if predicted is None else predicted.high, pool),
        committed_ratio=_share(None if committed is None else committed.admitted_blocks, pool),
        running_requests=_or_unknown(a.snapshot.running),
        waiting_requests=_or_unknown(a.snapshot.waiting),
        preemptions=preemptions - preemptions_before,
        restarts=max(0.0, restarts - restarts_before) if restarts_before >= 0 else _UNKNOWN,
    )


def _counters(a: EngineAssessment) -> tuple[float, float]:
    return _or_unknown(a.snapshot.preemptions), float(a.restarts)


def _merged(earlier: Step, later: Step) -> Step:
    """Both as one step; what the later one does not know of a peak or a count, the earlier does."""
    return later._replace(
        usage_peak_ratio=_largest(earlier.usage_peak_ratio, later.usage_peak_ratio),
        waiting_requests=_largest(earlier.waiting_requests, later.waiting_requests),
        preemptions=_sum(earlier.preemptions, later.preemptions),
        restarts=_sum(earlier.restarts, later.restarts),
    )


def _largest(*values: float) -> float:
    return max((value for value in values if not math.isnan(value)), default=_UNKNOWN)


def _sum(*values: float) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) if known else _UNKNOWN


def _share(blocks: float | None, pool: int | None) -> float:
    return _UNKNOWN if blocks is None or not pool else blocks / pool


def _or_unknown(value: float | None) -> float:
    return _UNKNOWN if value is None else float(value)


def _is_gap(row: Sequence[float]) -> bool:
    return all(map(math.isnan, row))


def _ratio(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


def _count(value: float) -> int | None:
    return int(value) if math.isfinite(value) else None
