"""vLLM's arguments: from mappings, command lines and what an engine declares."""

import contextlib
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import LLAMA_8B, QWEN3_14B, deployment

from vllm_capacity.errors import EngineArgsError
from vllm_capacity.predict import EngineArgs, VllmVersion, gpu_named, predict
from vllm_capacity.predict.engine_flags import ENGINE_FLAGS


def _given(args: EngineArgs) -> dict[str, Any]:
    names = [flag.name for flag in ENGINE_FLAGS]
    return {name: value for name in names if (value := getattr(args, name)) is not None}


DOCKER = """
python3 -m vllm.entrypoints.openai.api_server --model /root/Qwen3-14B-FP8
--trust-remote-code --tensor-parallel-size 1 --disable-custom-all-reduce
--gpu-memory-utilization 0.9 --kv-cache-dtype fp8 --port 8001 --max_model_len 32768
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vllm serve Qwen/Qwen3-8B -tp 2", {"tensor_parallel_size": 2}),
        ("-tp2 -pp=4", {"tensor_parallel_size": 2, "pipeline_parallel_size": 4}),
        ("--max-num-seqs=64", {"max_num_seqs": 64}),
        ("--max_num_batched_tokens 4096", {"max_num_batched_tokens": 4096}),
        ("--no-enable-prefix-caching", {"enable_prefix_caching": False}),
        ("vllm serve --enforce-eager Qwen/Qwen3-8B", {"enforce_eager": True}),
        ("-q fp8", {"quantization": "fp8"}),
        ("--max-model-len 32k", {"max_model_len": 32000}),
        ("--max-model-len 32K", {"max_model_len": 32768}),
        ("--max-model-len auto", {"max_model_len": -1}),
        ("--max-model-len -1 --port 8000", {"max_model_len": -1}),
        ("--kv-cache-memory 25.5g", {"kv_cache_memory_bytes": 25_500_000_000}),
        (
            DOCKER,
            {
                "tensor_parallel_size": 1,
                "gpu_memory_utilization": 0.9,
                "kv_cache_dtype": "fp8",
                "max_model_len": 32768,
            },
        ),
    ],
)
def test_a_pasted_command_line_is_read_as_vllm_would(line: str, expected: dict[str, Any]) -> None:
    args = EngineArgs.from_command_line(shlex.split(line))
    assert _given(args) == expected
    assert args.not_covered == ()


def test_all_faults_are_named_at_once_with_value_and_remedy() -> None:
    with pytest.raises(EngineArgsError) as caught:
        EngineArgs.from_mapping(
            {
                "tensor_parallel_size": 0,
                "max_num_seqs": "many",
                "gpu_memory_utilization": float("nan"),
                "enforce_eager": "yes",
                "max_model_len": True,
            }
        )
    assert {fault.key for fault in caught.value.faults} == {
        "tensor_parallel_size",
        "max_num_seqs",
        "gpu_memory_utilization",
        "enforce_eager",
        "max_model_len",
    }
    assert "between 1 and 4096" in str(caught.value)


def test_a_wrong_word_on_a_command_line_is_a_fault_not_a_guess() -> None:
    with pytest.raises(EngineArgsError, match="max_num_seqs"):
        EngineArgs.from_command_line(["--max-num-seqs", "1.5K"])


@pytest.mark.parametrize(
    "arguments",
    [
        {"some_argument_of_next_year": 1},
    ],
)
def test_an_argument_whose_effect_is_not_described_makes_the_prediction_refuse(
    arguments: dict[str, Any],
) -> None:
    prediction = predict(deployment(LLAMA_8B, **arguments))
    assert not prediction.supported
    assert next(iter(arguments)) in (prediction.reason or "")


def test_arguments_at_their_defaults_and_those_without_memory_do_not_refuse() -> None:
    prediction = predict(
        deployment(LLAMA_8B, enable_lora=False, speculative_config=None, port=8000, seed=3)
    )
    assert prediction.supported


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tensor_parallel_size": 3}, "32 attention heads are not divisible"),
        ({"pipeline_parallel_size": 33}, "more pipeline stages than layers"),
        ({"max_model_len": 131073}, "longer than the model's 131072"),
        ({"max_num_seqs": 4096, "max_num_batched_tokens": 1024}, "below max_num_seqs"),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 2048}, "without chunked"),
        ({"block_size": 8}, "blocks of 8 tokens"),
        ({"kv_cache_dtype": "turbo"}, "turbo"),
        ({"quantization": "nvfp4_per_token"}, "nvfp4_per_token"),
    ],
)
def test_what_vllm_would_refuse_or_is_not_known_is_said_in_one_sentence(
    arguments: dict[str, Any], words: str
) -> None:
    prediction = predict(deployment(LLAMA_8B, **arguments))
    assert not prediction.supported
    assert words in (prediction.reason or "")


def test_a_longer_length_is_allowed_where_the_environment_allows_it() -> None:
    env = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    assert predict(deployment(LLAMA_8B, env=env, max_model_len=200_000)).supported


LABELS = {
    "block_size": "32",
    "cache_dtype": "auto",
    "enable_prefix_caching": "True",
    "engine": "0",
    "gpu_memory_utilization": "0.92",
    "kv_cache_dtype_skip_layers": "[]",
    "kv_cache_max_concurrency": "5.46875",
    "kv_cache_memory_bytes": "1073741824",
    "kv_cache_size_tokens": "11200",
    "num_gpu_blocks": "350",
    "num_gpu_blocks_override": "None",
    "sliding_window": "None",
    "user_specified_block_size": "True",
}


def test_only_declared_arguments_are_read_of_what_an_engine_exports() -> None:
    declared = EngineArgs.declared_in_cache_config(LABELS)
    assert _given(declared) == {
        "block_size": 32,
        "kv_cache_dtype": "auto",
        "enable_prefix_caching": True,
        "gpu_memory_utilization": 0.92,
        "kv_cache_memory_bytes": 1073741824,
    }


def test_results_of_the_start_up_never_change_what_is_declared() -> None:
    results = {"num_gpu_blocks": "7", "kv_cache_size_tokens": "9", "kv_cache_max_concurrency": "2"}
    assert EngineArgs.declared_in_cache_config(LABELS | results) == (
        EngineArgs.declared_in_cache_config(LABELS)
    )


def test_a_block_size_that_vllm_chose_is_not_an_argument() -> None:
    chosen = LABELS | {"user_specified_block_size": "False"}
    assert EngineArgs.declared_in_cache_config(chosen).block_size is None


def test_a_label_that_vllm_would_not_write_is_a_fault() -> None:
    with pytest.raises(EngineArgsError, match="gpu_memory_utilization"):
        EngineArgs.declared_in_cache_config(LABELS | {"gpu_memory_utilization": "a lot"})


def test_given_arguments_win_over_declared_ones() -> None:
    given_args = EngineArgs.from_mapping({"block_size": 64, "enable_dbo": True})
    merged = given_args.merged_over(EngineArgs.declared_in_cache_config(LABELS))
    assert merged.block_size == 64
    assert merged.kv_cache_memory_bytes == 1073741824
    assert merged.not_covered == ("enable_dbo",)


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=12)))
def test_any_labels_are_read_or_refused_with_a_fault(labels: dict[str, str]) -> None:
    known = dict(zip(LABELS, [*labels.values(), *LABELS.values()], strict=False))
    # Whatever stands there, nothing but our own exception leaves, and it names a label.
    with contextlib.suppress(EngineArgsError):
        assert EngineArgs.declared_in_cache_config(labels | known).tensor_parallel_size is None


@pytest.mark.parametrize(
    ("name", "memory_gib"),
    [
        ("H100 80GB", 79.19),
        ("NVIDIA H100 80GB HBM3", 79.19),
        ("nvidia-a100-sxm4-80gb", 79.15),
        ("H200", 139.8),
        ("RTX 4090", 23.53),
        ("NVIDIA GeForce RTX 5090", 31.4),
        ("4090", 23.53),
        ("T4", 14.56),
    ],
)
def test_gpus_are_known_by_what_cuda_reports_not_by_the_catalogue(
    name: str, memory_gib: float
) -> None:
    gpu = gpu_named(name)
    assert gpu is not None
    assert gpu.total_memory_bytes / (1 << 30) == pytest.approx(memory_gib, abs=0.005)


@pytest.mark.parametrize("name", ["A100 40GB", "H100 94GB", "H1000", "", "a GPU"])
def test_gpus_whose_memory_is_not_known_are_not_guessed(name: str) -> None:
    assert gpu_named(name) is None


def test_versions_are_ordered_by_number() -> None:
    parsed = [VllmVersion.parse(text) for text in ("0.8.5.post1", "v0.10.2", "0.32.0+cpu")]
    assert sorted(parsed, reverse=True) == parsed[::-1]
    assert str(VllmVersion.parse("0.28.1rc1.dev580+g385dce36b")) == "0.28.1"
    with pytest.raises(ValueError, match="newest"):
        VllmVersion.parse("newest")


def test_bfloat16_falls_to_float16_on_gpus_that_lack_it() -> None:
    t4 = gpu_named("T4")
    resolved = predict(deployment(QWEN3_14B, gpu=t4, max_model_len=2048)).resolved
    assert resolved is not None
    assert resolved.dtype == "float16"
    assert not predict(deployment(QWEN3_14B, gpu=t4, dtype="bfloat16")).supported
