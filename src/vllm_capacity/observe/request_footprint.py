"""How large requests are: prompt and output lengths of those that finished lately."""

from collections import deque
from dataclasses import dataclass

from vllm_capacity.observe.engine_snapshot import EngineSnapshot, Histogram

WINDOW_SECONDS = 900.0
_SPACING_SECONDS = 30.0
_FEWEST_REQUESTS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestFootprint:
    """Prompt plus output of finished requests, in tokens.

    Attributes:
        mean_tokens: exact, from the histograms' sums.
        p95_tokens: 95th percentiles of prompt and of output added up. The histograms do not say
            which prompt went with which output, so this is an upper bound of the true one.
        requests: how many finished requests it rests on.
        window_seconds: how far back they reach; None: since the server started.
    """

    mean_tokens: float
    p95_tokens: float | None
    requests: int
    window_seconds: float | None


class FootprintWindow:
    """Footprints of one engine over a sliding window of ``WINDOW_SECONDS``."""

    def __init__(self) -> None:
        self._past: deque[tuple[float, Histogram, Histogram]] = deque()

    def record(
        self, snapshot: EngineSnapshot, *, restarted: bool = False
    ) -> RequestFootprint | None:
        """The footprint as of this snapshot; None until a request has finished.

        With fewer than ten requests in the window, all since the server's start count.
        """
        prompts, outputs = snapshot.request_prompt_tokens, snapshot.request_generation_tokens
        if prompts is None or outputs is None:
            return None
        if restarted:
            self._past.clear()
        now = snapshot.taken_at_seconds
        self._remember(now, prompts, outputs)
        then, old_prompts, old_outputs = self._past[0]
        if prompts.count - old_prompts.count >= _FEWEST_REQUESTS:
            return _footprint(
                _difference(prompts, old_prompts), _difference(outputs, old_outputs), now - then
            )
        return _footprint(prompts, outputs, None)

    def _remember(self, now: float, prompts: Histogram, outputs: Histogram) -> None:
        if not self._past or now - self._past[-1][0] >= _SPACING_SECONDS:
            self._past.append((now, prompts, outputs))
        while len(self._past) > 1 and now - self._past[1][0] >= WINDOW_SECONDS:
            self._past.popleft()


def quantile_tokens(histogram: Histogram, quantile: float) -> float | None:
    """A quantile by linear interpolation within its bucket, as PromQL's ``histogram_quantile``.

    None without buckets or observations. In the ``+Inf`` bucket: its lower bound.
    """
    rank = quantile * histogram.count
    lower, below = 0.0, 0.0
    for bound, cumulated in histogram.buckets:
        if cumulated >= rank and cumulated > below:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (rank - below) / (cumulated - below)
        lower, below = bound, cumulated
    return None


def _footprint(
    prompts: Histogram, outputs: Histogram, window_seconds: float | None
) -> RequestFootprint | None:
    if prompts.count < 1 or outputs.count < 1:
        return None
    prompt_p95, output_p95 = quantile_tokens(prompts, 0.95), quantile_tokens(outputs, 0.95)
    known = prompt_p95 is not None and output_p95 is not None
    return RequestFootprint(
        mean_tokens=prompts.total / prompts.count + outputs.total / outputs.count,
        p95_tokens=prompt_p95 + output_p95 if known else None,  # type: ignore[operator]
        requests=round(prompts.count),
        window_seconds=window_seconds,
    )


def _difference(now: Histogram, then: Histogram) -> Histogram:
    old = dict(then.buckets)
    return Histogram(
        count=now.count - then.count,
        total=now.total - then.total,
        buckets=tuple((bound, count - old.get(bound, 0.0)) for bound, count in now.buckets),
    )
