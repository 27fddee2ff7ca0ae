"""What running requests hold, each shared token once."""

import pytest

from vllm_capacity.observe.ledger.cohorts import Cohort, CohortBook
from vllm_capacity.observe.ledger.residents import FoundPrefixes, residents

BLOCK = 16


def book(*cohorts: Cohort) -> CohortBook:
    result = CohortBook()
    for cohort in cohorts:
        result.admit(cohort)
    return result


def alone(requests: float, prompt: float, *, found: float = 0.0, at: float = 0.0) -> Cohort:
    return Cohort(at, requests, requests * prompt, hits={found: requests})


def test_requests_that_share_nothing_hold_all_their_tokens() -> None:
    there = residents(book(alone(3, 100)), 3, FoundPrefixes(), BLOCK)
    assert (there.tokens, there.shared_tokens) == (300, 0)


def test_a_prefix_that_three_found_is_held_once() -> None:
    there = residents(book(alone(3, 600, found=512)), 3, FoundPrefixes(), BLOCK)
    assert (there.tokens, there.shared_tokens) == (3 * 600 - 2 * 512, 2 * 512)


def test_whoever_computed_a_prefix_holds_it_with_those_who_found_it() -> None:
    prefixes, found = FoundPrefixes(), alone(1, 600, found=512, at=5.0)
    prefixes.find(found.hits, 5.0, 1)
    there = residents(book(alone(1, 600), found), 2, prefixes, BLOCK)
    assert there.shared_tokens == 512


def test_once_all_who_were_there_when_it_was_found_have_left_the_finder_holds_it_alone() -> None:
    prefixes, found = FoundPrefixes(), alone(1, 600, found=512, at=5.0)
    prefixes.find(found.hits, 5.0, 1)
    there = residents(book(found, alone(1, 600, at=9.0)), 2, prefixes, BLOCK)
    assert there.shared_tokens == 0


def test_samples_of_one_client_hold_their_prompt_once() -> None:
    family = Cohort(0.0, 4, 400, 40, families=1, sibling_tokens=96)
    there = residents(book(family), 4, FoundPrefixes(), BLOCK)
    assert (there.tokens, there.shared_tokens) == (440 - 3 * 96, 3 * 96)


def test_the_youngest_hold_nothing_while_fewer_run() -> None:
    there = residents(book(alone(2, 100), alone(2, 900, at=1.0)), 2, FoundPrefixes(), BLOCK)
    assert there.tokens == 200


def test_that_the_youngest_holder_may_have_lost_its_blocks_widens_the_interval() -> None:
    all_run = residents(book(alone(1, 100), alone(1, 900)), 2, FoundPrefixes(), BLOCK)
    one_waits = residents(book(alone(1, 900), alone(1, 900)), 1, FoundPrefixes(), BLOCK)
    assert one_waits.variance == pytest.approx(all_run.variance / 2 + 900**2 / 12)
