"""What sharing prefixes saves, and what requests take of the pool."""

import json
import lzma
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_capacity.compare.workload import footprint_blocks, sharing_savings
from vllm_capacity.observe.engine_snapshot import EngineSnapshot, snapshots_of_page
from vllm_capacity.observe.exposition import ExpositionParser
from vllm_capacity.observe.ledger import LedgerReading, RequestsInFlight, TokenLedger
from vllm_capacity.observe.metric_names import WANTED_NAMES
from vllm_capacity.observe.request_footprint import RequestFootprint

TRACES = Path(__file__).parent.parent / "data" / "traces"
PAGE = (TRACES.parent / "vllm-0.32-metrics.txt").read_bytes()


def engine() -> EngineSnapshot:
    samples = ExpositionParser(WANTED_NAMES).parse(PAGE)
    [snapshot] = snapshots_of_page(samples, taken_at_seconds=0.0).engines
    return snapshot


def ledger(**fields: object) -> LedgerReading:
    """Four requests of 512 + 128 tokens that share 512, of which one was preempted."""
    reading = LedgerReading(
        in_flight_tokens=4 * 640,
        resident_tokens=512 + 3 * 128,
        shared_tokens=2 * 512,
        running_requests=3,
        preempted_requests=1,
        cohorts=(RequestsInFlight(4, 3, 512, 128),),
        state="drifting",
        reason="",
    )
    return replace(reading, **fields)


def test_what_is_held_once_and_wanted_by_three_saves_two_copies() -> None:
    savings = sharing_savings(ledger(), engine(), None)
    assert savings is not None
    assert savings.blocks == 2 * 512 / 32
    assert savings.bytes_per_gpu is None


@pytest.mark.parametrize(
    ("reading", "snapshot"),
    [
        (ledger(resident_tokens=None), engine()),
        (ledger(), replace(engine(), block_size_tokens=None)),
        (ledger(), replace(engine(), kv_cache_size_tokens=5000)),
    ],
    ids=["unknown ledger", "unknown block size", "hybrid cache"],
)
def test_savings_that_cannot_be_known_are_absent(
    reading: LedgerReading, snapshot: EngineSnapshot
) -> None:
    assert sharing_savings(reading, snapshot, None) is None


def test_on_a_recording_savings_are_what_the_requests_would_hold_without_sharing() -> None:
    parser, book, misses, savings = ExpositionParser(WANTED_NAMES), TokenLedger(), [], []
    with lzma.open(TRACES / "prefix.jsonl.xz", "rt", encoding="utf-8") as lines:
        scrapes = [json.loads(line) for line in lines]
    for scrape in scrapes:
        samples = parser.parse(scrape["metrics"].encode())
        [one] = snapshots_of_page(samples, taken_at_seconds=scrape["t"]).engines
        saved = sharing_savings(book.record(one), one, None)
        live = scrape["truth"]["live"]
        if saved is None or one.waiting or len(live) != one.running or not live:
            continue
        alone = sum(-(-(prompt + chunks) // 32) for prompt, chunks, _ in live)
        assert one.used_blocks is not None
        savings.append(saved.blocks)
        misses.append(abs(saved.blocks - (alone - one.used_blocks)))
    assert len(savings) > 30
    assert max(savings) > 200
    assert sorted(misses)[round(0.9 * len(misses))] <= 4


def test_a_footprint_takes_whole_blocks() -> None:
    footprint = RequestFootprint(mean_tokens=65, p95_tokens=None, requests=9, window_seconds=None)
    assert footprint_blocks(footprint, engine(), None) == {"mean": 3}
    assert footprint_blocks(None, engine(), None) == {}
