"""Command lines: whose they are, and what of them may be kept."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.observe.command_line import (
    data_parallel_rank,
    flag_value,
    is_vllm,
    kept_words,
    words_of,
)

SECRET = "Correct-Horse_42"  # noqa: S105 (a planted one)


@pytest.mark.parametrize(
    "line",
    [
        "vllm serve my/model",
        "/usr/bin/python3 /usr/local/bin/vllm serve my/model --port 9000",
        "python3 -m vllm.entrypoints.openai.api_server --model my/model",
        "python -u -m vllm.entrypoints.cli.main serve my/model",
        "python3 /opt/vllm/entrypoints/openai/api_server.py --model my/model",
        "VLLM::EngineCore",
        "VLLM::EngineCore_DP1",
        "VLLM::Worker_DP0_PP1_TP3_EP7",
        "VLLM::Worker",
        "VLLM::APIServer_0",
        "VLLM::DPCoordinator",
        "chat-prod::EngineCore",
    ],
)
def test_vllm_is_known_by_its_command_or_title(line: str) -> None:
    assert is_vllm(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "bash -c vllm serve",
        "python3 train.py --model vllm",
        "grep vllm serve",
        "mpirun -n 2 vllm serve m",
        "vllm bench serve2",
        "vllm-capacity serve --target http://localhost:8000",
        "python3 -m vllm_capacity serve",
        "nginx: worker process",
        "sglang::scheduler",
    ],
)
def test_other_programs_are_not_vllm(line: str) -> None:
    assert not is_vllm(line.split())


@pytest.mark.parametrize(
    ("title", "rank"),
    [
        ("VLLM::EngineCore_DP11", 11),
        ("VLLM::Worker_DP2_TP1", 2),
        ("VLLM::Worker_TP1", None),
        ("VLLM::EngineCore", None),
        ("run_DP3", None),
    ],
)
def test_ranks_are_read_off_titles(title: str, rank: int | None) -> None:
    assert data_parallel_rank([title]) == rank


def test_a_command_line_is_split_at_its_zeros() -> None:
    assert words_of(b"a\0b c\0\0d\0") == ("a", "b c", "", "d")
    assert words_of(b"VLLM::EngineCore\0\0\0\0") == ("VLLM::EngineCore",)
    assert words_of(b"") == ()
    assert words_of(b"\xff\0") == ("\N{REPLACEMENT CHARACTER}",)


def test_the_last_of_a_flag_counts_however_it_is_written() -> None:
    words = ("vllm", "serve", "--port", "1", "--port=2", "--data_parallel_size", "3", "--port")
    assert flag_value(words, "port") == ""
    assert flag_value(words[:-1], "port") == "2"
    assert flag_value(words, "data-parallel-size") == "3"
    assert flag_value(words, "host") is None


def test_what_capacity_needs_is_kept() -> None:
    line = ["/usr/bin/python3", "/usr/local/bin/vllm", "serve", "my/model", "-tp", "2", "-O3"]
    line += ["--max-model-len", "32k", "--gpu-memory-utilization=0.9", "--kv-cache-dtype", "fp8"]
    line += ["--no-enable-prefix-caching", "--compilation-config.mode", "3", "--config", "/v.yaml"]
    line += ["--served-model-name", "a", "b"]
    assert kept_words(line) == tuple(line)


def test_json_is_kept_item_by_item() -> None:
    config = {"method": "eagle", "num_speculative_tokens": 3, "hf_token": SECRET, "x": [SECRET]}
    words = ["vllm", "serve", "m", "--speculative-config", json.dumps(config)]
    kept = json.loads(kept_words(words)[-1])
    assert kept == {"method": "eagle", "num_speculative_tokens": 3, "hf_token": "***", "x": ["***"]}


SECRET_PLACES = [
    ["--api-key", SECRET],
    [f"--api-key={SECRET}"],
    ["--api_key", "first", SECRET],
    ["--hf-token", SECRET],
    ["--ssl-keyfile-password", SECRET],
    ["--hf-overrides", json.dumps({"token": SECRET})],
    ["--hf-overrides", "{broken " + SECRET],
    ["--hf-overrides.auth.token", SECRET],
    ["--kv-transfer-config", json.dumps({"kv_connector_extra_config": {"password": SECRET}})],
    ["--model", f"https://user:{SECRET}@hub.example/m"],
    ["--model", f"s3://bucket/m?signature={SECRET}"],
    ["--tokenizer", f"hf_{SECRET}"],
    ["--middleware", SECRET],
    ["--port", SECRET],
    ["stray", SECRET],
    [f"HF_TOKEN={SECRET}"],
    ["--api-key", "serve", SECRET],
    [f"--allowed-origins=['{SECRET}']"],
]


@pytest.mark.parametrize("words", SECRET_PLACES, ids=lambda words: words[0][:20])
@pytest.mark.parametrize("before", [["vllm", "serve", "m"], ["python3", "-c"], []])
def test_no_secret_is_kept(words: list[str], before: list[str]) -> None:
    if not before:
        before = ["python3", "-m", "vllm.entrypoints.openai.api_server"]
    assert SECRET not in repr(kept_words([*before, *words]))
    assert SECRET not in repr(kept_words([*before, *words, "--max-num-seqs", "8"]))


@pytest.mark.parametrize("flag", ["--api-key", "--hf-token", "--ssl-keyfile-password"])
def test_a_secret_of_digits_is_a_secret(flag: str) -> None:
    assert kept_words(["vllm", "serve", "m", flag, "123456"])[-1] == "***"
    assert kept_words(["vllm", "serve", "m", f"{flag}=123456"])[-1] == f"{flag}=***"


@given(st.lists(st.text(max_size=30), max_size=12))
def test_no_command_line_is_too_strange(words: list[str]) -> None:
    assert len(kept_words(words)) == len(words)
    is_vllm(words)


@given(st.lists(st.sampled_from(["vllm", "serve", "--api-key", "-c", "{", "--x=", "-1"])))
def test_no_context_makes_an_unknown_word_known(words: list[str]) -> None:
    assert SECRET not in repr(kept_words(["python3", *words, "--api-key", SECRET]))
