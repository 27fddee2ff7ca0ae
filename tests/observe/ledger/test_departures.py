"""Which cohorts those who left belonged to."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.observe.ledger.cohorts import Cohort, CohortBook
from vllm_capacity.observe.ledger.departure import Departure, Queue
from vllm_capacity.observe.ledger.departures import Chance, depart

ONE = Departure(requests=1, arrived_seconds=None, arrived_deviation_seconds=0.4, prompt_tokens=None)


def book(*cohorts: Cohort) -> CohortBook:
    result = CohortBook()
    for cohort in cohorts:
        result.admit(cohort)
    return result


def two_ages() -> CohortBook:
    return book(Cohort(0.0, 2, 200, 60), Cohort(10.0, 2, 1200, 20))


@pytest.mark.parametrize(
    ("known", "from_cohort"),
    [
        ({"arrived_seconds": 0.3}, 0),
        ({"arrived_seconds": 9.8}, 1),
        ({"prompt_tokens": 110.0}, 0),
        ({"prompt_tokens": 590.0}, 1),
        ({"generated_tokens": 31.0, "reach_tokens": 2.0}, 0),
        ({"generated_tokens": 11.0, "reach_tokens": 2.0}, 1),
    ],
)
def test_each_sum_alone_tells_who_left(known: dict[str, float], from_cohort: int) -> None:
    there = two_ages()
    [(one, cohort)] = depart(there, replace(ONE, **known)).taken
    assert cohort is there.cohorts[from_cohort]
    assert (one.requests, cohort.requests) == (1, 1)


def test_those_who_stay_have_what_the_one_who_left_had_not() -> None:
    there = book(Cohort(0.0, 2, 300))
    depart(there, replace(ONE, prompt_tokens=100.0))
    assert there.cohorts[0].prompt_tokens == 200


def test_one_that_hung_up_before_its_first_token_takes_nobody_away() -> None:
    there = two_ages()
    queue = Queue(requests=5, first_seconds=18.0, last_seconds=20.0, prompt_tokens=350.0)
    departure = replace(ONE, arrived_seconds=19.0, prompt_tokens=350.0, queue=queue)
    assert depart(there, departure).taken == []
    assert there.requests == 4


def test_a_client_that_hangs_up_takes_all_its_samples_away() -> None:
    there = book(Cohort(0.0, 4, 400, families=1, sibling_tokens=96), Cohort(9.0, 1, 500))
    [(one, cohort)] = depart(there, replace(ONE, arrived_seconds=0.1, with_siblings=True)).taken
    assert (one.requests, cohort.requests) == (4, 0)


def test_samples_that_finish_together_are_one_client_rather_than_some_of_each() -> None:
    first = Cohort(0.0, 3, 300, 30, families=1, sibling_tokens=96)
    second = Cohort(0.0, 3, 330, 30, families=1, sibling_tokens=96)
    departure = Departure(
        requests=3,
        arrived_seconds=0.0,
        arrived_deviation_seconds=0.4,
        prompt_tokens=330.0,
        cached_tokens=192.0,
        clients=1.0,
    )
    taken = depart(book(first, second), departure).taken
    assert all(cohort is second for _, cohort in taken)
    assert second.requests == 0


def test_a_better_explained_departure_is_better_evidence() -> None:
    fits = depart(two_ages(), replace(ONE, arrived_seconds=0.0, prompt_tokens=100.0))
    does_not = depart(two_ages(), replace(ONE, arrived_seconds=5.0, prompt_tokens=100.0))
    assert fits.evidence > does_not.evidence


def test_by_chance_each_is_taken_as_often_as_it_is_likely() -> None:
    chance, first = Chance(), 0
    for _ in range(300):
        there = book(Cohort(0.0, 3, 300), Cohort(0.0, 1, 100))
        [(_, cohort)] = depart(there, replace(ONE, arrived_seconds=0.0), chance).taken
        first += cohort is there.cohorts[0]
    assert first / 300 == pytest.approx(0.75, abs=0.02)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    leaving=st.integers(1, 30),
    prompts=st.none() | st.floats(1, 1e4),
    by_chance=st.booleans(),
)
def test_no_more_leave_than_are_there(
    sizes: list[int], leaving: int, prompts: float | None, by_chance: bool
) -> None:
    there = book(*(Cohort(float(at), n, 100.0 * n, 10.0 * n) for at, n in enumerate(sizes)))
    departure = replace(ONE, requests=leaving, prompt_tokens=prompts)
    taken = depart(there, departure, Chance() if by_chance else None).taken
    assert sum(one.requests for one, _ in taken) == min(leaving, sum(sizes))
    assert all(cohort.requests >= 0 for cohort in there.cohorts)
    assert there.requests == pytest.approx(sum(sizes) - min(leaving, sum(sizes)))
