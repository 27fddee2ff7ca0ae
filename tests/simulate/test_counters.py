"""The page says what the engines did."""

import re
from dataclasses import replace
from itertools import pairwise
from statistics import mean

import pytest

from vllm_capacity.simulate import (
    SIMULATED_MODEL_CONFIG,
    Arrival,
    RequestSpec,
    SimulatedMetrics,
    Simulation,
    SimulationConfig,
    Workload,
)
from vllm_capacity.simulate.metric_families import token_buckets
from vllm_capacity.units import Blocks, Tokens


class Server:
    """A small simulated server whose page can be read by sample name."""

    def __init__(self, config: SimulationConfig, arrivals: list[Arrival]) -> None:
        self.metrics = SimulatedMetrics(config)
        self.simulation = Simulation(config, arrivals, self.metrics)

    def value(self, name: str, **labels: str) -> float:
        found = [
            float(line.rsplit(" ", 1)[1])
            for line in self.metrics.page().decode().splitlines()
            if re.match(rf"{re.escape(name)}[ {{]", line)
            and all(f'{key}="{value}"' in line for key, value in labels.items())
        ]
        assert len(found) == 1, f"{name} {labels}: {len(found)} samples"
        return found[0]


def spec_of(prompt_tokens: int, max_tokens: int, hang_up_after: int | None = None) -> RequestSpec:
    return RequestSpec(
        prompt_tokens=Tokens(prompt_tokens),
        max_tokens=Tokens(max_tokens),
        hang_up_after_tokens=None if hang_up_after is None else Tokens(hang_up_after),
    )


def small() -> SimulationConfig:
    return SimulationConfig(num_gpu_blocks=Blocks(101), max_model_len=Tokens(1024))


def test_counters_and_histogram_sums_agree_when_everything_finished() -> None:
    server = Server(small(), [Arrival(0.1 * i, spec_of(100 + i, 50)) for i in range(10)])
    server.simulation.advance_to(1000)
    assert server.value("vllm:prompt_tokens_total") == sum(range(100, 110))
    assert server.value("vllm:request_prompt_tokens_sum") == sum(range(100, 110))
    assert server.value("vllm:generation_tokens_total") == 500
    assert server.value("vllm:request_generation_tokens_sum") == 500
    assert server.value("vllm:request_success_total", finished_reason="length") == 10
    assert server.value("vllm:time_to_first_token_seconds_count") == 10
    assert server.value("vllm:inter_token_latency_seconds_count") == 490
    assert server.value("vllm:kv_cache_usage_perc") == 0
    assert server.value("http_requests_total", status="2xx") == 10


def test_a_hang_up_is_never_a_success_and_leaves_its_tokens_in_the_counters() -> None:
    server = Server(small(), [Arrival(0.0, spec_of(100, 50, hang_up_after=20))])
    server.simulation.advance_to(1000)
    reasons = ("stop", "length", "abort", "error", "repetition")
    counts = [server.value("vllm:request_success_total", finished_reason=r) for r in reasons]
    assert counts == [0, 0, 0, 0, 0]
    assert server.value("vllm:prompt_tokens_total") == 100
    assert server.value("vllm:generation_tokens_total") == 20
    assert server.value("vllm:request_prompt_tokens_count") == 0
    assert server.value("vllm:num_requests_running") == 0
    assert server.value("vllm:kv_cache_usage_perc") == 0


def test_a_client_that_waits_too_long_leaves_before_its_first_token() -> None:
    impatient = RequestSpec(
        prompt_tokens=Tokens(900), max_tokens=Tokens(50), hang_up_after_seconds=0.2
    )
    config = SimulationConfig(
        num_gpu_blocks=Blocks(101),
        max_model_len=Tokens(1024),
        max_num_batched_tokens=Tokens(64),
    )
    server = Server(config, [Arrival(0.0, impatient)])
    server.simulation.advance_to(1000)
    assert server.value("vllm:prefix_cache_queries_total") == 900
    assert server.value("vllm:prompt_tokens_total") == 0
    assert server.value("vllm:kv_cache_usage_perc") == 0


