"""Capacity by vLLM's account, by its blocks, and as predicted; and the errors between them."""

from dataclasses import replace

import pytest

from vllm_capacity.compare.capacity import (
    Capacity,
    derived_capacity,
    is_hybrid,
    reported_capacity,
    tokens_per_block,
)
from vllm_capacity.compare.fleet import DURATION_BOUNDS_SECONDS, SourceHealth
from vllm_capacity.compare.prediction_error import prediction_errors
from vllm_capacity.observe.engine_snapshot import EngineSnapshot, snapshots_of_page
from vllm_capacity.observe.exposition import ExpositionParser
from vllm_capacity.observe.metric_names import WANTED_NAMES
from vllm_capacity.units import Blocks, Tokens


def engine(**labels: object) -> EngineSnapshot:
    pairs = ",".join(f'{name}="{value}"' for name, value in labels.items())
    text = f"vllm:kv_cache_usage_perc 0\nvllm:cache_config_info{{{pairs}}} 1\n"
    samples = ExpositionParser(WANTED_NAMES).parse(text.encode())
    return snapshots_of_page(samples, taken_at_seconds=0.0).engines[0]


def test_what_vllm_reports_is_taken_as_it_is() -> None:
    capacity = reported_capacity(
        engine(
            num_gpu_blocks=350,
            block_size=32,
            kv_cache_size_tokens=11200,
            kv_cache_max_concurrency=5.46875,
        )
    )
    assert capacity == Capacity(
        blocks=Blocks(349), tokens=Tokens(11200), full_length_concurrency=5.46875
    )


def test_an_older_vllm_is_helped_with_blocks_times_block_size() -> None:
    old = engine(num_gpu_blocks=350, block_size=32)
    assert reported_capacity(old).tokens is None
    derived = derived_capacity(old, None, max_model_len=2048)
    assert (derived.tokens, derived.full_length_concurrency) == (11200, 350 / 64)


def test_nothing_is_derived_that_vllm_says_itself() -> None:
    new = engine(num_gpu_blocks=350, block_size=32, kv_cache_size_tokens=11200)
    assert derived_capacity(new, None, max_model_len=2048) == Capacity()


@pytest.mark.parametrize(
    ("tokens", "hybrid", "per_block"),
    [
        (11200, False, 32),
        (11100, False, 32),  # the last block of a full-length request is not full
        (2632, True, 2632 / 350),  # most layers hold a window only
        (20000, True, 20000 / 350),
    ],
)
def test_a_hybrid_cache_is_known_by_its_tokens(
    tokens: int,
    hybrid: bool,
    per_block: float,
) -> None:
    snapshot = engine(num_gpu_blocks=350, block_size=32, kv_cache_size_tokens=tokens)
    assert is_hybrid(snapshot) is hybrid
    assert tokens_per_block(snapshot) == pytest.approx(per_block)


def test_an_error_is_measured_less_predicted_and_a_share_of_measured() -> None:
    errors = prediction_errors(
        measured=Capacity(blocks=Blocks(110), tokens=Tokens(1000)),
        predicted=Capacity(blocks=Blocks(100)),
        used_blocks=0,
        predicted_used_blocks=2.5,
    )
    assert set(errors) == {"kv_cache_blocks", "kv_cache_used_blocks"}
    assert errors["kv_cache_blocks"].difference == 10
    assert errors["kv_cache_blocks"].ratio == pytest.approx(1 / 11)
    assert errors["kv_cache_used_blocks"].difference == -2.5
    assert errors["kv_cache_used_blocks"].ratio is None


def test_health_counts_each_collection_once() -> None:
    health = SourceHealth()
    for seconds in (0.001, 0.2, 0.2, 99.0):
        health = health.succeeded(at=5.0, seconds=seconds)
    health = health.failed(reason="timeout", message="late", seconds=10.0)
    assert sum(health.duration_counts) == 5
    assert dict(zip(DURATION_BOUNDS_SECONDS, health.duration_counts, strict=True)) == {
        **dict.fromkeys(DURATION_BOUNDS_SECONDS, 0),
        0.01: 1,
        0.25: 2,
        float("inf"): 2,
    }
    assert (health.up, health.last_error, health.failures) == (False, "late", {"timeout": 1})
    assert replace(health).succeeded(at=6.0, seconds=0.1).last_error is None
