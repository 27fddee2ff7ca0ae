"""Who may have left, and how well each explains what is known of those who did."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vllm_capacity.observe.ledger.cohorts import NOBODY, SPREAD, Cohort
from vllm_capacity.observe.ledger.departure import Departure, Queue

# So many may have come and gone between two scrapes, and no page shows them.
_MOST_UNSEEN = 16
# Prompts in the book may be wrong after a wrong guess: one time in twenty, as a log-likelihood.
_DOUBT = 2 * math.log(20)
# Less than half a request is none.
_HALF = 0.5


@dataclass(slots=True, eq=False)
class Candidate:
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


def of_cohort(cohort: Cohort, *, with_siblings: bool) -> Candidate:
    """A mean one, or all samples of one client."""
    requests = cohort.requests
    cached, cached_variance = cohort.cached_of_one()
    room = cohort.families if with_siblings else requests
    return Candidate(
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


def of_queue(queue: Queue, departure: Departure) -> Candidate:
    """One without a first token: its prompt is whatever the client's was."""
    told = departure.prompt_tokens
    prompt = queue.prompt_tokens if told is None else told / departure.requests
    variance = 1.0 + SPREAD * SPREAD * (prompt * prompt + queue.prompt_tokens**2)
    return Candidate(
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


def without(departure: Departure, some: Sequence[Candidate]) -> Departure:
    """A mean one of those who remain without ``some``."""
    n, left = departure.requests, departure.requests - len(some)
    arrived, prompts = departure.arrived_seconds, departure.prompt_tokens
    generated, cached = departure.generated_tokens, departure.cached_tokens
    if arrived is not None:
        arrived = (arrived * n - sum(c.arrived for c in some)) / left
    if prompts is not None:
        prompts = (prompts - sum(c.prompt for c in some)) / left
    if generated is not None:
        generated -= sum(c.generated + departure.reach_tokens / 2 for c in some)
        generated /= left
    if cached is not None:
        cached = (cached - sum(c.cached for c in some)) / left
    return replace(
        departure,
        requests=1,
        arrived_seconds=arrived,
        prompt_tokens=prompts,
        generated_tokens=generated,
        cached_tokens=cached,
    )


def misfits(
    departure: Departure, candidates: Sequence[Candidate], rest: Sequence[Candidate]
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
    costs = []
    for c in candidates:
        if rest and c in rest and c.room - rest.count(c) < _HALF:
            costs.append(math.inf)
            continue
        cost = c.prior
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
        costs.append(cost)
    return costs


def _cost(miss: float, variance: float, doubted_variance: float) -> float:
    """Of a miss squared, by a normal distribution; what the book says may be wrong."""
    by_the_book = miss / variance + math.log(variance)
    if miss <= _DOUBT * variance:  # doubting costs more
        return by_the_book
    return min(by_the_book, miss / doubted_variance + math.log(doubted_variance) + _DOUBT)


def misfit_of_all(departure: Departure, chosen: Sequence[Candidate]) -> float:
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
