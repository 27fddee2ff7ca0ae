"""A command line is read as vLLM's own parser reads it, and nothing secret of it is kept."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.predict import EngineArgs
from vllm_capacity.predict.command_line import arguments_of, starts_a_server
from vllm_capacity.predict.engine_flags import ENGINE_FLAGS, parsed_number


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/usr/bin/python3", "/usr/bin/vllm", "serve", "m", "-tp=2"], {"tensor_parallel_size": 2}),
        (["python", "/x/openai/api_server.py", "-tp2"], {"tensor_parallel_size": 2}),
        (["-dp", "2", "-dcp=4", "-ep"], {
            "data_parallel_size": 2,
            "decode_context_parallel_size": 4,
            "enable_expert_parallel": True,
        }),
        (["--gpu-memory-util", "0.8"], {"gpu_memory_utilization": 0.8}),
        (["--max_num_seqs", "8", "--max-num-seqs=16"], {"max_num_seqs": 16}),
        (["--no-enable-prefix-caching", "--no_enable_chunked_prefill"], {
            "enable_prefix_caching": False,
            "enable_chunked_prefill": False,
        }),
        (["--max-num-batched-tokens", "8k", "--kv-cache-memory-bytes", "2G"], {
            "max_num_batched_tokens": 8000,
            "kv_cache_memory_bytes": 2 << 30,
        }),
        (["--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}'], {
            "speculative_config": {"method": "mtp", "num_speculative_tokens": 1},
        }),
        (["--speculative-config.method", "mtp", "-sc.num_speculative_tokens=1"], {
            "speculative_config": {"method": "mtp"},
        }),
        (["--speculative-config.method=mtp", "--speculative_config.num_speculative_tokens", "2"], {
            "speculative_config": {"method": "mtp", "num_speculative_tokens": 2},
        }),
        (["--limit-mm-per-prompt", "image=2,video=0"], {
            "limit_mm_per_prompt": {"image": 2, "video": 0},
        }),
        (["--kv-cache-dtype-skip-layers", "0", "1", "--port", "1"], {
            "kv_cache_dtype_skip_layers": ["0", "1"],
        }),
        (["--spec-method", "ngram", "--spec-tokens=2"], {
            "speculative_config": {"method": "ngram", "num_speculative_tokens": 2},
        }),
        (["--max-model-len", "-1"], {"max_model_len": -1}),
        (["m", "--enforce-eager", "--trust-remote-code", "--port", "1"], {"enforce_eager": True}),
        (["-O3", "-O=2", "-O", "1", "-O"], {}),
        (["-n", "2", "-r", "1", "-dpl=2", "-dph", "-asc", "4"], {}),
        (["--", "-", "", "serve"], {}),
    ],
)  # fmt: skip
def test_arguments_are_read_in_every_spelling(words: list[str], expected: dict[str, Any]) -> None:
    found = arguments_of(words)
    read = {flag.name for flag in ENGINE_FLAGS}
    assert {name: value for name, value in found.items() if name in read} == expected


@pytest.mark.parametrize("words", [["-O3"], ["-n", "2", "-dpa", "10.0.0.1"], ["--api-key", "x"]])
def test_arguments_without_memory_do_not_make_a_prediction_refuse(words: list[str]) -> None:
    assert EngineArgs.from_command_line(words).not_covered == ()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["-cc", "{}x"], "compilation_config"),
        (["--compilation-config.mode", "3"], "compilation_config"),
        (["--hf-overrides", '{"a": 1}'], "hf_overrides"),
        (["--some-argument-of-next-year"], "some_argument_of_next_year"),
    ],
)
def test_arguments_whose_effect_is_not_described_are_named(words: list[str], name: str) -> None:
    assert EngineArgs.from_command_line(words).not_covered == (name,)


def test_of_an_argument_that_is_not_read_only_that_it_is_given_is_kept() -> None:
    words = ["serve", "m", "--api-key", "S3CRET", "--x", "S3CRET", "S3CRET", "-q=S3CRET"]
    assert arguments_of(words) == {"api_key": True, "x": True, "quantization": "S3CRET"}


def test_what_an_engine_tells_and_cannot_be_read_is_named_instead_of_raised() -> None:
    told = EngineArgs.as_told(
        {"max_num_seqs": "many", "tensor_parallel_size": 2, "kv_cache_dtype": "***", "x": "***"}
    )
    assert told.given == {"tensor_parallel_size": 2}
    assert set(told.not_covered) == {"max_num_seqs", "kv_cache_dtype", "x"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["vllm", "serve", "m"], True),
        (["python3", "-m", "vllm.entrypoints.openai.api_server"], True),
        (["VLLM::EngineCore"], False),
        (["python3", "-c", "from multiprocessing.spawn import spawn_main"], False),
        ([], False),
    ],
)
def test_the_command_line_of_a_server_is_told_from_others(words: list[str], expected: bool) -> None:
    assert starts_a_server(words) is expected


WHOLE = [flag.name for flag in ENGINE_FLAGS if flag.type is int]


@given(
    st.dictionaries(st.sampled_from(WHOLE), st.integers(1, 4096), max_size=8),
    st.booleans(),
    st.booleans(),
)
def test_whole_numbers_come_back_however_they_are_spelled(
    numbers: dict[str, int], dashed: bool, joined: bool
) -> None:
    words = ["vllm", "serve", "m"]
    for name, value in numbers.items():
        flag = "--" + (name.replace("_", "-") if dashed else name)
        words += [f"{flag}={value}"] if joined else [flag, str(value)]
    assert EngineArgs.from_command_line(words).given == numbers


@given(st.lists(st.text(max_size=20) | st.sampled_from(["--max-num-seqs", "-tp", "--a.b.c", "{"])))
def test_any_words_are_survived(words: list[str]) -> None:
    told = EngineArgs.as_told(arguments_of(words))
    assert isinstance(told, EngineArgs)
    assert json.dumps(sorted(told.not_covered))


@pytest.mark.parametrize(("text", "number"), [("8k", 8000), ("8K", 8192), ("1.5k", 1500)])
def test_numbers_are_read_as_people_write_them(text: str, number: int) -> None:
    assert parsed_number(text, int) == number


def test_a_number_that_is_larger_than_any_is_none() -> None:
    text = "9" * 400 + "k"
    assert parsed_number(text, int) == text
