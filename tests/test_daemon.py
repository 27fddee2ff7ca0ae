"""The whole daemon as a process: hostile targets beside a good one, signals, bad input."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

PAGE = (Path(__file__).parent / "data" / "vllm-0.32-metrics.txt").read_bytes()
Write = Callable[[BaseHTTPRequestHandler], None]


def page_of(body: bytes, content_type: str = "text/plain; version=0.0.4") -> Write:
    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return write


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    line = b'vllm:num_requests_running{engine="0"} 1\n' * 1000
    for _ in range(2500):  # 100 MB
        handler.wfile.write(line)


def dripping(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for byte in PAGE[:100]:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.2)


def cut(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(PAGE)))
    handler.end_headers()
    handler.wfile.write(PAGE[: len(PAGE) // 2])


def many_labels() -> bytes:
    labels = ",".join(f'l{i}="{i}"' for i in range(200_000))
    return b"vllm:num_requests_running{" + labels.encode() + b"} 1\n"


def many_series() -> bytes:
    return b"".join(b'vllm:num_requests_running{engine="%d"} 1\n' % i for i in range(150_000))


HOSTILE: dict[str, tuple[Write, str]] = {
    "html": (page_of(b"<html>no</html>\n", "text/html"), "parse"),
    "endless": (endless, "too_large"),
    "dripping": (dripping, "timeout"),
    "cut": (cut, "http"),
    "nonsense": (page_of(b"\x00\xff" * 1000), "parse"),
    "empty": (page_of(b""), "parse"),
    "series": (page_of(many_series()), "parse"),
}


@contextmanager
def server(write: Write) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                if self.path == "/metrics":
                    write(self)
                else:
                    self.send_error(404)
            except OSError:
                pass  # the client had enough

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


class Running:
    def __init__(self, *arguments: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        address = self.url.removeprefix("http://")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vllm_capacity.cli", "serve"),
                *("--web.listen-address", address, *arguments),
            ],
            stderr=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("VLLM_CAPACITY_")},
        )

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=5.0, trust_env=False)

    @contextmanager
    def stream(self, path: str) -> Iterator[Iterator[str]]:
        """The lines of an event stream, as long as it is open."""
        events = {"Accept": "text/event-stream"}
        with httpx.stream(
            "GET", self.url + path, headers=events, timeout=10.0, trust_env=False
        ) as answer:
            yield answer.iter_lines()

    def series(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        return {
            (sample.name.removeprefix("vllm_capacity_"), frozenset(sample.labels.items())): s
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for sample in family.samples
            for s in [sample.value]
        }

    def wait_for(self, what: Callable[[], bool], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.process.stderr
            try:
                if what():
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"did not come true within {seconds} s")


@contextmanager
def daemon(*arguments: str) -> Iterator[Running]:
    running = Running(*arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


def test_hostile_targets_each_fail_with_their_reason_and_harm_nobody_else() -> None:
    with _hostile_servers() as urls, server(page_of(PAGE)) as good:
        targets = [word for url in (*urls.values(), good) for word in ("--target", url)]
        flags = ("--scrape-interval", "1s", "--scrape-timeout", "2s", "--log.format", "json")
        with daemon(*targets, *flags) as running:
            names = {kind: url.removeprefix("http://") for kind, url in urls.items()}
            names["good"] = good.removeprefix("http://")

            def all_told() -> bool:
                series = running.series()
                return all(
                    series.get(_errors(names[kind], reason), 0) > 0
                    for kind, (_, reason) in HOSTILE.items()
                )

            running.wait_for(all_told)
            series = running.series()
            for kind in HOSTILE:
                assert series["source_up", _labels(names[kind], source="vllm")] == 0
            assert series["source_up", _labels(names["good"], source="vllm")] == 1
            blocks = _labels(names["good"], engine="0", model_name="./small-llama")
            assert series["kv_cache_used_blocks", blocks] == 13
            engines = {dict(labels)["target"] for (n, labels) in series if n == "kv_cache_blocks"}
            assert engines == {names["good"]}
            assert running.get("/").status_code == 200


@contextmanager
def _hostile_servers() -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        yield {kind: stack.enter_context(server(write)) for kind, (write, _) in HOSTILE.items()}


def _labels(target: str, **labels: str) -> frozenset[tuple[str, str]]:
    return frozenset({"target": target, **labels}.items())


def _errors(target: str, reason: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return "collection_errors_total", _labels(target, source="vllm", reason=reason)


@pytest.mark.parametrize("body", [many_labels(), PAGE.replace(b" 1.0\n", b" NaN\n")])
def test_a_page_of_a_million_labels_or_full_of_nan_is_read_and_says_little(body: bytes) -> None:
    with (
        server(page_of(body)) as url,
        daemon("--target", url, "--scrape-interval", "1s") as running,
    ):
        running.wait_for(lambda: running.get("/-/ready").status_code == 200)
        page = running.get("/metrics").text
        assert "NaN" not in page
        assert "vllm_capacity_source_up" in page


def test_the_metrics_page_never_waits_for_an_engine() -> None:
    flags = ("--scrape-interval", "1s", "--scrape-timeout", "30s")
    with server(dripping) as url, daemon("--target", url, *flags) as running:
        running.wait_for(lambda: running.get("/-/healthy").status_code == 200)
        time.sleep(1.0)
        start = time.monotonic()
        assert running.get("/metrics").status_code == 200
        assert time.monotonic() - start < 1.0


def test_a_gpu_driver_that_hangs_holds_up_neither_scrapes_nor_the_end(
    built_nvml_stub: Callable[..., Path],
    driver: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(built_nvml_stub().parent))
    gpu = "gpu GPU-1 NVIDIA H100\n  memory 80 1 19 60\n"
    used = ("gpu_memory_used_bytes", frozenset({"gpu": "0", "gpu_uuid": "GPU-1"}.items()))
    timeouts = (
        "collection_errors_total",
        frozenset({"source": "nvml", "reason": "timeout"}.items()),
    )
    pages = ("collection_duration_seconds_count", frozenset({"source": "vllm"}.items()))
    flags = ("--scrape-interval", "500ms", "--scrape-timeout", "1s", "--log.format", "json")
    driver(gpu)
    with server(page_of(PAGE)) as url, daemon("--target", url, *flags) as running:
        running.wait_for(lambda: running.series().get(used) == 60)
        driver(f"slow count 600000\n{gpu}")
        running.wait_for(lambda: running.series().get(timeouts, 0) > 1)
        series = running.series()
        assert used not in series
        running.wait_for(lambda: running.series()[pages] > series[pages] + 2)
        running.process.send_signal(signal.SIGTERM)
        _, log = running.process.communicate(timeout=10)
        assert running.process.returncode == 0, log
        assert "the driver hangs and is left behind" in log
        assert "crashed" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    with daemon("--simulate", "--scrape-interval", "1s", "--log.format", "json") as running:
        running.wait_for(lambda: running.get("/-/ready").status_code == 200)
        running.process.send_signal(number)
        _, log = running.process.communicate(timeout=10)
        assert running.process.returncode == 0, log
        assert '"event": "stopping"' in log
        assert "Traceback" not in log


def test_open_streams_follow_the_engine_and_end_with_the_daemon() -> None:
    with server(page_of(PAGE)) as url:
        flags = ("--target", url, "--scrape-interval", "1s", "--log.format", "json")
        with daemon(*flags) as running, ExitStack() as streams:
            running.wait_for(lambda: running.get("/-/ready").status_code == 200)
            opened = [
                streams.enter_context(running.stream("/api/v1/status?engine=0")) for _ in range(20)
            ]
            first, second = _documents(opened[0], 2)
            assert second["sequence"] > first["sequence"]
            (engine,) = second["targets"][0]["engines"]
            assert engine["values"]["kv_cache_used_blocks"] == 13
            began = time.monotonic()
            running.process.send_signal(signal.SIGTERM)
            _, log = running.process.communicate(timeout=10)
            assert time.monotonic() - began < 2.0
            assert running.process.returncode == 0, log
            assert "Traceback" not in log
            for lines in opened[1:]:
                list(lines)  # a stream that were cut would raise


def _documents(lines: Iterator[str], count: int) -> list[dict[str, Any]]:
    sent = (line.removeprefix("data: ") for line in lines if line.startswith("data: "))
    return [json.loads(line) for line in islice(sent, count)]


def test_a_collection_that_the_end_cuts_off_is_no_fault() -> None:
    flags = ("--scrape-interval", "1s", "--scrape-timeout", "30s", "--log.format", "json")
    asked = threading.Event()

    def silent(_: BaseHTTPRequestHandler) -> None:
        asked.set()
        time.sleep(15)

    with server(silent) as url, daemon("--target", url, *flags) as running:
        assert asked.wait(15)
        running.process.send_signal(signal.SIGTERM)
        _, log = running.process.communicate(timeout=10)
        assert running.process.returncode == 0, log
        assert "crashed" not in log


def test_the_simulated_engine_is_predicted_as_it_is() -> None:
    with daemon("--simulate", "--scrape-interval", "1s") as running:
        engine = {"engine": "0", "model_name": "simulated-llama-8b"}

        def compared() -> bool:
            quantity = {"quantity": "kv_cache_tokens", **engine}
            return ("prediction_error_ratio", frozenset(quantity.items())) in running.series()

        running.wait_for(compared)
        series = running.series()
        for quantity in ("kv_cache_blocks", "kv_cache_tokens", "full_length_concurrency"):
            labels = frozenset({"quantity": quantity, **engine}.items())
            assert series["prediction_error_ratio", labels] == 0
        assert "simulated-llama-8b" in running.get("/api/v1/status").text


def test_the_api_tells_history_and_what_if_of_the_simulated_engine() -> None:
    with daemon("--simulate", "--scrape-interval", "500ms") as running:

        def rows() -> list[float]:
            answer = running.get("/api/v1/history")
            found: list[float] = answer.json().get("columns", {}).get("timestamp_seconds", [])
            return found

        running.wait_for(lambda: len(rows()) > 1, seconds=40)
        assert time.time() - 60 < rows()[0] < rows()[1] < time.time()
        document = running.get("/api/v1/predict?kv_cache_dtype=fp8").json()
        series = {name: value for (name, _), value in running.series().items()}
        assert document["today"]["blocks"] == series["predicted_kv_cache_blocks"]
        assert document["difference"]["capacity_tokens"] > 0
        assert running.get("/api/v1/nothing").headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a vLLM server with --target URL, or use --simulate"),
        (["--target", "ftp://x"], "ftp://x"),
        (["--simulate", "--bad"], "unrecognized arguments: --bad"),
        (["--simulate", "--scrape-interval", "soon"], "--scrape-interval: must be a positive"),
        (["--simulate", "--max-num-seqs", "many"], "max_num_seqs"),
        (["--simulate", "--vllm-args", "--oops 'unclosed"], "vllm-args"),
        (["--simulate", "--config.file", "/nonexistent.yaml"], "/nonexistent.yaml"),
    ],
)
def test_a_bad_flag_gets_one_clear_line(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vllm_capacity.cli", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_address_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "vllm_capacity.cli", "serve", "--simulate"),
                *("--web.listen-address", address),
            ],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    assert done.returncode == 2
    assert address in done.stderr
    assert "Traceback" not in done.stderr
