"""Tokens in blocks: what the running requests hold, each token that they share counted once.

Blocks of the prefix cache are held by everybody who found them (``v1/core/block_pool.py``,
``BlockPool.touch``), whoever computed them and whether that one is still there or not.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from vllm_capacity.observe.ledger.cohorts import NOBODY, CohortBook

_MOST_PREFIXES = 64
# Who is whose sibling is inferred; what they share may be wrong by this much.
_SIBLINGS_DOUBT = 0.05


class _Discovery(NamedTuple):
    """When a prefix was found for the first time, and how many requests had come before."""

    found_seconds: float
    requests: float


class FoundPrefixes:
    """Prefixes by their length, and whether the one who computed them may still be there.

    What is found to the same length is taken for the same prefix. When it is found for the first
    time, one of those who were there has just computed it, and holds it with the rest of its
    prompt; later somebody may have who is gone.
    """

    def __init__(self) -> None:
        self._known: dict[float, None] = {}
        self._new: dict[float, _Discovery] = {}

    def find(self, hits: Mapping[float, float], found_seconds: float, requests: float) -> None:
        """Somebody found prefixes of these lengths, when so many were there."""
        for tokens, finders in hits.items():
            if tokens and finders > NOBODY and tokens not in self._known:
                self._new[tokens] = _Discovery(found_seconds, requests)
                self._known[tokens] = None
        while len(self._known) > _MOST_PREFIXES:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._new.pop(oldest, None)

    def forget_finders(self) -> None:
        """Nobody is there any more."""
        self._new.clear()

    def copy(self) -> "FoundPrefixes":
        """The same, to go its own way from here."""
        other = FoundPrefixes()
        other._known, other._new = dict(self._known), dict(self._new)
        return other

    def held_by_their_owners(self, book: CohortBook) -> dict[float, float]:
        """By length, how likely it is that whoever computed the prefix is still there."""
        held = {}
        for tokens, (found_seconds, requests) in self._new.items():
            there = sum(c.requests for c in book.cohorts if c.arrived_seconds < found_seconds)
            held[tokens] = min(1.0, there / requests) if requests >= 1 else 0.0
        return held


class Residents(NamedTuple):
    """What requests hold.

    Attributes:
        tokens: whose keys and values are in blocks, those that several share once.
        variance: of these, rounding up to whole blocks included.
        shared_tokens: how many more they would be if nobody shared.
    """

    tokens: float
    variance: float
    shared_tokens: float


def residents(
    book: CohortBook, running: float, prefixes: FoundPrefixes, block_size: int
) -> Residents:
    """What so many of the oldest hold.

    Samples of one client are as long as each other, so their last blocks fill up together.

    Where some past their first token hold nothing, the youngest that does may already have lost
    its blocks, or the next one have got them back.
    """
    holding = book.holding(running)
    own = shared = variance = 0.0
    found: dict[float, float] = defaultdict(float)
    for cohort, part in holding:
        requests = cohort.requests * part
        families = cohort.families_of(requests)
        own += part * (cohort.prompt_tokens + cohort.generated_tokens)
        of_siblings = (requests - families) * cohort.sibling_tokens
        shared += of_siblings
        variance += (_SIBLINGS_DOUBT * of_siblings) ** 2
        for tokens, n in cohort.hits.items():
            found[tokens] += n * families / cohort.families
        variance += part * part * cohort.variance
        if families > 0:
            variance += requests * requests / families * block_size * block_size / 12
    if holding and book.requests > running + NOBODY:
        variance += holding[-1][0].tokens_of_one ** 2 / 12
    held = prefixes.held_by_their_owners(book)
    for tokens, n in found.items():
        share = held.get(tokens, 0.0)
        shared += tokens * (max(0.0, n - 1) + share * min(1.0, n))
        variance += (tokens * min(1.0, n)) ** 2 * share * (1 - share)
        variance += tokens * tokens * max(0.0, min(n, 1.0) * (1 - n))
    return Residents(max(0.0, own - shared), variance, shared)
