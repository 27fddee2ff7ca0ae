"""Servers for these tests: our daemon and a genuine Prometheus (a genuine vLLM: real_vllm.py).

Each is a child process with a log file; leaving its ``with`` block ends it and its children.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

REPOSITORY = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """Poll until `condition` is true and return its value; a timeout tells what was seen last."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = condition()
        except (httpx.HTTPError, LookupError) as error:
            last = error
        else:
            if last:
                return last
        time.sleep(0.2)
    raise TimeoutError(f"{what}: not within {seconds:.0f} s, last seen: {last!r}")


# ---- processes ----


@dataclass(frozen=True, slots=True)
class Server:
    """A running child process that answers HTTP at `url`."""

    name: str
    url: str
    log_path: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str, **parameters: str) -> httpx.Response:
        return httpx.get(self.url + path, params=parameters, timeout=20).raise_for_status()

    def samples(self, path: str = "/metrics") -> Samples:
        return Samples.parse(self.get(path).text)

    def wait_ready(self, path: str, seconds: float) -> None:
        wait_until(lambda: self._answers(path), seconds=seconds, what=f"{self.name} ready")

    def _answers(self, path: str) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(
                f"{self.name} ended with {self.process.returncode}:\n{self.log[-6000:]}"
            )
        return self.get(path).is_success

    def stop(self, signal_number: int = signal.SIGTERM, seconds: float = 20) -> int:
        """Send the signal to the process alone, wait, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """End it and its children at once, as the kernel does when memory is out."""
        _end_group(self.process)


@contextmanager
def running(
    name: str,
    command: Sequence[str | Path],
    *,
    url: str,
    folder: Path,
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Start `command` as the leader of its own process group; end the whole group on leaving."""
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / f"{name}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=dict(os.environ) | dict(env or {}),
            start_new_session=True,
        )
    server = Server(name, url, log_path, process)
    try:
        yield server
    finally:
        try:
            server.stop()
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end_group(process)


def _end_group(leader: subprocess.Popen[bytes]) -> None:
    # The group outlives its leader while a grandchild (vLLM's engine core) is alive.
    try:
        os.killpg(leader.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    leader.wait()


# ---- the text format ----


@dataclass(frozen=True, slots=True)
class Samples:
    """An exposition page, read by prometheus_client and not by the parser under test."""

    rows: tuple[tuple[str, dict[str, str], float], ...]

    @classmethod
    def parse(cls, text: str) -> Samples:
        families = text_string_to_metric_families(text)
        return cls(tuple((s.name, s.labels, s.value) for f in families for s in f.samples))

    def all(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        return [
            (found, value)
            for sample, found, value in self.rows
            if sample == name and labels.items() <= found.items()
        ]

    def one(self, name: str, **labels: str) -> float:
        """The only sample of that name and labels; LookupError says what is there instead."""
        found = self.all(name, **labels)
        if len(found) != 1:
            raise LookupError(f"{name}{labels}: expected one sample, found {found}")
        return found[0][1]

    def names(self) -> set[str]:
        return {name for name, _, _ in self.rows}


# ---- our daemon ----


def program() -> Path:
    """The console script of the environment that runs the tests."""
    return Path(sys.executable).parent / "vllm-capacity"


@contextmanager
def exporter(
    folder: Path, *flags: str, name: str = "exporter", ready: bool = True
) -> Iterator[Server]:
    """`vllm-capacity serve` on a free port, its first sample taken when the block begins."""
    port = free_port()
    command = [
        *(program(), "serve", "--web.listen-address", f"127.0.0.1:{port}"),
        *("--log.format", "json", *flags),
    ]
    url = f"http://127.0.0.1:{port}"
    with running(name, command, url=url, folder=folder) as server:
        server.wait_ready("/-/ready" if ready else "/-/healthy", seconds=30)
        yield server


# ---- Prometheus ----


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A genuine Prometheus, asked through its HTTP API."""

    server: Server

    def _data(self, path: str, **parameters: str) -> Any:
        answer = self.server.get(f"/api/v1/{path}", **parameters).json()
        if answer["status"] != "success":
            raise LookupError(answer)
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        found = self._data("query", query=expression)["result"]
        return [(row["metric"], float(row["value"][1])) for row in found]

    def one(self, expression: str) -> float:
        found = self.query(expression)
        if len(found) != 1:
            raise LookupError(f"{expression}: expected one series, found {found}")
        return found[0][1]

    def rule_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self._data("rules")["groups"]
        return groups

    def firing(self) -> list[dict[str, str]]:
        """Labels of the alerts that fire by the hastened rules."""
        rules = [r for g in self.rule_groups() if "hastened-" in g["file"] for r in g["rules"]]
        alerts = [alert for rule in rules for alert in rule.get("alerts", ())]
        return [alert["labels"] for alert in alerts if alert["state"] == "firing"]


def hastened(rules: str) -> str:
    """The same rules with every waiting time cut to a second, so that a test can see them fire."""
    return re.sub(r"(?m)^(\s*(?:for|keep_firing_for):).*$", r"\1 1s", rules)


@contextmanager
def prometheus(
    folder: Path, scrape: Mapping[str, str], *, rules: Sequence[Path] = (), interval: str = "1s"
) -> Iterator[Prometheus]:
    """A Prometheus that scrapes `scrape` (job → URL), with `rules` as shipped and hastened."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in rules:
        text = path.read_text()
        (folder / f"shipped-{path.name}").write_text(text)
        (folder / f"hastened-{path.name}").write_text(hastened(text))
    jobs = [
        {"job_name": job, "static_configs": [{"targets": [url.removeprefix("http://")]}]}
        for job, url in scrape.items()
    ]
    config = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": ["*.rules.yml"],
        "scrape_configs": jobs,
    }
    config_path = folder / "prometheus.yml"
    config_path.write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={config_path}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    url = f"http://127.0.0.1:{port}"
    with running("prometheus", command, url=url, folder=folder) as server:
        server.wait_ready("/-/ready", seconds=60)
        yield Prometheus(server)


# ---- what a process costs ----


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessCost:
    """CPU time used so far and resident memory, from the process's files in /proc."""

    cpu_seconds: float
    resident_bytes: int
    peak_resident_bytes: int

    @classmethod
    def of(cls, pid: int) -> ProcessCost:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        # proc(5): fields 14 and 15 are utime and stime; `stat` begins at field 3.
        ticks = int(stat[11]) + int(stat[12])
        return cls(
            cpu_seconds=ticks / os.sysconf("SC_CLK_TCK"),
            resident_bytes=_kib(status["VmRSS"]),
            peak_resident_bytes=_kib(status["VmHWM"]),
        )


def _kib(text: str) -> int:
    return int(text.split(maxsplit=1)[0]) * 1024
