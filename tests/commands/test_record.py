"""``record``: a server's pages into a file, and out of it again by ``replay``."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from vllm_capacity.cli import main
from vllm_capacity.sources.recording import read_recorded_lines, read_recording

PAGE = (Path(__file__).parent.parent / "data" / "vllm-0.32-metrics.txt").read_text()
MODELS = {"data": [{"id": "./small-llama", "root": "/srv/secret", "max_model_len": 2048}]}
FAST = ("--interval", "20ms", "--duration", "500ms")


class Server(ThreadingHTTPServer):
    """A vLLM of which a test sets the pages; None: it answers 500."""

    def __init__(self) -> None:
        self.metrics: str | None = PAGE
        self.slow_seconds: dict[str, float] = {}
        self.authorizations: set[str | None] = set()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str) -> str | None:
        time.sleep(self.slow_seconds.get(path, 0.0))
        pages = {
            "/metrics": self.metrics,
            "/v1/models": json.dumps(MODELS),
            "/version": '{"version": "0.32.0"}',
        }
        return pages.get(path)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.authorizations.add(self.headers.get("Authorization"))
        body = self.server.answer(self.path)
        self.send_response(500 if body is None else 200)
        self.end_headers()
        self.wfile.write((body or "").encode())

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # a client that was told to stop
            super().handle()


@pytest.fixture
def vllm() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line, _ in read_recorded_lines(path)]


@contextmanager
def recorder(*words: object) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, which is recording already."""
    command = [sys.executable, "-m", "vllm_capacity.cli", "record", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            while "pages and" not in process.stderr.readline():
                assert process.poll() is None
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_what_is_recorded_can_be_replayed(
    vllm: Server, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"vllm.jsonl{suffix}"
    assert main(["record", vllm.url, str(path), *FAST]) == 0
    scrapes = list(read_recording(path))
    assert 2 <= len(scrapes) <= 26
    assert all(scrape.metrics == PAGE for scrape in scrapes)
    assert scrapes[0].t < scrapes[-1].t < 5
    said = capsys.readouterr().err
    assert f"{len(scrapes)} pages and 0 failed scrapes" in said
    assert "0.5 s are over (--duration)" in said
    assert main(["replay", str(path), "--jsonl"]) == 0
    replayed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["t"] for line in replayed] == [scrape.t for scrape in scrapes]
    assert {line["engines"]["0"]["used_blocks"] for line in replayed} == {13}


def test_beside_the_pages_stands_when_it_began_and_what_was_served(
    vllm: Server, tmp_path: Path
) -> None:
    path, before = tmp_path / "a.jsonl", time.time()
    assert main(["record", vllm.url, str(path), *FAST]) == 0
    header = lines(path)[0]["recording"]
    assert before - 1 <= header["started_timestamp_seconds"] <= time.time()
    assert header["interval_seconds"] == 0.02
    assert [line["server"] for line in lines(path) if "server" in line] == [
        {
            "vllm_version": "0.32.0",
            "models": [{"id": "./small-llama", "max_model_len": 2048}],
        }
    ]
    assert "/srv/secret" not in path.read_text()
    assert vllm.url not in path.read_text()


def test_redacted_it_names_no_model_and_replays_alike(
    vllm: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    assert main(["record", vllm.url, str(path), *FAST, "--redact"]) == 0
    assert "small-llama" not in path.read_text()
    capsys.readouterr()
    assert main(["replay", str(path), "--jsonl"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["engines"]["0"]["used_blocks"] == 13


def test_a_scrape_that_fails_is_recorded_as_such_and_said_once(
    vllm: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    vllm.metrics = None
    assert main(["record", vllm.url, str(path), *FAST]) == 1
    assert {(line["metrics"], line["error"]) for line in lines(path)} == {(None, "http")}
    assert capsys.readouterr().err.count("answered 500") == 1
    vllm.metrics = PAGE
    assert main(["record", vllm.url, str(path), *FAST]) == 0
    pages = [scrape.metrics for scrape in read_recording(path)]
    assert pages[0] is None
    assert pages[-1] == PAGE


def test_a_page_that_replay_cannot_use_is_said_and_recorded(
    vllm: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm.metrics = "process_start_time_seconds 1\n"
    path = tmp_path / "a.jsonl"
    assert main(["record", vllm.url, str(path), *FAST]) == 0
    assert capsys.readouterr().err.count("without a single vLLM metric") == 1
    assert lines(path)[0]["metrics"] == vllm.metrics


def test_a_slow_scrape_has_its_true_time_and_no_others_pile_up(
    vllm: Server, tmp_path: Path
) -> None:
    vllm.slow_seconds = {"/metrics": 0.15}
    path = tmp_path / "a.jsonl"
    assert main(["record", vllm.url, str(path), "--interval", "20ms", "--duration", "800ms"]) == 0
    times = [scrape.t for scrape in read_recording(path)]
    assert times[0] >= 0.15
    assert all(later - sooner >= 0.149 for sooner, later in pairwise(times))


def test_a_server_slow_to_say_what_it_serves_delays_no_scrape(vllm: Server, tmp_path: Path) -> None:
    vllm.slow_seconds = {"/v1/models": 1.5}
    path = tmp_path / "a.jsonl"
    assert main(["record", vllm.url, str(path), *FAST]) == 0
    assert len(lines(path)) >= 2
    assert not any("server" in line for line in lines(path))


def test_it_is_continued_at_the_time_that_has_passed(vllm: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.xz"
    assert main(["record", vllm.url, str(path), *FAST]) == 0
    first = lines(path)
    time.sleep(0.5)
    assert main(["record", vllm.url, str(path), *FAST]) == 0
    both = lines(path)
    assert both[: len(first)] == first
    assert both[len(first)]["t"] - first[-1]["t"] >= 0.5
    headers = [line["recording"] for line in both if "recording" in line]
    assert headers[0] == headers[1]


def test_it_ends_by_itself_before_it_is_too_large(
    vllm: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vllm_capacity.commands.record._FLUSH_SECONDS", 0.0)
    path = tmp_path / "a.jsonl"
    words = ["--interval", "10ms", "--duration", "20s", "--max-bytes", "200KB"]
    assert main(["record", vllm.url, str(path), *words]) == 0
    assert 100_000 < path.stat().st_size <= 200_000
    assert "beyond 0.2 MB (--max-bytes)" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_keeps_everything_and_gives_0(
    vllm: Server, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "a.jsonl.gz"
    with recorder(vllm.url, path, "--interval", "20ms") as process:
        time.sleep(0.3)
        process.send_signal(number)
        assert process.wait(10) == 0
        assert process.stderr is not None
        said = process.stderr.read()
    recorded = len(list(read_recording(path)))
    assert recorded > 3
    assert f"{recorded} pages" in said
    assert "told to stop" in said


def test_told_to_stop_it_does_not_wait_for_a_page_that_does_not_come(
    vllm: Server, tmp_path: Path
) -> None:
    with recorder(vllm.url, tmp_path / "a.jsonl", "--interval", "20ms") as process:
        vllm.slow_seconds = {"/metrics": 3.0}
        time.sleep(0.2)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - started < 2.5


def test_killed_it_loses_a_few_seconds_and_is_continued(vllm: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.xz"
    with recorder(vllm.url, path, "--interval", "50ms") as process:
        deadline = time.monotonic() + 30
        while path.stat().st_size == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
    kept = [scrape.t for scrape in read_recording(path)]
    assert kept[-1] >= 4.0
    os.truncate(path, path.stat().st_size - 5)  # what a power cut may leave
    assert main(["record", vllm.url, str(path), *FAST]) == 0
    times = [scrape.t for scrape in read_recording(path)]
    assert times == sorted(times)
    assert times[-1] > kept[-1]


def test_the_token_goes_to_the_server_and_not_into_the_file(vllm: Server, tmp_path: Path) -> None:
    token, path = tmp_path / "token", tmp_path / "a.jsonl"
    token.write_text("s3cr3t\n")
    words = [*FAST, "--bearer-token-file", str(token)]
    assert main(["record", vllm.url, str(path), *words]) == 0
    assert vllm.authorizations == {"Bearer s3cr3t"}
    assert "s3cr3t" not in path.read_text()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["ftp://x", "FILE"], "must be http or https"),
        (["http://x", "FILE", "--interval", "0"], "--interval: must be a positive duration"),
        (["http://x", "FILE", "--max-bytes", "some"], "--max-bytes: must be a positive size"),
        (["http://x", "FILE", "--ca-file", "/nowhere"], "ca_file"),
        (["http://x", "/nowhere/FILE"], "cannot be written"),
    ],
)
def test_asked_wrongly_it_says_why_in_a_line_and_makes_no_file(
    words: list[str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["record", *words]) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())
