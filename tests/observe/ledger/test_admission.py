"""Who came between two scrapes, told apart from three sums over them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.observe.engine_snapshot import Histogram
from vllm_capacity.observe.ledger.admission import Arrivals, tell_apart
from vllm_capacity.observe.ledger.cohorts import Cohort
from vllm_capacity.observe.ledger.prefix_lengths import PrefixLengths
from vllm_capacity.observe.ledger.samples import Samples

BLOCK = 16


def asked_for(*, one: int = 0, four: int = 0) -> Samples:
    """So many clients asked for one sample, and for four."""
    samples = Samples()
    for share in (0, 1):
        count = (one + four) * share
        buckets = ((1.0, one * share), (2.0, one * share), (5.0, count), (10.0, count))
        samples.record(Histogram(count=count, total=(one + 4 * four) * share, buckets=buckets))
    return samples


def found(*lengths: int) -> PrefixLengths:
    """Requests that found so much of their prompts came before."""
    seen = PrefixLengths()
    for length in lengths:
        seen.learn(length)
    return seen


def told_apart(
    requests: int,
    prompts: float,
    cached: float,
    *,
    lengths: PrefixLengths | None = None,
    samples: Samples | None = None,
) -> list[Cohort]:
    return tell_apart(
        Arrivals(0.0, requests, prompts, cached, 200.0),
        lengths=lengths or found(),
        samples=samples or asked_for(one=50),
        block_size=BLOCK,
    )


def test_what_one_request_found_is_what_the_counter_moved_by() -> None:
    [alone] = told_apart(1, 200, 64)
    assert (alone.requests, alone.prompt_tokens, alone.hits) == (1, 200, {64.0: 1.0})


def test_requests_that_found_nothing_are_one_cohort_of_so_many_families() -> None:
    [cohort] = told_apart(3, 700, 0)
    assert (cohort.requests, cohort.families, cohort.cached_tokens) == (3, 3, 0)


def test_a_sum_of_known_lengths_is_what_each_found() -> None:
    [cohort] = told_apart(3, 2000, 1024, lengths=found(512, 512, 0))
    assert cohort.hits == {512.0: 2.0, 0.0: 1.0}


def test_four_samples_of_one_client_are_known_by_what_the_last_three_found() -> None:
    [family] = told_apart(4, 400, 3 * 96, samples=asked_for(one=50, four=10))
    assert (family.requests, family.families, family.sibling_tokens) == (4, 1, 96)
    assert family.prompt_of_one == 100


def test_four_samples_and_somebody_else_are_two_cohorts() -> None:
    cohorts = told_apart(5, 4 * 120 + 333, 3 * 112, samples=asked_for(one=50, four=20))
    family, alone = sorted(cohorts, key=lambda cohort: cohort.families / cohort.requests)
    assert (family.requests, family.families, family.sibling_tokens) == (4, 1, 112)
    assert (alone.requests, alone.families) == (1, 1)
    assert alone.prompt_tokens == pytest.approx(333, abs=4 * BLOCK)


def test_where_nobody_asks_for_samples_the_same_sums_are_a_prefix() -> None:
    [cohort] = told_apart(4, 400, 3 * 96, lengths=found(96, 96, 0))
    assert cohort.families == cohort.requests == 4
    assert cohort.hits == {96.0: 3.0, 0.0: 1.0}


def test_of_many_at_once_each_is_a_mean_one() -> None:
    [cohort] = told_apart(30, 6000, 1000, lengths=found(96))
    assert cohort.requests == 30
    assert cohort.cached_tokens == pytest.approx(1000)


@given(
    lengths=st.lists(st.sampled_from([0, 32, 96, 512]), max_size=8),
    few=st.integers(1, 12),
    beyond=st.integers(1, 300),
    each=st.lists(st.integers(0, 20).map(lambda blocks: blocks * BLOCK), min_size=12, max_size=12),
    samples=st.sampled_from([asked_for(one=50), asked_for(one=30, four=20)]),
)
def test_whoever_they_are_together_they_make_up_the_sums(
    lengths: list[int], few: int, beyond: int, each: list[int], samples: Samples
) -> None:
    cached = sum(each[:few])
    prompts = cached + few * beyond
    cohorts = told_apart(few, prompts, cached, lengths=found(*lengths), samples=samples)
    assert sum(c.requests for c in cohorts) == pytest.approx(few)
    assert sum(c.prompt_tokens for c in cohorts) == pytest.approx(prompts)
    assert sum(c.cached_tokens for c in cohorts) == pytest.approx(cached)
    assert all(1 <= c.families <= c.requests for c in cohorts)
