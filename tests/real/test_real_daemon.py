"""Beside a real server: what the daemon costs, how it ends, what `check` says."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from harness import ProcessCost, Server, exporter, program, prometheus

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.real

MEASURED_SECONDS = 30


def test_at_five_seconds_the_daemon_costs_less_than_a_hundredth_of_a_core_and_sixty_megabytes(
    vllm: Server, model: Path, artefacts: Path, tmp_path: Path
) -> None:
    flags = ["--target", vllm.url, "--model-config", str(model), "--scrape-interval", "5s"]
    with (
        exporter(tmp_path / "exporter", *flags) as watcher,
        prometheus(tmp_path / "prometheus", {"vllm-capacity": watcher.url}, interval="5s"),
    ):
        time.sleep(10)  # the start is not what running costs
        before, began = ProcessCost.of(watcher.process.pid), time.monotonic()
        time.sleep(MEASURED_SECONDS)
        after, elapsed = ProcessCost.of(watcher.process.pid), time.monotonic() - began

    cost = {
        "scrape_interval_seconds": 5,
        "measured_seconds": round(elapsed, 1),
        "core_share": round((after.cpu_seconds - before.cpu_seconds) / elapsed, 5),
        "resident_bytes": after.resident_bytes,
        "peak_resident_bytes": after.peak_resident_bytes,
        "start_cpu_seconds": before.cpu_seconds,
    }
    (artefacts / "daemon-cost.json").write_text(json.dumps(cost, indent=1) + "\n")
    assert cost["core_share"] < 0.01
    assert after.peak_resident_bytes < 60_000_000


def test_sigterm_ends_the_daemon_in_order_within_five_seconds(vllm: Server, tmp_path: Path) -> None:
    with exporter(tmp_path, "--target", vllm.url, "--scrape-interval", "1s") as watcher:
        began = time.monotonic()
        status = watcher.stop(signal.SIGTERM, seconds=5)
        elapsed = time.monotonic() - began
    assert status == 0
    assert elapsed < 5
    assert "Traceback" not in watcher.log
    with pytest.raises(httpx.ConnectError):
        watcher.get("/metrics")


def test_the_log_of_a_whole_life_is_json_and_holds_no_error(vllm: Server, tmp_path: Path) -> None:
    with exporter(tmp_path, "--target", vllm.url, "--scrape-interval", "1s") as watcher:
        time.sleep(3)
        watcher.stop()
    entries = [json.loads(line) for line in watcher.log.splitlines()]
    assert entries
    assert [entry for entry in entries if entry.get("level") in {"error", "critical"}] == []


def check(*words: str) -> subprocess.CompletedProcess[str]:
    command = [program(), "check", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_check_finds_nothing_wrong_with_a_real_server_and_says_what_it_sees(vllm: Server) -> None:
    found = check(vllm.url)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0.32.0" in found.stdout
    assert "tiny-llama" in found.stdout
    assert "399" in found.stdout


def test_check_of_an_address_where_nobody_listens_fails_with_one_line() -> None:
    found = check("http://127.0.0.1:9")
    assert found.returncode != 0
    assert "127.0.0.1:9" in found.stdout + found.stderr
    assert "Traceback" not in found.stderr
