"""Pages of every vLLM from 0.6 on → one snapshot an engine."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.observe.engine_snapshot import EngineSnapshot, PageSnapshot, snapshots_of_page
from vllm_capacity.observe.exposition import ExpositionParser
from vllm_capacity.observe.metric_names import EXPECTED_METRICS, WANTED_NAMES, reading_of

PAGE = (Path(__file__).parent.parent / "data" / "vllm-0.32-metrics.txt").read_text()


def snapshot_of(text: str) -> PageSnapshot:
    samples = ExpositionParser(WANTED_NAMES).parse(text.encode())
    return snapshots_of_page(samples, taken_at_seconds=1.0)


def engine_of(text: str) -> EngineSnapshot:
    [engine] = snapshot_of(text).engines
    return engine


def test_a_real_page_of_0_32_is_read_in_full() -> None:
    page = snapshot_of(PAGE)
    engine = engine_of(PAGE)
    assert all(page.metric_present.values())
    assert (engine.engine, engine.model_name) == ("0", "./small-llama")
    assert (engine.num_gpu_blocks, engine.total_blocks, engine.block_size_tokens) == (350, 349, 32)
    assert (engine.kv_cache_size_tokens, engine.max_concurrency) == (11200, 5.46875)
    assert engine.used_blocks == 13
    assert engine.free_blocks == 336
    assert engine.waiting_by_reason == {"capacity": 0, "deferred": 0}
    assert engine.request_prompt_tokens is not None
    assert engine.request_prompt_tokens.buckets[-1][0] == float("inf")


def test_a_metric_that_is_not_there_is_absent_and_never_zero() -> None:
    page = snapshot_of('vllm:num_requests_running{engine="0",model_name="m"} 3\n')
    [engine] = page.engines
    assert engine.running == 3
    assert engine.waiting is None
    assert engine.kv_cache_usage_ratio is None
    assert engine.used_blocks is None
    assert engine.prompt_tokens is None
    assert engine.request_prompt_tokens is None
    assert not page.metric_present["vllm:kv_cache_usage_perc"]
    assert page.metric_present["vllm:num_requests_running"]


@pytest.mark.parametrize("prefix", ["vllm:", "vllm_", "ray_vllm:", "ray_vllm_"])
@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("kv_cache_usage_perc", "kv_cache_usage_ratio"),
        ("gpu_cache_usage_perc", "kv_cache_usage_ratio"),
        ("prompt_tokens_total", "prompt_tokens"),
        ("prompt_tokens", "prompt_tokens"),
        ("num_preemptions", "preemptions"),
        ("gpu_prefix_cache_queries_total", "prefix_cache_queries_tokens"),
        ("request_prompt_tokens_sum", "request_prompt_tokens_sum"),
        ("prompt_tokens_created", None),
        ("time_to_first_token_seconds_bucket", None),
    ],
)
def test_every_name_that_a_metric_has_had_is_known(
    prefix: str, name: str, reading: str | None
) -> None:
    assert reading_of(prefix + name) == reading


@pytest.mark.parametrize(
    ("description", "page", "used", "total"),
    [
        ("V1 since 0.10 divides by N - 1", 'usage_perc{engine="0"} 0.25', 25, 100),
        (
            "V1 up to 0.9.2 divides by N and counts the null block",
            f"usage_perc {26 / 101!r}",
            25,
            100,
        ),
        ("an idle V1 up to 0.9.2", f"usage_perc {1 / 101!r}", 0, 100),
        ("idle", "usage_perc 0.0", 0, 100),
        ("full", "usage_perc 1.0", 100, 100),
    ],
)
def test_used_blocks_come_out_whole_for_the_version_that_divided(
    description: str, page: str, used: int, total: int
) -> None:
    assert description
    engine = engine_of(f'vllm:kv_cache_{page}\nvllm:cache_config_info{{num_gpu_blocks="101"}} 1\n')
    assert (engine.used_blocks, engine.total_blocks) == (used, total)


def test_v0_has_no_null_block() -> None:
    engine = engine_of(
        "vllm:gpu_cache_usage_perc 0.25\nvllm:cpu_cache_usage_perc 0\nvllm:num_requests_swapped 0\n"
        'vllm:cache_config_info{num_gpu_blocks="100",block_size="16"} 1\n'
    )
    assert (engine.used_blocks, engine.total_blocks) == (25, 100)


@given(st.integers(2, 10**7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))))
def test_used_blocks_are_exact_for_every_pool(pool: tuple[int, int]) -> None:
    blocks, used = pool
    usage = 1.0 - (blocks - 1 - used) / (blocks - 1)
    engine = engine_of(
        f"vllm:kv_cache_usage_perc {usage!r}\n"
        f'vllm:cache_config_info{{num_gpu_blocks="{blocks}"}} 1\n'
    )
    assert engine.used_blocks == used


def test_a_config_without_an_engine_label_holds_for_every_engine() -> None:
    page = snapshot_of(
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="200"} 1\n'
        'vllm:num_requests_running{engine="0"} 1\nvllm:num_requests_running{engine="1"} 2\n'
    )
    assert [engine.block_size_tokens for engine in page.engines] == [16, 16]


def test_a_series_without_an_engine_label_is_no_engine_beside_labelled_ones() -> None:
    page = snapshot_of(
        'vllm:num_requests_running{engine="3"} 1\nvllm:generation_tokens_total{model_name="m"} 5\n'
        'vllm:cache_config_info{engine="3",num_gpu_blocks="101"} 1\n'
    )
    [engine] = page.engines
    assert (engine.engine, engine.num_gpu_blocks) == ("3", 101)


def test_engines_come_in_the_order_of_their_numbers() -> None:
    text = "".join(f'vllm:num_requests_running{{engine="{n}"}} {n}\n' for n in (10, 2, 0, 1))
    assert [engine.engine for engine in snapshot_of(text).engines] == ["0", "1", "2", "10"]


def test_ray_replicas_with_equal_engine_labels_stay_apart() -> None:
    text = "".join(
        f'ray_vllm:num_requests_running{{engine="0",ReplicaId="{r}"}} 1\n' for r in ("x", "y")
    )
    assert [engine.engine for engine in snapshot_of(text).engines] == ["x/0", "y/0"]


@pytest.mark.parametrize("nonsense", ["NaN", "+Inf", "-Inf", "-1"])
def test_what_cannot_be_a_reading_is_none(nonsense: str) -> None:
    text = f"vllm:num_requests_running 1\nvllm:num_requests_waiting {nonsense}\n"
    page = snapshot_of(text)
    assert page.engines[0].waiting is None
    assert not page.metric_present["vllm:num_requests_waiting"]


@pytest.mark.parametrize("label", ["None", "", "nan", "-5", "many"])
def test_a_block_count_that_is_no_number_is_unknown(label: str) -> None:
    engine = engine_of(
        f'vllm:kv_cache_usage_perc 0.5\nvllm:cache_config_info{{num_gpu_blocks="{label}"}} 1\n'
    )
    assert (engine.num_gpu_blocks, engine.used_blocks) == (None, None)


def test_both_names_of_one_metric_on_a_page_count_once() -> None:
    engine = engine_of("vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.5\n")
    assert engine.kv_cache_usage_ratio == 0.5


def test_every_expected_metric_has_a_reading() -> None:
    names = {reading_of(name) or reading_of(f"{name}_sum") for name in EXPECTED_METRICS}
    assert None not in names


@pytest.mark.parametrize(
    ("awake", "offloaded", "discarded", "state", "asleep"),
    [
        (1, 0, 0, "awake", False),
        (0, 1, 0, "weights_offloaded", True),
        (0, 0, 1, "discard_all", True),
        (0, 0, 0, None, False),  # level 0: only its scheduling pauses
    ],
)
def test_an_engine_says_how_deep_it_sleeps(
    awake: int, offloaded: int, discarded: int, state: str | None, asleep: bool
) -> None:
    states = {"awake": awake, "weights_offloaded": offloaded, "discard_all": discarded}
    text = "".join(
        f'vllm:engine_sleep_state{{engine="0",sleep_state="{name}"}} {value}\n'
        for name, value in states.items()
    )
    engine = engine_of(text)
    assert (engine.sleep_state, engine.is_asleep) == (state, asleep)
