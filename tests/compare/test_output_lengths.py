"""Which outputs are to be expected, from those that finished and those still growing."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.compare.output_lengths import OutputLengths, OutputLengthWatch
from vllm_capacity.observe.engine_snapshot import Histogram

BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, float("inf"))


def histogram(*outputs: float) -> Histogram:
    return Histogram(
        count=len(outputs),
        total=sum(outputs),
        buckets=tuple((bound, float(sum(o <= bound for o in outputs))) for bound in BOUNDS),
    )


def lengths(*finished: Histogram, in_flight: tuple[tuple[float, float], ...] = ()) -> OutputLengths:
    watch = OutputLengthWatch()
    for outputs in finished:
        watch.record(outputs)
    return watch.lengths(in_flight, 2000.0)


def test_outputs_are_expected_as_long_as_those_that_finished() -> None:
    expected = lengths(histogram(), histogram(*[150.0] * 40))
    assert expected.share_beyond(100) > 0.9
    assert expected.share_beyond(150) == pytest.approx(0.5, abs=0.1)
    assert expected.share_beyond(200) < 0.1


@pytest.mark.parametrize("tokens", [110, 130, 150, 170, 199])
def test_the_mean_places_them_within_their_bucket(tokens: float) -> None:
    expected = lengths(histogram(), histogram(*[tokens] * 200))
    assert expected.share_beyond(tokens) == pytest.approx(0.5, abs=0.12)
    assert expected.share_beyond(max(100, 2 * tokens - 200) - 2) > 0.85
    assert expected.share_beyond(min(200, 2 * tokens - 100) + 2) < 0.15


def test_requests_older_than_any_that_finished_are_believed() -> None:
    before = histogram(*[150.0] * 1000)
    without = lengths(before)
    aged = lengths(before, in_flight=((20.0, 600.0),))
    assert without.share_beyond(500) < 0.1
    assert aged.share_beyond(500) > 0.6
    assert aged.share_beyond(1000) / aged.share_beyond(600) > 0.3


def test_what_finished_lately_outweighs_what_finished_long_ago() -> None:
    long_ago, lately = [40.0] * 500, [400.0] * 150
    expected = lengths(histogram(), histogram(*long_ago), histogram(*long_ago, *lately))
    assert expected.share_beyond(100) > 0.8


def test_nothing_known_means_that_every_order_of_magnitude_is_as_likely() -> None:
    expected = lengths(histogram())
    shares = [expected.share_beyond(tokens) for tokens in (1, 10, 100, 1000)]
    steps = [a - b for a, b in pairwise(shares)]
    assert steps == pytest.approx([steps[0]] * 3)


def test_counters_that_begin_anew_are_a_new_watch() -> None:
    expected = lengths(histogram(*[400.0] * 50), histogram(*[40.0] * 10))
    assert expected.share_beyond(100) < 0.2


def test_without_a_longest_request_outputs_end_before_the_bucket_that_is_missing() -> None:
    watch = OutputLengthWatch()
    watch.record(histogram(900.0))
    assert watch.lengths((), None).longest_tokens == 2500


@given(
    finished=st.lists(st.floats(1, 1999), max_size=30),
    ages=st.lists(st.tuples(st.floats(0.1, 30), st.floats(0, 1999)), max_size=8),
)
def test_the_share_that_goes_on_falls_from_one_to_nothing(
    finished: list[float], ages: list[tuple[float, float]]
) -> None:
    expected = lengths(histogram(), histogram(*finished), in_flight=tuple(ages))
    shares = [expected.share_beyond(tokens) for tokens in range(0, 2001, 20)]
    assert shares[0] == 1
    assert shares[-1] == 0
    assert all(0 <= b <= a for a, b in pairwise(shares))
