"""What people ask of a prediction."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import H100, LLAMA_8B, QWEN3_14B, deployment

from vllm_capacity.errors import EngineArgsError
from vllm_capacity.predict import Deployment, KVCachePlan, predict
from vllm_capacity.predict.answers import (
    Workload,
    alternatives,
    fewest_gpus,
    longest_context,
    predicted_failure,
    shared_prefix,
    workload_capacity,
)
from vllm_capacity.units import GIB

CLINICAL_NOTES = Workload(
    mean_prompt_tokens=1500,
    mean_output_tokens=400,
    p95_prompt_tokens=4000,
    p95_output_tokens=800,
    shared_prefix_tokens=900,
)


def _plan(asked: Deployment) -> KVCachePlan:
    return predict(asked).plans[0]


def test_a_request_takes_its_whole_blocks_out_of_all_but_the_null_block() -> None:
    plan = _plan(deployment(LLAMA_8B, max_model_len=8192, num_gpu_blocks_override=1001))
    whole = Workload(mean_prompt_tokens=100, mean_output_tokens=60)
    running, mean = workload_capacity(plan, whole, max_num_seqs=None)
    assert (mean.blocks, mean.requests, mean.binding_limit) == (10, 100, "kv_cache")
    assert (running.tokens, running.blocks, running.requests) == (130, 9, 111)


def test_the_sequence_limit_binds_where_more_would_fit() -> None:
    plan = _plan(deployment(LLAMA_8B, max_model_len=8192, num_gpu_blocks_override=1001))
    short = Workload(mean_prompt_tokens=10, mean_output_tokens=6)
    capacity = workload_capacity(plan, short, max_num_seqs=64)[1]
    assert (capacity.requests, capacity.binding_limit) == (64, "max_num_seqs")


def test_a_request_longer_than_the_model_takes_fits_not_at_all() -> None:
    plan = _plan(deployment(LLAMA_8B, max_model_len=2048, num_gpu_blocks_override=1001))
    long = Workload(mean_prompt_tokens=2000, mean_output_tokens=100)
    capacity = workload_capacity(plan, long, max_num_seqs=64)[1]
    assert (capacity.requests, capacity.binding_limit) == (0, "max_model_len")


def test_the_llama_deployment_notes_prefix_of_900_tokens_saves_a_block_table_for_each() -> None:
    # 900 tokens fill 56 blocks of 16; a token is 128 KiB.
    plan = _plan(deployment(LLAMA_8B, max_model_len=8192))
    saved = shared_prefix(plan, CLINICAL_NOTES, max_num_seqs=1024)
    assert saved is not None
    assert (saved.tokens, saved.blocks) == (896, 56)
    assert saved.bytes_per_gpu == 896 * 128 * 1024
    shared = workload_capacity(plan, CLINICAL_NOTES, max_num_seqs=1024)[1]
    alone = workload_capacity(plan, CLINICAL_NOTES, max_num_seqs=1024, shares=False)[1]
    assert saved.more_requests == shared.requests - alone.requests > 0
    assert saved.saved_blocks == 56 * (shared.requests - 1)


def test_a_prefix_of_less_than_a_block_saves_nothing() -> None:
    plan = _plan(deployment(LLAMA_8B, max_model_len=8192))
    short = replace(CLINICAL_NOTES, shared_prefix_tokens=15)
    assert shared_prefix(plan, short, max_num_seqs=1024) is None


@given(st.integers(1, 6000), st.integers(1, 2000), st.integers(0, 6000))
def test_what_runs_at_once_never_exceeds_the_pool(prompt: int, output: int, prefix: int) -> None:
    plan = _plan(deployment(LLAMA_8B, max_model_len=8192))
    workload = Workload(
        mean_prompt_tokens=prompt,
        mean_output_tokens=output,
        shared_prefix_tokens=min(prefix, prompt),
    )
    for capacity in workload_capacity(plan, workload, max_num_seqs=None):
        shared = (min(workload.shared_prefix_tokens, prompt - 1)) // 16
        assert capacity.requests * capacity.blocks + shared <= (plan.num_blocks or 0) - 1


def test_all_faults_of_a_workload_are_named_at_once() -> None:
    with pytest.raises(EngineArgsError) as caught:
        Workload(
            mean_prompt_tokens=0,
            mean_output_tokens=5,
            p95_output_tokens=4,
            shared_prefix_tokens=7,
        )
    assert {fault.key for fault in caught.value.faults} == {
        "mean_prompt_tokens",
        "p95_output_tokens",
        "shared_prefix_tokens",
    }


def test_the_longest_context_is_the_model_s_own_where_memory_allows() -> None:
    assert longest_context(deployment(LLAMA_8B, max_model_len=4096)) == 131072


def test_the_longest_context_is_what_memory_allows_where_that_is_less() -> None:
    small = replace(H100, total_memory_bytes=24 * GIB)
    longest = longest_context(deployment(LLAMA_8B, gpu=small, max_num_seqs=64))
    assert longest is not None
    assert 0 < longest < 131072
    fits = deployment(LLAMA_8B, gpu=small, max_num_seqs=64, max_model_len=longest)
    beyond = deployment(LLAMA_8B, gpu=small, max_num_seqs=64, max_model_len=longest + 16)
    assert _plan(fits).error is None
    assert _plan(beyond).error is not None


def test_alternatives_that_gain_most_requests_stand_first() -> None:
    found = alternatives(deployment(LLAMA_8B, max_model_len=8192), CLINICAL_NOTES)
    gains = [each.gained_requests for each in found if each.starts]
    assert gains == sorted(gains, key=lambda gain: gain or 0, reverse=True)
    assert found[0].flags == "--kv-cache-dtype fp8"
    assert all(each.price for each in found)


def test_each_alternative_is_what_predicting_it_gives() -> None:
    asked = deployment(LLAMA_8B, max_model_len=8192)
    found = {each.flags: each for each in alternatives(asked)}
    tried = _plan(deployment(LLAMA_8B, max_model_len=8192, kv_cache_dtype="fp8"))
    alternative = found["--kv-cache-dtype fp8"]
    assert alternative.num_blocks == tried.num_blocks
    assert alternative.requests == tried.max_concurrency
    assert alternative.gained_blocks == (tried.num_blocks or 0) - (_plan(asked).num_blocks or 0)


def test_twice_the_gpus_count_for_half_of_their_gain() -> None:
    asked = deployment(LLAMA_8B, max_model_len=8192)
    doubled = next(each for each in alternatives(asked) if each.gpus == 2)
    before = _plan(asked).max_concurrency or 0
    assert doubled.requests is not None
    assert doubled.gained_requests == pytest.approx(doubled.requests / 2 - before)


def test_the_fewest_gpus_that_serve_the_users_stand_first() -> None:
    layouts = fewest_gpus(deployment(QWEN3_14B, max_model_len=8192), CLINICAL_NOTES, 1000)
    first = layouts[0]
    assert first.gpus is not None
    assert first.replicas is not None
    assert first.replicas * first.requests >= 1000
    assert all((layout.gpus or 1 << 30) >= first.gpus for layout in layouts)


def test_a_layout_that_vllm_refuses_stands_last_with_its_reason() -> None:
    # 40 heads over 16 GPUs would not divide; 8 do.
    layouts = fewest_gpus(deployment(QWEN3_14B, max_model_len=8192), CLINICAL_NOTES, 10)
    assert all(layout.reason is None for layout in layouts)
    odd = QWEN3_14B | {"num_attention_heads": 10, "num_key_value_heads": 2}
    refused = fewest_gpus(deployment(odd, max_model_len=8192), CLINICAL_NOTES, 10)[-1]
    assert refused.gpus is None
    assert "not divisible" in (refused.reason or "")


@pytest.mark.parametrize(
    ("changed", "kind", "remedy"),
    [
        # Shapes chosen to fail as rows of the H100 profiling table do.
        ({"hidden_size": 40960, "num_attention_heads": 320}, "oom", None),
        ({"num_hidden_layers": 110}, "no_kv_cache_room", "--tensor-parallel-size 2"),
        (
            {"num_hidden_layers": 80, "max_position_embeddings": 131072},
            "max_len_too_long",
            "--tensor-parallel-size 2",
        ),
    ],
)
def test_a_failure_is_predicted_with_what_would_mend_it(
    changed: dict[str, int], kind: str, remedy: str | None
) -> None:
    failure = predicted_failure(deployment(QWEN3_14B | changed, version="0.19.0"))
    assert failure is not None
    assert failure.kind == kind
    assert failure.message
    assert remedy is None or remedy in failure.remedies


def test_every_remedy_lets_it_start() -> None:
    asked = deployment(QWEN3_14B | {"num_hidden_layers": 90}, version="0.19.0")
    failure = predicted_failure(asked)
    assert failure is not None
    for remedy in failure.remedies:
        given_args = type(asked.engine_args).from_command_line(remedy.split())
        mended = replace(asked, engine_args=given_args.merged_over(asked.engine_args))
        assert _plan(mended).error is None, remedy


def test_a_deployment_that_starts_has_no_failure() -> None:
    assert predicted_failure(deployment(LLAMA_8B, max_model_len=8192)) is None
