"""``replay``: a recording in, one JSON line out for each of its scrapes."""

import gzip
import json
import lzma
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from vllm_capacity.cli import main

TRACES = Path(__file__).parent.parent / "data" / "traces"
FIELDS = {
    *("running", "waiting", "used_blocks", "free_blocks", "total_blocks", "in_flight_tokens"),
    *("predicted_used_blocks", "predicted_used_blocks_low", "predicted_used_blocks_high"),
    *("prediction_error_blocks", "ledger_state", "committed_blocks", "headroom_requests"),
    *("time_to_exhaustion_seconds", "binding_limit", "state"),
}
SMALL_LLAMA = TRACES.parent / "models" / "small-llama"


def replay(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(["replay", *arguments, "--jsonl"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("recording", ["steady", "ramp", "burst"])
def test_the_median_error_is_at_most_0_6_percent_of_the_pool(
    recording: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = replay(capsys, str(TRACES / f"{recording}.jsonl.xz"))
    errors = [
        abs(engine["prediction_error_blocks"]) / engine["total_blocks"]
        for line in lines
        if line["t"] >= 15
        for engine in line["engines"].values()
    ]
    assert len(errors) > 90
    assert median(errors) <= 0.006


def test_every_line_of_the_recording_has_its_line_with_every_field(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = TRACES / "dp-ramp.jsonl.xz"
    with lzma.open(path, "rt") as recorded:
        times = [json.loads(line)["t"] for line in recorded]
    lines = replay(capsys, str(path))
    assert [line["t"] for line in lines] == times
    for line in lines:
        assert set(line["engines"]) == {"0", "1"}
        assert all(set(engine) == FIELDS for engine in line["engines"].values())


def test_under_saturation_a_line_says_what_comes_and_what_binds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    engines = [line["engines"]["0"] for line in replay(capsys, str(TRACES / "ramp2.jsonl.xz"))]
    assert {e["state"] for e in engines} >= {"idle", "ok", "saturated", "thrashing"}
    assert {e["binding_limit"] for e in engines} == {"none", "kv_cache"}
    assert engines[-1]["committed_blocks"] is not None
    filling = [e for e in engines if e["time_to_exhaustion_seconds"] is not None]
    assert 0 < len(filling) < len(engines)
    assert all(e["committed_blocks"] >= e["used_blocks"] * 0.9 for e in filling)


def test_a_failed_scrape_has_no_engines(capsys: pytest.CaptureFixture[str]) -> None:
    path = TRACES / "restart.jsonl.xz"
    with lzma.open(path, "rt") as recorded:
        failed = [json.loads(line)["metrics"] is None for line in recorded]
    lines = replay(capsys, str(path))
    assert any(failed)
    assert [line["engines"] == {} for line in lines] == failed


def test_used_and_free_blocks_make_the_pool(capsys: pytest.CaptureFixture[str]) -> None:
    for line in replay(capsys, str(TRACES / "burst.jsonl.xz")):
        [engine] = line["engines"].values()
        assert engine["used_blocks"] + engine["free_blocks"] == engine["total_blocks"] == 349


def test_a_model_config_and_vllms_flags_tell_what_the_page_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(TRACES / "steady.jsonl.xz")
    without = replay(capsys, path)[0]["engines"]["0"]
    told = replay(capsys, path, "--model-config", str(SMALL_LLAMA), "--max-model-len", "2048")
    assert without["headroom_requests"]["full_length"] is None
    assert told[0]["engines"]["0"]["headroom_requests"]["full_length"] == 349 // 64
    few = replay(capsys, path, "--max-num-seqs", "3")
    assert few[0]["engines"]["0"]["headroom_requests"]["observed_mean"] == 3


def test_a_page_that_cannot_be_read_is_named_and_the_rest_is_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.jsonl.gz"
    page = 'vllm:num_requests_running{engine="0"} 1\n'
    scrapes = [(0.0, page), (1.0, "<html>\n"), (2.0, page)]
    with gzip.open(path, "wt") as out:
        out.writelines(json.dumps({"t": t, "metrics": text}) + "\n" for t, text in scrapes)
    assert main(["replay", str(path), "--jsonl"]) == 0
    output = capsys.readouterr()
    assert [bool(json.loads(line)["engines"]) for line in output.out.splitlines()] == [
        True,
        False,
        True,
    ]
    assert "t = 1" in output.err


def test_a_recording_that_was_cut_off_is_replayed_up_to_there_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cut.jsonl.xz"
    path.write_bytes((TRACES / "steady.jsonl.xz").read_bytes()[:-1000])
    whole = replay(capsys, str(TRACES / "steady.jsonl.xz"))
    assert main(["replay", str(path), "--jsonl"]) == 0
    output = capsys.readouterr()
    replayed = [json.loads(line) for line in output.out.splitlines()]
    assert len(replayed) > 50
    assert replayed == whole[: len(replayed)]
    assert "the recording was cut off" in output.err
    assert len(output.err.splitlines()) == 1


def test_without_jsonl_a_person_can_read_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(TRACES / "steady.jsonl.xz")]) == 0
    assert "used" in capsys.readouterr().out


def test_a_recording_that_is_not_there_is_one_clear_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["replay", "/nonexistent.jsonl"]) == 2
    error = capsys.readouterr().err
    assert "/nonexistent.jsonl" in error
    assert len(error.splitlines()) == 1
