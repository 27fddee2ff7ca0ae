"""``parse-log``: a log in, one JSON object or a table out."""

import gzip
import io
import json
import lzma
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_capacity.cli import main

SAMPLES = Path(__file__).parent.parent / "data" / "startup-logs"
FIELDS = {
    *("vllm_version", "model", "engine_args", "architecture", "attention_backend"),
    *("weights_bytes", "activation_peak_bytes", "non_torch_bytes", "cuda_graph_bytes"),
    *("total_memory_bytes", "requested_memory_bytes", "kv_cache_bytes", "kv_cache_size_tokens"),
    *("num_gpu_blocks", "max_concurrency", "max_model_len", "failure", "lines"),
}


def parsed(capsys: pytest.CaptureFixture[str], path: Path | str) -> dict[str, Any]:
    assert main(["parse-log", str(path), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def test_one_json_object_holds_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    log = parsed(capsys, SAMPLES / "vllm-0.10.2-debug.log")
    assert set(log) >= FIELDS
    assert log["weights_bytes"] == round(15.24 * (1 << 30))
    assert log["weights_bytes_uncertainty_bytes"] == 53688
    assert log["activation_peak_bytes_uncertainty_bytes"] == 5368710
    assert "kv_cache_bytes_uncertainty_bytes" not in log
    assert log["lines"]["weights_bytes"] == 7
    assert log["engine_args"]["kv_cache_dtype"] == "fp8"
    assert log["failure"] is None
    assert log["ranks"] is None


def test_several_ranks_are_lists(capsys: pytest.CaptureFixture[str]) -> None:
    log = parsed(capsys, SAMPLES / "vllm-0.8.5-v0-tp2.log")
    ranks = log["ranks"]
    assert ranks["name"] == ["", "VllmWorkerProcess"]
    assert min(ranks["kv_cache_bytes"]) == log["kv_cache_bytes"]
    assert max(ranks["activation_peak_bytes"]) == log["activation_peak_bytes"]
    assert "consumed_bytes" not in ranks


def test_a_failed_start_has_its_kind_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    failure = parsed(capsys, SAMPLES / "vllm-0.32.0-failed-heads.log")["failure"]
    assert failure["kind"] == "invalid_arguments"
    assert failure["message"].startswith("Total number of attention heads (8)")


def test_secrets_never_appear(capsys: pytest.CaptureFixture[str]) -> None:
    for path in SAMPLES.glob("*.log"):
        assert main(["parse-log", str(path), "--json"]) == 0
        printed = capsys.readouterr().out
        for secret in ("abc,def", "hf_abcdefghijklmnop", "hunter2"):
            assert secret not in printed


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bytes])
def test_compressed_logs_and_standard_input_read_alike(
    compress: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    data = (SAMPLES / "vllm-0.28.1-dp2.log").read_bytes()
    (tmp_path / "log").write_bytes(compress(data))
    log = parsed(capsys, tmp_path / "log")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert parsed(capsys, "-") == log
    assert log["vllm_version"] == "0.28.1rc1.dev580+g385dce36b"


def test_bytes_that_are_no_text_and_endless_lines_do_no_harm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (SAMPLES / "vllm-0.10.2-debug.log").read_bytes()
    (tmp_path / "log").write_bytes(b"\xff\xfe\x00" * 1_000_000 + b"GiB\n" + data)
    log = parsed(capsys, tmp_path / "log")
    assert log["lines"]["weights_bytes"] == 8
    assert log["num_gpu_blocks"] == 18989


@pytest.mark.parametrize("name", ["absent.log", "."])
def test_what_cannot_be_read_is_refused_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parse-log", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "name a log file" in said


def test_a_damaged_archive_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.gz").write_bytes(gzip.compress(b"line\n" * 10_000)[:-20])
    assert main(["parse-log", str(tmp_path / "log.gz"), "--json"]) == 2
    assert "cut or damaged" in capsys.readouterr().err


def test_the_table_tells_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parse-log", str(SAMPLES / "vllm-0.8.5-v0-tp2.log")]) == 0
    table = capsys.readouterr().out
    for part in ("0.8.5.post1", "the tightest of 2 ranks", "4.86 GiB", "3317", "started"):
        assert part in table
    assert "architecture" not in table


def test_a_log_of_something_else_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text("hello\n")
    assert main(["parse-log", str(tmp_path / "log")]) == 0
    assert "nothing of a vLLM start-up" in capsys.readouterr().out
    log = parsed(capsys, tmp_path / "log")
    assert all(not log[field] for field in FIELDS)
