"""How much the observations of a histogram differ, from its buckets, count and sum."""

import math
from itertools import pairwise
from typing import NamedTuple

from vllm_capacity.observe.engine_snapshot import Histogram


class _Bucket(NamedTuple):
    low: float
    width: float
    number: float

    def squares(self, mean: float, centre: float, width: float) -> float:
        """Squared distances from ``mean`` of observations spread evenly over ``width``."""
        return self.number * ((centre - mean) ** 2 + width**2 / 12)


def standard_deviation(histogram: Histogram) -> float | None:
    """The standard deviation of what was observed; None where there is nothing to tell it by.

    Observations are taken to be spread evenly over each bucket but the last, which they fill from
    below only so far that the mean, known exactly, comes out.
    """
    buckets = list(_filled(histogram))
    count = sum(bucket.number for bucket in buckets)
    if not count or histogram.count <= 0:
        return None
    mean = histogram.total / histogram.count
    *inner, last = buckets
    known = sum(bucket.number * (bucket.low + bucket.width / 2) for bucket in inner)
    centre = (mean * count - known) / last.number
    centre = min(last.low + last.width / 2, max(last.low, centre))
    squares = last.squares(mean, centre, 2 * (centre - last.low))
    for bucket in inner:
        squares += bucket.squares(mean, bucket.low + bucket.width / 2, bucket.width)
    return math.sqrt(squares / count)


def _filled(histogram: Histogram) -> list[_Bucket]:
    bounds = [(0.0, 0.0), *histogram.buckets]
    return [
        _Bucket(low, high - low, above - below)
        for (low, below), (high, above) in pairwise(bounds)
        if above > below and math.isfinite(high)
    ]
