"""Requests in flight by age: who has how many tokens, and who holds the blocks.

A cohort is the requests that received their first token between two scrapes. First come, first
served keeps them in order of arrival: the scheduler preempts the youngest that runs and puts it
at the head of the queue (``v1/core/sched/scheduler.py``, ``Scheduler.schedule`` and
``_preempt_request``), so of all requests past their first token those that run are the oldest.
"""

import math
from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal, get_args

# More cohorts than that are merged: a scrape costs the same whatever the load.
MOST_COHORTS = 48
# Nothing says how the prompts of one cohort differ; as if every length up to twice the mean were as
# likely, which is a standard deviation of 0.58 of the mean.
SPREAD = 0.58
NOBODY = 1e-6

TokenSum = Literal["prompt_tokens", "cached_tokens", "generated_tokens"]
_TOKENS = {name: attrgetter(name) for name in get_args(TokenSum)}


@dataclass(slots=True, eq=False)
class Origin:
    """What the counters say of all that are left of those who came between two scrapes.

    Attributes:
        arrived_seconds: when they arrived, on average.
        requests, prompt_tokens, cached_tokens: sums over them.
        is_exact: whether everybody who left could be told.
    """

    arrived_seconds: float
    requests: float
    prompt_tokens: float
    cached_tokens: float
    is_exact: bool = True


@dataclass(slots=True, eq=False)
class Cohort:
    """Requests that received their first token between two scrapes, as sums over them.

    A client that asks for several samples makes several requests with one prompt, a family.

    Attributes:
        arrived_seconds: when they arrived, on average, on the clock of the snapshots. Parts of one
            cohort share it.
        requests: how many are left; a fraction where it is uncertain which one hung up.
        prompt_tokens, generated_tokens: their tokens.
        families: how many clients they belong to; as many as ``requests`` without siblings.
        sibling_tokens: tokens of each prompt whose blocks siblings share.
        finders: how many found those in the cache, since a sibling had computed them.
        hits: how many families found so many tokens of their prompt in the prefix cache.
        prompt_off_tokens: how far the prompt of one may be off although the sum is what it is.
        is_guess: whether some hung up of whom only guesses say how long they were.
        variance: of the sum of tokens for that reason, in tokens squared.
        origin: the sums that it was told apart from, where they are known.
    """

    arrived_seconds: float
    requests: float
    prompt_tokens: float
    generated_tokens: float = 0.0
    families: float = 0.0
    sibling_tokens: float = 0.0
    finders: float = -1.0
    hits: dict[float, float] = field(default_factory=dict)
    prompt_off_tokens: float = 0.0
    is_guess: bool = False
    variance: float = 0.0
    origin: Origin | None = None

    def __post_init__(self) -> None:
        self.families = self.families or self.requests
        if self.finders < 0:
            self.finders = self.requests - self.families

    @property
    def tokens_of_one(self) -> float:
        """Prompt and generated tokens of a mean request."""
        return (self.prompt_tokens + self.generated_tokens) / self.requests

    @property
    def prompt_of_one(self) -> float:
        """Prompt tokens of a mean request."""
        return self.prompt_tokens / self.requests

    @property
    def has_siblings(self) -> bool:
        """Whether some of them are samples of one client."""
        return self.families < self.requests

    @property
    def is_told(self) -> bool:
        """Whether it is one client whose prompt is known."""
        return self.families < 1 + NOBODY and self.prompt_off_tokens == 0

    def prompt_variance(self) -> float:
        """How far the prompt of one may be from the mean, squared."""
        off = 1.0 + self.prompt_off_tokens**2
        if self.families < 1 + NOBODY:
            return off
        return off + (SPREAD * self.prompt_of_one) ** 2

    @property
    def cached_tokens(self) -> float:
        """Of all prompts, those that were found in the prefix cache."""
        found = min(self.finders, self.requests) * self.sibling_tokens
        for tokens, n in self.hits.items():
            found += tokens * n
        return found

    def cached_of_one(self) -> tuple[float, float]:
        """Tokens that a mean request found in the prefix cache, and their variance."""
        finders = min(self.finders, self.requests)
        total = finders * self.sibling_tokens
        squares = total * self.sibling_tokens
        for tokens, n in self.hits.items():
            total += tokens * n
            squares += tokens * tokens * n
        mean = total / self.requests
        return mean, max(0.0, squares / self.requests - mean * mean)

    def families_of(self, requests: float) -> float:
        """To how many families so many of them belong: the last sample of one takes it away."""
        if self.families >= self.requests - NOBODY:
            return requests
        return min(self.families, requests)

    def take(self, requests: float) -> "Cohort":
        """Split off so many requests, each a mean one, and return them."""
        part = min(1.0, requests / self.requests)
        stay = self.families_of(self.requests * (1 - part)) / self.families
        taken = Cohort(
            self.arrived_seconds,
            self.requests * part,
            self.prompt_tokens * part,
            self.generated_tokens * part,
            families=self.families_of(self.requests * part),
            sibling_tokens=self.sibling_tokens,
            finders=self.finders * part,
            hits={tokens: n * (1 - stay) for tokens, n in self.hits.items()} if stay < 1 else {},
            prompt_off_tokens=math.sqrt(self.prompt_variance() - 1),
            is_guess=self.is_guess,
            origin=self.origin,
        )
        self.requests -= taken.requests
        self.prompt_tokens -= taken.prompt_tokens
        self.generated_tokens -= taken.generated_tokens
        self.families *= stay
        self.finders -= taken.finders
        self.hits = {tokens: n * stay for tokens, n in self.hits.items()} if stay > 0 else {}
        return taken

    def put(self, other: "Cohort") -> None:
        """Take the requests of another cohort in."""
        both = self.requests + other.requests
        if other.arrived_seconds != self.arrived_seconds and both > 0:
            later = other.arrived_seconds - self.arrived_seconds
            self.arrived_seconds += later * other.requests / both
        siblings, others = self.requests - self.families, other.requests - other.families
        if siblings + others > NOBODY:
            shared = siblings * self.sibling_tokens + others * other.sibling_tokens
            self.sibling_tokens = shared / (siblings + others)
        self.requests = both
        self.families += other.families
        self.finders += other.finders
        self.prompt_tokens += other.prompt_tokens
        self.generated_tokens += other.generated_tokens
        self.hits = dict(Counter(self.hits) + Counter(other.hits))
        self.prompt_off_tokens = max(self.prompt_off_tokens, other.prompt_off_tokens)
        self.is_guess = self.is_guess or other.is_guess
        self.variance += other.variance
        self.origin = None

    def found(self, cached_tokens: float, taken: "Cohort") -> None:
        """One of them turns out to have found so much: correct who is left and who was taken."""
        others = {t: n for t, n in self.hits.items() if n > NOBODY}
        if self.families < self.requests - NOBODY or not taken.hits or not others:
            return
        nearest = min((*others, *taken.hits), key=lambda tokens: abs(tokens - cached_tokens))
        hits = dict(self.hits)
        for tokens, n in taken.hits.items():
            hits[tokens] = hits.get(tokens, 0.0) + n
        left = hits.get(nearest, 0.0) - 1.0
        hits[nearest] = max(0.0, left)
        taken.hits = {nearest: 1.0}
        if left < 0:  # it was taken for one that found something else
            total = sum(hits.values())
            keep = max(0.0, self.families) / total if total else 0.0
            hits = {tokens: n * keep for tokens, n in hits.items()}
        self.hits = hits


