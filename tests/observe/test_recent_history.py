"""What the last minutes of an engine looked like: peaks, rates and shares."""

import gc
import json
import lzma
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_capacity.compare.assessment import EngineAssessor
from vllm_capacity.compare.headroom import Limits
from vllm_capacity.observe.engine_snapshot import EngineSnapshot, Histogram, snapshots_of_page
from vllm_capacity.observe.exposition import ExpositionParser
from vllm_capacity.observe.ledger import LedgerReading, TokenLedger
from vllm_capacity.observe.metric_names import WANTED_NAMES
from vllm_capacity.observe.recent_history import RecentHistory, RecentReading

TRACES = Path(__file__).parent.parent / "data" / "traces"
NO_LEDGER = LedgerReading(
    in_flight_tokens=None,
    resident_tokens=None,
    running_requests=None,
    preempted_requests=None,
    state="unknown",
    reason="",
)


def engine(t: float, page: str = "vllm:num_requests_running 0", **fields: object) -> EngineSnapshot:
    samples = ExpositionParser(WANTED_NAMES).parse(page.encode() + b"\n")
    [snapshot] = snapshots_of_page(samples, taken_at_seconds=t).engines
    return replace(snapshot, **fields)


def last_of(*snapshots: EngineSnapshot) -> RecentReading:
    history = RecentHistory()
    return [history.record(snapshot, NO_LEDGER) for snapshot in snapshots][-1]


def finished(count: float) -> Histogram:
    return Histogram(count=count, total=100 * count)


def test_peaks_are_kept_for_their_window_and_no_longer() -> None:
    usage = [(0.0, 0.9), (30.0, 0.2), (90.0, 0.3), (400.0, 0.1)]
    pages = [engine(t, kv_cache_usage_ratio=ratio) for t, ratio in usage]
    assert last_of(*pages[:2]).usage_peak_ratio == {"1m": 0.9, "5m": 0.9}
    assert last_of(*pages[:3]).usage_peak_ratio == {"1m": 0.3, "5m": 0.9}
    assert last_of(*pages).usage_peak_ratio == {"1m": 0.1, "5m": 0.1}
    assert last_of(engine(0.0)).usage_peak_ratio == {}


@pytest.mark.parametrize(
    ("preemptions", "first_tokens", "share"),
    [(8.0, 160.0, 0.05), (9.0, 100.0, 4.0), (5.0, 100.0, None), (5.0, None, None)],
    ids=["for each that began", "in a thrash in which nobody begins", "nobody", "vLLM is silent"],
)
def test_the_preempted_share_counts_preemptions_for_each_request_that_began(
    preemptions: float, first_tokens: float | None, share: float | None
) -> None:
    reading = last_of(
        engine(0.0, preemptions=5.0, first_tokens=100.0),
        engine(60.0, preemptions=preemptions, first_tokens=first_tokens),
    )
    assert reading.preempted_requests_ratio == share


def test_who_entered_has_finished_or_is_still_inside() -> None:
    reading = last_of(
        engine(0.0, request_prompt_tokens=finished(50), running=4, waiting=0),
        engine(40.0, request_prompt_tokens=finished(60), running=9, waiting=5),
    )
    assert reading.completed_requests_per_second == {"1m": 10 / 40, "5m": 10 / 40}
    assert reading.arrived_requests_per_second == {"1m": 20 / 40, "5m": 20 / 40}


def test_rates_are_over_the_time_that_really_passed() -> None:
    missed = [engine(t, request_prompt_tokens=finished(2 * t), waiting=0) for t in (0, 31, 247)]
    assert last_of(*missed).completed_requests_per_second == {"1m": 2.0, "5m": 2.0}


def test_rates_wait_for_ten_seconds_and_begin_anew_after_a_restart() -> None:
    history = RecentHistory()
    pages = [engine(t, request_prompt_tokens=finished(n)) for t, n in ((0, 80), (60, 90), (70, 3))]
    readings = [history.record(page, NO_LEDGER) for page in pages]
    assert [set(r.completed_requests_per_second) for r in readings] == [set(), {"1m", "5m"}, set()]


def test_without_a_queue_length_arrivals_are_unknown() -> None:
    pages = [
        engine(t, request_prompt_tokens=finished(t), running=1, waiting=None) for t in (0.0, 60.0)
    ]
    assert last_of(*pages).arrived_requests_per_second == {}
    assert last_of(*pages).completed_requests_per_second["1m"] == 1.0


BY_SOURCE = """\
vllm:prompt_tokens_by_source_total{{engine="0",source="local_compute"}} {0}
vllm:prompt_tokens_by_source_total{{engine="0",source="local_cache_hit"}} {1}
vllm:prompt_tokens_by_source_total{{engine="0",source="external_kv_transfer"}} {2}
vllm:prefix_cache_queries_total{{engine="0"}} 77777
vllm:prefix_cache_hits_total{{engine="0"}} 55555"""
BY_LOOK_UPS = """\
vllm:prefix_cache_queries_total{{engine="0"}} {0}
vllm:prefix_cache_hits_total{{engine="0"}} {1}
vllm:external_prefix_cache_hits_total{{engine="0"}} {2}"""
OLD = """\
vllm:gpu_prefix_cache_queries{{engine="0"}} {0}
vllm:gpu_prefix_cache_hits{{engine="0"}} {1}"""


