"""Samples of one client: told apart when they come, and told again by how they leave."""

from vllm_capacity.observe.ledger.admission import Arrivals, tell_apart
from vllm_capacity.observe.ledger.cohorts import NOBODY, Cohort, CohortBook, Origin
from vllm_capacity.observe.ledger.departure import Departure, Taken
from vllm_capacity.observe.ledger.prefix_lengths import PrefixLengths
from vllm_capacity.observe.ledger.samples import Samples


class Families:
    """Which requests are samples of one client, and how much of a prompt is found in the cache.

    What is learned here of how clients ask holds for every account of who is there.

    Attributes:
        samples: how many samples clients ask for.
        block_size: tokens of a block; None while not known.
        mean_prompt_tokens: of a request of this engine.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.block_size: int | None = None
        self.mean_prompt_tokens = 1.0
        self._lengths = PrefixLengths()

    def come(self, book: CohortBook, arrivals: Arrivals) -> list[Cohort]:
        """Who came, told apart; nobody where they have joined those who came before."""
        if self._are_late_siblings(book, arrivals):
            return []
        return self._told_apart(
            Origin(
                arrivals.arrived_seconds,
                arrivals.requests,
                arrivals.prompt_tokens,
                arrivals.cached_tokens,
            )
        )

    def _told_apart(self, origin: Origin) -> list[Cohort]:
        arrivals = Arrivals(
            origin.arrived_seconds,
            round(origin.requests),
            origin.prompt_tokens,
            origin.cached_tokens,
            self.mean_prompt_tokens,
        )
        cohorts = tell_apart(
            arrivals, lengths=self._lengths, samples=self.samples, block_size=self.block_size
        )
        for cohort in cohorts:
            cohort.origin = origin
        return cohorts

    def _are_late_siblings(self, book: CohortBook, arrivals: Arrivals) -> bool:
        """Whether these are samples of a client whose first ones came with the scrape before.

        They found all that can be found of one prompt.
        """
        requests, block_size = arrivals.requests, self.block_size
        prompt, rest = divmod(arrivals.prompt_tokens, requests)
        if self.samples.are_alone or not block_size or rest or not book.cohorts:
            return False
        siblings = (prompt - 1) // block_size * block_size
        origin = book.cohorts[-1].origin
        if not siblings or arrivals.cached_tokens != requests * siblings or origin is None:
            return False
        members = book.of(origin)
        there = sum(c.requests for c in members)
        if not origin.is_exact or abs(there - origin.requests) > 0.5:
            return False
        both = Origin(
            origin.arrived_seconds,
            round(there) + requests,
            origin.prompt_tokens + arrivals.prompt_tokens,
            origin.cached_tokens + arrivals.cached_tokens,
        )
        again = self._told_apart(both)
        if any(c.requests > requests and _is_family_of(c, prompt) for c in again):
            book.replace(members, again)
            return True
        return False

    def leave(self, book: CohortBook, departure: Departure) -> list[Taken]:
        """Those who left, where their sums show that they were all samples of one client."""
        n, prompts, cached = departure.requests, departure.prompt_tokens, departure.cached_tokens
        block_size, arrived = self.block_size, departure.arrived_seconds
        if n < 2 or not block_size or prompts is None or cached is None or arrived is None:
            return []
        prompt, rest = divmod(prompts, n)
        siblings = (prompt - 1) // block_size * block_size
        if rest or not siblings or cached - (n - 1) * siblings not in self._lengths.sums(1):
            return []
        off = 2 * departure.arrived_deviation_seconds
        fitting = [
            cohort
            for cohort in book.cohorts
            if abs(cohort.arrived_seconds - arrived) <= off
            and cohort.requests >= n - 0.5
            and _is_family_of(cohort, prompt)
        ]
        if fitting:
            cohort = min(fitting, key=lambda c: (c.requests, abs(c.arrived_seconds - arrived)))
            return [Taken(cohort.take(n), cohort)]
        return _leave_untold(book, departure, prompt, siblings)

    def tell_again(self, book: CohortBook, departure: Departure, taken: list[Taken]) -> None:
        """Now that it is known who left, the others of their time can be told apart better."""
        origins = {one.origin for one, _ in taken if one.origin is not None}
        gone = sum(one.requests for one, _ in taken)
        if len(origins) != 1 or gone < departure.requests - 0.5:
            for each in origins:
                each.is_exact = False
            return
        [origin] = origins
        members = book.of(origin)
        there = sum(c.requests for c in members)
        origin.requests -= gone
        origin.prompt_tokens -= departure.prompt_tokens or 0.0
        found = departure.cached_tokens or 0.0
        one = taken[0].one
        if there and (one.families < one.requests or any(c.has_siblings for _, c in taken)):
            found = max(found, gone * one.sibling_tokens)
        origin.cached_tokens -= found
        if _can_be_told_better(members, origin, departure.reach_tokens):
            book.replace(members, self._told_apart(origin))
        if departure.requests == 1 and found and self.samples.are_alone:
            self._learn(book, round(found), departure.reach_tokens)

    def _learn(self, book: CohortBook, found: int, reach_tokens: float) -> None:
        """Somebody found so much for sure: what was guessed without knowing it is guessed anew."""
        if not self._lengths.learn(found):
            return
        for origin in {cohort.origin: None for cohort in book.cohorts}:
            members = [] if origin is None else book.of(origin)
            if origin is not None and _can_be_told_better(members, origin, reach_tokens):
                book.replace(members, self._told_apart(origin))


def _is_family_of(cohort: Cohort, prompt: float) -> bool:
    """Whether they are samples of one client, whose prompt may have this length."""
    off = 2 * cohort.prompt_off_tokens + 1
    return cohort.families < 1 + NOBODY and abs(cohort.prompt_of_one - prompt) <= off


def _leave_untold(
    book: CohortBook, departure: Departure, prompt: float, siblings: float
) -> list[Taken]:
    """All samples of one client, out of those who were not told apart as they should be."""
    n, arrived = departure.requests, departure.arrived_seconds or 0.0
    fitting = [
        origin
        for origin in {c.origin: None for c in book.cohorts if not c.is_told}
        if origin is not None
        and book.of(origin)
        and origin.is_exact
        and abs(origin.arrived_seconds - arrived) <= 2 * departure.arrived_deviation_seconds
        and origin.requests >= n
        and origin.prompt_tokens - n * prompt >= origin.requests - n
        and origin.cached_tokens >= (departure.cached_tokens or 0.0)
    ]
    if not fitting:
        return []
    origin = min(fitting, key=lambda o: abs(o.arrived_seconds - arrived))
    members = book.of(origin)
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
    others = Cohort(
        origin.arrived_seconds,
        origin.requests - n,
        origin.prompt_tokens - n * prompt,
        generated * (origin.requests - n),
        origin=origin,
    )
    at = book.cohorts.index(members[0])
    book.cohorts = [cohort for cohort in book.cohorts if cohort.origin is not origin]
    book.cohorts.insert(at, others)
    return [Taken(gone, others)]


def _can_be_told_better(members: list[Cohort], origin: Origin, reach_tokens: float) -> bool:
    """Whether the sums over those who stay are known, and not yet what these cohorts say."""
    if not members or not origin.is_exact:
        return False
    there = sum(c.requests for c in members)
    prompts = sum(c.prompt_tokens for c in members)
    if all(c.is_told for c in members) and abs(prompts - origin.prompt_tokens) < there:
        return False
    ages = [c.generated_tokens / c.requests for c in members]
    return (
        max(ages) - min(ages) <= reach_tokens + 1
        and abs(there - origin.requests) <= 0.5
        and origin.prompt_tokens >= there
        and origin.cached_tokens >= 0
    )
