"""``vllm-capacity predict``: the table, and the lines of JSON."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vllm_capacity.commands.predict_jsonl import answer_line

QWEN3_32B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "num_attention_heads": 64,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
LINE = {
    "id": "a",
    "config": QWEN3_32B,
    "engine_args": {"max_model_len": 16384},
    "gpu": {
        "name": "NVIDIA H100 80GB HBM3",
        "compute_capability": "9.0",
        "total_memory": 85018877624,
    },
    "vllm_version": "0.32.0",
    "available_kv_cache_bytes": [8589934592],
}


def _run(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vllm_capacity.cli", "predict", *words],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_32B))
    return tmp_path


def test_a_deployment_that_fits_is_told_in_a_table(folder: Path) -> None:
    done = _run("--model-config", str(folder), "--gpu", "H200", "--vllm-version", "0.19.0")
    assert done.returncode == 0, done.stderr
    for words in ("weights", "activation peak", "sampler", "outside PyTorch", "KV cache"):
        assert words in done.stdout
    assert "61.03 GiB" in done.stdout
    assert "requests of 40960 tokens at once" in done.stdout


def test_a_deployment_that_does_not_fit_is_told_what_would_help(folder: Path) -> None:
    done = _run(
        *("--model-config", str(folder / "config.json"), "--gpu", "H100"),
        *("--vllm-version", "0.19.0", "--max-model-len", "32000"),
    )
    assert done.returncode == 1
    assert "vLLM would refuse to start" in done.stdout
    for words in ("--max-model-len 31", "--max-num-seqs 256", "--tensor-parallel-size 2"):
        assert words in done.stdout


def test_a_pasted_command_line_and_flags_of_our_own_agree(folder: Path) -> None:
    deployed = ("--model-config", str(folder), "--gpu", "H200")
    pasted = _run(*deployed, "--vllm-args", "vllm serve Qwen/Qwen3-32B -tp 2 --max-num-seqs=128")
    flags = _run(*deployed, "--tensor-parallel-size", "2", "--max-num-seqs", "128")
    assert pasted.returncode == flags.returncode == 0
    assert pasted.stdout == flags.stdout


def test_an_architecture_that_is_not_described_is_one_line(tmp_path: Path) -> None:
    config = QWEN3_32B | {"architectures": ["NeverForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = _run("--model-config", str(tmp_path), "--gpu", "H100")
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert "NeverForCausalLM" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--gpu", "H1000"), "H1000"),
        (("--vllm-version", "new"), "0.32.0"),
        (("--env", "VLLM_X"), "KEY=VALUE"),
        (("--max-num-seqs", "0"), "max_num_seqs"),
        (("--vllm-args", "--max-model-len '"), "vllm-args"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(
    folder: Path, words: tuple[str, ...], expected: str
) -> None:
    done = _run("--model-config", str(folder), *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr


def test_a_missing_model_config_is_one_clear_line() -> None:
    done = _run("--gpu", "H100")
    assert done.returncode == 2
    assert "model-config" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_fault_of_a_config_has_its_own_line(tmp_path: Path) -> None:
    faulty = QWEN3_32B | {"hidden_size": "wide", "num_hidden_layers": -3}
    (tmp_path / "config.json").write_text(json.dumps(faulty))
    done = _run("--model-config", str(tmp_path), "--gpu", "H100")
    assert done.returncode == 2
    assert "hidden_size" in done.stderr
    assert "num_hidden_layers" in done.stderr


def test_lines_are_answered_in_order_with_the_keys_of_the_contract() -> None:
    lines = [json.dumps(LINE), "{", json.dumps(LINE | {"id": "b", "vllm_version": None})]
    done = _run("--jsonl", given="\n".join(lines) + "\n")
    assert done.returncode == 1  # one line was malformed
    first, broken, last = map(json.loads, done.stdout.splitlines())
    assert (first["id"], broken["id"], last["id"]) == ("a", None, "b")
    assert "not JSON" in broken["error"]["message"]
    assert first["supported"] is True
    assert first["resolved"] == {
        "architecture": "Qwen3ForCausalLM",
        "dtype": "bfloat16",
        "max_model_len": 16384,
        "max_num_seqs": 1024,
        "max_num_batched_tokens": 8192,
        "block_size": 16,
        "kv_cache_dtype": "auto",
        "quantization": None,
    }
    assert {"activation_peak_bytes_low", "non_torch_bytes_high", "activation_peak_phase"} <= set(
        first["budget"]
    )
    (plan,) = first["kv_cache"]
    assert plan["groups"] == [
        {"kind": "full_attention", "layers": 64, "block_size": 16, "page_size_bytes": 65536}
    ]
    assert plan["num_blocks"] == 8589934592 // (64 * 65536)
    assert plan["max_concurrency"] == 2
    assert plan["error"] is None


def test_without_asked_numbers_the_predicted_budget_is_planned() -> None:
    asked = {key: value for key, value in LINE.items() if key != "available_kv_cache_bytes"}
    answer = answer_line(json.dumps(asked).encode())
    assert answer["kv_cache"][0]["available_bytes"] == answer["budget"]["kv_cache_bytes"]


def test_numbers_per_stage_are_echoed_as_asked() -> None:
    asked = LINE | {
        "engine_args": {"pipeline_parallel_size": 2, "max_model_len": 1024},
        "available_kv_cache_bytes": [[8 << 30, 4 << 30], 8 << 30],
    }
    answer = answer_line(json.dumps(asked).encode())
    assert [plan["available_bytes"] for plan in answer["kv_cache"]] == [[8 << 30, 4 << 30], 8 << 30]
    assert len(answer["weights_bytes"]) == 2


@pytest.mark.parametrize(
    ("changed", "keys"),
    [
        ({"config": None}, {"config.architectures"}),
        (
            {"config": {**QWEN3_32B, "hidden_size": -1, "vocab_size": "x"}},
            {"config.hidden_size", "config.vocab_size"},
        ),
        ({"engine_args": {"max_num_seqs": 0}}, {"engine_args.max_num_seqs"}),
        (
            {"engine_args": {"max_num_seqs": 0}, "env": {"A": 1}},
            {"engine_args.max_num_seqs", "env.A"},
        ),
        ({"gpu": {"name": 3, "total_memory": -1}}, {"gpu.name", "gpu.total_memory"}),
        ({"gpu": {"name": "H100"}}, {"gpu.total_memory"}),
        ({"vllm_version": "latest"}, {"vllm_version"}),
        ({"flashinfer": "no"}, {"flashinfer"}),
        ({"available_kv_cache_bytes": 5}, {"available_kv_cache_bytes"}),
        ({"available_kv_cache_bytes": [[1, 2]]}, {"available_kv_cache_bytes"}),
    ],
)
def test_a_malformed_line_names_every_faulty_key(changed: dict[str, Any], keys: set[str]) -> None:
    answer = answer_line(json.dumps(LINE | changed).encode())
    assert {fault["key"] for fault in answer["error"]["faults"]} == keys
    assert answer["id"] == "a"
    json.dumps(answer, allow_nan=False)


@pytest.mark.parametrize(
    "line",
    [
        b"[1]",
        b"\xff\xfe",
        b'{"id": NaN, "config": {"architectures": NaN}}',
        b"[" * 100_000,
        b'{"id": ' + b"9" * 5000 + b"}",
        b'{"id": {"deep": [1, 2]}, "config": []}',
        b'{"config": {"architectures": ["LlamaForCausalLM"], "hidden_size": 1e999}}',
    ],
)
def test_any_line_gets_an_answer_that_any_reader_takes(line: bytes) -> None:
    answer = answer_line(line)
    assert answer["error"]["faults"]
    assert len(json.dumps(answer, allow_nan=False)) < 10_000


def test_one_prediction_takes_milliseconds() -> None:
    line = json.dumps(LINE | {"engine_args": {"tensor_parallel_size": 8}}).encode()
    answer_line(line)
    best = min(_timed(line) for _ in range(5))
    assert best < 0.005


def _timed(line: bytes) -> float:
    started = time.perf_counter()
    answer_line(line)
    return time.perf_counter() - started
