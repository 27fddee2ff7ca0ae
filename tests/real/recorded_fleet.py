"""What the dashboards are looked at over: recordings of a real vLLM, played in real time.

Each recording is served page by page as its vLLM served it, one exporter watches them all, a
second one the embedded simulated engine, and a genuine Prometheus scrapes both by the project's
alert rules. Nothing here makes up a value.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from harness import REPOSITORY, Prometheus, exporter, hastened, prometheus

from vllm_capacity.sources.recording import RecordedScrape, read_recording

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = REPOSITORY / "tests" / "data"
# Each with the folder of its model's config.json.
RECORDINGS = {
    "ramp": "small-llama",
    "steady": "small-llama",
    "restart": "small-llama",
    "dp-ramp": "small-llama",
    "swa-ramp": "small-gemma3",
}


class _Player(BaseHTTPRequestHandler):
    """A vLLM that says what the recording says at this moment, and its last page afterwards."""

    scrapes: tuple[RecordedScrape, ...]
    began_seconds: float

    def do_GET(self) -> None:
        """Answer with the page, or as a server that is stopped where no scrape worked."""
        elapsed = time.monotonic() - self.began_seconds
        past = [s for s in self.scrapes if s.t <= elapsed] or self.scrapes[:1]
        page = past[-1].metrics if self.path == "/metrics" else None
        body = (page or "").encode()
        silent = 503 if self.path == "/metrics" else 404
        self.send_response(silent if page is None else 200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def played(recording: Path) -> Iterator[str]:
    """The address at which the recording is played from now on."""
    seen = {
        "scrapes": tuple(read_recording(recording)),
        "began_seconds": time.monotonic(),
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Player", (_Player,), seen)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def watched(folder: Path, *, hasten: bool = False) -> Iterator[Prometheus]:
    """A Prometheus with the project's rules, waiting or hastened, that begins to watch it all."""
    with ExitStack() as stack:
        targets = [
            {
                "name": name,
                "url": stack.enter_context(played(DATA / "traces" / f"{name}.jsonl.xz")),
                "model-config": str(DATA / "models" / model),
                "engine-args": {"max_num_seqs": 48, "max_model_len": 2048},
            }
            for name, model in RECORDINGS.items()
        ]
        config = folder / "targets.yml"
        config.write_text(json.dumps({"scrape-interval": "1s", "targets": targets}))  # JSON is YAML
        recorded = stack.enter_context(exporter(folder, "--config.file", str(config)))
        simulated = stack.enter_context(
            exporter(folder, "--simulate", "--scrape-interval", "1s", name="simulated")
        )
        scraper = folder / "prometheus"
        scraper.mkdir()
        for rules in (REPOSITORY / "alerts").glob("*.rules.yml"):
            text = rules.read_text("utf-8")
            (scraper / rules.name).write_text(hastened(text) if hasten else text)
        jobs = {"vllm-capacity": recorded.url, "simulated": simulated.url}
        yield stack.enter_context(prometheus(scraper, jobs))
