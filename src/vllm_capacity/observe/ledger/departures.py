"""Which cohorts those who left belonged to: the likeliest, or by chance one of the likely ones."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from vllm_capacity.observe.ledger.candidates import (
    Candidate,
    misfit_of_all,
    misfits,
    of_cohort,
    of_queue,
    without,
)
from vllm_capacity.observe.ledger.cohorts import NOBODY, Cohort, CohortBook
from vllm_capacity.observe.ledger.departure import Departure, Taken

# Looking for the best set of cohorts costs requests × cohorts; beyond that each is a mean one.
_MOST_SEARCHED = 4
# Steps of the golden ratio never come close to where they have been (Weyl's sequence).
_GOLDEN = (math.sqrt(5) - 1) / 2
# So many of the likeliest are tried as the first of those who left.
_MOST_STARTS = 3
# Pairs of clients that may have left together are tried among so many.
_MOST_FAMILIES = 12


class Chance:
    """Numbers between 0 and 1, spread evenly; the same ones in every run."""

    def __init__(self) -> None:
        self._last = 0.0

    def draw(self) -> float:
        """The next number."""
        self._last = (self._last + _GOLDEN) % 1.0
        return self._last

    def pick(self, shares: Sequence[float]) -> int:
        """An index, the more often the larger its share."""
        drawn = self.draw() * sum(shares)
        for index, share in enumerate(shares):
            drawn -= share
            if drawn < 0:
                return index
        return len(shares) - 1


class Departed(NamedTuple):
    """Who was taken out.

    Attributes:
        taken: for each that could be placed what was taken, and the cohort that it came from,
            which may be empty now (``CohortBook.drop_empty``).
        evidence: logarithm of how well the book explains that somebody left whom this is known of;
            comparable between books.
    """

    taken: list[Taken]
    evidence: float


def depart(book: CohortBook, departure: Departure, chance: Chance | None = None) -> Departed:
    """Take requests out of the cohorts that they most likely belonged to.

    Where the sum of prompts is known, prompts of those who stay in these cohorts are what that
    leaves.

    Args:
        book: those who are there.
        departure: what is known of those who left.
        chance: takes not the likeliest but any, the likelier the more often; None: the likeliest.
    """
    likeliest, evidence = _likeliest(book, departure, chance)
    taken = []
    for cohort in likeliest:
        if cohort is not None:
            siblings = round(cohort.requests / cohort.families) if departure.with_siblings else 1
            taken.append(Taken(cohort.take(float(max(1, siblings))), cohort))
    if len(taken) == departure.requests:
        stay = _those_who_stay(book, taken)
        if departure.with_siblings:
            stay = [cohort for cohort in stay if cohort.families > 1 + NOBODY]
        if departure.prompt_tokens is not None and stay:
            samples = sum(one.requests for one, _ in taken) / departure.requests
            surplus = departure.prompt_tokens * samples
            surplus -= sum(one.prompt_tokens for one, _ in taken)
            for cohort in stay:
                most = cohort.prompt_tokens - cohort.requests
                cohort.prompt_tokens -= min(surplus / len(stay), most)
                off = departure.prompt_deviation_tokens / cohort.requests
                cohort.prompt_off_tokens = max(cohort.prompt_off_tokens, off)
        if departure.cached_tokens is not None:
            found_by(taken, departure.cached_tokens)
    return Departed(taken, evidence)


def found_by(taken: Sequence[Taken], cached_tokens: float) -> None:
    """Those who left turn out to have found so much in the prefix cache, all of one cohort."""
    one, cohort = taken[0]
    if len(taken) == 1:
        cohort.found(cached_tokens, one)
    if one.sibling_tokens and all(each is cohort for _, each in taken):
        gone = sum(each.finders for each, _ in taken)
        finders = round(cached_tokens / one.sibling_tokens)
        cohort.finders = min(cohort.requests, max(0.0, cohort.finders + gone - finders))


def _those_who_stay(book: CohortBook, taken: Sequence[Taken]) -> list[Cohort]:
    """Cohorts whose sums show what those who left had more than the mean of their cohort."""
    stay = [cohort for _, cohort in taken if cohort.requests > NOBODY]
    if stay:
        return stay
    origins = {cohort.arrived_seconds for _, cohort in taken}
    return [c for c in book.cohorts if c.arrived_seconds in origins and c.requests > NOBODY]


def _likeliest(
    book: CohortBook, departure: Departure, chance: Chance | None
) -> tuple[list[Cohort | None], float]:
    """A cohort for each, None for one that was still queued; and the evidence."""
    candidates = [
        of_cohort(cohort, with_siblings=departure.with_siblings)
        for cohort in book.cohorts
        if cohort.requests > NOBODY
    ]
    if departure.queue is not None:
        candidates.append(of_queue(departure.queue, departure))
    if not candidates:
        return [], 0.0
    costs = misfits(departure.of_one(), candidates, ())
    if departure.requests == 1:
        found, weights = [[c] for c in candidates], costs
    else:
        starts = _starts(candidates, departure, costs)
        found = [_filled_up(departure, candidates, costs, start) for start in starts]
        weights = [misfit_of_all(departure, each) for each in found]
    best = min(weights)
    if math.isinf(best):
        best, weights = 0.0, [0.0] * len(weights)
    shares = [math.exp((best - weight) / 2) for weight in weights]
    chosen = found[weights.index(best) if chance is None else chance.pick(shares)]
    evidence = math.log(sum(shares)) - best / 2
    evidence -= departure.requests * math.log(sum(c.room for c in candidates))
    return _no_more_than_there_are(chosen, candidates, costs), evidence


def _starts(
    candidates: Sequence[Candidate], departure: Departure, costs: Sequence[float]
) -> list[tuple[Candidate, ...]]:
    """Nobody, or each of the likeliest; or all samples of one client, or of two."""
    likeliest: list[tuple[Candidate, ...]] = [()]
    if 1 < departure.requests <= _MOST_SEARCHED:
        order = sorted(range(len(candidates)), key=costs.__getitem__)
        likeliest += [(candidates[i],) for i in order[:_MOST_STARTS]]
        # One who had just come and one who had been there for long: neither is near the mean.
        likeliest += [(c,) for c in candidates if c.cohort is None and (c,) not in likeliest]
    if departure.with_siblings:
        return likeliest
    families = [
        (c,) * round(c.room)
        for c in candidates
        if c.is_family and c.room < departure.requests + 0.5
    ]
    pairs = [
        (*one, *other)
        for one, other in combinations(families[-_MOST_FAMILIES:], 2)
        if len(one) + len(other) <= departure.requests
    ]
    return [*likeliest, *families, *pairs]


def _filled_up(
    departure: Departure,
    candidates: Sequence[Candidate],
    costs: Sequence[float],
    start: tuple[Candidate, ...],
) -> list[Candidate]:
    """``start`` and the likeliest others with it."""
    free = departure.requests - len(start)
    if not free:
        return list(start)
    if start:
        costs = misfits(without(departure, start), candidates, ())
    chosen = [*start, *[candidates[costs.index(min(costs))]] * free]
    if free + bool(start) > 1 and free <= _MOST_SEARCHED:
        for _ in range(2):
            before = list(chosen)
            for slot in range(len(start), len(chosen)):
                rest = (*chosen[:slot], *chosen[slot + 1 :])
                costs = misfits(departure, candidates, rest)
                chosen[slot] = candidates[costs.index(min(costs))]
            if chosen == before or free == 1:
                break  # another round finds the same
    return chosen


def _no_more_than_there_are(
    chosen: Sequence[Candidate], candidates: Sequence[Candidate], costs: Sequence[float]
) -> list[Cohort | None]:
    """No cohort gives more requests than it has: the next likely one gives the others."""
    ranked: list[Candidate] | None = None
    result: list[Cohort | None] = []
    for candidate in chosen:
        giver: Candidate | None = candidate
        if candidate.room < 0.5:
            if ranked is None:
                order = sorted(range(len(candidates)), key=costs.__getitem__)
                ranked = [candidates[i] for i in order]
            giver = next((c for c in ranked if c.room >= 0.5), None)
        if giver is None:
            break
        giver.room -= 1
        result.append(giver.cohort)
    return result
