"""The book of cohorts, brought from one scrape to the next by what the counters say happened."""

import math
from collections import deque
from copy import copy
from dataclasses import replace

from vllm_capacity.observe.ledger.admission import Arrivals
from vllm_capacity.observe.ledger.balance import Balances
from vllm_capacity.observe.ledger.cohorts import NOBODY, SPREAD, Cohort, CohortBook
from vllm_capacity.observe.ledger.counters import LedgerCounters
from vllm_capacity.observe.ledger.departure import Departure, Queue, Taken
from vllm_capacity.observe.ledger.departures import Chance, depart
from vllm_capacity.observe.ledger.families import Families
from vllm_capacity.observe.ledger.hang_ups import HangUps
from vllm_capacity.observe.ledger.patience import Patience
from vllm_capacity.observe.ledger.residents import FoundPrefixes, Residents, residents

# Hang-ups taken for queued requests that are remembered in case they were not.
_MOST_DOUBTED = 8
# Requests without a first token that came and went between two scrapes, where none is seen.
_UNSEEN = 0.3
# Admissions in a row at which someone must be missing to be gone.
_ADMISSIONS = 4


class LedgerBook:
    """Who is past the first token on one engine, as of the scrape before.

    Attributes:
        cohorts: they, oldest first.
        abandoned_tokens: of prompts that were admitted and whose clients hung up before the first
            token, so that they are never counted as prompts.
        evidence: logarithm of how well the book has explained what the counters said.
        chance: decides where several explanations are possible; None: the likeliest is taken.
        suspects: requests taken out lately because their clients hung up; the engine may not have
            noticed yet, or they were not the engine's.
    """

    def __init__(self, families: Families) -> None:
        self.cohorts = CohortBook()
        self.suspects: list[Cohort] = []
        self.abandoned_tokens = 0.0
        self.evidence = 0.0
        self.chance: Chance | None = None
        self._gap = 0.0
        self._families = families
        self._balances = Balances()
        self._patience = Patience()
        self._prefixes = FoundPrefixes()
        self._taken_for_queued: deque[Departure] = deque(maxlen=_MOST_DOUBTED)
        self._gaps_at_admission: deque[float] = deque(maxlen=_ADMISSIONS)

    def clear(self) -> None:
        """Nobody is there."""
        self.cohorts, self.suspects, self._gap = CohortBook(), [], 0.0
        self._balances = Balances()
        self.abandoned_tokens = 0.0
        self._prefixes.forget_finders()
        self._taken_for_queued.clear()
        self._gaps_at_admission.clear()

    def copy(self) -> "LedgerBook":
        """The same account, to go its own way from here."""
        other = LedgerBook(self._families)
        other.cohorts, other.suspects = self.cohorts.copy(), list(self.suspects)
        other.abandoned_tokens, other.evidence = self.abandoned_tokens, self.evidence
        other.chance, other._gap = self.chance, self._gap
        other._balances, other._patience = self._balances.copy(), copy(self._patience)
        other._prefixes = self._prefixes.copy()
        other._taken_for_queued = self._taken_for_queued.copy()
        other._gaps_at_admission = self._gaps_at_admission.copy()
        return other

    def begin(self, cohort: Cohort) -> None:
        """These are there, as far as anybody knows."""
        self.cohorts.admit(cohort)
        self._balances.enter(cohort)

    def follow(
        self,
        before: LedgerCounters,
        now: LedgerCounters,
        hang_ups: HangUps,
        *,
        pending_tokens: float,
    ) -> None:
        """Take into account what happened between two scrapes.

        Args:
            before: the earlier scrape.
            now: the later one.
            hang_ups: clients that hung up meanwhile, as the HTTP server tells.
            pending_tokens: prompts admitted that have no first token yet.
        """
        book, passed = self.cohorts, now.since(before)
        for cohort in self.suspects[: max(0, -hang_ups.requests)]:
            self._return(cohort)  # they had finished
        self._admit(passed, now)
        if not book.cohorts:
            return
        reach, there = _reach(before, now, passed), book.requests
        self._balances.pass_on(passed, self._finished_cached(now, passed))
        self._finish(now, passed, reach)
        left = passed.finished + self._hang_up(now, passed, hang_ups, reach)
        book.drop_empty()
        self._balances.forget(min(1.0, book.requests / there))
        generated = book.total("generated_tokens") + passed.generated_tokens - left * reach / 2
        self._advance(before, now, passed, self._balances.generated.settle(generated), reach)
        self._balances.settle(book, now)
        self._patience.pass_time(passed.taken_at_seconds, queued=now.waiting, served=book.requests)
        if passed.generated_tokens > 0:
            self._weigh(now, pending_tokens)
            self._compare_with_those_who_run(now, pending_tokens)
        if passed.first_tokens > 0:
            self._compare_with_those_admitted(now)

    def _weigh(self, now: LedgerCounters, pending_tokens: float) -> None:
        """With an empty queue all run, and nobody else but those without a first token."""
        gap = self.cohorts.requests - now.running
        if (now.waiting == 0 and gap > 0.5) or (gap < -0.5 and pending_tokens <= 0):
            self.evidence -= min(3.0, abs(gap))

    def _compare_with_those_who_run(self, now: LedgerCounters, pending_tokens: float) -> None:
        """With an empty queue all run. What two scrapes in a row contradict was a wrong guess.

        Only scrapes between which the engine took a step count: its gauges stand still otherwise.
        """
        gap = self.cohorts.requests - now.running if now.waiting == 0 else 0.0
        too_many, too_few = min(gap, self._gap), min(-gap, -self._gap)
        if too_many > NOBODY:
            gap -= self._take_those_said_to_queue(round(too_many))
            if min(too_many, gap) > NOBODY:
                self._balances.lose(self.cohorts, min(too_many, gap))
                gap -= min(too_many, gap)
        elif too_few >= 1 and pending_tokens <= 0:
            for cohort in self.suspects[: round(too_few)]:
                self._return(cohort)
                gap += cohort.requests
            self.suspects = []
        self._gap = gap

    def _compare_with_those_admitted(self, now: LedgerCounters) -> None:
        """Nobody new is admitted before all who were preempted have their blocks back.

        Whoever is missing from the batch at every admission is gone, not preempted
        (``Scheduler.schedule``: they stand at the head of the queue).
        """
        self._gaps_at_admission.append(self.cohorts.requests - now.running)
        gap = min(self._gaps_at_admission)
        if gap < 0.5:
            if self._gaps_at_admission[-1] < 0.5:
                self._taken_for_queued.clear()
        elif len(self._gaps_at_admission) == _ADMISSIONS and self._take_those_said_to_queue(
            round(gap)
        ):
            self._gaps_at_admission.clear()

    def _return(self, cohort: Cohort) -> None:
        """Put back who was taken out by mistake."""
        self.cohorts.put_back(cohort)
        self._balances.enter(cohort)

    def _take_those_said_to_queue(self, requests: int) -> int:
        """Take out so many that hung up and were wrongly taken for queued ones."""
        found = 0
        while found < requests and self._taken_for_queued and self.cohorts.cohorts:
            taken = self._depart(self._taken_for_queued.popleft())
            for one, cohort in taken:
                self._leave(one, cohort, 0.0, None)
            self.cohorts.drop_empty()
            found += len(taken)
        return found

    def _admit(self, passed: LedgerCounters, now: LedgerCounters) -> None:
        """Requests that got their first token.

        A page is not written in one instant, so prompts may be counted on a page that does not
        count their first tokens yet, or the other way round: they go to the youngest.
        """
        book, requests = self.cohorts, round(passed.first_tokens)
        if requests > 0:
            waited = passed.first_token_seconds / requests
            arrivals = Arrivals(
                _arrival(now, passed, waited),
                requests,
                passed.prompt_tokens,
                passed.cached_tokens,
                now.prompt_tokens / now.first_tokens,
            )
            there = book.requests
            for cohort in self._families.come(book, arrivals):
                self._prefixes.find(cohort.hits, arrivals.arrived_seconds, there)
                book.admit(cohort)
        elif book.cohorts and passed.prompt_tokens > 0:
            youngest = book.cohorts[-1]
            youngest.prompt_tokens += passed.prompt_tokens
            youngest.origin = None
            if passed.cached_tokens > 0:
                youngest.hits = {passed.cached_tokens / youngest.families: youngest.families}

    def _finish(self, now: LedgerCounters, passed: LedgerCounters, reach: float) -> None:
        """Take those out that finished."""
        book, requests = self.cohorts, round(passed.finished)
        if requests <= 0:
            return
        prompts, cached = book.total("prompt_tokens"), book.total("cached_tokens")
        both = round(passed.finished_outputs) == requests
        departure = Departure(
            requests=requests,
            arrived_seconds=_arrival(now, passed, passed.finished_seconds / requests),
            arrived_deviation_seconds=0.4 * passed.taken_at_seconds,
            prompt_tokens=passed.finished_prompt_tokens,
            cached_tokens=self._finished_cached(now, passed),
            generated_tokens=passed.finished_generated_tokens if both else None,
            reach_tokens=reach,
            clients=passed.finished_clients,
        )
        taken = self._families.leave(book, departure) or self._depart(departure)
        if taken:
            self._families.tell_again(book, departure, taken)
        balances = self._balances
        gone = prompts - book.total("prompt_tokens")
        balances.prompts.doubt_book(passed.finished_prompt_tokens - gone)
        gone = cached - book.total("cached_tokens")
        if departure.cached_tokens is not None:
            balances.cached.doubt_book(departure.cached_tokens - gone)
        expected = sum(one.generated_tokens for one, _ in taken) + requests * reach / 2
        balances.generated.doubt_book(passed.finished_generated_tokens - expected)

    @staticmethod
    def _finished_cached(now: LedgerCounters, passed: LedgerCounters) -> float | None:
        """What those who finished had found in the pool, unless others got it from elsewhere."""
        return None if now.external_tokens > 0 else passed.finished_cached_tokens

    def _depart(self, departure: Departure) -> list[Taken]:
        taken, evidence = depart(self.cohorts, departure, self.chance)
        self.evidence += evidence
        return taken

    def _hang_up(
        self, now: LedgerCounters, passed: LedgerCounters, hang_ups: HangUps, reach: float
    ) -> float:
        """Take those out whose clients hung up; returns how many."""
        book, requests = self.cohorts, hang_ups.requests
        if requests or self._gap > -1:
            self.suspects = []
        if requests <= 0 or not book.cohorts:
            return 0.0
        departure = Departure(
            requests=requests,
            arrived_seconds=_arrival(now, passed, hang_ups.seconds / requests),
            arrived_deviation_seconds=0.4 * passed.taken_at_seconds,
            prompt_tokens=hang_ups.prompt_tokens,
            prompt_deviation_tokens=hang_ups.prompt_deviation_tokens,
            reach_tokens=reach,
            queue=self._queue(now, passed),
            with_siblings=True,
        )
        taken = self._depart(departure)
        queued = requests - len(taken)
        if now.waiting:
            self._patience.lose(queued=queued, served=len(taken))
        elif hang_ups.prompt_tokens is not None:
            self.abandoned_tokens += hang_ups.prompt_tokens * queued / requests
        self._taken_for_queued.extend([replace(departure.of_one(), queue=None)] * queued)
        for one, cohort in taken:
            if one.origin is not None:
                one.origin.is_exact = False
            one.generated_tokens += one.requests * reach / 2
            self.suspects.append(one)
            self._leave(one, cohort, reach, None if queued else departure.of_one())
        return sum(one.requests for one, _ in taken)

    def _leave(
        self, one: Cohort, origin: Cohort, reach: float, departure: Departure | None
    ) -> None:
        """Count one out who hung up, or the samples of one, and remember how sure that is."""
        prompt, off = one.prompt_tokens, one.prompt_off_tokens * one.requests
        sure = departure is not None and departure.prompt_tokens is not None
        if departure is not None and departure.prompt_tokens is not None:
            told = departure.prompt_tokens * one.requests
            told_off = departure.prompt_deviation_tokens * one.requests
            if off > told_off or abs(told - prompt) > 3 * told_off:
                prompt, off = told, told_off
        mean, variance = one.cached_of_one()
        balances = self._balances
        balances.prompts.leave(prompt, off + 1)
        balances.cached.leave(mean * one.requests, math.sqrt(variance) * one.requests)
        balances.generated.leave(one.generated_tokens, 0.35 * reach * one.requests + 1)
        balances.prompts.doubt_book(prompt - one.prompt_tokens)
        self._doubt(one, origin, sure=sure)

    @property
    def in_flight_tokens(self) -> float:
        """Prompt and generated tokens of everybody."""
        book = self.cohorts
        tokens = book.total("prompt_tokens") + book.total("generated_tokens")
        return max(0.0, tokens + self.missing_tokens)

    @property
    def missing_tokens(self) -> float:
        """Of prompts, by the balance, though everybody's is known; negative: too many are."""
        return self._balances.prompts.missing_tokens

    def residents(self, running: int) -> Residents:
        """What so many running requests hold."""
        there = residents(self.cohorts, running, self._prefixes, self._families.block_size or 1)
        cached = self._balances.cached.missing_tokens
        requests = self.cohorts.requests
        share = min(1.0, running / requests) if requests else 0.0
        return Residents(
            max(0.0, there.tokens + share * (self.missing_tokens - cached)),
            there.variance + (self.missing_tokens / 2) ** 2 + (cached / 2) ** 2,
            max(0.0, there.shared_tokens + share * cached),
        )

    def _queue(self, now: LedgerCounters, passed: LedgerCounters) -> Queue | None:
        if not now.first_tokens:
            return None
        queued = max(now.waiting, now.waiting - passed.waiting)
        prefilling = max(0.0, now.running - self.cohorts.requests)
        first = max(cohort.arrived_seconds for cohort in self.cohorts.cohorts)
        if not queued:  # somebody may have come since, and gone
            first = max(first, now.taken_at_seconds - 2 * passed.taken_at_seconds)
        return Queue(
            max(_UNSEEN, queued + prefilling),
            min(first, now.taken_at_seconds),
            now.taken_at_seconds,
            now.prompt_tokens / now.first_tokens,
            self._patience.ratio if queued else 1.0,
        )

    def _advance(
        self,
        before: LedgerCounters,
        now: LedgerCounters,
        passed: LedgerCounters,
        target: float,
        reach: float,
    ) -> None:
        """Hand out what those who stay generated: the oldest ran all the time."""
        book = self.cohorts
        tokens = target - book.total("generated_tokens")
        if not book.cohorts or tokens <= 0 or reach <= 0:
            return
        batch = tokens / reach
        fewest, most = sorted((max(0.0, before.running - passed.finished), float(now.running)))
        always = sometimes = batch
        if fewest < batch < most:
            always, sometimes = max(fewest, 2 * batch - most), min(most, 2 * batch - fewest)
        if book.requests > now.running:
            book.split(always)
            book.split(sometimes)
        book.advance(tokens, always, sometimes)

    def _doubt(self, one: Cohort, origin: Cohort, *, sure: bool) -> None:
        """Remember that another may have left than the one that was taken."""
        tokens = one.tokens_of_one
        doubted = tokens / 4 if sure else SPREAD * tokens
        variance = doubted * doubted
        heir = origin
        if origin.requests <= NOBODY:
            others = [c for c in self.cohorts.cohorts if c.requests > NOBODY]
            if not others:
                return
            heir = min(others, key=lambda c: abs(c.arrived_seconds - origin.arrived_seconds))
        elif not sure:
            heir.is_guess = True
        heir.variance += variance


def _reach(before: LedgerCounters, now: LedgerCounters, passed: LedgerCounters) -> float:
    """Tokens that a request generated that ran all the time."""
    most = max(before.running, now.running, 1)
    if passed.steps > 0 and passed.generated_tokens <= 2 * most * passed.steps:
        return passed.steps
    return 2 * passed.generated_tokens / max(1, before.running + now.running)


def _arrival(now: LedgerCounters, passed: LedgerCounters, served_seconds: float) -> float:
    """When one arrived that left in the middle of the time that passed."""
    return now.taken_at_seconds - passed.taken_at_seconds / 2 - served_seconds
