"""The token ledger: which tokens are in flight, and which of them hold blocks.

Tokens of requests past their first token are those counted in (prompt and generation counters)
less those that left with a finished request (sums of the request histograms). Which requests they
belong to is kept by age (``cohorts``), as the scheduler goes by age: the oldest hold the blocks,
the youngest are preempted. From them follow the blocks that ought to be in use
(``compare.occupancy``), without a look at the blocks that are.

What the engine's counters cannot know is who hung up; the HTTP server in front of it tells
(``hang_ups``). Where nothing tells, a request that is past its first token, neither runs nor
waits, and stays so for two scrapes, has hung up. The ledger starts afresh whenever the engine is
idle.
"""

import math

from vllm_capacity.observe.engine_snapshot import EngineSnapshot, ServerTotals
from vllm_capacity.observe.ledger.books import LedgerBooks
from vllm_capacity.observe.ledger.cohorts import NOBODY, SPREAD, Cohort, CohortBook
from vllm_capacity.observe.ledger.counters import LedgerCounters, began_anew
from vllm_capacity.observe.ledger.hang_ups import HangUpWatch
from vllm_capacity.observe.ledger.reading import LedgerReading, LedgerState, RequestsInFlight
from vllm_capacity.observe.ledger.samples import Samples

# Half the width of the interval, in standard deviations: 95 % of a normal distribution and a bit.
_DEVIATIONS = 2.2
# Of a prompt without a first token: computed in several steps it has half its blocks on average,
# computed in one, under asynchronous scheduling, all of them (``Scheduler.schedule``).
_PREFILLED = 0.75


class TokenLedger:
    """The ledger of one engine, fed one snapshot after another."""

    def __init__(self) -> None:
        self._samples = Samples()
        self._book = LedgerBooks(self._samples)
        self._watch = HangUpWatch()
        self._before: LedgerCounters | None = None
        self._started_seconds: float | None = None
        self._unknown = True
        self._is_followed = False
        self._pending_base = 0.0

    def record(self, snapshot: EngineSnapshot) -> LedgerReading:
        """Take one snapshot into account.

        Snapshots must come in the order in which they were taken; a missed one costs precision,
        no more.
        """
        now, before = LedgerCounters.of(snapshot), self._before
        if now is None:
            self._is_followed = False
            return _nothing_known(snapshot)
        self._before = now
        restarted = before is not None and (
            began_anew(before, now) or self._is_another_process(snapshot)
        )
        self._started_seconds = snapshot.process_start_time_seconds
        server = snapshot.server
        sole = server is not None and server.engines == 1  # else nobody knows whose they were
        self._samples.record(snapshot.request_params_n)
        hang_ups = self._watch.record(server if sole else None, _mean_prompt(now, server))
        if now.running == 0 and now.waiting == 0:
            self._anchor(now)
        elif before is None or restarted or not self._is_followed:
            self._begin(now)
        else:
            self._book.follow(
                before,
                now,
                hang_ups,
                pending_tokens=self._pending(now),
                block_size=snapshot.block_size_tokens,
            )
            self._unknown = self._unknown and self._is_still_unknown(now)
        return self._reading(now, snapshot, restarted=restarted)

    def _is_another_process(self, snapshot: EngineSnapshot) -> bool:
        started, started_now = self._started_seconds, snapshot.process_start_time_seconds
        return started is not None and started_now is not None and started_now > started + 1

    def _anchor(self, now: LedgerCounters) -> None:
        """Idle: nothing is in flight, whatever the counters have left over."""
        self._book.clear()
        self._watch.forget()
        self._unknown = False
        self._is_followed = True
        self._pending_base = now.queried_tokens - now.prompt_tokens

    def _begin(self, now: LedgerCounters) -> None:
        """Start amid traffic: known if every request that is not accounted for is running.

        Otherwise the counters have left-overs of unknown size. With an empty queue those who run
        are all there are: they are followed as mean ones until all of them have left, and what
        remains then is known. With a queue some may be preempted, and nobody knows how many.
        """
        self._anchor(now)
        requests = now.first_tokens - now.finished
        self._unknown = requests > now.running
        self._is_followed = not self._unknown
        if self._unknown and now.finished and now.waiting == 0:
            self._book.begin(_mean_ones(now))
            self._is_followed = True
        elif 0 < requests <= now.running:
            cached = now.cached_tokens - now.finished_cached_tokens
            self._book.begin(
                Cohort(
                    now.taken_at_seconds,
                    requests,
                    now.prompt_tokens - now.finished_prompt_tokens,
                    now.generated_tokens - now.finished_generated_tokens,
                    hits={max(0.0, cached) / requests: requests},
                )
            )

    def _is_still_unknown(self, now: LedgerCounters) -> bool:
        """Whether some of those who were there at the start may still be."""
        book = self._book.cohorts
        all_run = now.waiting == 0 and abs(book.requests - now.running) < 1
        return not all_run or any(cohort.is_guess for cohort in book.cohorts)

    def _reading(
        self, now: LedgerCounters, snapshot: EngineSnapshot, *, restarted: bool
    ) -> LedgerReading:
        book, running = self._book.cohorts, now.running
        if self._unknown:
            return LedgerReading(
                in_flight_tokens=None,
                resident_tokens=None,
                running_requests=running,
                preempted_requests=None,
                state="unknown",
                reason="requests beyond the running ones may be preempted or have hung up",
                restarted=restarted,
            )
        holding = book.holding(running)
        beyond = max(0.0, book.requests - running)
        resident, variance, shared_tokens = self._book.residents(running)
        without = running - sum(cohort.requests * part for cohort, part in holding)
        if without > 0.5:
            more = self._not_in_the_book(now, without)
            resident += _PREFILLED * more
            variance += more * more / 12
        block = snapshot.block_size_tokens or 1
        most = math.inf
        if snapshot.total_blocks is not None:
            most = max(0.0, snapshot.total_blocks * block - running * (block - 1) / 2)
        resident = min(resident, most)
        width = _DEVIATIONS * math.sqrt(variance) + block
        state, reason = self._state(now, beyond)
        in_flight_tokens = self._book.likeliest.in_flight_tokens
        return LedgerReading(
            in_flight_tokens=in_flight_tokens,
            resident_tokens=resident,
            resident_tokens_low=max(0.0, resident - width) if running else 0.0,
            resident_tokens_high=min(most, resident + width) if running else 0.0,
            shared_tokens=shared_tokens,
            running_requests=running,
            preempted_requests=round(beyond) if now.waiting else 0,
            cohorts=_in_flight(book, running, in_flight_tokens),
            state=state,
            reason=reason,
            restarted=restarted,
        )

    def _pending(self, now: LedgerCounters) -> float:
        """Prompts admitted that have no first token yet.

        Whoever hangs up before it is never counted as a prompt, and stays a query for ever: with
        an empty queue and all who run past their first token, there is none.
        """
        queried = now.queried_tokens - now.prompt_tokens - self._book.likeliest.abandoned_tokens
        if now.waiting == 0 and now.running <= self._book.cohorts.requests:
            self._pending_base = queried
        return queried - self._pending_base

    def _not_in_the_book(self, now: LedgerCounters, requests: float) -> float:
        """Tokens of running requests that the book does not have.

        They have not got their first token yet, and their prompts were counted as queries of the
        prefix cache when they were admitted (``Scheduler.schedule``); or the page still counts
        those as running that hung up an instant ago.
        """
        pending = self._pending(now)
        if pending > 0:
            return pending
        return sum(
            one.prompt_tokens + one.generated_tokens
            for one in self._book.likeliest.suspects[: round(requests)]
        )

    def _state(self, now: LedgerCounters, beyond: float) -> tuple[LedgerState, str]:
        if now.running == 0 and now.waiting == 0:
            return "anchored", "idle: nothing in flight"
        if beyond >= 0.5:
            if now.waiting:
                return "drifting", f"{beyond:.0f} requests preempted, taken to be the youngest"
            return "drifting", f"{beyond:.0f} requests neither run nor wait: they may have hung up"
        if self._book.is_guess or any(cohort.variance for cohort in self._book.cohorts.cohorts):
            return "drifting", "who hung up, or whose samples share a prompt, was inferred"
        return "anchored", "every request past its first token is running"


