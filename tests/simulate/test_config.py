"""The simulated deployment is one that could be."""

from typing import Any

import pytest

from vllm_capacity.errors import SettingsError
from vllm_capacity.simulate import (
    SIMULATED_ENGINE_ARGS,
    SIMULATED_MODEL_CONFIG,
    SimulationConfig,
)
from vllm_capacity.units import GIB, Blocks, Tokens


def test_the_pool_is_a_whole_number_of_blocks_of_the_models_keys_and_values() -> None:
    config = SimulationConfig()
    bytes_per_token = 2 * 32 * 8 * 128 * 2  # keys and values, layers, KV heads, head size, bf16
    assert config.bytes_per_block == 16 * bytes_per_token
    assert config.kv_cache_memory_bytes == 5 * GIB
    assert SIMULATED_ENGINE_ARGS["kv_cache_memory_bytes"] // config.bytes_per_block == 2560


def test_the_model_is_consistent_with_itself() -> None:
    model = SIMULATED_MODEL_CONFIG
    assert model["num_attention_heads"] * model["head_dim"] == model["hidden_size"]
    assert model["num_attention_heads"] % model["num_key_value_heads"] == 0


@pytest.mark.parametrize(
    ("num_gpu_blocks", "max_model_len", "concurrency", "tokens"),
    [
        (2560, 8192, "5.0", "40960"),
        (350, 2048, "2.734375", "5600"),
        (100, 1000, "1.5873015873015872", "1587"),
    ],
)
def test_the_reported_capacity_is_vllms(
    num_gpu_blocks: int, max_model_len: int, concurrency: str, tokens: str
) -> None:
    config = SimulationConfig(
        num_gpu_blocks=Blocks(num_gpu_blocks), max_model_len=Tokens(max_model_len)
    )
    labels = config.cache_config_labels
    assert labels["num_gpu_blocks"] == str(num_gpu_blocks)
    assert labels["kv_cache_max_concurrency"] == concurrency
    assert labels["kv_cache_size_tokens"] == tokens


LOCAL = {
    "num_hidden_layers": 12,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "sliding_window": 256,
    "layer_types": [*(["sliding_attention"] * 5), "full_attention"] * 2,
}


def test_the_reported_capacity_of_local_layers_is_that_of_a_recorded_server() -> None:
    config = SimulationConfig(
        num_gpu_blocks=Blocks(500),
        block_size=Tokens(32),
        max_model_len=Tokens(2048),
        model_config=LOCAL,
    )
    labels = config.cache_config_labels
    assert len(config.cache_groups) == 6
    assert labels["kv_cache_max_concurrency"] == "1.2853470437017995"
    assert labels["kv_cache_size_tokens"] == "2632"
    assert config.bytes_per_block == 2 * 2 * 2 * 128 * 2 * 32  # two layers a group


def test_every_engine_repeats_the_sum_of_all_pools() -> None:
    labels = SimulationConfig(num_gpu_blocks=Blocks(600), data_parallel_size=2).cache_config_labels
    assert labels["num_gpu_blocks"] == "1200"
    assert labels["kv_cache_size_tokens"] == "9600"


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"num_speculative_tokens": 17}, "num_speculative_tokens"),
        ({"draft_acceptance_ratio": 1.1}, "draft_acceptance_ratio"),
        ({"leaked_blocks_per_second": -1.0}, "leaked_blocks_per_second"),
        (
            {"model_config": {**LOCAL, "layer_types": ["linear_attention"] * 12}},
            "enable_prefix_caching",
        ),
        (
            {"model_config": {**LOCAL, "layer_types": ["chunked_attention"] * 12}},
            "model_config.layer_types",
        ),
    ],
)
def test_what_cannot_be_simulated_is_refused(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        SimulationConfig(**fields)
    assert key in [fault.key for fault in caught.value.faults]


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        SimulationConfig(
            max_num_seqs=0,
            data_parallel_size=10_000,
            step_base_seconds=float("nan"),
            model_config={**SIMULATED_MODEL_CONFIG, "head_dim": "wide"},
        )
    assert [fault.key for fault in caught.value.faults] == [
        "max_num_seqs",
        "data_parallel_size",
        "step_base_seconds",
        "model_config.head_dim",
    ]


def test_a_pool_that_cannot_hold_one_full_request_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"num_gpu_blocks: must be at least 513: the null"):
        SimulationConfig(num_gpu_blocks=Blocks(512))
    assert SimulationConfig(num_gpu_blocks=Blocks(513)).num_usable_blocks == 512