def test_gauges_show_the_queue_and_the_blocks_while_requests_run() -> None:
    config = SimulationConfig(
        num_gpu_blocks=Blocks(101), max_model_len=Tokens(1024), max_num_seqs=2
    )
    server = Server(config, [Arrival(0.0, spec_of(160, 500)) for _ in range(5)])
    server.simulation.advance_to(1.0)
    truth = server.simulation.engines[0].truth()
    used_blocks = server.value("vllm:kv_cache_usage_perc") * 100
    assert server.value("vllm:num_requests_running") == 2
    assert server.value("vllm:num_requests_waiting") == 3
    assert server.value("vllm:num_requests_waiting_by_reason", reason="capacity") == 3
    assert truth.used_blocks - 2 <= round(used_blocks) <= truth.used_blocks


def test_cached_prompt_tokens_are_named_by_their_source() -> None:
    shared = RequestSpec(
        prompt_tokens=Tokens(200), max_tokens=Tokens(5), prefix="p", prefix_tokens=Tokens(160)
    )
    server = Server(small(), [Arrival(0.0, shared), Arrival(5.0, shared)])
    server.simulation.advance_to(1000)
    by_source = "vllm:prompt_tokens_by_source_total"
    assert server.value(by_source, source="local_cache_hit") == 160
    assert server.value(by_source, source="local_compute") == 240
    assert server.value("vllm:prompt_tokens_total") == 400
    assert server.value("vllm:prompt_tokens_cached_total") == 160
    assert server.value("vllm:prompt_tokens_cached_by_source_total", source="device") == 160
    assert server.value("vllm:request_prefill_kv_computed_tokens_sum") == 240


def test_prompts_from_an_external_cache_are_cached_but_share_no_block() -> None:
    known = replace(spec_of(200, 5), external_tokens=Tokens(170))
    server = Server(replace(small(), external_cache=True), [Arrival(0.0, known)] * 2)
    server.simulation.advance_to(0.05)
    held = [len(request.block_ids) for request in server.simulation.engines[0].truth().running]
    assert server.simulation.engines[0].truth().used_blocks == sum(held) == 2 * 13
    server.simulation.advance_to(1000)
    by_source = "vllm:prompt_tokens_by_source_total"
    assert server.value(by_source, source="external_kv_transfer") == 2 * 160
    assert server.value(by_source, source="local_cache_hit") == 0
    assert server.value("vllm:prompt_tokens_cached_total") == 2 * 160
    assert server.value("vllm:external_prefix_cache_queries_total") == 2 * 200
    assert server.value("vllm:external_prefix_cache_hits_total") == 2 * 160
    assert server.value("vllm:request_prefill_kv_computed_tokens_sum") == 2 * 40


def test_the_phases_of_a_request_add_up_to_its_time() -> None:
    server = Server(small(), [Arrival(0.0, spec_of(300, 30)) for _ in range(8)])
    server.simulation.advance_to(1000)
    queue, prefill, decode, inference = (
        server.value(f"vllm:request_{phase}_time_seconds_sum")
        for phase in ("queue", "prefill", "decode", "inference")
    )
    assert prefill + decode == pytest.approx(inference)
    assert queue + inference == pytest.approx(server.value("vllm:e2e_request_latency_seconds_sum"))


def test_data_parallel_engines_share_the_requests_evenly() -> None:
    config = SimulationConfig(data_parallel_size=3)
    arrivals = [Arrival(0.01 * i, spec_of(100, 50)) for i in range(90)]
    server = Server(config, arrivals)
    server.simulation.advance_to(1000)
    counts = [
        server.value("vllm:request_success_total", engine=str(i), finished_reason="length")
        for i in range(3)
    ]
    assert sum(counts) == 90
    assert min(counts) >= 28


def test_idle_engines_take_turns() -> None:
    config = SimulationConfig(data_parallel_size=3)
    server = Server(config, [Arrival(10.0 * i, spec_of(100, 5)) for i in range(6)])
    server.simulation.advance_to(1000)
    assert [engine.truth().finished for engine in server.simulation.engines] == [2, 2, 2]


def test_a_patient_client_that_was_served_in_time_stays() -> None:
    patient = RequestSpec(
        prompt_tokens=Tokens(100), max_tokens=Tokens(200), hang_up_after_seconds=2.0
    )
    server = Server(small(), [Arrival(0.0, patient)])
    server.simulation.advance_to(1000)
    assert server.value("vllm:generation_tokens_total") == 200


def test_a_simulated_engine_is_awake() -> None:
    server = Server(small(), [])
    states = ("awake", "weights_offloaded", "discard_all")
    found = [server.value("vllm:engine_sleep_state", sleep_state=state) for state in states]
    assert found == [1, 0, 0]


