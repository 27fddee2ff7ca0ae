"""Played pages served faster than life to a Prometheus, an Alertmanager and a webhook."""

import json
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from played import Played
from scaled_rules import FACTOR, RULES_PATH, scaled

sys.path.insert(0, str(Path(__file__).parents[1] / "real"))

from harness import free_port, running, wait_until

#: Recorded seconds that pass in one, and how many of them are played at most.
SPEED = 4.0
MOST_SECONDS = 240.0
_OF_THE_ENGINE = ("vllm:request_queue_time_seconds_", "vllm:admission_rejections_total")
_CLOCK = "vllm_capacity_last_success_timestamp_seconds"


@dataclass(frozen=True, slots=True)
class Heard:
    """A notification of the webhook: what, of which recording, and when in recorded seconds."""

    played: str
    alert: str
    engine: str
    status: str
    t: float


@dataclass(slots=True)
class Stage:
    """Pages by path, and everything that the webhook heard.

    Attributes:
        pages: by path the times and texts.
        began: when time began to run; before, there is nothing to scrape.
        asked: paths that were scraped at all; Prometheus takes some seconds to find its targets.
        heard: by the webhook.
    """

    pages: dict[str, list[tuple[float, str | None]]]
    began: float | None = None
    asked: set[str] = field(default_factory=set)
    heard: list[Heard] = field(default_factory=list)

    def now(self) -> float:
        return 0.0 if self.began is None else (time.monotonic() - self.began) * SPEED

    def page(self, path: str) -> str | None:
        """What is on the page now; nothing before the begin and after the end, None: no answer."""
        self.asked.add(path)
        now, known = self.now(), self.pages[path]
        if self.began is None or now > known[-1][0] + 1:
            return ""
        past = [text for t, text in known if t <= now]
        return past[-1] if past else ""

    def hear(self, message: dict[str, Any]) -> None:
        for alert in message["alerts"]:
            labels = alert["labels"]
            of = labels.get("model_name") or labels["instance"]
            engine = labels.get("engine", "")
            self.heard.append(
                Heard(of, labels["alertname"], engine, alert["status"], round(self.now(), 1))
            )


def staged(plays: Sequence[Played]) -> Stage:
    """The pages of all plays; each play is a model of its own, or their sums would mix."""
    pages = dict[str, list[tuple[float, str | None]]]()
    for play in plays:
        kept = [page for page in play.pages if page.t <= MOST_SECONDS]
        pages[f"/{play.name}/exporter"] = [
            (page.t, _named(page.exporter, play.name, without=_CLOCK)) for page in kept
        ]
        pages[f"/{play.name}/engine"] = [
            (page.t, page.engine and _named(page.engine, play.name, only=_OF_THE_ENGINE))
            for page in kept
        ]
    return Stage(pages)


def _named(page: str, model: str, *, without: str = " ", only: tuple[str, ...] = ("",)) -> str:
    lines = (line for line in page.splitlines() if not line.startswith("#"))
    kept = (line for line in lines if line.startswith(only) and not line.startswith(without))
    return re.sub(r'model_name="[^"]*"', f'model_name="{model}"', "\n".join(kept) + "\n")


class _Handler(BaseHTTPRequestHandler):
    stage: Stage

    def do_GET(self) -> None:
        page = self.stage.page(self.path)
        self.send_response(503 if page is None else 200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.end_headers()
        with suppress(ConnectionError):  # Prometheus gave up waiting, or ends
            self.wfile.write((page or "").encode())

    def do_POST(self) -> None:
        self.stage.hear(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _serving(stage: Stage) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"stage": stage})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _alertmanager(folder: Path, webhook: str) -> Iterator[str]:
    config = {
        "route": {
            "receiver": "webhook",
            "group_by": ["..."],
            "group_wait": "0s",
            "group_interval": "100ms",
            "repeat_interval": "1h",
        },
        "receivers": [{"name": "webhook", "webhook_configs": [{"url": f"http://{webhook}/heard"}]}],
    }
    path = folder / "alertmanager.yml"
    path.write_text(json.dumps(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus-alertmanager",
        f"--config.file={path}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ]
    with running("alertmanager", command, url=f"http://{address}", folder=folder) as server:
        server.wait_ready("/-/ready", seconds=30)
        yield address


@contextmanager
def _prometheus(folder: Path, stage: Stage, pages: str, alertmanager: str) -> Iterator[None]:
    rules = folder / "played.rules.yml"
    rules.write_text(scaled(RULES_PATH.read_text("utf-8"), FACTOR * SPEED), encoding="utf-8")
    interval = f"{1000 / SPEED:.0f}ms"
    config = {
        "global": {
            "scrape_interval": interval,
            "scrape_timeout": interval,
            "evaluation_interval": interval,
        },
        "rule_files": [str(rules)],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": [
            {
                "job_name": kind,
                "static_configs": [
                    {"targets": [pages], "labels": {"__metrics_path__": path, "instance": name}}
                    for path in stage.pages
                    for name in [path.split("/")[1]]
                    if path.endswith(kind)
                ],
            }
            for kind in ("exporter", "engine")
        ],
    }
    path = folder / "prometheus.yml"
    path.write_text(json.dumps(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with running("prometheus", command, url=f"http://{address}", folder=folder) as server:
        server.wait_ready("/-/ready", seconds=60)
        yield


def heard(plays: Sequence[Played], folder: Path) -> list[Heard]:
    """Play all at once, and return what the webhook heard."""
    stage = staged(plays)
    longest = max(known[-1][0] for known in stage.pages.values())
    with (
        _serving(stage) as pages,
        _alertmanager(folder, pages) as alertmanager,
        _prometheus(folder, stage, pages, alertmanager),
    ):
        wait_until(lambda: stage.asked == set(stage.pages), seconds=60, what="every first scrape")
        stage.began = time.monotonic()
        time.sleep(longest / SPEED + 1)
    return stage.heard
