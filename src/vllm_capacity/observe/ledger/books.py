"""Several accounts of who is there, where one alone may be wrong.

Who hung up, and which requests are samples of one client, is a guess, and a wrong one shows later:
somebody finishes whom the book no longer has. So several books are kept that guess differently, and
those that explain what comes are believed (a particle filter: Gordon, Salmond and Smith 1993).
"""

import math

from vllm_capacity.observe.ledger.book import LedgerBook
from vllm_capacity.observe.ledger.cohorts import Cohort, CohortBook
from vllm_capacity.observe.ledger.counters import LedgerCounters
from vllm_capacity.observe.ledger.departures import Chance
from vllm_capacity.observe.ledger.families import Families
from vllm_capacity.observe.ledger.hang_ups import HangUps
from vllm_capacity.observe.ledger.residents import Residents
from vllm_capacity.observe.ledger.samples import Samples

_BOOKS = 3
# Where books have to guess, none may be right by this much.
_DOUBT = 0.01
# A book that explains one scrape that much worse than another may still be right in the end.
_WORST = 8.0


class LedgerBooks:
    """The accounts of one engine; a single one as long as nothing has to be guessed."""

    def __init__(self, samples: Samples) -> None:
        self._families = Families(samples)
        self._books = [LedgerBook(self._families)]
        self._chance = Chance()

    @property
    def likeliest(self) -> LedgerBook:
        """The account that explains best what was seen."""
        return max(self._books, key=lambda book: book.evidence)

    @property
    def cohorts(self) -> CohortBook:
        """Who is past the first token, by the likeliest account."""
        return self.likeliest.cohorts

    def clear(self) -> None:
        """Nobody is there."""
        self._books = self._books[:1]
        self._books[0].clear()

    def begin(self, cohort: Cohort) -> None:
        """These are there, as far as anybody knows."""
        self._books[0].begin(cohort)

    def follow(
        self,
        before: LedgerCounters,
        now: LedgerCounters,
        hang_ups: HangUps,
        *,
        pending_tokens: float,
        block_size: int | None,
    ) -> None:
        """Take into account what happened between two scrapes.

        Args:
            before: the earlier scrape.
            now: the later one.
            hang_ups: clients that hung up meanwhile, as the HTTP server tells.
            pending_tokens: prompts admitted that have no first token yet.
            block_size: tokens of a block, if known.
        """
        families = self._families
        families.block_size = block_size
        families.mean_prompt_tokens = now.prompt_tokens / max(1.0, now.first_tokens)
        siblings = not families.samples.are_alone and now.cached_tokens > before.cached_tokens
        if len(self._books) == 1 and (hang_ups.requests or siblings):
            self._spread()
        for book in self._books:
            book.follow(before, now, hang_ups, pending_tokens=pending_tokens)
        if len(self._books) > 1:
            self._select()

    def residents(self, running: int) -> Residents:
        """What so many running requests hold, by all accounts."""
        each, shares = [book.residents(running) for book in self._books], self._shares()
        mean = sum(share * one.tokens for share, one in zip(shares, each, strict=True))
        variance = sum(
            share * (one.variance + (one.tokens - mean) ** 2)
            for share, one in zip(shares, each, strict=True)
        )
        if len(self._books) > 1:
            variance += (_DOUBT * mean) ** 2
        shared = sum(share * one.shared_tokens for share, one in zip(shares, each, strict=True))
        return Residents(mean, variance, shared)

    @property
    def is_guess(self) -> bool:
        """Whether somebody's share was guessed."""
        return len(self._books) > 1 and not all(c.is_told for c in self.cohorts.cohorts)

    def _shares(self) -> list[float]:
        best = self.likeliest.evidence
        weights = [math.exp(book.evidence - best) for book in self._books]
        total = sum(weights)
        return [weight / total for weight in weights]

    def _spread(self) -> None:
        """Begin to guess: the first book always takes the likeliest, the others by chance."""
        for _ in range(_BOOKS - 1):
            other = self._books[0].copy()
            other.chance = self._chance
            self._books.append(other)

    def _select(self) -> None:
        """Give up accounts that explain nothing for copies of those that do."""
        best = self.likeliest.evidence
        for book in self._books:
            book.evidence = max(book.evidence - best, -_WORST)
        shares = self._shares()
        if 1 / sum(share * share for share in shares) > len(shares) / 2:
            return
        start, total = self._chance.draw(), 0.0
        chosen: list[LedgerBook] = []
        for book, share in zip(self._books, shares, strict=True):
            while total + share * len(shares) > start + len(chosen):
                chosen.append(book)
            total += share * len(shares)
        first = self.likeliest
        self._books = [first.copy(), *(book.copy() for book in chosen[: len(shares) - 1])]
        for index, book in enumerate(self._books):
            book.evidence = 0.0
            book.chance = self._chance if index else None
