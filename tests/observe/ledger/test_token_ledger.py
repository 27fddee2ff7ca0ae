"""The token ledger on recordings of a real vLLM, and its rules one by one."""

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.compare.occupancy import predicted_occupancy
from vllm_capacity.observe.engine_snapshot import EngineSnapshot, snapshots_of_page
from vllm_capacity.observe.exposition import ExpositionParser
from vllm_capacity.observe.ledger import LedgerReading, TokenLedger
from vllm_capacity.observe.metric_names import WANTED_NAMES

TRACES = Path(__file__).parents[2] / "data" / "traces"


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


RECORDINGS = ["steady", "ramp", "burst", "dp-ramp", "restart", "prefix", "aborts", "longdecode"]


@pytest.mark.parametrize("recording", RECORDINGS)
def test_nobody_is_in_two_places(recording: str) -> None:
    for _, engine, reading in readings(recording):
        held = sum(cohort.resident_requests for cohort in reading.cohorts)
        assert held <= (engine.running or 0) + 1e-6
        assert all(0 <= c.resident_requests <= c.requests for c in reading.cohorts)
        tokens = sum(c.requests * (c.prompt_tokens + c.generated_tokens) for c in reading.cohorts)
        if reading.in_flight_tokens is not None:
            assert tokens == pytest.approx(reading.in_flight_tokens, abs=1, rel=0.01)


def test_a_ledger_that_starts_amid_preemption_finds_its_feet_when_all_are_back() -> None:
    ledger, states = TokenLedger(), []
    for t, engine, _ in readings("burst"):
        if t >= 150:
            states.append(ledger.record(engine).state)
    assert states[0] == "unknown"
    assert states.count("unknown") <= 3


@pytest.mark.parametrize("recording", RECORDINGS)
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
    taken_at_seconds: float = 0.0,
    more: str = "",
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
{more}"""
    samples = ExpositionParser(WANTED_NAMES).parse(text.encode())
    return snapshots_of_page(samples, taken_at_seconds=taken_at_seconds).engines[0]


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
    occupancy = predicted_occupancy(reading, page, None)
    assert occupancy is not None
    assert occupancy.blocks == pytest.approx(11 + 2 * 15 / 32)


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


def test_who_neither_runs_nor_waits_at_two_scrapes_has_hung_up_and_takes_the_mean_share() -> None:
    ledger = TokenLedger()
    ledger.record(engine_page(running=4, first_tokens=4, prompt_tokens=400))
    first, second = (
        ledger.record(
            engine_page(running=3, first_tokens=4, prompt_tokens=400, generation_tokens=3 * at)
        )
        for at in (1, 2)
    )
    assert (first.in_flight_tokens, first.resident_tokens) == (403, pytest.approx(303, abs=1))
    assert second.in_flight_tokens == pytest.approx(305, abs=1)
    assert {first.state, second.state} == {"drifting"}
    assert "hung up" in second.reason


def http(
    closed: int, seconds: float, sent_bytes: int, finished_seconds: float, finished: int
) -> str:
    return f"""\