class CohortBook:
    """All requests past their first token, oldest first."""

    def __init__(self) -> None:
        self.cohorts: list[Cohort] = []

    @property
    def requests(self) -> float:
        """How many are past their first token."""
        return sum([cohort.requests for cohort in self.cohorts])

    def total(self, name: TokenSum) -> float:
        """One of the sums of tokens, over all cohorts."""
        return float(sum(map(_TOKENS[name], self.cohorts)))

    def admit(self, cohort: Cohort) -> None:
        """Add the youngest cohort."""
        self.cohorts.append(cohort)
        while len(self.cohorts) > MOST_COHORTS:
            self._merge()

    def of(self, origin: Origin) -> list[Cohort]:
        """Those that are left of whom sums were told together."""
        return [c for c in self.cohorts if c.origin is origin and c.requests > NOBODY]

    def replace(self, members: list[Cohort], others: list[Cohort]) -> None:
        """Put cohorts in the place of others; together they have generated as much."""
        there = sum(c.requests for c in others)
        generated = sum(c.generated_tokens for c in members) / there
        variance = sum(c.variance for c in members) / there
        at = self.cohorts.index(members[0])
        self.cohorts = [c for c in self.cohorts if c not in members]
        for cohort in others:
            cohort.generated_tokens = generated * cohort.requests
            cohort.variance = variance * cohort.requests
        self.cohorts[at:at] = others

    def copy(self) -> "CohortBook":
        """The same cohorts, to go their own way from here."""
        other, origins = CohortBook(), dict[Origin, Origin]()
        for cohort in self.cohorts:
            twin = copy(cohort)
            if cohort.origin is not None:
                twin.origin = origins.setdefault(cohort.origin, copy(cohort.origin))
            other.cohorts.append(twin)
        return other

    def put_back(self, cohort: Cohort) -> None:
        """Return a cohort to its place."""
        at = len(self.cohorts)
        while at and self.cohorts[at - 1].arrived_seconds > cohort.arrived_seconds:
            at -= 1
        self.cohorts.insert(at, cohort)

    def _merge(self) -> None:
        """Make one of the two neighbours that have the fewest requests, in the older half."""
        cohorts = self.cohorts
        at = min(
            range(len(cohorts) // 2),
            key=lambda i: cohorts[i].requests + cohorts[i + 1].requests,
        )
        cohorts[at].put(cohorts.pop(at + 1))

    def split(self, at: float) -> None:
        """Part the cohort of which some are among the oldest so many and some are not."""
        start = 0.0
        for index, cohort in enumerate(self.cohorts):
            within = round(at - start)
            if 0 < within < cohort.requests - 0.5:
                share = within / cohort.requests
                older = cohort.take(within)
                older.variance = cohort.variance * share
                cohort.variance -= older.variance
                cohort.prompt_off_tokens = older.prompt_off_tokens
                self.cohorts.insert(index, older)
                return
            start += cohort.requests

    def advance(self, tokens: float, always: float, sometimes: float) -> None:
        """Give newly generated tokens to those that ran.

        Args:
            tokens: how many.
            always: so many of the oldest ran all the time.
            sometimes: from there up to here, the older the longer.
        """
        weights, start = [], 0.0
        span = max(NOBODY, sometimes - always)
        for cohort in self.cohorts:
            end = start + cohort.requests
            weight = max(0.0, min(end, always) - start)
            low, high = max(start, always), min(end, sometimes)
            if high > low:
                weight += (high - low) * (sometimes - (low + high) / 2) / span
            weights.append(weight)
            start = end
        total = sum(weights)
        if total <= 0:
            weights, total = [c.requests for c in self.cohorts], self.requests
        for cohort, weight in zip(self.cohorts, weights, strict=True):
            cohort.generated_tokens += tokens * weight / total

    def lose(self, requests: float) -> None:
        """Let requests leave of whom nothing is known: those that are most like the mean one."""
        left = requests
        while left > NOBODY and self.requests > NOBODY:
            mean = (self.total("prompt_tokens") + self.total("generated_tokens")) / self.requests
            cohort = min(self.cohorts, key=lambda c: abs(c.tokens_of_one - mean))
            gone = cohort.take(min(1.0, left, cohort.requests))
            if gone.origin is not None:
                gone.origin.is_exact = False
            left -= gone.requests
            spread = sum(
                c.requests * (c.tokens_of_one - mean) ** 2
                for c in self.cohorts
                if c.requests > NOBODY
            )
            self.drop_empty()
            if self.cohorts:
                heir = self.cohorts[-1]
                heir.variance += gone.requests * spread / (self.requests + gone.requests)

    def correct_prompts(self, total: float) -> None:
        """Make the sum of prompts what it is, where somebody's is not known for sure."""
        doubts = [
            0.0 if c.origin and c.origin.is_exact else c.requests * c.prompt_variance()
            for c in self.cohorts
        ]
        surplus = total - self.total("prompt_tokens")
        all_doubts = sum(doubts) + surplus * surplus / 4
        if all_doubts:
            self._correct("prompt_tokens", surplus * sum(doubts) / all_doubts, doubts)

    def correct_generated(self, total: float, running: float) -> None:
        """Make the sum of generated tokens what it is, evenly over those that run."""
        parts = [part * cohort.requests for cohort, part in self.holding(running)]
        self._correct("generated_tokens", total - self.total("generated_tokens"), parts)
        now = self.total("generated_tokens")
        for cohort in self.cohorts if now > 0 else ():
            cohort.generated_tokens *= max(0.0, total) / now

    def _correct(self, name: TokenSum, surplus: float, weights: Sequence[float]) -> None:
        """Share out what is missing or too much; nobody goes below nothing."""
        if abs(surplus) < NOBODY or not any(weights):
            return
        for cohort, weight in zip(self.cohorts, weights, strict=False):
            share = surplus * weight / sum(weights)
            setattr(cohort, name, max(0.0, getattr(cohort, name) + share))

    def holding(self, running: float) -> list[tuple[Cohort, float]]:
        """The cohorts whose requests hold blocks, and the part of each that does."""
        result, left = [], running
        for cohort in self.cohorts:
            if left <= NOBODY:
                break
            result.append((cohort, min(1.0, left / cohort.requests)))
            left -= cohort.requests
        return result

    def drop_empty(self) -> None:
        """Forget cohorts that nobody is left of."""
        self.cohorts = [c for c in self.cohorts if c.requests > NOBODY]
