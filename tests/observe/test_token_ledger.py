"""The token ledger on recordings of a real vLLM, and its rules one by one."""

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from vllm_capacity.compare.occupancy import predicted_used_blocks
from vllm_capacity.observe.engine_snapshot import EngineSnapshot, snapshots_of_page
from vllm_capacity.observe.exposition import ExpositionParser
from vllm_capacity.observe.metric_names import WANTED_NAMES
from vllm_capacity.observe.token_ledger import LedgerReading, TokenLedger

TRACES = Path(__file__).parent.parent / "data" / "traces"


def pages(name: str) -> Iterator[tuple[float, str | None]]:
    with lzma.open(TRACES / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
        for line in lines:
            scrape = json.loads(line)
            yield scrape["t"], scrape["metrics"]


def readings(name: str) -> list[tuple[float, EngineSnapshot, LedgerReading]]:
    parser, ledgers = ExpositionParser(WANTED_NAMES), {}
    result = []
    for t, page in pages(name):
        if page is None:
            continue
        for engine in snapshots_of_page(parser.parse(page.encode()), taken_at_seconds=t).engines:
            ledger = ledgers.setdefault(engine.engine, TokenLedger())
            result.append((t, engine, ledger.record(engine)))
    return result


@pytest.mark.parametrize(
    ("recording", "most_median", "most_p95"),
    [
        ("steady", 0.002, 0.005),
        ("ramp", 0.006, 0.045),
        ("burst", 0.006, 0.045),
        ("dp-ramp", 0.006, 0.055),
        ("restart", 0.002, 0.005),
    ],
)
def test_the_predicted_blocks_follow_the_used_blocks_of_a_real_vllm(
    recording: str, most_median: float, most_p95: float
) -> None:
    errors = sorted(
        abs(engine.used_blocks - predicted) / engine.total_blocks
        for t, engine, reading in readings(recording)
        if t >= 15
        and (predicted := predicted_used_blocks(reading, engine, None)) is not None
        and engine.used_blocks is not None
        and engine.total_blocks
    )
    assert median(errors) <= most_median
    assert errors[int(0.95 * len(errors))] <= most_p95


@pytest.mark.parametrize("recording", ["steady", "ramp", "burst", "dp-ramp", "restart"])
def test_after_the_last_request_nothing_is_in_flight(recording: str) -> None:
    _, engine, reading = readings(recording)[-1]
    assert (engine.running, engine.waiting, engine.used_blocks) == (0, 0, 0)
    assert (reading.in_flight_tokens, reading.resident_tokens, reading.state) == (0, 0, "anchored")


def test_a_restart_is_noticed_once() -> None:
    restarts = [t for t, _, reading in readings("restart") if reading.restarted]
    assert len(restarts) == 1


def test_a_data_parallel_server_exports_the_sum_of_its_pools_and_is_read_per_engine() -> None:
    engines = {engine.engine: engine for _, engine, _ in readings("dp-ramp")}
    assert {e.num_gpu_blocks for e in engines.values()} == {300}
    assert {e.num_gpu_blocks_origin for e in engines.values()} == {"label / engines"}
    assert {e.cache_config["num_gpu_blocks"] for e in engines.values()} == {"600"}


@pytest.mark.parametrize("recording", ["steady", "ramp", "burst", "dp-ramp", "restart"])
def test_usage_times_blocks_without_the_null_block_is_a_whole_number(recording: str) -> None:
    engines = [e for _, e, _ in readings(recording) if e.kv_cache_usage_ratio is not None]
    assert len(engines) > 50
    for engine in engines:
        assert engine.total_blocks is not None
        held = engine.kv_cache_usage_ratio * engine.total_blocks
        assert held == pytest.approx(engine.used_blocks, abs=1e-6)


def engine_page(
    *,
    running: int = 0,
    waiting: int = 0,
    first_tokens: int = 0,
    finished: int = 0,
    prompt_tokens: int = 0,
    finished_prompt_tokens: int = 0,
    generation_tokens: int = 0,
    finished_generation_tokens: int = 0,
) -> EngineSnapshot:
    text = f"""\
vllm:num_requests_running{{engine="0"}} {running}
vllm:num_requests_waiting{{engine="0"}} {waiting}
vllm:prompt_tokens_total{{engine="0"}} {prompt_tokens}
vllm:generation_tokens_total{{engine="0"}} {generation_tokens}
vllm:request_prompt_tokens_sum{{engine="0"}} {finished_prompt_tokens}
vllm:request_prompt_tokens_count{{engine="0"}} {finished}
vllm:request_generation_tokens_sum{{engine="0"}} {finished_generation_tokens}
vllm:request_generation_tokens_count{{engine="0"}} {finished}
vllm:time_to_first_token_seconds_sum{{engine="0"}} 1
vllm:time_to_first_token_seconds_count{{engine="0"}} {first_tokens}
vllm:kv_cache_usage_perc{{engine="0"}} 0.5
vllm:cache_config_info{{engine="0",block_size="16",num_gpu_blocks="101"}} 1
"""
    samples = ExpositionParser(WANTED_NAMES).parse(text.encode())
    return snapshots_of_page(samples, taken_at_seconds=0.0).engines[0]


def test_tokens_in_flight_are_those_counted_in_less_those_that_left() -> None:
    reading = TokenLedger().record(
        engine_page(
            running=2,
            first_tokens=5,
            finished=3,
            prompt_tokens=500,
            finished_prompt_tokens=300,
            generation_tokens=90,
            finished_generation_tokens=60,
        )
    )
    assert (reading.in_flight_tokens, reading.state) == (230, "anchored")


def test_blocks_are_tokens_over_block_size_and_half_a_block_for_each_request() -> None:
    page = engine_page(running=2, first_tokens=2, prompt_tokens=160, generation_tokens=16)
    reading = TokenLedger().record(page)
    assert predicted_used_blocks(reading, page, None) == pytest.approx(11 + 2 * 15 / 32)


def test_what_hung_up_clients_left_behind_is_dropped_when_the_engine_is_idle() -> None:
    ledger = TokenLedger()
    ledger.record(
        engine_page(first_tokens=3, finished=1, prompt_tokens=900, finished_prompt_tokens=300)
    )
    reading = ledger.record(
        engine_page(
            running=1, first_tokens=4, finished=1, prompt_tokens=1000, finished_prompt_tokens=300
        )
    )
    assert (reading.in_flight_tokens, reading.state) == (100, "anchored")


def test_a_hang_up_takes_its_mean_share_and_the_ledger_says_that_it_drifts() -> None:
    ledger = TokenLedger()
    ledger.record(engine_page(running=4, first_tokens=4, prompt_tokens=400))
    reading = ledger.record(engine_page(running=3, first_tokens=4, prompt_tokens=400))
    assert reading.in_flight_tokens == pytest.approx(300)
    assert reading.state == "drifting"
    assert "hung up" in reading.reason


def test_a_preempted_request_keeps_its_tokens_and_holds_no_block() -> None:
    ledger = TokenLedger()
    ledger.record(engine_page(running=4, first_tokens=4, prompt_tokens=400))
    reading = ledger.record(engine_page(running=3, waiting=1, first_tokens=4, prompt_tokens=400))
    assert reading.in_flight_tokens == 400
    assert reading.resident_tokens == pytest.approx(300)
    assert (reading.preempted_requests, reading.state) == (1, "drifting")


def test_a_ledger_that_starts_amid_unexplained_requests_says_that_it_knows_nothing() -> None:
    reading = TokenLedger().record(
        engine_page(running=1, waiting=2, first_tokens=9, prompt_tokens=900)
    )
    assert (reading.in_flight_tokens, reading.resident_tokens, reading.state) == (
        None,
        None,
        "unknown",
    )


def test_counters_that_fall_are_a_restart() -> None:
    ledger = TokenLedger()
    ledger.record(engine_page(running=1, first_tokens=9, finished=8, prompt_tokens=900))
    reading = ledger.record(engine_page(running=1, first_tokens=1, prompt_tokens=100))
    assert reading.restarted
    assert reading.in_flight_tokens == 100
