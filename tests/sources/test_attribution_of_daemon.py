"""A running daemon over a real process tree, the real pynvml and a scripted driver."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

PAGE = Path(__file__).parents[1] / "data" / "vllm-0.32-metrics.txt"
SECRET = "Correct-Horse_42"  # noqa: S105 (a planted one)
INFO = "vllm_capacity_gpu_memory_attribution_info"
SERVER = """
import http.server, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        page = open(sys.argv[1], "rb").read() if self.path == "/metrics" else b""
        self.send_response(200 if page else 404)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
core = ["VLLM::EngineCore", "-c", "import time; time.sleep(300)"]
child = subprocess.Popen(core, executable=sys.executable)
print(server.server_port, child.pid, flush=True)
server.serve_forever()
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")


@pytest.fixture
def engine() -> Iterator[tuple[str, int]]:
    """A server that calls itself vLLM's, given a secret; its URL and its core's number."""
    words = [str(PAGE), "vllm", "serve", "my/model", "--api-key", SECRET]
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, *words],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "HF_TOKEN": SECRET},
    ) as process:
        assert process.stdout is not None
        port, core = process.stdout.readline().split()
        yield f"http://127.0.0.1:{port}", int(core)
        os.killpg(process.pid, 9)


class Daemon:
    """``serve`` with a driver that says what ``script`` says."""

    def __init__(self, library: Path, script: Path, log: Path, *flags: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url, self._log = f"http://{address}", log
        environ = {"LD_LIBRARY_PATH": str(library.parent), "NVML_STUB": str(script)}
        with log.open("w") as written:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "vllm_capacity.cli", "serve", "--log.level", "debug"),
                    *("--web.listen-address", address, "--scrape-interval", "200ms", *flags),
                ],
                stderr=written,
                env={**os.environ, **environ},
            )

    def said(self) -> dict[str, str]:
        """Method by GPU."""
        families = text_string_to_metric_families(self.page("/metrics"))
        samples = (sample for family in families for sample in family.samples)
        return {s.labels["gpu"]: s.labels["method"] for s in samples if s.name == INFO}

    def page(self, path: str) -> str:
        return httpx.get(self.url + path, timeout=5.0, trust_env=False).text

    def wait_for(self, expected: dict[str, str], seconds: float = 30.0) -> None:
        end, said = time.monotonic() + seconds, None
        while time.monotonic() < end and said != expected:
            assert self.process.poll() is None, self._log.read_text()
            time.sleep(0.1)
            try:
                said = self.said()
            except httpx.TransportError:
                continue
        assert said == expected, self._log.read_text()


def test_a_daemon_says_how_it_attributed_memory_and_never_a_secret(
    built_nvml_stub: Callable[..., Path], tmp_path: Path, engine: tuple[str, int]
) -> None:
    url, core = engine
    script, log = tmp_path / "driver", tmp_path / "log"
    gpus = (
        "gpu GPU-aaaa NVIDIA H100\n  memory 85520809984 642777088 4000000000 80878032896\n"
        "  process {pid} 70000000000\ngpu GPU-bbbb NVIDIA H100\n"
        "  memory 85520809984 642777088 84878032896 0\n"
    )
    script.write_text(gpus.format(pid=core))
    daemon = Daemon(built_nvml_stub(), script, log, "--target", url)
    try:
        daemon.wait_for({"0": "pid", "1": "pid"})
        pages = daemon.page("/metrics") + daemon.page("/")
        script.write_text(gpus.format(pid=1))  # somebody else, whom we see
        daemon.wait_for({"0": "none", "1": "none"})
    finally:
        daemon.process.terminate()
        daemon.process.wait()
    assert SECRET not in pages + log.read_text()
    assert "engine's processes found" in log.read_text()
