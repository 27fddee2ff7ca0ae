"""The joint peak of requests, where it can be worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.compare.committed import (
    CommittedDemand,
    Load,
    Requests,
    committed_demand,
    grouped,
)
from vllm_capacity.compare.load_history import Arrivals
from vllm_capacity.compare.output_lengths import OutputLengths

BLOCK = 16
# Every output is of 320 tokens, but for a breath.
ALIKE = OutputLengths((0.0, 319.0, 320.0), (1.0, 1.0, 0.0))
HALF_SHORT = OutputLengths((0.0, 15.0, 16.0, 800.0, 1600.0), (1.0, 1.0, 0.5, 0.5, 0.0))


def demand(
    *requests: Requests,
    arrivals: tuple[Arrivals, ...] = (),
    lengths: OutputLengths = ALIKE,
    speed: float = 10.0,
    pool: float = 1000.0,
) -> CommittedDemand:
    load = Load(
        requests=requests,
        arrivals=arrivals,
        prompt_tokens=160.0,
        tokens_per_second=speed,
        lengths=lengths,
        blocks_held=lambda tokens: tokens / BLOCK,
    )
    return committed_demand(load, pool)


def test_requests_of_one_age_peak_when_they_end() -> None:
    told = demand(Requests(10, 160, 0))
    assert told.admitted_blocks == pytest.approx(10 * (160 + 320) / BLOCK, rel=0.15)
    assert told.blocks == told.admitted_blocks


def test_who_leaves_in_time_makes_room_for_who_stays() -> None:
    together = demand(Requests(10, 160, 0), Requests(10, 160, 0)).admitted_blocks
    one_after_another = demand(Requests(10, 160, 300), Requests(10, 160, 0)).admitted_blocks
    assert one_after_another < 0.8 * together


def test_an_even_chance_of_a_long_output_counts_half() -> None:
    told = demand(Requests(10, 160, 0), lengths=HALF_SHORT)
    assert told.admitted_blocks == pytest.approx(5 * (160 + 800) / BLOCK, rel=0.05)


def test_the_age_reached_tells_the_long_ones_apart() -> None:
    told = demand(Requests(10, 160, 20), lengths=HALF_SHORT)
    assert told.admitted_blocks == pytest.approx(10 * (160 + 800) / BLOCK, rel=0.05)


def test_requests_that_keep_coming_are_counted_for_as_long_as_they_may() -> None:
    # One a second, each there for 32 seconds: 32 at once, of 160 + 160 tokens in the mean.
    lasting = demand(arrivals=(Arrivals(1.0, 1000.0),))
    assert lasting.admitted_blocks == 0
    assert lasting.blocks == pytest.approx(32 * 320 / BLOCK, rel=0.1)
    # Four of them, at the end of their outputs.
    brief = demand(arrivals=(Arrivals(1.0, 4.0),))
    assert brief.blocks == pytest.approx(4 * 480 / BLOCK, rel=0.25)


def test_of_several_accounts_of_arrivals_the_one_that_wants_most_counts() -> None:
    both = demand(arrivals=(Arrivals(1.0, 4.0), Arrivals(0.2, 1000.0)))
    assert both.blocks == max(
        demand(arrivals=(each,)).blocks for each in (Arrivals(1.0, 4.0), Arrivals(0.2, 1000.0))
    )


def test_exhaustion_comes_when_the_pool_is_passed() -> None:
    # 100 blocks now, 6.25 more a second.
    told = demand(Requests(10, 160, 0), pool=150.0)
    assert told.seconds_to_exhaustion == pytest.approx(8.0, rel=0.1)
    assert demand(Requests(10, 160, 0), pool=99.0).seconds_to_exhaustion == 0
    assert demand(Requests(10, 160, 0), pool=400.0).seconds_to_exhaustion is None


def test_an_engine_that_stands_still_does_not_run_full() -> None:
    told = demand(Requests(10, 160, 0), arrivals=(Arrivals(1.0, 9.0),), speed=0.0, pool=150.0)
    assert told.seconds_to_exhaustion is None
    assert told.blocks == told.admitted_blocks > 150


requests = st.builds(Requests, st.floats(0.1, 50), st.floats(1, 2000), st.floats(0, 318))


@given(some=st.lists(requests, max_size=6), more=requests)
def test_more_requests_never_commit_fewer_blocks(some: list[Requests], more: Requests) -> None:
    fewer, all_of_them = demand(*some), demand(*some, more)
    assert all_of_them.admitted_blocks >= fewer.admitted_blocks - 1e-6
    now = sum(r.requests * (r.prompt_tokens + r.generated_tokens) / BLOCK for r in some)
    assert fewer.admitted_blocks >= now - 1e-6
    assert fewer.blocks >= fewer.admitted_blocks


@given(st.lists(requests, max_size=60))
def test_groups_are_few_and_hold_everybody(many: list[Requests]) -> None:
    groups = grouped(many)
    assert len(groups) <= 17
    for tokens in ("prompt_tokens", "generated_tokens"):
        assert sum(g.requests * getattr(g, tokens) for g in groups) == pytest.approx(
            sum(r.requests * getattr(r, tokens) for r in many)
        )
