"""The last minutes of one engine: peaks that a slow scraper would miss, and shares over time."""

from collections import deque
from dataclasses import dataclass

from vllm_capacity.observe.engine_snapshot import EngineSnapshot

PEAK_WINDOWS_SECONDS = {"1m": 60.0, "5m": 300.0}
_LONGEST_SECONDS = max(PEAK_WINDOWS_SECONDS.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class RecentReading:
    """What happened lately.

    Attributes:
        usage_peak_ratio: largest share of the pool in use, by window ("1m", "5m"); a window
            appears once it has a sample.
        preempted_requests_ratio: preemptions for each request that received its first token in the
            last five minutes; None where neither happened or vLLM does not say.
    """

    usage_peak_ratio: dict[str, float]
    preempted_requests_ratio: float | None


class RecentHistory:
    """A bounded history of one engine."""

    def __init__(self) -> None:
        self._past: deque[EngineSnapshot] = deque()

    def record(self, snapshot: EngineSnapshot, *, restarted: bool = False) -> RecentReading:
        """Take one snapshot into account and say what the last minutes look like."""
        if restarted:
            self._past.clear()
        self._past.append(snapshot)
        oldest_kept = snapshot.taken_at_seconds - _LONGEST_SECONDS
        while self._past[0].taken_at_seconds < oldest_kept:
            self._past.popleft()
        return RecentReading(
            usage_peak_ratio=self._peaks(snapshot.taken_at_seconds),
            preempted_requests_ratio=_preempted_ratio(self._past[0], snapshot),
        )

    def _peaks(self, now: float) -> dict[str, float]:
        peaks = {}
        for window, seconds in PEAK_WINDOWS_SECONDS.items():
            usages = [
                past.kv_cache_usage_ratio
                for past in self._past
                if past.taken_at_seconds >= now - seconds and past.kv_cache_usage_ratio is not None
            ]
            if usages:
                peaks[window] = max(usages)
        return peaks


def _preempted_ratio(then: EngineSnapshot, now: EngineSnapshot) -> float | None:
    if (
        then.preemptions is None
        or now.preemptions is None
        or then.first_tokens is None
        or now.first_tokens is None
    ):
        return None
    preempted, begun = now.preemptions - then.preemptions, now.first_tokens - then.first_tokens
    if begun <= 0 and preempted <= 0:
        return None
    # In a thrash nobody may begin: that is the worst share, not an unknown one.
    return preempted / max(1.0, begun)
