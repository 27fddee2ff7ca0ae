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
        ({"gpu": {"name": "Unheard 7"}}, {"gpu.total_memory"}),
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


START_UP = """\
INFO 11-21 10:00:01 [api_server.py:100] vLLM API server version 0.19.0
INFO 11-21 10:00:01 [utils.py:233] non-default args: {'max_model_len': 8192, 'tensor_parallel_size': 2}
INFO 11-21 10:00:30 [gpu_model_runner.py:1] Model loading took 30.59 GiB memory and 9.5 seconds
DEBUG 11-21 10:00:40 [gpu_worker.py:1] Memory profiling takes 9.10 seconds. Total non KV cache memory: 35.16GiB; torch peak memory increase: 2.5GiB; non-torch forward increase memory: 2.07GiB; weights memory: 30.59GiB.
"""  # noqa: E501


def test_a_start_up_log_gives_measured_terms_and_the_arguments_of_the_engine(folder: Path) -> None:
    log, profile = folder / "vllm.log", folder / "profile.json"
    log.write_text(START_UP)
    asked = ("--model-config", str(folder), "--gpu", "H100")
    from_log = _run(*asked, "--calibrate-from", str(log), "--save-profile", str(profile))
    assert from_log.returncode == 0, from_log.stderr
    assert "2 × NVIDIA H100" in from_log.stdout
    assert "max_model_len 8192" in from_log.stdout
    for words in ("30.59 GiB", "2.50 GiB", "2.07 GiB", "measured: start-up log, vLLM 0.19.0"):
        assert words in from_log.stdout
    assert _run(*asked, "--calibrate-from", str(profile)).stdout == from_log.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--calibrate-from", "absent.log"), "absent.log"),
        (("--calibrate-from", "config.json"), "no measured memory"),
        (("--save-profile", "p.json"), "--calibrate-from"),
    ],
)
def test_a_calibration_that_cannot_be_is_one_line_of_error(
    folder: Path, words: tuple[str, str], said: str
) -> None:
    flag, name = words
    done = _run("--model-config", str(folder), "--gpu", "H100", flag, str(folder / name))
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_workload_is_answered_in_words(folder: Path) -> None:
    done = _run(
        *("--model-config", str(folder), "--gpu", "H200", "--max-model-len", "8192"),
        *("--mean-prompt-tokens", "1500", "--mean-output-tokens", "400"),
        *("--shared-prefix-tokens", "900", "--users", "200"),
    )
    assert done.returncode == 0, done.stderr
    for words in ("requests of 1900 tokens (mean) at once", "the shared prefix fills 56 blocks"):
        assert words in done.stdout
    assert "GPUs for 200 requests" in done.stdout
    assert "--kv-cache-dtype fp8" in done.stdout


def test_a_workload_without_outputs_is_a_fault(folder: Path) -> None:
    done = _run("--model-config", str(folder), "--gpu", "H200", "--mean-prompt-tokens", "1500")
    assert done.returncode == 2
    assert "mean_output_tokens" in done.stderr


def test_a_line_with_a_workload_is_answered_with_the_answers() -> None:
    sizes = {"mean_prompt_tokens": 1500, "mean_output_tokens": 400, "users": 50}
    line = LINE | {"workload": sizes}
    answer = answer_line(json.dumps(line).encode())
    assert {"failure", "longest_context_tokens", "what_if", "workload", "fewest_gpus"} <= set(
        answer["answers"]
    )
    assert answer["answers"]["workload"][1]["basis"] == "mean"
    json.dumps(answer, allow_nan=False)


def test_a_faulty_workload_of_a_line_names_every_key() -> None:
    line = LINE | {"workload": {"mean_prompt_tokens": "x", "users": 0}}
    answer = answer_line(json.dumps(line).encode())
    keys = {fault["key"] for fault in answer["error"]["faults"]}
    assert {"workload.mean_prompt_tokens", "workload.users"} <= keys
