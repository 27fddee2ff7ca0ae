"""A status document and how it came."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Feed:
    """What one source of documents said last.

    Attributes:
        origin: the daemon's address; empty for what this process watches itself.
        document: the last one; None before the first.
        made_seconds: when it was made, by the clock that ``now`` is taken from.
        problem: why there is no newer one, in one line; None while all is well.
    """

    origin: str
    document: Mapping[str, Any] | None = None
    made_seconds: float = 0.0
    problem: str | None = None

    def age_seconds(self, now: float) -> float:
        """How old the document is."""
        return max(0.0, now - self.made_seconds)