@pytest.mark.parametrize(
    ("page", "then", "now", "share"),
    [
        (BY_SOURCE, (500, 90, 0), (800, 690, 100), {"local": 0.6, "external": 0.1}),
        (BY_LOOK_UPS, (500, 90, 0), (1500, 690, 100), {"local": 0.6, "external": 0.1}),
        (OLD, (50, 9), (150, 69), {"local": 0.6}),
        (BY_SOURCE, (500, 90, 0), (500, 90, 0), {}),
    ],
    ids=["0.16 and newer", "0.11", "0.8", "no prompts within the window"],
)
def test_the_cached_share_of_prompts_is_told_by_where_they_came_from(
    page: str, then: tuple[int, ...], now: tuple[int, ...], share: dict[str, float]
) -> None:
    reading = last_of(engine(0.0, page.format(*then)), engine(60.0, page.format(*now)))
    assert reading.cached_prompt_tokens_ratio == pytest.approx(share)


def recorded(
    name: str, every: int = 1
) -> Iterator[tuple[float, dict[str, Any], dict[str, RecentReading], dict[str, EngineSnapshot]]]:
    """Time, the client's truth, and for each engine what is known of its last minutes."""
    parser, ledgers, histories = ExpositionParser(WANTED_NAMES), {}, {}
    with lzma.open(TRACES / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
        for count, line in enumerate(lines):
            scrape = json.loads(line)
            if scrape["metrics"] is None or count % every:
                continue
            samples = parser.parse(scrape["metrics"].encode())
            engines = snapshots_of_page(samples, taken_at_seconds=scrape["t"]).engines
            readings = {}
            for one in engines:
                ledger = ledgers.setdefault(one.engine, TokenLedger()).record(one)
                history = histories.setdefault(one.engine, RecentHistory())
                readings[one.engine] = history.record(one, ledger)
            yield scrape["t"], scrape["truth"], readings, {one.engine: one for one in engines}


@pytest.mark.parametrize("recording", ["steady", "prefix", "aborts", "dp-ramp", "ramp"])
@pytest.mark.parametrize("every", [1, 7])
def test_arrivals_are_those_that_the_client_sent(recording: str, every: int) -> None:
    """Within four requests of what was sent now or up to five seconds ago: some are on the way."""
    sent: list[tuple[float, int]] = []
    for t, truth, readings, engines in recorded(recording, every):
        if any(one.running is None for one in engines.values()):
            continue
        sent.append((t, truth["done"] + len(truth["live"])))
        if 30 <= t <= 290:
            rates = [one.arrived_requests_per_second["5m"] for one in readings.values()]
            first_t, first = sent[0]
            arrived = first + sum(rates) * (t - first_t)
            earlier = max(count for then, count in sent if then <= t - 5)
            assert earlier - 4 <= arrived <= sent[-1][1] + 4


def test_where_nobody_hangs_up_all_that_arrived_completed_in_the_end() -> None:
    *_, (_, truth, readings, _) = recorded("steady")
    assert truth["aborted"] == 0
    arrived = readings["0"].arrived_requests_per_second["5m"]
    assert arrived == pytest.approx(readings["0"].completed_requests_per_second["5m"], rel=0.01)
    assert arrived == pytest.approx(156 / 128, rel=0.01)


def test_over_a_restart_no_rate_is_negative_or_absurd() -> None:
    for _, _, readings, _ in recorded("restart"):
        for one in readings.values():
            rates = [
                *one.arrived_requests_per_second.values(),
                *one.completed_requests_per_second.values(),
            ]
            assert all(0 <= rate < 10 for rate in rates)


def test_the_shared_prefix_of_the_recording_is_seen_as_cached() -> None:
    *_, (_, _, readings, engines) = recorded("prefix")
    sources = engines["0"].prompt_tokens_by_source
    assert readings["0"].cached_prompt_tokens_ratio["external"] == 0.0
    assert readings["0"].cached_prompt_tokens_ratio["local"] == pytest.approx(0.82, abs=0.02)
    assert sources["local_cache_hit"] > 0


def test_all_that_is_kept_of_an_engine_at_one_scrape_a_second_is_small() -> None:
    parser = ExpositionParser(WANTED_NAMES)
    with lzma.open(TRACES / "longdecode.jsonl.xz", "rt", encoding="utf-8") as lines:
        pages = [parser.parse(json.loads(line)["metrics"].encode()) for line in lines][:400]

    def followed() -> EngineAssessor:
        assessor = EngineAssessor()
        for t, samples in enumerate(pages):
            [one] = snapshots_of_page(samples, taken_at_seconds=float(t)).engines
            assessor.assess(one, None, Limits())
        return assessor

    followed()  # what the first one brings into memory is not an engine's
    tracemalloc.start()
    try:
        kept = [followed() for _ in range(2)]
        gc.collect()
        in_use, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert in_use / len(kept) < 60_000
