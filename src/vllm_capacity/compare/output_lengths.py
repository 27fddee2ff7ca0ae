"""How many tokens a request will generate, from those that finished and those still at it.

A product-limit estimate (Kaplan and Meier, 1958): of the requests that reached a bucket of the
output histogram, the share that went beyond it. Requests in flight count with the age that they
have reached. Without them the estimate would know short requests only, those being the first to
finish, and after a change of workload the old lengths would be believed for minutes.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllm_capacity.observe.engine_snapshot import Histogram

# So many finished requests count; the older ones fade, however they fell between the scrapes.
_REMEMBERED_REQUESTS = 50.0
# What had finished before the watch began is of unknown age: it counts as so many requests.
_UNWATCHED_REQUESTS = 10.0
# Beside them so many requests of which every order of magnitude is as likely, up to the longest.
_PRIOR_REQUESTS = 2.0
# vLLM's buckets are 1, 2 and 5 times powers of ten up to max_model_len
# (``v1/metrics/loggers.py``, ``build_1_2_5_buckets``), so the longest is less than the next one.
_NEXT_BUCKET = 2.5


@dataclass(frozen=True, slots=True)
class OutputLengths:
    """The share of requests that generate more than so many tokens, linear between points."""

    tokens: tuple[float, ...]
    shares: tuple[float, ...]

    @property
    def longest_tokens(self) -> float:
        """No output is longer."""
        return self.tokens[-1]

    def share_beyond(self, tokens: float) -> float:
        """The share of requests with more than ``tokens`` of output, 0 to 1."""
        at = bisect_right(self.tokens, tokens)
        if at >= len(self.tokens):
            return 0.0
        low, high = self.tokens[at - 1], self.tokens[at]
        share = self.shares[at - 1]
        return share + (self.shares[at] - share) * (tokens - low) / (high - low)


class OutputLengthWatch:
    """Output lengths of one engine, the latest ones first of all."""

    def __init__(self) -> None:
        self._count = self._total = self._tokens = 0.0
        self._bounds: tuple[float, ...] = ()
        self._seen: tuple[float, ...] = ()
        self._finished: list[float] = []

    def record(self, outputs: Histogram) -> None:
        """Take the histogram of finished requests' outputs into account."""
        if outputs.count == self._count and self._bounds:
            return
        tokens = outputs.total - self._total
        self._count, self._total = outputs.count, outputs.total
        bounds = tuple(bound for bound, _ in outputs.buckets)
        seen = _each_bucket(outputs)
        if bounds != self._bounds or any(a < b for a, b in zip(seen, self._seen, strict=True)):
            weight = min(1.0, _UNWATCHED_REQUESTS / max(1.0, sum(seen)))
            self._finished = [weight * number for number in seen]
            self._tokens = weight * outputs.total
        else:
            new = [a - b for a, b in zip(seen, self._seen, strict=True)]
            keep = math.exp(-sum(new) / _REMEMBERED_REQUESTS)
            weight = (1.0 - keep) * _REMEMBERED_REQUESTS / max(1.0, sum(new))
            self._finished = [
                keep * a + weight * b for a, b in zip(self._finished, new, strict=True)
            ]
            self._tokens = keep * self._tokens + weight * tokens
        self._bounds, self._seen = bounds, seen

    def lengths(
        self, in_flight: Iterable[tuple[float, float]], longest_tokens: float | None
    ) -> OutputLengths:
        """The lengths to expect now.

        Args:
            in_flight: requests, and the tokens that each of them has generated.
            longest_tokens: what ``max_model_len`` leaves for an output; None if unknown.
        """
        longest = longest_tokens or self._longest()
        ages = list(in_flight)
        tokens, shares, low = [0.0], [1.0], 0.0
        reached, within = sum(self._finished), self._place_within_buckets(longest)
        for bound, ended in zip(self._bounds, self._finished, strict=True):
            if bound >= longest:
                break
            at_risk = reached + _beyond(ages, low, bound)
            expected = _PRIOR_REQUESTS * _scale_free(low, bound, longest)
            before = shares[-1]
            after = before * (at_risk - ended + expected) / (at_risk + _PRIOR_REQUESTS)
            if within < 0.5:  # all end in the first part of the bucket
                tokens.append(low + 2 * within * (bound - low))
                shares.append(after)
            elif within > 0.5:  # in the last part
                tokens.append(low + (2 * within - 1) * (bound - low))
                shares.append(before)
            tokens.append(bound)
            shares.append(after)
            reached -= ended
            low = bound
        return OutputLengths((*tokens, longest), (*shares, 0.0))

    def _place_within_buckets(self, longest: float) -> float:
        """Where in their buckets outputs end, 0 to 1: so that their mean is what the sum says."""
        lows = (0.0, *self._bounds)
        least = sum(n * low for n, low in zip(self._finished, lows, strict=False))
        widths = sum(
            n * (min(bound, longest) - low)
            for n, bound, low in zip(self._finished, self._bounds, lows, strict=False)
            if n > 0 and low < longest
        )
        place = (self._tokens - least) / widths if widths > 0 else 0.5
        return min(0.99, max(0.01, place))

    def _longest(self) -> float:
        finite = [bound for bound in self._bounds if bound < math.inf]
        return _NEXT_BUCKET * finite[-1] if finite else 1.0


def _each_bucket(histogram: Histogram) -> tuple[float, ...]:
    below, counts = 0.0, []
    for _, cumulated in histogram.buckets:
        counts.append(cumulated - below)
        below = cumulated
    return tuple(counts)


def _beyond(ages: Sequence[tuple[float, float]], low: float, high: float) -> float:
    """Requests in flight that are past a bucket, those within it by the part that they passed."""
    width = high - low
    return sum(
        requests * min(1.0, (tokens - low) / width) for requests, tokens in ages if tokens > low
    )


def _scale_free(low: float, high: float, longest: float) -> float:
    """The share of those beyond ``low`` that go beyond ``high``, lengths being log-uniform."""
    if high <= 1:
        return 1.0
    return math.log(longest / high) / math.log(longest / max(1.0, low))