@pytest.mark.parametrize(("max_model_len", "last"), [(1999, 1000), (2000, 2000), (2001, 2000)])
def test_token_buckets_end_at_or_below_the_longest_request(max_model_len: int, last: int) -> None:
    assert token_buckets(max_model_len)[-1] == last


def test_accepted_drafts_are_tokens_and_told_by_their_place() -> None:
    config = SimulationConfig(num_speculative_tokens=3, async_scheduling=False)
    server = Server(config, [Arrival(0.1 * i, spec_of(100 + i, 200)) for i in range(10)])
    server.simulation.advance_to(1000)
    drafts, drafted, accepted = (
        server.value(f"vllm:spec_decode_num_{what}_total")
        for what in ("drafts", "draft_tokens", "accepted_tokens")
    )
    places = [
        server.value("vllm:spec_decode_num_accepted_tokens_per_pos_total", position=str(place))
        for place in range(3)
    ]
    assert server.value("vllm:generation_tokens_total") == 2000
    # Each request's first token has no drafts; the last step may accept more than is wanted.
    assert 2000 <= 10 + drafts + accepted <= 2000 + 3 * 10
    assert drafted <= 3 * drafts
    assert places == sorted(places, reverse=True)
    assert sum(places) == accepted
    assert places[0] / drafts == pytest.approx(0.7, abs=0.1)


def test_without_drafts_the_page_has_no_word_of_them() -> None:
    assert b"spec_decode" not in SimulatedMetrics(small()).page()


def test_blocks_outside_the_window_are_given_back() -> None:
    layers = ["sliding_attention"] * 5 + ["full_attention"]
    config = SimulationConfig(
        model_config={**SIMULATED_MODEL_CONFIG, "layer_types": layers, "sliding_window": 64}
    )
    server = Server(config, [Arrival(0.0, spec_of(64, 2000))])
    server.simulation.advance_to(35.0)
    (request,) = server.simulation.engines[0].truth().running
    full = -(-request.computed_tokens // 16)
    assert full > 50
    # Four or five blocks in each of the five other groups, and those of the step in flight.
    assert full + 5 * 4 <= len(request.block_ids) <= full + 5 * 6


def test_a_request_with_a_rank_goes_there_and_nowhere_else() -> None:
    config = SimulationConfig(data_parallel_size=3)
    pinned = replace(spec_of(100, 5), data_parallel_rank=1)
    server = Server(config, [Arrival(float(i), pinned) for i in range(6)])
    server.simulation.advance_to(1000)
    assert [engine.truth().finished for engine in server.simulation.engines] == [0, 6, 0]


def test_the_default_load_shows_life_within_a_minute_then_queues_and_preempts() -> None:
    config = SimulationConfig()
    metrics = SimulatedMetrics(config)
    simulation = Simulation(config, Workload().arrivals(config), metrics)
    usage, waiting = [], []
    for second in range(300):
        simulation.advance_to(second)
        truth = simulation.engines[0].truth()
        usage.append(truth.used_blocks / config.num_usable_blocks)
        waiting.append(len(truth.waiting))
    page = metrics.page().decode()
    preemptions = re.search(r"vllm:num_preemptions_total\{\S* (\S+)", page)
    assert mean(usage[:10]) < mean(usage[10:20]) < mean(usage[20:40])
    assert max(usage[:60]) > 0.5
    assert min(usage[60:]) < 0.6
    assert max(waiting) > 0
    assert waiting.count(0) > 100
    assert preemptions is not None
    assert 0 < float(preemptions[1]) < 300


def test_counters_never_fall() -> None:
    config = SimulationConfig()
    metrics = SimulatedMetrics(config)
    simulation = Simulation(config, Workload(pattern="burst").arrivals(config), metrics)
    pages = []
    for second in range(0, 120, 5):
        simulation.advance_to(second)
        lines = (line for line in metrics.page().decode().splitlines() if line[:5] == "vllm:")
        pages.append(dict(line.rsplit(" ", 1) for line in lines))
    counters = [name for name in pages[0] if re.match(r"\w+:\w+_(total|sum|count|bucket)\b", name)]
    assert len(counters) > 200
    for before, after in pairwise(pages):
        assert [name for name in counters if float(after[name]) < float(before[name])] == []
