"""Older releases: what real start-ups printed, and what is refused."""

from typing import Any

import pytest
from cached_layers import FULL, MAMBA2, WINDOW, cache_args, numbered

from vllm_capacity.predict.kv_cache.flash_attention import Kernels
from vllm_capacity.predict.kv_cache.layer_cache import AttentionCache, LatentCache
from vllm_capacity.predict.kv_cache.planner import make_planner
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.vllm_version import VllmVersion
from vllm_capacity.units import GIB, Tokens


def _heads(num_kv_heads: int, head_size: int, **kept: int) -> AttentionCache:
    return AttentionCache(
        num_kv_heads=num_kv_heads, head_size=head_size, head_size_v=head_size, **kept
    )


# What was started, its layers, and the printed GiB, tokens, concurrency and longest request.
STARTUPS = [
    ("llama 8b", [(32, _heads(8, 128))], (58.11, 476016, 29.05, 16384)),
    (
        "gemma 2 27b",
        [(23, _heads(16, 128)), (23, _heads(16, 128, sliding_window=4096))],
        (20.59, 58672, 7.16, 8192),
    ),
    (
        "gemma 3 4b",
        [(29, _heads(4, 256, sliding_window=1024)), (5, _heads(4, 256))],
        (62.51, 468144, 57.05, 8192),
    ),
    (
        "gpt-oss 20b over two",
        [(12, _heads(4, 64, sliding_window=128)), (12, _heads(4, 64))],
        (59.32, 2591776, 316.07, 8192),
    ),
    (
        "llama 4 scout over four",
        [(36, _heads(2, 128, attention_chunk_size=8192)), (12, _heads(2, 128))],
        (16.75, 365968, 44.68, 8192),
    ),
    ("deepseek v2 lite", [(27, LatentCache(head_size=576))], (43.61, 1505552, 183.78, 8192)),
]


@pytest.mark.parametrize("startup", STARTUPS, ids=lambda startup: startup[0])
def test_a_real_startup_of_0_19_is_explained(startup: tuple[Any, ...]) -> None:
    _, runs, (gib, tokens, concurrency, length) = startup
    planner = make_planner(
        [numbered(*runs)],
        cache_args(
            version=VllmVersion(0, 19),
            max_model_len=Tokens(length),
            max_in_flight_tokens=Tokens(8192),
        ),
    )
    # vLLM printed the bytes to a hundredth of a GiB.
    low, high = (planner.plan([round((gib + part) * GIB)], "asked") for part in (-0.005, 0.005))
    assert (low.kv_cache_size_tokens or 0) <= tokens <= (high.kv_cache_size_tokens or 0)
    assert (low.max_concurrency or 0) - 0.005 <= concurrency
    assert concurrency <= (high.max_concurrency or 0) + 0.005
    per_block = planner.plan([64 * GIB], "asked")
    groups = len(planner.groups)
    assert per_block.num_blocks is not None
    assert per_block.kv_cache_size_tokens == per_block.num_blocks // groups * 16
    assert tokens % 16 == 0


@pytest.mark.parametrize(
    ("runs", "version", "changed"),
    [
        ([(4, MAMBA2)], (0, 28), {}),
        ([(4, FULL), (8, WINDOW)], (0, 10), {}),
        ([(4, FULL), (8, WINDOW)], (0, 28), {}),
        ([(8, WINDOW)], (0, 8, 5), {}),
        ([(8, FULL), (10, WINDOW)], (0, 19), {}),
        ([(4, FULL), (8, _heads(8, 256))], (0, 19), {}),
        ([(4, FULL)], (0, 19), {"kv_cache_dtype": "int8_per_token_head"}),
        ([(4, FULL)], (0, 28), {"kv_cache_dtype_skip_layers": frozenset({"0"})}),
        ([(4, LatentCache(head_size=576))], (0, 11), {}),
        ([(4, LatentCache(head_size=576))], (0, 28), {"kv_cache_dtype": "fp8"}),
        ([(4, LatentCache(head_size=576, sparse=True))], (0, 28), {}),
    ],
)
def test_a_rule_that_is_not_known_is_refused(
    runs: list[Any], version: tuple[int, ...], changed: dict[str, Any]
) -> None:
    args = cache_args(version=VllmVersion(*version), **changed)
    with pytest.raises(Refusal):
        make_planner([numbered(*runs)], args).plan([8 * GIB], "asked")


def test_latent_attention_of_any_release_is_planned_with_a_given_block_size() -> None:
    args = cache_args(version=VllmVersion(0, 11), block_size=64, kernels=Kernels(capability=(9, 0)))
    assert make_planner([numbered((4, LatentCache(head_size=576)))], args).block_size == 64


def test_context_parallel_ranks_multiply_the_tokens_that_old_releases_print() -> None:
    args = cache_args(version=VllmVersion(0, 18), decode_context_parallel_size=2)
    plan = make_planner([numbered((32, FULL))], args).plan([8 * GIB], "asked")
    assert plan.num_blocks is not None
    assert plan.kv_cache_size_tokens == plan.num_blocks * 16 * 2
