"""The last minutes of one engine: peaks that a slow scraper would miss, rates and shares."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from vllm_capacity.observe.engine_snapshot import EngineSnapshot
from vllm_capacity.observe.ledger import LedgerReading
from vllm_capacity.observe.sliding_window import SlidingPeak, SlidingWindow

WINDOWS_SECONDS = {"1m": 60.0, "5m": 300.0}
SHARE_WINDOW = "5m"
"""The window of shares."""
_LONGEST_SECONDS = max(WINDOWS_SECONDS.values())
_SPACING_SECONDS = 5.0
# A rate over less than that is noise.
_LEAST_SECONDS = 10.0
_UNKNOWN = math.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class RecentReading:
    """What happened lately.

    Windows are "1m" and "5m". Rates are over the time that really passed, at most half a scrape
    interval or 2.5 seconds more or less than the window, and while the exporter has watched for
    less than the window, over that time; absent for the first ten seconds.

    Attributes:
        usage_peak_ratio: largest share of the pool in use, by window; a window appears once it
            has a sample.
        arrived_requests_per_second: requests that entered the engine, by window.
        completed_requests_per_second: requests that finished, those whose clients hung up not
            counted, by window.
        preempted_requests_ratio: preemptions for each request that received its first token in the
            last five minutes; None where neither happened or vLLM does not say.
        cached_prompt_tokens_ratio: share of the prompt tokens of the last five minutes whose keys
            and values were not computed, by where they came from ("local": the prefix cache in
            the pool; "external": a KV connector, as of LMCache, offloading or another engine).
    """

    usage_peak_ratio: Mapping[str, float]
    arrived_requests_per_second: Mapping[str, float]
    completed_requests_per_second: Mapping[str, float]
    preempted_requests_ratio: float | None
    cached_prompt_tokens_ratio: Mapping[str, float]


class _Numbers(NamedTuple):
    """What is remembered of a snapshot; NaN is unknown. The last two may fall."""

    preemptions: float
    first_tokens: float
    finished: float
    finished_of_server: float
    finished_parents: float
    closed_responses: float
    prompts_local: float
    prompts_external: float
    prompts: float
    in_engine: float
    past_first_token: float


class RecentHistory:
    """A bounded history of one engine: some kilobytes, whatever the scrape interval."""

    def __init__(self) -> None:
        self._peak = SlidingPeak(_LONGEST_SECONDS)
        self._window = SlidingWindow(_LONGEST_SECONDS, spacing_seconds=_SPACING_SECONDS, levels=2)
        self._knew_requests = False

    def record(self, snapshot: EngineSnapshot, ledger: LedgerReading) -> RecentReading:
        """Take one snapshot, and the ledger as of then, into account."""
        now = snapshot.taken_at_seconds
        if ledger.restarted:
            self._peak.clear()
            self._window.clear()
        numbers = _numbers(snapshot, ledger)
        knows_requests = not math.isnan(numbers.in_engine)
        if knows_requests and not self._knew_requests:
            self._window.clear()  # engines behind one port have no gauges before their first step
        self._knew_requests = knows_requests
        self._peak.record(now, snapshot.kv_cache_usage_ratio)
        self._window.record(now, numbers)
        windows = {name: self._window.since(seconds) for name, seconds in WINDOWS_SECONDS.items()}
        passed = {name: _Numbers(*growth.by) for name, growth in windows.items()}
        long_enough = {n: g.seconds for n, g in windows.items() if g.seconds >= _LEAST_SECONDS}
        return RecentReading(
            usage_peak_ratio=_known(
                {name: self._peak.within(now, s) for name, s in WINDOWS_SECONDS.items()}
            ),
            arrived_requests_per_second=_known(
                {name: _arrived(passed[name]) / elapsed for name, elapsed in long_enough.items()}
            ),
            completed_requests_per_second=_known(
                {name: passed[name].finished / elapsed for name, elapsed in long_enough.items()}
            ),
            preempted_requests_ratio=_preempted_ratio(passed[SHARE_WINDOW]),
            cached_prompt_tokens_ratio=_cached_ratios(passed[SHARE_WINDOW]),
        )


def _numbers(snapshot: EngineSnapshot, ledger: LedgerReading) -> _Numbers:
    prompts, server = snapshot.request_prompt_tokens, snapshot.server
    sole = server if server is not None and server.engines == 1 else None
    running, waiting = _or_nan(snapshot.running), _or_nan(snapshot.waiting)
    return _Numbers(
        preemptions=_or_nan(snapshot.preemptions),
        first_tokens=_or_nan(snapshot.first_tokens),
        finished=_UNKNOWN if prompts is None else prompts.count,
        finished_of_server=_UNKNOWN if sole is None else sole.finished_requests,
        finished_parents=_UNKNOWN if sole is None else sole.finished_parents,
        closed_responses=_UNKNOWN if sole is None else sole.closed_responses,
        **_prompt_tokens(snapshot),
        in_engine=running + waiting,
        past_first_token=_UNKNOWN
        if ledger.in_flight_tokens is None
        else sum(cohort.requests for cohort in ledger.cohorts),
    )


def _prompt_tokens(snapshot: EngineSnapshot) -> dict[str, float]:
    """Prompt tokens by source.

    Counted with the first token (``v1/metrics/stats.py``, ``PromptTokenStats``); in versions that
    do not, by what was looked up in the caches on admission (``PrefixCacheStats``), where up to
    0.11.0 requests that resumed after a preemption are counted again.
    """
    sources = snapshot.prompt_tokens_by_source
    if sources:
        return {
            "prompts_local": sources.get("local_cache_hit", 0.0),
            "prompts_external": sources.get("external_kv_transfer", 0.0),
            "prompts": sum(sources.values()),
        }
    return {
        "prompts_local": _or_nan(snapshot.prefix_cache_hits_tokens),
        "prompts_external": _or_nan(snapshot.external_cache_hits_tokens),
        "prompts": _or_nan(snapshot.prefix_cache_queries_tokens),
    }


def _arrived(passed: _Numbers) -> float:
    """Requests that entered: those that finished or hung up, and by how much more are inside."""
    arrived = passed.finished + _hung_up(passed) + passed.in_engine
    return _UNKNOWN if math.isnan(arrived) else max(0.0, arrived)


def _hung_up(passed: _Numbers) -> float:
    """Requests whose clients hung up, which the engine never mentions.

    Where each response of the HTTP server was one request of a sole engine: responses that closed
    less requests that finished. Else, of those past the first token, the ones that neither finished
    nor are in the ledger's book; who hung up in the queue then goes unseen.
    """
    single = passed.finished_parents == passed.finished_of_server
    if single and passed.closed_responses >= passed.finished_parents:
        return passed.closed_responses - passed.finished_parents
    gone = passed.first_tokens - passed.finished - passed.past_first_token
    return max(0.0, gone) if math.isfinite(gone) else 0.0


def _preempted_ratio(passed: _Numbers) -> float | None:
    preempted, begun = passed.preemptions, passed.first_tokens
    if not (preempted > 0 or begun > 0) or math.isnan(preempted + begun):
        return None
    # In a thrash nobody may begin: that is the worst share, not an unknown one.
    return preempted / max(1.0, begun)


def _cached_ratios(passed: _Numbers) -> Mapping[str, float]:
    if not passed.prompts > 0:
        return {}
    return _known(
        {
            "local": passed.prompts_local / passed.prompts,
            "external": passed.prompts_external / passed.prompts,
        }
    )


def _or_nan(number: float | None) -> float:
    return _UNKNOWN if number is None else number


def _known(values: Mapping[str, float | None]) -> Mapping[str, float]:
    return {
        name: value for name, value in values.items() if value is not None and not math.isnan(value)
    }
