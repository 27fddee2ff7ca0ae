"""How much observations differ, as told by a histogram."""

import math
from itertools import accumulate
from statistics import pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.observe.engine_snapshot import Histogram
from vllm_capacity.observe.histogram_spread import standard_deviation

BOUNDS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]


def histogram(observed: list[int]) -> Histogram:
    counts = [sum(low < n <= high for n in observed) for low, high in zip([0, *BOUNDS], BOUNDS)]  # noqa: B905
    cumulated = [*zip(BOUNDS, accumulate(counts), strict=True), (math.inf, len(observed))]
    buckets = tuple((float(bound), float(count)) for bound, count in cumulated)
    return Histogram(count=float(len(observed)), total=float(sum(observed)), buckets=buckets)


@pytest.mark.parametrize(
    "observed",
    [
        list(range(80, 700)),
        list(range(1, 2000)),
        [*range(10, 60)] * 8 + [*range(500, 900)],
    ],
    ids=["even", "wide", "short ones and long ones"],
)
def test_the_standard_deviation_comes_out_of_wide_buckets(observed: list[int]) -> None:
    assert standard_deviation(histogram(observed)) == pytest.approx(pstdev(observed), rel=0.12)


@pytest.mark.parametrize(
    "empty",
    [
        Histogram(count=0.0, total=0.0, buckets=()),
        Histogram(count=5.0, total=50.0, buckets=((math.inf, 5.0),)),
        Histogram(count=0.0, total=0.0, buckets=((10.0, 0.0), (math.inf, 0.0))),
    ],
)
def test_nothing_told_is_unknown(empty: Histogram) -> None:
    assert standard_deviation(empty) is None


@given(st.lists(st.integers(1, 5000), min_size=1))
def test_it_never_exceeds_the_range_of_the_buckets(observed: list[int]) -> None:
    deviation = standard_deviation(histogram(observed))
    assert deviation is not None
    assert 0 <= deviation <= max(BOUNDS)
