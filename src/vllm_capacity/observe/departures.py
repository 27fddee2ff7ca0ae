"""Which cohort those who left belonged to, from the sums that the counters keep of them.

A finished request leaves its prompt, its output and its end-to-end latency in the sums of three
histograms (``v1/metrics/stats.py``, ``IterationStats.update_from_finished_request``), so for one
that left between two scrapes all three are known. For several only their sums are.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

from vllm_capacity.observe.cohorts import NOBODY, SPREAD, Cohort, CohortBook

# Looking for the best set of cohorts costs requests × cohorts; beyond that each is a mean one.
_MOST_SEARCHED = 4
# Steps of the golden ratio never come close to where they have been (Weyl's sequence).
_GOLDEN = (math.sqrt(5) - 1) / 2
# So many may have come and gone between two scrapes, and no page shows them.
_MOST_UNSEEN = 16
# So many of the likeliest are tried as the first of those who left.
_MOST_STARTS = 3
# Pairs of clients that may have left together are tried among so many.
_MOST_FAMILIES = 12
# Prompts in the book may be wrong after a wrong guess: one time in twenty, as a log-likelihood.
_DOUBT = 2 * math.log(20)


class Queue(NamedTuple):
    """Requests that wait for their first token.

    Attributes:
        requests: how many.
        first_seconds, last_seconds: they arrived between these times.
        prompt_tokens: of one, as of the others.
        patience_ratio: how much less likely one of them leaves in a second than one that is served.
    """

    requests: float
    first_seconds: float
    last_seconds: float
    prompt_tokens: float
    patience_ratio: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Departure:
    """Requests that left between two scrapes: what is known of them, as sums over them.

    Attributes:
        requests: how many.
        arrived_seconds: when they arrived, on average; None: not known.
        arrived_deviation_seconds: how far each one's arrival may be from that.
        prompt_tokens: of all; None where not known.
        prompt_deviation_tokens: how far it may be off for each.
        generated_tokens: of all; None where not known.
        reach_tokens: what one that runs generated between the two scrapes.
        cached_tokens: of their prompts, from the prefix cache; None where not known.
        queue: requests without a first token that they may have been instead.
        clients: of how many clients the last sample left; None where not known.
        with_siblings: whether each leaves with all samples of its client.
    """

    requests: int
    arrived_seconds: float | None
    arrived_deviation_seconds: float
    prompt_tokens: float | None
    prompt_deviation_tokens: float = 0.0
    generated_tokens: float | None = None
    reach_tokens: float = 0.0
    cached_tokens: float | None = None
    queue: "Queue | None" = None
    clients: float | None = None
    with_siblings: bool = False

    def without(self, some: "Sequence[_Candidate]") -> "Departure":
        """A mean one of those who remain without ``some``."""
        n, left = self.requests, self.requests - len(some)
        arrived, prompts, generated = (
            self.arrived_seconds,
            self.prompt_tokens,
            self.generated_tokens,
        )
        if arrived is not None:
            arrived = (arrived * n - sum(c.arrived for c in some)) / left
        if prompts is not None:
            prompts = (prompts - sum(c.prompt for c in some)) / left
        if generated is not None:
            generated -= sum(c.generated + self.reach_tokens / 2 for c in some)
            generated /= left
        cached = self.cached_tokens
        if cached is not None:
            cached = (cached - sum(c.cached for c in some)) / left
        return replace(
            self,
            requests=1,
            arrived_seconds=arrived,
            prompt_tokens=prompts,
            generated_tokens=generated,
            cached_tokens=cached,
        )

    def of_one(self) -> "Departure":
        """The mean one of them."""
        n = self.requests
        return replace(
            self,
            requests=1,
            prompt_tokens=None if self.prompt_tokens is None else self.prompt_tokens / n,
            generated_tokens=None if self.generated_tokens is None else self.generated_tokens / n,
            cached_tokens=None if self.cached_tokens is None else self.cached_tokens / n,
        )


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

    taken: list[tuple[Cohort, Cohort]]
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
            taken.append((cohort.take(float(max(1, siblings))), cohort))
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


def found_by(taken: Sequence[tuple[Cohort, Cohort]], cached_tokens: float) -> None:
    """Those who left turn out to have found so much in the prefix cache, all of one cohort."""
    one, cohort = taken[0]
    if len(taken) == 1:
        cohort.found(cached_tokens, one)
    if one.sibling_tokens and all(each is cohort for _, each in taken):
        gone = sum(each.finders for each, _ in taken)
        finders = round(cached_tokens / one.sibling_tokens)
        cohort.finders = min(cohort.requests, max(0.0, cohort.finders + gone - finders))


def _those_who_stay(book: CohortBook, taken: Sequence[tuple[Cohort, Cohort]]) -> list[Cohort]:
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
        _of_cohort(cohort, departure.with_siblings)
        for cohort in book.cohorts
        if cohort.requests > NOBODY
    ]
    if departure.queue is not None:
        candidates.append(_of_queue(departure.queue, departure))
    if not candidates:
        return [], 0.0
    costs = _misfits(departure.of_one(), candidates, ())
    if departure.requests == 1:
        found, weights = [[c] for c in candidates], costs
    else:
        starts = _starts(candidates, departure, costs)
        found = [_filled_up(departure, candidates, costs, start) for start in starts]
        weights = [_misfit_of_all(departure, each) for each in found]
    best = min(weights)
    if math.isinf(best):
        best, weights = 0.0, [0.0] * len(weights)
    shares = [math.exp((best - weight) / 2) for weight in weights]
    if chance is None:
        chosen = found[weights.index(best)]
    else:
        chosen = found[chance.pick(shares)]
    evidence = math.log(sum(shares)) - best / 2
    evidence -= departure.requests * math.log(sum(c.room for c in candidates))
    return _no_more_than_there_are(chosen, candidates, costs), evidence


def _starts(
    candidates: Sequence["_Candidate"], departure: "Departure", costs: Sequence[float]
) -> list[tuple["_Candidate", ...]]:
    """Nobody, or each of the likeliest; or all samples of one client, or of two."""
    likeliest: list[tuple[_Candidate, ...]] = [()]
    if 1 < departure.requests <= _MOST_SEARCHED:
        order = sorted(range(len(candidates)), key=costs.__getitem__)
        likeliest += [(candidates[i],) for i in order[:_MOST_STARTS]]
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
    departure: "Departure",
    candidates: Sequence["_Candidate"],
    costs: Sequence[float],
    start: tuple["_Candidate", ...],
) -> list["_Candidate"]:
    """``start`` and the likeliest others with it."""
    free = departure.requests - len(start)
    if not free:
        return list(start)
    if start:
        costs = _misfits(departure.without(start), candidates, ())
    chosen = [*start, *[candidates[costs.index(min(costs))]] * free]
    if free + bool(start) > 1 and free <= _MOST_SEARCHED:
        slots = range(len(start), len(chosen))
        for slot in (*slots, *slots):
            rest = (*chosen[:slot], *chosen[slot + 1 :])
            misfits = _misfits(departure, candidates, rest)
            chosen[slot] = candidates[misfits.index(min(misfits))]
    return chosen


def _misfit_of_all(departure: "Departure", chosen: Sequence["_Candidate"]) -> float:
    """How badly these together explain the sums.

    The more of a cohort leave, the less it matters which of its requests: all of them are known.
    """
    cost = arrived = prompts = generated = cached = clients = 0.0
    spread = cached_spread = doubted = 1.0
    for c, n in Counter(chosen).items():
        if n > c.room + 0.5:
            return math.inf
        left = n * max(0.0, c.room - n) / max(1.0, c.room - 1)
        ways = math.lgamma(c.room + 1) - math.lgamma(n + 1) - math.lgamma(c.room - n + 1)
        cost -= 2 * ways
        arrived += n * c.arrived
        prompts += n * c.prompt
        generated += n * c.generated
        cached += n * c.cached
        clients += max(0.0, n - (c.room - c.clients))
        spread += left * c.prompt_variance + (n - left) * c.prompt_off_variance
        cached_spread += left * c.cached_variance
        doubted += n * c.doubted_variance
    count = departure.requests
    if departure.clients is not None:
        cost += _DOUBT * abs(clients - departure.clients)
    if departure.arrived_seconds is not None:
        variance = departure.arrived_deviation_seconds**2 * count + NOBODY
        cost += (arrived - departure.arrived_seconds * count) ** 2 / variance + math.log(variance)
    if departure.prompt_tokens is not None:
        cost += _cost((prompts - departure.prompt_tokens) ** 2, spread, spread + doubted)
    if departure.cached_tokens is not None:
        miss = (cached - departure.cached_tokens) ** 2
        cost += _cost(miss, cached_spread, cached_spread + doubted)
    if departure.generated_tokens is not None:
        reach = departure.reach_tokens
        miss = generated + count * reach / 2 - departure.generated_tokens
        cost += miss * miss / ((0.35 * reach + 1.0) ** 2 * count)
    return cost


@dataclass(slots=True, eq=False)
class _Candidate:
    """One request of a cohort or of the queue, as far as these tell."""

    cohort: Cohort | None
    room: float
    arrived: float
    arrived_variance: float
    arrived_half_range: float
    prompt: float
    prompt_variance: float
    doubted_variance: float
    generated: float
    prior: float
    cached: float = 0.0
    cached_variance: float = 0.0
    prompt_off_variance: float = 0.0
    clients: float = 0.0
    is_family: bool = False


def _of_cohort(cohort: Cohort, with_siblings: bool) -> _Candidate:  # noqa: FBT001
    requests = cohort.requests
    cached, cached_variance = cohort.cached_of_one()
    room = cohort.families if with_siblings else requests
    return _Candidate(
        cohort=cohort,
        room=room,
        arrived=cohort.arrived_seconds,
        arrived_variance=0.0,
        arrived_half_range=0.0,
        prompt=cohort.prompt_tokens / requests,
        prompt_variance=cohort.prompt_variance(),
        doubted_variance=1.0 + (SPREAD * cohort.prompt_tokens / requests) ** 2,
        generated=cohort.generated_tokens / requests,
        prior=-2 * math.log(room),
        cached=cached,
        cached_variance=cached_variance,
        prompt_off_variance=cohort.prompt_off_tokens**2,
        clients=cohort.families,
        is_family=cohort.families < 1 + NOBODY < requests,
    )


def _of_queue(queue: Queue, departure: Departure) -> _Candidate:
    """One without a first token: its prompt is whatever the client's was."""
    told = departure.prompt_tokens
    prompt = queue.prompt_tokens if told is None else told / departure.requests
    variance = 1.0 + SPREAD * SPREAD * (prompt * prompt + queue.prompt_tokens**2)
    return _Candidate(
        cohort=None,
        room=queue.requests + _MOST_UNSEEN,
        arrived=(queue.first_seconds + queue.last_seconds) / 2,
        arrived_variance=(queue.last_seconds - queue.first_seconds) ** 2 / 12,
        arrived_half_range=(queue.last_seconds - queue.first_seconds) / 2,
        prompt=prompt,
        prompt_variance=variance,
        doubted_variance=variance,
        generated=0.0,
        prior=-2 * math.log(queue.requests / queue.patience_ratio),
    )


