"""The token ledger: what four counters say of the tokens in flight.

Tokens of requests past their first token are those counted in (prompt and generation counters)
less those that left with a finished request (sums of the request histograms). From them follow the
blocks that ought to be in use (``compare.occupancy``), without a look at the blocks that are.

What the counters cannot know: a client that hangs up leaves its tokens in the account for ever,
and a preempted request keeps its tokens there while it holds no block.
Both show in the count of requests: past their first token and not finished = running + preempted +
hung up. So the ledger knows when it can be trusted, and starts afresh whenever the engine is idle.
"""

from dataclasses import dataclass
from typing import Literal

from vllm_capacity.observe.engine_snapshot import EngineSnapshot

LedgerState = Literal["anchored", "drifting", "unknown"]
LEDGER_STATES: tuple[LedgerState, ...] = ("anchored", "drifting", "unknown")


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerReading:
    """What the ledger says at one scrape.

    Attributes:
        in_flight_tokens: prompt and generated tokens of the requests past their first token,
            those of preempted ones included; None if the engine exports too little.
        resident_tokens: tokens whose keys and values the running requests ought to hold, each
            shared prefix counted once; None likewise.
        running_requests: requests in the batch, the holders of the blocks.
        preempted_requests: requests that wait to get their blocks back, if known.
        state: "anchored": every request is accounted for; "drifting": some hung up or lost their
            blocks, and which tokens are theirs was taken as the mean; "unknown": nothing to start
            from yet.
        reason: why that state, in words.
        restarted: whether the counters began anew since the scrape before.
    """

    in_flight_tokens: float | None
    resident_tokens: float | None
    running_requests: int | None
    preempted_requests: int | None
    state: LedgerState
    reason: str
    restarted: bool = False


@dataclass(frozen=True, slots=True)
class _Account:
    """Sums over the requests past their first token that have not finished."""

    requests: float
    tokens: float
    cached_tokens: float

    def less(self, other: "_Account") -> "_Account":
        return _Account(
            max(0.0, self.requests - other.requests),
            max(0.0, self.tokens - other.tokens),
            max(0.0, self.cached_tokens - other.cached_tokens),
        )

    def share(self, part: float) -> "_Account":
        return _Account(self.requests * part, self.tokens * part, self.cached_tokens * part)

    def plus(self, other: "_Account") -> "_Account":
        return _Account(
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.cached_tokens + other.cached_tokens,
        )


_NOTHING = _Account(0.0, 0.0, 0.0)


class TokenLedger:
    """The ledger of one engine, fed one snapshot after another."""

    def __init__(self) -> None:
        self._gone = _NOTHING
        self._state: LedgerState = "unknown"
        self._reason = "no snapshot yet"
        self._before: EngineSnapshot | None = None

    def record(self, snapshot: EngineSnapshot) -> LedgerReading:
        """Take one snapshot into account.

        Snapshots must come in the order in which they were taken; a missed one does no harm.
        """
        restarted = self._before is not None and _restarted(self._before, snapshot)
        if restarted:
            self._gone, self._state = _NOTHING, "unknown"
        self._before = snapshot
        account, running, waiting = _account(snapshot), snapshot.running, snapshot.waiting
        if account is None or running is None or waiting is None:
            self._state, self._reason = "unknown", "the engine does not export the counters needed"
            return LedgerReading(
                in_flight_tokens=None,
                resident_tokens=None,
                running_requests=running,
                preempted_requests=None,
                state=self._state,
                reason=self._reason,
                restarted=restarted,
            )
        self._settle(account, running, waiting)
        return self._reading(account.less(self._gone), running, waiting, restarted=restarted)

    def _settle(self, account: _Account, running: int, waiting: int) -> None:
        """Find out which part of the account belongs to requests that are gone."""
        if running == 0 and waiting == 0:
            self._gone = account
            self._state = "anchored"
            self._reason = "every request since the engine was idle is accounted for"
            return
        alive = account.less(self._gone)
        surplus = alive.requests - running
        if surplus <= 0:
            if self._state == "unknown":
                self._state = "anchored"
                self._reason = "every request past its first token is running"
        elif waiting == 0:
            self._gone = self._gone.plus(alive.share(surplus / alive.requests))
            self._state = "drifting"
            self._reason = f"{surplus:.0f} requests hung up; their share was taken as the mean"
        elif self._state == "unknown":
            self._reason = "requests beyond the running ones may be preempted or have hung up"

    def _reading(
        self, alive: _Account, running: int, waiting: int, *, restarted: bool
    ) -> LedgerReading:
        preempted = max(0.0, alive.requests - running) if waiting else 0.0
        holding = alive.share(1 - preempted / alive.requests) if preempted else alive
        known = self._state != "unknown"
        state, reason = self._state, self._reason
        if preempted and known:
            state = "drifting"
            reason = f"{preempted:.0f} requests preempted; their share was taken as the mean"
        return LedgerReading(
            in_flight_tokens=alive.tokens if known else None,
            resident_tokens=_resident_tokens(holding) if known else None,
            running_requests=running,
            preempted_requests=round(preempted) if known else None,
            state=state,
            reason=reason,
            restarted=restarted,
        )


def _account(snapshot: EngineSnapshot) -> _Account | None:
    prompts, generations = snapshot.request_prompt_tokens, snapshot.request_generation_tokens
    if (
        snapshot.prompt_tokens is None
        or snapshot.generation_tokens is None
        or snapshot.first_tokens is None
        or prompts is None
        or generations is None
    ):
        return None
    return _Account(
        requests=snapshot.first_tokens - prompts.count,
        tokens=snapshot.prompt_tokens
        - prompts.total
        + snapshot.generation_tokens
        - generations.total,
        cached_tokens=_cached_tokens(snapshot),
    )


def _cached_tokens(snapshot: EngineSnapshot) -> float:
    """Prompt tokens of the requests in flight that came from the prefix cache."""
    computed, prompts = snapshot.request_prefill_computed_tokens, snapshot.request_prompt_tokens
    if snapshot.cached_prompt_tokens is None or computed is None or prompts is None:
        return 0.0
    return max(0.0, snapshot.cached_prompt_tokens - (prompts.total - computed.total))


def _resident_tokens(holding: _Account) -> float:
    """Tokens that requests hold of their own, and one copy of what they share."""
    own = max(0.0, holding.tokens - holding.cached_tokens)
    return own + holding.cached_tokens / max(1.0, holding.requests)


def _restarted(before: EngineSnapshot, now: EngineSnapshot) -> bool:
    started, started_now = before.process_start_time_seconds, now.process_start_time_seconds
    if started is not None and started_now is not None and started_now > started + 1:
        return True
    return any(
        old is not None and new is not None and new < old
        for old, new in (
            (before.prompt_tokens, now.prompt_tokens),
            (before.generation_tokens, now.generation_tokens),
            (before.first_tokens, now.first_tokens),
        )
    )