def _mean_prompt(now: LedgerCounters, server: ServerTotals | None) -> float | None:
    """Prompt tokens of a mean request, whether it finished, runs, or was hung up.

    A prompt is a query of the prefix cache from its admission on, and counted as a prompt from its
    first token on; those that finished are fewer, and whoever hangs up may send longer ones.
    """
    if server is not None and now.queried_tokens > now.prompt_tokens and server.finished_parents:
        samples = server.finished_requests / server.finished_parents
        return now.queried_tokens / (server.closed_responses * samples + now.running)
    return now.prompt_tokens / now.first_tokens if now.first_tokens else None


def _nothing_known(snapshot: EngineSnapshot) -> LedgerReading:
    return LedgerReading(
        in_flight_tokens=None,
        resident_tokens=None,
        running_requests=snapshot.running,
        preempted_requests=None,
        state="unknown",
        reason="the engine does not export the counters needed",
    )


def _mean_ones(now: LedgerCounters) -> Cohort:
    """Those who run, each as large as the mean finished one and half done."""
    share = now.running / now.finished
    return Cohort(
        now.taken_at_seconds - now.finished_seconds / now.finished / 2,
        now.running,
        now.finished_prompt_tokens * share,
        now.finished_generated_tokens * share / 2,
        hits={now.finished_cached_tokens / now.finished: float(now.running)},
        prompt_off_tokens=SPREAD * now.finished_prompt_tokens / now.finished,
        is_guess=True,
    )


def _in_flight(book: CohortBook, running: float, tokens: float) -> tuple[RequestsInFlight, ...]:
    """The book's cohorts; what they have not of all tokens goes to those known least."""
    doubts = [cohort.requests * cohort.prompt_variance() for cohort in book.cohorts]
    there = [cohort.prompt_tokens + cohort.generated_tokens for cohort in book.cohorts]
    missing = (tokens - sum(there)) / (sum(doubts) or 1.0)
    prompts = [
        max(0.0, cohort.prompt_tokens + missing * doubt)
        for cohort, doubt in zip(book.cohorts, doubts, strict=True)
    ]
    surplus = sum(prompts) + book.total("generated_tokens")
    share = tokens / surplus if surplus > 0 else 1.0
    result, left = [], float(running)
    for cohort, prompt in zip(book.cohorts, prompts, strict=True):
        requests = cohort.requests
        result.append(
            RequestsInFlight(
                requests,
                min(requests, max(0.0, left)),
                share * prompt / requests,
                share * cohort.generated_tokens / requests,
                is_exact=cohort.is_told and requests < 1 + NOBODY,
            )
        )
        left -= requests
    return tuple(result)
