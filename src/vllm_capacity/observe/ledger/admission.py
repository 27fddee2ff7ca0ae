"""Who came: the requests that got their first token between two scrapes, told apart.

The counters give three sums over them: how many, their prompts, and how much of these came from
the prefix cache (``v1/metrics/stats.py``, ``IterationStats.update_from_output``). The ``n`` samples
of one client have one prompt, which the first of them computes, so they leave their mark in the
third sum: ``n - 1`` times the full blocks of that prompt. What the others find in the cache was
found by somebody before, as a rule. The likeliest way to make up the sums is taken.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from vllm_capacity.observe.ledger.cohorts import Cohort
from vllm_capacity.observe.ledger.prefix_lengths import MakeUp, PrefixLengths
from vllm_capacity.observe.ledger.samples import Samples

# So likely must one way be among all that are possible.
_SURE = 0.7
# Ways to make up the sums grow with the requests; of more, each is a mean one.
_MOST_TOLD_APART = 10
# Lengths that two clients found between them that are tried: the commonest.
_MOST_LENGTHS = 6
# As likely as this, somebody finds a prefix that nobody found before.
_NOVEL = 0.02
# Where clients ask for so many or more, what is found is found by siblings, but for a few.
_SELDOM = 1.2
_FEW_NEW = 3


class Arrivals(NamedTuple):
    """Requests that got their first token between two scrapes, as sums over them.

    Attributes:
        arrived_seconds: when they came, on average.
        requests: how many.
        prompt_tokens, cached_tokens: of them.
        mean_prompt_tokens: of a request of this engine.
    """

    arrived_seconds: float
    requests: int
    prompt_tokens: float
    cached_tokens: float
    mean_prompt_tokens: float


def tell_apart(
    arrivals: Arrivals, *, lengths: PrefixLengths, samples: Samples, block_size: int | None
) -> list[Cohort]:
    """The likeliest cohorts that make up the sums; one of mean requests where none does."""
    requests = arrivals.requests
    cached = round(arrivals.cached_tokens)
    if requests == 1:
        lengths.learn(cached)
        return [_singles(arrivals, {float(cached): 1.0})]
    if cached == 0:
        lengths.learn(0, requests)
        return [_singles(arrivals, {0.0: float(requests)})]
    if requests <= _MOST_TOLD_APART:
        ways = list(_ways(arrivals, lengths, samples, block_size))
        if ways:
            _learn(lengths, max(ways, key=lambda way: way[0])[1])
            best, cohorts = max(ways, key=lambda way: way[0])
            if sum(math.exp(weight - best) for weight, _ in ways) < 1 / _SURE:
                return cohorts
            alone = cached in lengths.sums(requests)
            return ways[0][1] if alone else cohorts
    return [_mean_ones(arrivals, lengths, samples)]


def _learn(lengths: PrefixLengths, cohorts: list[Cohort]) -> None:
    for cohort in cohorts:
        for tokens, requests in cohort.hits.items():
            lengths.learn(round(tokens), round(requests), is_guess=True)


def _ways(
    arrivals: Arrivals, lengths: PrefixLengths, samples: Samples, block_size: int | None
) -> Iterator[tuple[float, list[Cohort]]]:
    requests, prompts = arrivals.requests, arrivals.prompt_tokens
    cached, mean = round(arrivals.cached_tokens), max(1.0, arrivals.mean_prompt_tokens)
    alone = lengths.sums(requests).get(cached)
    if alone is not None:
        weight = alone.weight + requests * samples.log_share(1)
        yield weight + _log_density(requests, prompts, mean), [_singles(arrivals, alone.counts())]
    if not block_size:
        return
    if alone is None and (requests <= _FEW_NEW or samples.mean < _SELDOM):
        yield from _ways_never_seen(arrivals, samples, block_size)
    if samples.are_alone:
        return
    yield from _ways_of_two(arrivals, lengths, samples, block_size)
    for n in range(2, requests + 1):
        others = requests - n
        prior = samples.log_share(n) + others * samples.log_share(1) + math.log(others + 1)
        for found, way in lengths.sums(others + 1).items():
            blocks, rest = divmod(cached - found, (n - 1) * block_size)
            if blocks <= 0 or rest:
                continue
            split = _split(arrivals, n, blocks * block_size, way, block_size)
            if split is not None:
                prompt = split[0].prompt_tokens / n
                likely = _log_density(1, prompt, mean)
                if others:
                    likely += math.log(block_size)
                    likely += _log_density(others, prompts - n * prompt, mean)
                yield prior + way.weight + likely, split


def _ways_never_seen(
    arrivals: Arrivals, samples: Samples, block_size: int
) -> Iterator[tuple[float, list[Cohort]]]:
    """Some found a prefix, as long for each, that nobody found before."""
    requests, cached = arrivals.requests, round(arrivals.cached_tokens)
    mean = max(1.0, arrivals.mean_prompt_tokens)
    weight = math.log(_NOVEL * block_size / (block_size + mean))
    weight += requests * (samples.log_share(1) - math.log(2))
    weight += _log_density(requests, arrivals.prompt_tokens, mean)
    for finders in range(1, requests + 1):
        found, rest = divmod(cached, finders)
        if rest or found % block_size or found > 1.5 * arrivals.prompt_tokens / requests:
            continue
        hits = {float(found): float(finders)}
        if finders < requests:
            hits[0.0] = float(requests - finders)
        yield weight + math.log(math.comb(requests, finders)), [_singles(arrivals, hits)]


def _ways_of_two(
    arrivals: Arrivals, lengths: PrefixLengths, samples: Samples, block_size: int
) -> Iterator[tuple[float, list[Cohort]]]:
    """Two clients with all requests between them."""
    requests, prompts, mean = arrivals.requests, arrivals.prompt_tokens, arrivals.mean_prompt_tokens
    common = sorted(lengths.sums(2).items(), key=lambda each: -each[1].weight)[:_MOST_LENGTHS]
    for n in range(2, requests // 2 + 1):
        m = requests - n
        prior = samples.log_share(n) + samples.log_share(m) + math.log(1 + (n != m))
        for found, way in common:
            left, rest = divmod(round(arrivals.cached_tokens) - found, block_size)
            if rest or left <= 0:
                continue
            for first, second in _blocks_of_two(n, m, left, prompts / block_size):
                room = prompts - block_size * (n * first + m * second)
                # The prompts beyond their full blocks, each as likely as the other.
                tail = room / requests
                likely = _log_density(1, block_size * first + tail, mean)
                likely += _log_density(1, block_size * second + tail, mean)
                each_found = sorted(t for t, number in way.lengths for _ in range(number))
                yield (
                    prior + way.weight + likely + math.log(block_size / max(n, m)),
                    [
                        _family(
                            arrivals.arrived_seconds,
                            siblings,
                            block_size * blocks + tail,
                            sibling_tokens=block_size * blocks,
                            found=own,
                            off=tail,
                        )
                        for siblings, blocks, own in zip(
                            (n, m), (first, second), each_found, strict=True
                        )
                    ],
                )


def _blocks_of_two(n: int, m: int, shared: int, prompts: float) -> Iterator[tuple[int, int]]:
    """Full blocks of two prompts, asked for ``n`` and ``m`` times, that share so many in all.

    ``(n - 1) * first + (m - 1) * second`` are shared, and beyond its full blocks each of the
    ``n + m`` prompts has more than nothing and at most a block.
    """
    fewest, most = math.ceil(prompts - n - m) - shared, math.floor(prompts) - shared
    for both in range(max(2, fewest), most + 1):
        if n == m:
            first, rest = both // 2, (n - 1) * both - shared
        else:
            first, rest = divmod((m - 1) * both - shared, m - n)
        if not rest and 0 < first < both:
            yield first, both - first


def _family(
    arrived_seconds: float, n: int, prompt: float, *, sibling_tokens: int, found: int, off: float
) -> Cohort:
    """All ``n`` samples of one client, which found so much before the first of them computed."""
    return Cohort(
        arrived_seconds,
        float(n),
        n * prompt,
        families=1.0,
        sibling_tokens=float(sibling_tokens),
        hits={float(found): 1.0},
        prompt_off_tokens=off / 2,
    )


def _split(
    arrivals: Arrivals, n: int, sibling_tokens: int, way: MakeUp, block_size: int
) -> list[Cohort] | None:
    """``n`` samples of one prompt, and the others; None if the prompts do not allow it."""
    others = arrivals.requests - n
    if others:
        most = (arrivals.prompt_tokens - others) / n
        prompt = min(sibling_tokens + (block_size + 1) / 2, most)
    else:
        prompt = arrivals.prompt_tokens / n
    if not sibling_tokens < prompt <= sibling_tokens + block_size or (
        not others and prompt != round(prompt)
    ):
        return None
    counts = way.counts()
    own = min(counts) if others else next(iter(counts))
    if own > sibling_tokens:
        return None
    counts[own] -= 1
    off = block_size / math.sqrt(3) if others else 0.0
    family = _family(
        arrivals.arrived_seconds,
        n,
        prompt,
        sibling_tokens=sibling_tokens,
        found=round(own),
        off=off,
    )
    if not others:
        return [family]
    rest = arrivals._replace(requests=others, prompt_tokens=arrivals.prompt_tokens - n * prompt)
    alone = _singles(rest, {tokens: number for tokens, number in counts.items() if number})
    alone.prompt_off_tokens = n * off / 2 / others
    return [family, alone]


def _log_density(requests: int, prompt_tokens: float, mean: float) -> float:
    """Of a sum of prompts: each as likely as a gamma distribution of shape 2 has it."""
    total, shape = max(1.0, prompt_tokens), 2 * requests
    scaled = 2 * total / mean
    return (shape - 1) * math.log(scaled) - scaled + math.log(2 / mean) - math.lgamma(shape)


def _singles(arrivals: Arrivals, hits: dict[float, float]) -> Cohort:
    requests = float(arrivals.requests)
    return Cohort(
        arrivals.arrived_seconds, requests, arrivals.prompt_tokens, families=requests, hits=hits
    )


def _mean_ones(arrivals: Arrivals, lengths: PrefixLengths, samples: Samples) -> Cohort:
    """Requests of which each is a mean one: as many samples, as much from the cache."""
    requests, cached = float(arrivals.requests), arrivals.cached_tokens
    families = max(1.0, requests / samples.mean)
    of_siblings = min(cached, arrivals.prompt_tokens * (1 - families / requests))
    rest = cached - of_siblings
    length = float(lengths.commonest() or 0)
    length = max(length, rest / families)
    finders = rest / length if length else 0.0
    return Cohort(
        arrivals.arrived_seconds,
        requests,
        arrivals.prompt_tokens,
        families=families,
        sibling_tokens=of_siblings / (requests - families) if families < requests else 0.0,
        hits={length: finders, 0.0: families - finders} if length else {0.0: families},
    )