def _misfits(
    departure: Departure, candidates: Sequence[_Candidate], rest: Sequence[_Candidate]
) -> list[float]:
    """How badly each candidate together with the rest explains the sums.

    Minus twice the log-likelihood, up to a constant; infinite for one that has nobody left.
    """
    count = departure.requests
    no_arrival = departure.arrived_seconds is None
    arrived = 0.0 if departure.arrived_seconds is None else departure.arrived_seconds * count
    arrived -= sum(c.arrived for c in rest)
    arrived_variance = departure.arrived_deviation_seconds**2 * count + NOBODY
    arrived_variance += sum(c.arrived_variance for c in rest)
    no_prompt = departure.prompt_tokens is None
    prompt = (departure.prompt_tokens or 0.0) - sum(c.prompt for c in rest)
    spread = sum(c.prompt_variance for c in rest) + departure.prompt_deviation_tokens**2 * count
    no_output = departure.generated_tokens is None
    generated = (departure.generated_tokens or 0.0) + count * departure.reach_tokens / 2
    generated -= sum(c.generated for c in rest)
    generated_variance = (0.35 * departure.reach_tokens + 1.0) ** 2 * count
    no_cached = departure.cached_tokens is None or not (
        departure.cached_tokens or any(c.cached for c in candidates)
    )
    cached = (departure.cached_tokens or 0.0) - sum(c.cached for c in rest)
    cached_spread = 1.0 + sum(c.cached_variance for c in rest)
    misfits = []
    for c in candidates:
        cost = c.prior if c not in rest or c.room - rest.count(c) >= 0.5 else math.inf
        if not no_arrival:
            variance = arrived_variance + c.arrived_variance
            off = abs(c.arrived - arrived)
            if count == 1 and c.cohort is None:
                variance = arrived_variance
                off = max(0.0, off - c.arrived_half_range)
                cost += 2 * math.log(1 + c.arrived_half_range)
            cost += off * off / variance + math.log(variance)
        if not no_prompt:
            miss = (c.prompt - prompt) ** 2
            variance, doubted = spread + c.prompt_variance, spread + c.doubted_variance
            cost += _cost(miss, variance, doubted)
        if not no_cached:
            variance = cached_spread + c.cached_variance
            cost += _cost((c.cached - cached) ** 2, variance, variance + c.doubted_variance)
        if not no_output:
            cost += (c.generated - generated) ** 2 / generated_variance
        misfits.append(cost)
    return misfits


def _cost(miss: float, variance: float, doubted_variance: float) -> float:
    """Of a miss squared, by a normal distribution; what the book says may be wrong."""
    return min(
        miss / variance + math.log(variance),
        miss / doubted_variance + math.log(doubted_variance) + _DOUBT,
    )


def _no_more_than_there_are(
    chosen: Sequence[_Candidate], candidates: Sequence[_Candidate], costs: Sequence[float]
) -> list[Cohort | None]:
    """No cohort gives more requests than it has: the next likely one gives the others."""
    ranked: list[_Candidate] | None = None
    result: list[Cohort | None] = []
    for candidate in chosen:
        giver: _Candidate | None = candidate
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
