"""How large requests are: prompt and output lengths of those that finished lately.

Means are exact. A 95th percentile lies in a known bucket of a histogram whose buckets double
(``v1/metrics/loggers.py``, ``build_1_2_5_buckets``), so interpolating within it may be wrong by
half. Where in the bucket it lies follows from the spread, and that from the sums: what finished
between two scrapes has known sums of prompts and of outputs, and how these scatter from scrape to
scrape says how single requests do, prompt and output together.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from vllm_capacity.observe.engine_snapshot import EngineSnapshot, Histogram
from vllm_capacity.observe.sliding_window import Growth, SlidingWindow

WINDOW_SECONDS = 900.0
_SPACING_SECONDS = 30.0
_FEWEST_REQUESTS = 10
# With fewer scrapes between which requests finished, their scatter says little.
_FEWEST_BATCHES = 10
_QUANTILE = 0.95
# A normal distribution's; a uniform one's is 1.56, an exponential one's 2.0, a lognormal one's 1.6.
# Where there are two humps the bucket keeps it honest.
_DEVIATIONS = 1.645


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLengths:
    """Mean and 95th percentile of one part of requests, in tokens; None is unknown."""

    mean_tokens: float
    p95_tokens: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestFootprint:
    """Prompt plus output of finished requests, in tokens.

    Attributes:
        mean_tokens: exact, from the histograms' sums.
        p95_tokens: of prompt and output together. From the scatter of their sums from scrape to
            scrape, between the larger of both parts' percentiles and the two added up; without
            enough scrapes the latter, as if the longest prompts had the longest outputs.
        requests: how many finished requests it rests on.
        window_seconds: how far back they reach; None: since the server started.
        prompt, output: the parts.
    """

    mean_tokens: float
    p95_tokens: float | None
    requests: int
    window_seconds: float | None
    prompt: TokenLengths | None = None
    output: TokenLengths | None = None


class FootprintWindow:
    """Footprints of one engine over a sliding window of ``WINDOW_SECONDS``."""

    def __init__(self) -> None:
        self._window = SlidingWindow(WINDOW_SECONDS, spacing_seconds=_SPACING_SECONDS)
        self._batches = _Batches()

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
            self._window.clear()
            self._batches = _Batches()
        self._batches.record(prompts, outputs)
        self._window.record(
            snapshot.taken_at_seconds,
            (*self._batches.sums, *_numbers(prompts), *_numbers(outputs)),
        )
        growth = self._window.since(WINDOW_SECONDS)
        return _of_window(growth, prompts, outputs) or _of_all(prompts, outputs)


class _Squares(NamedTuple):
    """Sums over batches of requests that finished together: (sum of a batch)² / its requests."""

    batches: float = 0.0
    prompt: float = 0.0
    output: float = 0.0
    total: float = 0.0


class _Batches:
    """What finished between two scrapes, squared and added up.

    For requests that are drawn alike, the mean of ``(sum - requests × mean)² / requests`` over
    batches is their variance, however many requests a batch has: so it does not depend on the
    scrape interval.
    """

    def __init__(self) -> None:
        self.sums = _Squares()
        self._before: tuple[Histogram, Histogram] | None = None

    def record(self, prompts: Histogram, outputs: Histogram) -> None:
        before = self._before
        if before is None or prompts.count < before[0].count:
            self._before = prompts, outputs
            return
        count = prompts.count - before[0].count
        # A page is not written in one instant: the two may differ until the next one.
        if count <= 0 or count != outputs.count - before[1].count:
            return
        prompt, output = prompts.total - before[0].total, outputs.total - before[1].total
        self.sums = _Squares(
            self.sums.batches + 1,
            self.sums.prompt + prompt**2 / count,
            self.sums.output + output**2 / count,
            self.sums.total + (prompt + output) ** 2 / count,
        )
        self._before = prompts, outputs


def quantile_tokens(histogram: Histogram, quantile: float) -> float | None:
    """A quantile by linear interpolation within its bucket, as PromQL's ``histogram_quantile``.

    None without buckets or observations. In the ``+Inf`` bucket: its lower bound.
    """
    rank = quantile * histogram.count
    lower, below = 0.0, 0.0
    for bound, cumulated in histogram.buckets:
        if cumulated >= rank and cumulated > below:
            if bound == math.inf:
                return lower
            return lower + (bound - lower) * (rank - below) / (cumulated - below)
        lower, below = bound, cumulated
    return None


def _of_all(prompts: Histogram, outputs: Histogram) -> RequestFootprint | None:
    if prompts.count < 1 or outputs.count < 1:
        return None
    return _footprint(prompts, outputs, _Squares(), None)


def _of_window(growth: Growth, prompts: Histogram, outputs: Histogram) -> RequestFootprint | None:
    squares, numbers = _Squares(*growth.by[:4]), growth.by[4:]
    cut = 2 + len(prompts.buckets)
    prompts, outputs = _histogram(numbers[:cut], prompts), _histogram(numbers[cut:], outputs)
    if prompts.count < _FEWEST_REQUESTS or outputs.count < 1:
        return None
    return _footprint(prompts, outputs, squares, growth.seconds)


def _footprint(
    prompts: Histogram, outputs: Histogram, squares: _Squares, window_seconds: float | None
) -> RequestFootprint:
    requests, batches = prompts.count, squares.batches
    prompt = _lengths(prompts, _deviation(squares.prompt, prompts.total, requests, batches))
    output = _lengths(outputs, _deviation(squares.output, outputs.total, requests, batches))
    mean = prompt.mean_tokens + output.mean_tokens
    deviation = _deviation(squares.total, prompts.total + outputs.total, requests, batches)
    p95 = None
    if prompt.p95_tokens is not None and output.p95_tokens is not None:
        p95 = prompt.p95_tokens + output.p95_tokens
        if deviation is not None:
            least = max(prompt.p95_tokens, output.p95_tokens)
            p95 = min(p95, max(least, mean + _DEVIATIONS * deviation))
    return RequestFootprint(
        mean_tokens=mean,
        p95_tokens=p95,
        requests=round(requests),
        window_seconds=window_seconds,
        prompt=prompt,
        output=output,
    )


def _deviation(squares: float, total: float, requests: float, batches: float) -> float | None:
    """Standard deviation of single requests, from the scatter of batches of them."""
    if batches < _FEWEST_BATCHES:
        return None
    return math.sqrt(max(0.0, squares - total * total / requests) / (batches - 1))


def _lengths(histogram: Histogram, deviation: float | None) -> TokenLengths:
    mean = histogram.total / histogram.count
    p95 = quantile_tokens(histogram, _QUANTILE)
    if p95 is not None and deviation is not None:
        lower, upper = _bucket(histogram, _QUANTILE)
        p95 = min(upper, max(lower, mean + _DEVIATIONS * deviation))
    return TokenLengths(mean_tokens=mean, p95_tokens=p95)


def _bucket(histogram: Histogram, quantile: float) -> tuple[float, float]:
    """The bounds of the bucket in which a quantile lies."""
    lower = 0.0
    for bound, cumulated in histogram.buckets:
        if cumulated >= quantile * histogram.count:
            return lower, bound
        lower = bound
    return lower, math.inf


def _numbers(histogram: Histogram) -> tuple[float, ...]:
    return (histogram.count, histogram.total, *(count for _, count in histogram.buckets))


def _histogram(numbers: tuple[float, ...], like: Histogram) -> Histogram:
    bounds = (bound for bound, _ in like.buckets)
    return Histogram(
        count=numbers[0], total=numbers[1], buckets=tuple(zip(bounds, numbers[2:], strict=True))
    )
