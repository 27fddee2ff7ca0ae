"""One sum of tokens in flight, known twice: from the counters, and from who is in the book.

Counters keep their balance exactly as long as everybody finishes. Whoever hangs up leaves with
tokens that must be guessed, and that mistake stays in the balance until the engine is idle. The
book forgets it as those leave whom it concerned. So the two are averaged by what each is worth.
"""

from copy import copy
from dataclasses import dataclass, field

from vllm_capacity.observe.ledger.cohorts import SPREAD, Cohort, CohortBook, TokenSum
from vllm_capacity.observe.ledger.counters import LedgerCounters


class Balance:
    """The sum over everybody past the first token, and how far either account may be off.

    Attributes:
        tokens: by the counters, less what those who hung up are thought to have had.
        missing_tokens: of them, what nobody in the book is known to have; negative: too many are.
    """

    def __init__(self) -> None:
        self.tokens = 0.0
        self._counted_variance = 0.0
        self._book_variance = 0.0
        self.missing_tokens = 0.0

    def doubt_counters(self, deviation_tokens: float) -> None:
        """Somebody left who had so many tokens more or less than was thought."""
        self._counted_variance += deviation_tokens * deviation_tokens

    def doubt_book(self, deviation_tokens: float) -> None:
        """The book may have taken out another than the one who left."""
        self._book_variance += deviation_tokens * deviation_tokens

    def leave(self, tokens: float, deviation_tokens: float) -> None:
        """Somebody left who had so many tokens, as far as that can be known."""
        self.tokens -= tokens
        self._counted_variance += deviation_tokens * deviation_tokens

    def forget(self, stay_ratio: float) -> None:
        """Of those in the book that share stays; the others took their errors with them."""
        self._book_variance *= stay_ratio * stay_ratio

    def settle(self, book_tokens: float) -> float:
        """The best estimate of the sum, given what the book adds up to."""
        book_tokens += self.missing_tokens  # what nobody in the book is known to have
        if self._counted_variance > 0:
            both = self._counted_variance + self._book_variance
            share = self._book_variance / both
            self.tokens = book_tokens + share * (self.tokens - book_tokens)
            self._counted_variance = self._book_variance = self._counted_variance * share
        return self.tokens

    def miss(self, book_tokens: float) -> None:
        """Remember how much of the sum nobody in the book is known to have."""
        self.missing_tokens = self.tokens - book_tokens


@dataclass(slots=True)
class Balances:
    """Those of prompts, of the cached part of them, and of generated tokens."""

    prompts: Balance = field(default_factory=Balance)
    cached: Balance = field(default_factory=Balance)
    generated: Balance = field(default_factory=Balance)

    def copy(self) -> "Balances":
        """The same, to go their own way from here."""
        return Balances(copy(self.prompts), copy(self.cached), copy(self.generated))

    def enter(self, cohort: Cohort) -> None:
        """These are there as well."""
        self.prompts.tokens += cohort.prompt_tokens
        self.cached.tokens += cohort.cached_tokens
        self.generated.tokens += cohort.generated_tokens

    def pass_on(self, passed: LedgerCounters, finished_cached_tokens: float | None) -> None:
        """Add what the counters say passed; hang-ups are not among that."""
        self.prompts.tokens += passed.prompt_tokens - passed.finished_prompt_tokens
        self.cached.tokens += passed.cached_tokens - (finished_cached_tokens or 0.0)
        self.generated.tokens += passed.generated_tokens - passed.finished_generated_tokens

    def settle(self, book: CohortBook, now: LedgerCounters) -> None:
        """Bring the book and the balances of prompts together."""
        book.correct_prompts(self.prompts.settle(book.total("prompt_tokens")))
        self.prompts.miss(book.total("prompt_tokens"))
        there = book.total("cached_tokens")
        if now.external_tokens > 0:  # then nobody knows how much of it those who finished had
            self.cached.tokens = there
        self.cached.settle(there)
        self.cached.miss(there)
        book.correct_generated(self.generated.tokens, max(1.0, now.running))

    def forget(self, stay_ratio: float) -> None:
        """Of those in the book that share stays; the others took their errors with them."""
        for balance in (self.prompts, self.cached, self.generated):
            balance.forget(stay_ratio)

    def lose(self, book: CohortBook, requests: float) -> None:
        """Requests left of whom nothing is known."""
        names: tuple[TokenSum, ...] = ("prompt_tokens", "cached_tokens", "generated_tokens")
        before = [book.total(name) for name in names]
        book.lose(requests)
        balances = (self.prompts, self.cached, self.generated)
        for balance, name, there in zip(balances, names, before, strict=True):
            gone = there - book.total(name)
            balance.tokens -= gone
            balance.doubt_counters(SPREAD * gone)
