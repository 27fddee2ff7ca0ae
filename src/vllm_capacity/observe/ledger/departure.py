"""What is known of requests that left between two scrapes.

A finished request leaves its prompt, its output and its end-to-end latency in the sums of three
histograms (``v1/metrics/stats.py``, ``IterationStats.update_from_finished_request``), so for one
that left between two scrapes all three are known. For several only their sums are.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from vllm_capacity.observe.ledger.cohorts import Cohort


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
    queue: Queue | None = None
    clients: float | None = None
    with_siblings: bool = False

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


class Taken(NamedTuple):
    """Some who were taken out of a cohort, and that cohort, which may be empty now."""

    one: Cohort
    cohort: Cohort
