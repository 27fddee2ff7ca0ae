"""How much of their prompts requests find in the prefix cache, learned from those that came."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

_MOST_LENGTHS = 6
# Requests that are remembered, so that lengths out of use are forgotten.
_MEMORY = 500.0
# Admissions after which what is likely is worked out anew.
_LEARNED_BETWEEN = 16


class MakeUp(NamedTuple):
    """How a sum of cached tokens may be made up.

    Attributes:
        weight: logarithm of how likely the sum is.
        likeliest: the same of the likeliest order of lengths alone.
        lengths: in it, how many requests found so many tokens.
    """

    weight: float
    likeliest: float
    lengths: tuple[tuple[int, int], ...]

    def counts(self) -> dict[float, float]:
        """By length, how many requests found so much, in the likeliest order."""
        return {float(tokens): float(requests) for tokens, requests in self.lengths}


class PrefixLengths:
    """How much of a prompt was found in the prefix cache, and how often: nothing as well.

    What one request alone found is known for sure. Of several it is guessed, and the guesses are
    forgotten when a length turns up for sure that they did not know.
    """

    def __init__(self) -> None:
        self._known: Counter[int] = Counter()
        self._guessed: Counter[int] = Counter()
        self._sums: list[dict[int, MakeUp]] = []
        self._learned = 0

    def learn(self, tokens: int, requests: int = 1, *, is_guess: bool = False) -> bool:
        """One more request that found so many; whether that is known for the first time."""
        is_new = not is_guess and tokens not in self._known
        if is_new:
            self._guessed.clear()
        (self._guessed if is_guess else self._known)[tokens] += requests
        self._learned += requests
        few = len(self._known) + len(self._guessed) <= _MOST_LENGTHS
        if self._learned >= _LEARNED_BETWEEN or few:
            self._sums, self._learned = [], 0
        if self._known.total() + self._guessed.total() > _MEMORY:
            self._known, self._guessed = _halved(self._known), _halved(self._guessed)
        return is_new

    def commonest(self) -> int | None:
        """What is found most often where anything is."""
        found = [(n, tokens) for tokens, n in (self._known + self._guessed).items() if tokens]
        return max(found)[1] if found else None

    def sums(self, requests: int) -> Mapping[int, MakeUp]:
        """Every sum that so many requests can make up of known lengths, and the likeliest way."""
        if not self._sums:
            self._sums = [{0: MakeUp(0.0, 0.0, ())}]
        while len(self._sums) <= requests:
            self._sums.append(self._longer(self._sums[-1]))
        return self._sums[requests]

    def _longer(self, shorter: Mapping[int, MakeUp]) -> dict[int, MakeUp]:
        seen = self._known + self._guessed
        common = dict(seen.most_common(_MOST_LENGTHS))
        common[0] = seen[0] + 1
        total = sum(common.values())
        longer: dict[int, MakeUp] = {}
        for done, way in shorter.items():
            for tokens, requests in common.items():
                weight = way.weight + math.log(requests / total)
                best = longer.get(done + tokens)
                if best is None or weight > best.likeliest:
                    lengths = Counter(dict(way.lengths))
                    lengths[tokens] += 1
                    both = weight if best is None else _log_add(weight, best.weight)
                    longer[done + tokens] = MakeUp(both, weight, tuple(lengths.items()))
                else:
                    longer[done + tokens] = best._replace(weight=_log_add(weight, best.weight))
        return longer


def _halved(counts: Counter[int]) -> Counter[int]:
    return Counter({tokens: n // 2 for tokens, n in counts.items() if n > 1})


def _log_add(one: float, other: float) -> float:
    high, low = max(one, other), min(one, other)
    return high + math.log1p(math.exp(low - high))
