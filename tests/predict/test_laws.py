"""Laws that hold for every deployment."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import H100, LLAMA_8B, MOE, QWEN3_14B, QWEN3_14B_FP8, deployment

from vllm_capacity.errors import EngineArgsError
from vllm_capacity.predict import Prediction, predict
from vllm_capacity.predict.kv_cache.spec import FullAttentionSpec, Request, SlidingWindowSpec
from vllm_capacity.predict.parallel import stage_layers
from vllm_capacity.predict.rope import Rope
from vllm_capacity.units import GIB, Tokens, ceil_div

CONFIGS = st.sampled_from([LLAMA_8B, QWEN3_14B, QWEN3_14B_FP8, MOE])
UTILISATIONS = st.floats(0.05, 1.0)


def _blocks(prediction: Prediction) -> int:
    return prediction.plans[0].num_blocks or 0


@given(CONFIGS, UTILISATIONS, UTILISATIONS)
def test_more_utilisation_never_gives_fewer_blocks(
    config: dict[str, Any], first: float, second: float
) -> None:
    low, high = sorted((first, second))
    args = {"max_model_len": 2048, "tensor_parallel_size": 2}
    less = predict(deployment(config, gpu_memory_utilization=low, **args))
    more = predict(deployment(config, gpu_memory_utilization=high, **args))
    assert _blocks(less) <= _blocks(more)


@given(CONFIGS, UTILISATIONS, st.integers(1, 4096), st.sampled_from(["0.9.2", "0.19.0", "0.32.0"]))
def test_the_terms_of_the_budget_sum_to_what_was_requested(
    config: dict[str, Any], utilisation: float, sequences: int, version: str
) -> None:
    budget = predict(
        deployment(
            config,
            version=version,
            gpu_memory_utilization=utilisation,
            max_num_seqs=sequences,
            max_num_batched_tokens=8192,
        )
    ).budget
    assert budget is not None
    terms = (
        budget.weights_bytes
        + budget.activation_peak_bytes
        + budget.non_torch_bytes
        + budget.cuda_graph_bytes
        + budget.kv_cache_bytes
    )
    assert terms == budget.requested_bytes
    assert budget.kv_cache_bytes_low <= budget.kv_cache_bytes <= budget.kv_cache_bytes_high


@given(CONFIGS, st.sampled_from([1, 2, 4]))
def test_tensor_parallelism_conserves_kv_bytes_while_heads_divide(
    config: dict[str, Any], size: int
) -> None:
    whole = predict(deployment(config))
    split = predict(deployment(config, tensor_parallel_size=size))
    assert whole.bytes_per_token is not None
    assert split.bytes_per_token is not None
    assert sum(split.bytes_per_token) == whole.bytes_per_token[0]


def test_ranks_beyond_the_kv_heads_replicate_them() -> None:
    eight = predict(deployment(LLAMA_8B, tensor_parallel_size=8)).bytes_per_token
    sixteen = predict(deployment(LLAMA_8B, tensor_parallel_size=16)).bytes_per_token
    assert eight is not None
    assert sixteen is not None
    assert eight[0] == sixteen[0]
    assert sum(sixteen) == 2 * sum(eight)


@given(st.integers(1, 300), st.integers(1, 32))
def test_pipeline_stages_conserve_layers_and_differ_by_at_most_one(
    layers: int, stages: int
) -> None:
    parts = stage_layers(layers, stages, {})
    assert [layer for part in parts for layer in part] == list(range(layers))
    if layers >= stages:
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@given(CONFIGS, st.sampled_from([1, 2, 3, 5]))
def test_pipeline_stages_conserve_kv_bytes(config: dict[str, Any], stages: int) -> None:
    whole = predict(deployment(config)).bytes_per_token
    staged = predict(deployment(config, pipeline_parallel_size=stages)).bytes_per_token
    assert whole is not None
    assert staged is not None
    assert sum(staged) == whole[0]


def test_the_operator_may_cut_the_stages_himself() -> None:
    cut = predict(
        deployment(LLAMA_8B, pipeline_parallel_size=2, env={"VLLM_PP_LAYER_PARTITION": "20,12"})
    )
    assert cut.plans[0].groups[0].layers_per_rank == (20, 12)
    wrong = predict(
        deployment(LLAMA_8B, pipeline_parallel_size=2, env={"VLLM_PP_LAYER_PARTITION": "20,13"})
    )
    assert not wrong.supported
    assert "32 layers" in (wrong.reason or "")


@given(st.integers(0, 64 * GIB), st.integers(1, 131072))
def test_an_error_names_a_length_that_fits_and_one_more_token_does_not(
    available: int, max_model_len: int
) -> None:
    plan = predict(
        deployment(LLAMA_8B, max_model_len=max_model_len), available_kv_cache_bytes=[available]
    ).plans[0]
    if plan.error is None:
        assert plan.num_blocks == available // plan.bytes_per_block[0]
        return
    longest = plan.estimated_max_model_len or 0
    assert longest < max_model_len
    spendable = available - plan.bytes_per_block[0]
    assert plan.blocks_for_request(longest) * plan.bytes_per_block[0] <= max(0, spendable)
    assert plan.blocks_for_request(longest + 1) * plan.bytes_per_block[0] > spendable


@given(st.integers(1, 64 * GIB))
def test_a_fitted_length_starts_wherever_one_block_does(available: int) -> None:
    plan = predict(
        deployment(LLAMA_8B, max_model_len=-1), available_kv_cache_bytes=[available]
    ).plans[0]
    starts = available >= 2 * plan.bytes_per_block[0]
    assert (plan.error is None) == starts
    if starts:
        assert plan.max_concurrency is not None
        assert plan.max_concurrency >= 1


@given(st.integers(1, 10**6), st.integers(1, 10**5), st.integers(0, 10**5))
def test_a_window_never_needs_more_than_one_block_over_full_attention(
    tokens: int, window: int, in_flight: int
) -> None:
    request = Request(tokens=Tokens(tokens), in_flight_tokens=Tokens(in_flight))
    shape = {"block_size": Tokens(16), "num_kv_heads": 8, "head_size": 128, "element_bytes": 2}
    full = FullAttentionSpec(**shape)
    sliding = SlidingWindowSpec(**shape, sliding_window=Tokens(window))
    assert sliding.blocks_for(request) <= full.blocks_for(request) + 1
    assert sliding.page_size_bytes == full.page_size_bytes == 16 * 8 * 128 * 2 * 2


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 1), (16, 1), (17, 2), (8192, 512)])
def test_full_attention_holds_every_token_in_whole_blocks(tokens: int, blocks: int) -> None:
    plan = predict(deployment(LLAMA_8B)).plans[0]
    assert plan.blocks_for_request(tokens) == blocks


@pytest.mark.parametrize(
    ("version", "tokens", "concurrency"),
    [
        # 1000 blocks of 16 tokens, requests of 1000 tokens, which take 63 blocks.
        ("0.32.0", 15873, 1000 / 63),
        ("0.25.0", 15873, 1000 / 63),
        ("0.18.0", 16000, 1000 / 63),
        ("0.8.5", 16000, 16.0),
    ],
)
def test_releases_count_tokens_and_concurrency_their_own_way(
    version: str, tokens: int, concurrency: float
) -> None:
    plan = predict(
        deployment(LLAMA_8B, version=version, max_model_len=1000, num_gpu_blocks_override=1000)
    ).plans[0]
    assert plan.num_blocks == 1000
    assert plan.kv_cache_size_tokens == tokens
    assert plan.max_concurrency == pytest.approx(concurrency)


@pytest.mark.parametrize(("version", "blocks_needed"), [("0.32.0", 65), ("0.28.0", 64)])
def test_the_null_block_is_kept_aside_at_start_since_0_32(version: str, blocks_needed: int) -> None:
    asked = deployment(LLAMA_8B, version=version, max_model_len=1024)
    block = predict(asked).plans[0].bytes_per_block[0]
    enough = predict(asked, available_kv_cache_bytes=[blocks_needed * block])
    too_few = predict(asked, available_kv_cache_bytes=[blocks_needed * block - 1])
    assert enough.plans[0].error is None
    assert too_few.plans[0].error is not None


def test_the_tightest_rank_decides() -> None:
    asked = deployment(LLAMA_8B, pipeline_parallel_size=2)
    plan = predict(asked, available_kv_cache_bytes=[[40 * GIB, 32 * GIB]]).plans[0]
    assert plan.num_blocks == 32 * GIB // plan.bytes_per_block[1]


def test_numbers_that_do_not_match_the_stages_are_refused() -> None:
    with pytest.raises(EngineArgsError, match="2 pipeline stages"):
        predict(
            deployment(LLAMA_8B, pipeline_parallel_size=2),
            available_kv_cache_bytes=[[GIB, GIB, GIB]],
        )


@pytest.mark.parametrize(
    ("version", "memory_gib", "name", "limits"),
    [
        ("0.32.0", 178, "NVIDIA B200", (1024, 16384)),
        ("0.25.0", 178, "NVIDIA B200", (1024, 8192)),
        ("0.27.0", 178, "NVIDIA B200", (None, None)),
        ("0.32.0", 79, "NVIDIA H100 80GB HBM3", (1024, 8192)),
        ("0.32.0", 79, "NVIDIA A100-SXM4-80GB", (256, 2048)),
        ("0.32.0", 24, "NVIDIA GeForce RTX 4090", (256, 2048)),
    ],
)
def test_scheduler_defaults_follow_the_gpu_and_the_release(
    version: str, memory_gib: int, name: str, limits: tuple[int | None, int | None]
) -> None:
    gpu = type(H100)(
        name=name,
        compute_capability="9.0",
        total_memory_bytes=type(H100.total_memory_bytes)(memory_gib * GIB),
    )
    resolved = predict(deployment(QWEN3_14B, gpu=gpu, version=version)).resolved
    assert resolved is not None
    assert (resolved.max_num_seqs, resolved.max_num_batched_tokens) == limits


@pytest.mark.parametrize(("version", "utilisation"), [("0.18.0", 0.9), ("0.21.0", 0.92)])
def test_the_default_utilisation_rose_with_0_21(version: str, utilisation: float) -> None:
    resolved = predict(deployment(LLAMA_8B, version=version)).resolved
    assert resolved is not None
    assert resolved.gpu_memory_utilization == utilisation


@given(st.integers(1, 1 << 20), st.floats(1.0, 64.0), st.sampled_from([64, 96, 128, 256]))
@settings(max_examples=50)
def test_a_lengthened_rope_never_has_a_shorter_table(
    positions: int, factor: float, head_dim: int
) -> None:
    def table(rope_type: str, factor: float) -> int:
        return (
            Rope(
                rope_type=rope_type,
                factor=factor,
                original_max_positions=positions,
                max_positions=positions,
                rotary_ratio=1.0,
            )
            .table(head_dim)
            .elements
        )

    plain = table("default", 1.0)
    assert plain == positions * head_dim
    assert table("linear", factor) >= plain
    assert table("yarn", factor) == table("linear", factor)
    assert table("longrope", 1.0) == 2 * plain


def test_a_prediction_without_a_gpu_still_plans_what_is_given_in_bytes() -> None:
    asked = deployment(LLAMA_8B, gpu=None, kv_cache_memory_bytes=GIB, block_size=32)
    prediction = predict(asked)
    assert prediction.budget is None
    assert prediction.plans[0].origin == "kv_cache_memory_bytes"
    assert prediction.plans[0].num_blocks is None  # 131072 tokens do not fit in 1 GiB
    fitting = predict(
        deployment(LLAMA_8B, gpu=None, kv_cache_memory_bytes=GIB, block_size=32, max_model_len=2048)
    )
    assert fitting.plans[0].num_blocks == ceil_div(GIB, 32 * 128 * 1024)


def test_on_a_cpu_the_default_block_has_128_tokens() -> None:
    prediction = predict(
        deployment(LLAMA_8B, gpu=None, kv_cache_memory_bytes=4 * GIB, max_model_len=2048)
    )
    assert prediction.resolved is not None
    assert prediction.resolved.block_size == 128


def test_without_a_gpu_or_bytes_there_is_no_plan() -> None:
    prediction = predict(deployment(LLAMA_8B, gpu=None))
    assert prediction.supported
    assert prediction.plans == ()
    assert prediction.bytes_per_token == (131072,)
