"""What the ledger says at one scrape."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

LedgerState = Literal["anchored", "drifting", "unknown"]
LEDGER_STATES: tuple[LedgerState, ...] = ("anchored", "drifting", "unknown")


class RequestsInFlight(NamedTuple):
    """Requests of like age; tokens are those of a mean one.

    Attributes:
        requests: past their first token, not finished.
        resident_requests: those of them that hold blocks; the others were preempted.
        prompt_tokens, generated_tokens: of one.
        is_exact: whether it is one request of known length, not a mean one.
    """

    requests: float
    resident_requests: float
    prompt_tokens: float
    generated_tokens: float
    is_exact: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerReading:
    """What the ledger says at one scrape.

    Attributes:
        in_flight_tokens: prompt and generated tokens of the requests past their first token,
            those of preempted ones included; None if the engine exports too little.
        resident_tokens: tokens whose keys and values the running requests ought to hold, each
            shared prefix counted once; None likewise.
        resident_tokens_low, resident_tokens_high: bounds that hold the true number, rounding to
            blocks included, at some 95 of 100 scrapes.
        shared_tokens: how many more those would be if no request shared blocks with another.
        running_requests: requests in the batch, the holders of the blocks.
        preempted_requests: requests that wait to get their blocks back, if known.
        cohorts: the requests past their first token by age, oldest first.
        state: "anchored": every request is accounted for; "drifting": some hung up or lost their
            blocks, and which ones was inferred; "unknown": nothing to start from yet.
        reason: why that state, in words.
        restarted: whether the counters began anew since the scrape before.
    """

    in_flight_tokens: float | None
    resident_tokens: float | None
    resident_tokens_low: float | None = None
    resident_tokens_high: float | None = None
    shared_tokens: float = 0.0
    running_requests: int | None
    preempted_requests: int | None
    cohorts: tuple[RequestsInFlight, ...] = ()
    state: LedgerState
    reason: str
    restarted: bool = False
