"""The book of cohorts, brought from one scrape to the next by what the counters say happened."""

import math
from collections import deque
from copy import copy
from dataclasses import replace

from vllm_capacity.observe.admission import Arrivals, PrefixLengths, Samples, tell_apart
from vllm_capacity.observe.balance import Balance
from vllm_capacity.observe.cohorts import NOBODY, SPREAD, Cohort, CohortBook, Origin
from vllm_capacity.observe.departures import Chance, Departure, Queue, depart
from vllm_capacity.observe.hang_ups import HangUps
from vllm_capacity.observe.ledger_counters import LedgerCounters
from vllm_capacity.observe.residents import FoundPrefixes, resident_tokens

# Hang-ups taken for queued requests that are remembered in case they were not.
_MOST_DOUBTED = 8
# Requests without a first token that came and went between two scrapes, where none is seen.
_UNSEEN = 0.3
# Admissions in a row at which someone must be missing to be gone.
_ADMISSIONS = 4


class _Patience:
    """Where clients hang up: requests lost for each second of one, queued and served."""

    def __init__(self) -> None:
        self._lost_queued = self._lost_served = 0
        self._queued_seconds = self._served_seconds = 1.0

    def pass_time(self, seconds: float, *, queued: float, served: float) -> None:
        """So many requests were there for so long."""
        self._queued_seconds += queued * seconds
        self._served_seconds += served * seconds

    def lose(self, *, queued: int, served: int) -> None:
        """So many hung up."""
        self._lost_queued += queued
        self._lost_served += served

    @property
    def ratio(self) -> float:
        """How much rarer it is for one that queues; 1 as long as nobody hung up."""
        queued = self._queued_seconds / (self._queued_seconds + self._served_seconds)
        lost_queued = (self._lost_queued + 2 * queued) / self._queued_seconds
        lost_served = (self._lost_served + 2 * (1 - queued)) / self._served_seconds
        return lost_served / lost_queued


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

    def __init__(self) -> None:
        self.cohorts = CohortBook()
        self.suspects: list[Cohort] = []
        self.abandoned_tokens = 0.0
        self.evidence = 0.0
        self.chance: Chance | None = None
        self._gap = 0.0
        self._prompts, self._cached, self._generated = Balance(), Balance(), Balance()
        self._patience = _Patience()
        self._lengths = PrefixLengths()
        self._prefixes = FoundPrefixes()
        self._samples = Samples()
        self._block_size: int | None = None
        self._mean_prompt_tokens = 1.0
        self._taken_for_queued: deque[Departure] = deque(maxlen=_MOST_DOUBTED)
        self._gaps_at_admission: deque[float] = deque(maxlen=_ADMISSIONS)

    def clear(self) -> None:
        """Nobody is there."""
        self.cohorts, self.suspects, self._gap = CohortBook(), [], 0.0
        self._prompts, self._cached, self._generated = Balance(), Balance(), Balance()
        self.abandoned_tokens = 0.0
        self._prefixes.forget_finders()
        self._taken_for_queued.clear()
        self._gaps_at_admission.clear()

    def copy(self) -> "LedgerBook":
        """The same account, to go its own way from here."""
        other = copy(self)
        origins: dict[int, Origin] = {}
        other.cohorts = CohortBook()
        for cohort in self.cohorts.cohorts:
            twin = copy(cohort)
            if cohort.origin is not None:
                twin.origin = origins.setdefault(id(cohort.origin), copy(cohort.origin))
            other.cohorts.cohorts.append(twin)
        other.suspects = list(self.suspects)
        other._prompts, other._generated = copy(self._prompts), copy(self._generated)
        other._cached = copy(self._cached)
        other._patience = copy(self._patience)
        other._prefixes = self._prefixes.copy()
        other._taken_for_queued = self._taken_for_queued.copy()
        other._gaps_at_admission = self._gaps_at_admission.copy()
        return other

    def begin(self, cohort: Cohort) -> None:
        """These are there, as far as anybody knows."""
        self.cohorts.admit(cohort)
        self._prompts.tokens += cohort.prompt_tokens
        self._cached.tokens += cohort.cached_tokens
        self._generated.tokens += cohort.generated_tokens

    def follow(
        self,
        before: LedgerCounters,
        now: LedgerCounters,
        hang_ups: HangUps,
        *,
        pending_tokens: float,
        samples: Samples,
        block_size: int | None,
    ) -> None:
        """Take into account what happened between two scrapes.

        Args:
            before: the earlier scrape.
            now: the later one.
            hang_ups: clients that hung up meanwhile, as the HTTP server tells.
            pending_tokens: prompts admitted that have no first token yet.
        """
        book = self.cohorts
        passed = now.since(before)
        for cohort in self.suspects[: max(0, -hang_ups.requests)]:
            self._return(cohort)  # they had finished
        self._samples, self._block_size = samples, block_size
        self._mean_prompt_tokens = now.prompt_tokens / max(1.0, now.first_tokens)
        self._admit(passed, now)
        if not book.cohorts:
            return
        reach = _reach(before, now, passed)
        prompts, generated = self._prompts, self._generated
        prompts.tokens += passed.prompt_tokens - passed.finished_prompt_tokens
        generated.tokens += passed.generated_tokens - passed.finished_generated_tokens
        self._cached.tokens += passed.cached_tokens - (self._finished_cached(now, passed) or 0.0)
        there = book.requests
        self._finish(now, passed, reach)
        left = passed.finished + self._hang_up(now, passed, hang_ups, reach)
        book.drop_empty()
        stay = min(1.0, book.requests / there)
        prompts.forget(stay)
        self._cached.forget(stay)
        generated.forget(stay)
        total = book.total("generated_tokens") + passed.generated_tokens - left * reach / 2
        self._advance(before, now, passed, generated.settle(total), reach)
        book.correct_prompts(prompts.settle(book.total("prompt_tokens")))
        prompts.miss(book.total("prompt_tokens"))
        there = book.total("cached_tokens")
        if now.external_tokens > 0:
            self._cached.tokens = there
        self._cached.settle(there)
        self._cached.miss(there)
        book.correct_generated(generated.tokens, max(1.0, now.running))
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
                self._lose(min(too_many, gap))
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
        elif len(self._gaps_at_admission) == _ADMISSIONS:
            if self._take_those_said_to_queue(round(gap)):
                self._gaps_at_admission.clear()

    def _return(self, cohort: Cohort) -> None:
        """Put back who was taken out by mistake."""
        self.cohorts.put_back(cohort)
        self._prompts.tokens += cohort.prompt_tokens
        self._cached.tokens += cohort.cached_tokens
        self._generated.tokens += cohort.generated_tokens

    def _lose(self, requests: float) -> None:
        """Take out requests of whom nothing is known."""
        totals = self._totals()
        self.cohorts.lose(requests)
        balances = self._prompts, self._generated, self._cached
        for balance, before, now in zip(balances, totals, self._totals(), strict=True):
            balance.tokens -= before - now
            balance.doubt_counters(SPREAD * (before - now))

    def _totals(self) -> tuple[float, float, float]:
        book = self.cohorts
        return (
            book.total("prompt_tokens"),
            book.total("generated_tokens"),
            book.total("cached_tokens"),
        )

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
            if self._late_siblings(arrivals):
                return
            origin = Origin(arrivals.arrived_seconds, requests, *arrivals[2:4])
            there = book.requests
            for cohort in self._told_apart(arrivals, origin):
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
        taken = self._family_left(departure) or self._depart(departure)
        self._tell_again(departure, taken)
        gone = prompts - book.total("prompt_tokens")
        self._prompts.doubt_book(passed.finished_prompt_tokens - gone)
        gone = cached - book.total("cached_tokens")
        if departure.cached_tokens is not None:
            self._cached.doubt_book(departure.cached_tokens - gone)
        expected = sum(one.generated_tokens for one, _ in taken) + requests * reach / 2
        self._generated.doubt_book(passed.finished_generated_tokens - expected)

    @staticmethod
    def _finished_cached(now: LedgerCounters, passed: LedgerCounters) -> float | None:
        """What those who finished had found in the pool, unless others got it from elsewhere."""
        return None if now.external_tokens > 0 else passed.finished_cached_tokens

    def _depart(self, departure: Departure) -> list[tuple[Cohort, Cohort]]:
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
        self._prompts.tokens -= prompt
        self._generated.tokens -= one.generated_tokens
        self._prompts.doubt_counters(off + 1)
        mean, variance = one.cached_of_one()
        self._cached.tokens -= mean * one.requests
        self._cached.doubt_counters(math.sqrt(variance) * one.requests)
        self._generated.doubt_counters(0.35 * reach * one.requests + 1)
        self._prompts.doubt_book(prompt - one.prompt_tokens)
        self._doubt(one, origin, sure=sure)

    @property
    def in_flight_tokens(self) -> float:
        """Prompt and generated tokens of everybody."""
        return max(0.0, sum(self._totals()[:2]) + self.missing_tokens)

    @property
    def missing_tokens(self) -> float:
        """Of prompts, by the balance, though everybody's is known; negative: too many are."""
        return self._prompts.missing_tokens

    def resident(self, running: int) -> tuple[float, float]:
        """Tokens whose keys and values so many running requests hold, and their variance."""
        size = self._block_size or 1
        tokens, variance = resident_tokens(self.cohorts, running, self._prefixes, size)
        variance += (self._prompts.missing_tokens / 2) ** 2
        variance += (self._cached.missing_tokens / 2) ** 2
        requests = self.cohorts.requests
        share = min(1.0, running / requests) if requests else 0.0
        unplaced = self.missing_tokens - self._cached.missing_tokens
        return max(0.0, tokens + share * unplaced), variance

    def _late_siblings(self, arrivals: Arrivals) -> bool:
        """Whether these are samples of a client whose first ones came with the scrape before.

        They found all that can be found of one prompt.
        """
        requests, block_size = arrivals.requests, self._block_size
        prompt, rest = divmod(arrivals.prompt_tokens, requests)
        if self._samples.are_alone or not block_size or rest or not self.cohorts.cohorts:
            return False
        siblings = (prompt - 1) // block_size * block_size
        origin = self.cohorts.cohorts[-1].origin
        if not siblings or arrivals.cached_tokens != requests * siblings or origin is None:
            return False
        members = [c for c in self.cohorts.cohorts if c.origin is origin]
        there = sum(c.requests for c in members)
        if not origin.is_exact or abs(there - origin.requests) > 0.5:
            return False
        both = Arrivals(
            origin.arrived_seconds,
            round(there) + requests,
            origin.prompt_tokens + arrivals.prompt_tokens,
            origin.cached_tokens + arrivals.cached_tokens,
            arrivals.mean_prompt_tokens,
        )
        again = self._told_apart(both, origin)
        if not any(
            c.requests > requests
            and c.families < 1 + NOBODY
            and abs(c.prompt_of_one - prompt) <= 2 * c.prompt_off_tokens + 1
            for c in again
        ):
            return False
        origin.requests, origin.prompt_tokens, origin.cached_tokens = both[1:4]
        self._replace(members, again)
        return True

    def _replace(self, members: list[Cohort], again: list[Cohort]) -> None:
        """Put cohorts in the place of others; together they have generated as much."""
        there = sum(c.requests for c in again)
        generated = sum(c.generated_tokens for c in members) / there
        variance = sum(c.variance for c in members) / there
        at = self.cohorts.cohorts.index(members[0])
        self.cohorts.cohorts = [c for c in self.cohorts.cohorts if c not in members]
        for cohort in again:
            cohort.generated_tokens = generated * cohort.requests
            cohort.variance = variance * cohort.requests
        self.cohorts.cohorts[at:at] = again

    def _told_apart(self, arrivals: Arrivals, origin: Origin) -> list[Cohort]:
        cohorts = tell_apart(
            arrivals, lengths=self._lengths, samples=self._samples, block_size=self._block_size
        )
        for cohort in cohorts:
            cohort.origin = origin
        return cohorts

    def _family_left(self, departure: Departure) -> list[tuple[Cohort, Cohort]]:
        """Those who left, where their sums show that they were all samples of one client."""
        n, prompts, cached = departure.requests, departure.prompt_tokens, departure.cached_tokens
        block_size, arrived = self._block_size, departure.arrived_seconds
        if n < 2 or not block_size or prompts is None or cached is None or arrived is None:
            return []
        prompt, rest = divmod(prompts, n)
        siblings = (prompt - 1) // block_size * block_size
        if rest or not siblings or cached - (n - 1) * siblings not in self._lengths.sums(1):
            return []
        off = 2 * departure.arrived_deviation_seconds
        fitting = [
            cohort
            for cohort in self.cohorts.cohorts
            if abs(cohort.arrived_seconds - arrived) <= off
            and cohort.requests >= n - 0.5
            and cohort.families < 1 + NOBODY
            and abs(cohort.prompt_of_one - prompt) <= 2 * cohort.prompt_off_tokens + 1
        ]
        if fitting:
            cohort = min(fitting, key=lambda c: (c.requests, abs(c.arrived_seconds - arrived)))
            return [(cohort.take(n), cohort)]
        return self._family_unknown_left(departure, prompt, siblings, off)

    def _family_unknown_left(
        self, departure: Departure, prompt: float, siblings: float, off: float
    ) -> list[tuple[Cohort, Cohort]]:
        """All samples of one client, out of those who were not told apart as they should be."""
        n, arrived = departure.requests, departure.arrived_seconds or 0.0
        origins = {
            id(c.origin): c.origin
            for c in self.cohorts.cohorts
            if c.origin is not None and not c.is_told
        }
        fitting = [
            o
            for o in origins.values()
            if o.is_exact
            and abs(o.arrived_seconds - arrived) <= off
            and o.requests >= n
            and o.prompt_tokens - n * prompt >= o.requests - n
            and o.cached_tokens >= (departure.cached_tokens or 0.0)
        ]
        if not fitting:
            return []
        origin = min(fitting, key=lambda o: abs(o.arrived_seconds - arrived))
        members = [c for c in self.cohorts.cohorts if c.origin is origin]
        generated = sum(c.generated_tokens for c in members) / sum(c.requests for c in members)
        gone = Cohort(
            origin.arrived_seconds,
            n,
            n * prompt,
            n * generated,
            families=1.0,
            sibling_tokens=siblings,
            origin=origin,
        )
        at = self.cohorts.cohorts.index(members[0])
        self.cohorts.cohorts = [c for c in self.cohorts.cohorts if c.origin is not origin]
        rest = Cohort(
            origin.arrived_seconds,
            origin.requests - n,
            origin.prompt_tokens - n * prompt,
            generated * (origin.requests - n),
            origin=origin,
        )
        self.cohorts.cohorts.insert(at, rest)
        return [(gone, rest)]

    def _tell_again(self, departure: Departure, taken: list[tuple[Cohort, Cohort]]) -> None:
        """Now that it is known who left, the others of their time can be told apart better."""
        if not taken:
            return
        origins = {id(one.origin): one.origin for one, _ in taken if one.origin is not None}
        gone = sum(one.requests for one, _ in taken)
        if len(origins) != 1 or gone < departure.requests - 0.5:
            for each in origins.values():
                each.is_exact = False
            return
        origin = next(iter(origins.values()))
        members = [c for c in self.cohorts.cohorts if c.origin is origin and c.requests > NOBODY]
        there = sum(c.requests for c in members)
        origin.requests -= gone
        origin.prompt_tokens -= departure.prompt_tokens or 0.0
        told = departure.cached_tokens or 0.0
        one = taken[0][0]
        if one.families < one.requests or any(c.requests > c.families for _, c in taken):
            told = max(told, gone * one.sibling_tokens) if there else told
        origin.cached_tokens -= told
        if not members or not origin.is_exact:
            return
        ages = [c.generated_tokens / c.requests for c in members]
        is_told = all(c.is_told for c in members) and (
            abs(sum(c.prompt_tokens for c in members) - origin.prompt_tokens) < there
        )
        if (
            is_told
            or max(ages) - min(ages) > departure.reach_tokens + 1
            or abs(there - origin.requests) > 0.5
            or origin.prompt_tokens < there
            or origin.cached_tokens < 0
        ):
            return
        again = self._told_apart(
            Arrivals(
                origin.arrived_seconds,
                round(there),
                origin.prompt_tokens,
                origin.cached_tokens,
                self._mean_prompt_tokens,
            ),
            origin,
        )
        self._replace(members, again)

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
            heir.lost = True
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