vllm:e2e_request_latency_seconds_sum{{engine="0"}} {finished_seconds}
vllm:e2e_request_latency_seconds_count{{engine="0"}} {finished}
http_requests_total{{handler="/v1/completions",method="POST",status="2xx"}} {closed}
http_requests_total{{handler="/metrics",method="GET",status="2xx"}} 77
http_request_duration_seconds_sum{{handler="/v1/completions",method="POST"}} {seconds}
http_request_size_bytes_sum{{handler="/v1/completions"}} {sent_bytes}
"""


def test_the_http_server_tells_who_hung_up() -> None:
    ledger = TokenLedger()
    for at, prompts in ((0, 0), (10, 100), (20, 1000), (30, 1200)):
        page = engine_page(
            running=at // 10,
            first_tokens=at // 10,
            prompt_tokens=prompts,
            taken_at_seconds=at,
            more=http(0, 0.0, 0, 0.0, 0),
        )
        ledger.record(page)
    page = engine_page(
        running=2,
        first_tokens=3,
        prompt_tokens=1200,
        taken_at_seconds=40,
        more=http(1, 20.0, 5000, 0.0, 0),  # arrived 15 to 20 seconds after the first page
    )
    reading = ledger.record(page)
    assert reading.in_flight_tokens == pytest.approx(300)
    assert reading.state == "drifting"
    assert "hung up" in reading.reason


def test_a_response_closed_on_a_page_that_has_not_seen_it_finish_is_no_hang_up_after_all() -> None:
    ledger = TokenLedger()
    start = {"first_tokens": 2, "prompt_tokens": 400, "running": 2}
    ledger.record(engine_page(more=http(0, 0.0, 0, 0.0, 0)))
    ledger.record(engine_page(**start, taken_at_seconds=1, more=http(0, 0.0, 0, 0.0, 0)))
    torn = engine_page(**start, taken_at_seconds=2, more=http(1, 1.0, 900, 0.0, 0))
    assert ledger.record(torn).in_flight_tokens == pytest.approx(200)
    whole = engine_page(
        running=1,
        first_tokens=2,
        prompt_tokens=400,
        finished=1,
        finished_prompt_tokens=200,
        taken_at_seconds=3,
        more=http(1, 1.0, 900, 1.0, 1),
    )
    assert ledger.record(whole).in_flight_tokens == pytest.approx(200)


def test_a_response_that_was_none_of_the_engines_takes_nobody_away_for_long() -> None:
    ledger = TokenLedger()
    ledger.record(engine_page(more=http(0, 0.0, 0, 0.0, 0)))
    after = [
        ledger.record(
            engine_page(
                running=2,
                first_tokens=2,
                prompt_tokens=400,
                generation_tokens=2 * at,
                taken_at_seconds=at,
                more=http(closed, 2.0 * closed, 900 * closed, 0.0, 0),
            )
        )
        for at, closed in ((1, 0), (2, 0), (3, 1), (4, 1), (5, 1))
    ]
    assert after[1].in_flight_tokens == 404
    assert after[2].in_flight_tokens == pytest.approx(203, abs=1)
    assert after[4].in_flight_tokens == pytest.approx(410, abs=2)
    assert after[4].resident_tokens == pytest.approx(410, abs=2)


def test_the_oldest_hold_the_blocks() -> None:
    ledger = TokenLedger()
    ledger.record(engine_page())
    ledger.record(engine_page(running=1, first_tokens=1, prompt_tokens=900, taken_at_seconds=1))
    ledger.record(engine_page(running=2, first_tokens=2, prompt_tokens=1000, taken_at_seconds=2))
    reading = ledger.record(
        engine_page(running=1, waiting=1, first_tokens=2, prompt_tokens=1000, taken_at_seconds=3)
    )
    assert reading.resident_tokens == pytest.approx(900)
    assert [cohort.resident_requests for cohort in reading.cohorts] == [1, 0]


def test_a_prompt_that_is_still_computed_counts_from_admission() -> None:
    ledger = TokenLedger()
    queries = 'vllm:prefix_cache_queries_total{{engine="0"}} {}\n'.format
    ledger.record(engine_page(more=queries(0)))
    reading = ledger.record(engine_page(running=1, taken_at_seconds=1, more=queries(640)))
    assert reading.in_flight_tokens == 0
    assert reading.resident_tokens == 0.75 * 640  # between half and all of it
    assert reading.resident_tokens_high == pytest.approx(896, abs=20)


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


def test_another_process_is_a_restart_even_if_its_counters_have_caught_up() -> None:
    ledger = TokenLedger()
    start = "process_start_time_seconds {}\n".format
    ledger.record(engine_page(running=1, first_tokens=1, prompt_tokens=100, more=start(5)))
    page = engine_page(running=1, first_tokens=1, prompt_tokens=300, more=start(500))
    reading = ledger.record(page)
    assert reading.restarted
    assert reading.in_flight_tokens == 300


@given(
    waves=st.lists(
        st.tuples(
            st.lists(st.integers(1, 900), max_size=6),  # prompts that come
            st.integers(1, 60),  # steps
            st.lists(st.integers(0, 40), max_size=6),  # who of those that run finishes
            st.integers(1, 40),  # most that run
        ),
        min_size=1,
        max_size=30,
    )
)
def test_tokens_in_flight_are_exact_whoever_comes_finishes_or_is_preempted(
    waves: list[tuple[list[int], int, list[int], int]],
) -> None:
    ledger, live = TokenLedger(), []
    first_tokens = finished = prompts = left_prompts = outputs = left_outputs = 0
    ledger.record(engine_page())
    for at, (coming, steps, leaving, most) in enumerate(waves, start=1):
        live += [[prompt, 0] for prompt in coming]
        first_tokens, prompts = first_tokens + len(coming), prompts + sum(coming)
        running = live[:most]
        for request in running:
            request[1] += steps
        outputs += steps * len(running)
        gone = {id(running[i]) for i in leaving if i < len(running)}
        left_prompts += sum(request[0] for request in running if id(request) in gone)
        left_outputs += sum(request[1] for request in running if id(request) in gone)
        finished += len(gone)
        live = [request for request in live if id(request) not in gone]
        now_running = min(most, len(live))
        page = engine_page(
            running=now_running,
            waiting=len(live) - now_running,
            first_tokens=first_tokens,
            finished=finished,
            prompt_tokens=prompts,
            finished_prompt_tokens=left_prompts,
            generation_tokens=outputs,
            finished_generation_tokens=left_outputs,
            taken_at_seconds=at,
        )
        reading = ledger.record(page)
        assert reading.in_flight_tokens == pytest.approx(sum(map(sum, live)), abs=1e-3)
        assert sum(c.requests for c in reading.cohorts) == pytest.approx(len(live), abs=1e-6)
        assert all(min(c) >= 0 for c in reading.cohorts)
