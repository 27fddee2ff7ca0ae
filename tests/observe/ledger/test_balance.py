"""One sum, known from counters and from who is in the book, each believed by what it is worth."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.observe.ledger.balance import Balance, Balances
from vllm_capacity.observe.ledger.cohorts import Cohort, CohortBook

tokens = st.integers(0, 10**6).map(float)
doubts = st.floats(0.1, 1e4)


@given(counted=tokens, book=tokens, doubt=doubts)
def test_counters_that_nobody_doubts_are_right(counted: float, book: float, doubt: float) -> None:
    balance = Balance()
    balance.tokens = counted
    balance.doubt_book(doubt)
    assert balance.settle(book) == counted


@given(counted=tokens, book=tokens, doubt=doubts)
def test_a_book_that_nobody_doubts_corrects_them(counted: float, book: float, doubt: float) -> None:
    balance = Balance()
    balance.tokens = counted
    balance.doubt_counters(doubt)
    assert balance.settle(book) == pytest.approx(book)


@given(counted=tokens, book=tokens, one=doubts, other=doubts)
def test_the_estimate_lies_between_the_two_nearer_to_the_surer(
    counted: float, book: float, one: float, other: float
) -> None:
    balance = Balance()
    balance.tokens = counted
    balance.doubt_counters(one)
    balance.doubt_book(other)
    low, high = sorted((counted, book))
    settled = balance.settle(book)
    assert low - 1e-6 <= settled <= high + 1e-6
    assert (abs(settled - counted) <= abs(settled - book) + 1e-6) == (one <= other) or low == high


def test_what_leaves_with_the_requests_is_not_doubted_any_more() -> None:
    balance = Balance()
    balance.tokens = 100.0
    balance.doubt_counters(10)
    balance.doubt_book(1000)
    balance.forget(0.0)
    assert balance.settle(300.0) == pytest.approx(300)


def test_requests_of_whom_nothing_is_known_take_the_mean_share_with_them() -> None:
    book, balances = CohortBook(), Balances()
    cohort = Cohort(0.0, 4, 400, 40, hits={32.0: 4.0})
    book.admit(cohort)
    balances.enter(cohort)
    balances.lose(book, 1)
    left = (balances.prompts.tokens, balances.cached.tokens, balances.generated.tokens)
    assert left == pytest.approx((300, 96, 30))
