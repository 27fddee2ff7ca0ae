"""A real Prometheus scrapes the exporter, loads its rules, and finds nothing to complain about."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from harness import Prometheus, Server, wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.real


def test_prometheus_scrapes_the_exporter_without_error(prometheus_server: Prometheus) -> None:
    up = wait_until(
        lambda: prometheus_server.query('up{job="vllm-capacity"} == 1'),
        seconds=30,
        what="a scrape of the exporter",
    )
    assert len(up) == 1


def test_every_series_of_the_page_is_in_prometheus(
    prometheus_server: Prometheus, watcher: Server
) -> None:
    wait_until(
        lambda: prometheus_server.query("vllm_capacity_kv_cache_used_blocks"),
        seconds=30,
        what="a scrape of the exporter",
    )
    found = prometheus_server.query('{job="vllm-capacity", __name__=~"vllm_capacity_.+"}')
    stored = {labels["__name__"] for labels, _ in found}
    # prometheus_client's parser calls the samples of a page by the names that Prometheus stores.
    shown = {name for name in watcher.samples().names() if name.startswith("vllm_capacity_")}
    assert len(shown) > 20
    assert shown - stored == set()


def test_the_shipped_rules_load_and_evaluate_without_error(
    prometheus_server: Prometheus, alert_rules: list[Path]
) -> None:
    assert alert_rules

    def evaluated() -> bool:
        rules = [r for group in prometheus_server.rule_groups() for r in group["rules"]]
        return bool(rules) and all(rule["health"] != "unknown" for rule in rules)

    wait_until(evaluated, seconds=60, what="the first evaluation of every rule")
    groups = prometheus_server.rule_groups()
    assert {group["file"].rpartition("/")[2] for group in groups} == {
        f"{kind}-{path.name}" for path in alert_rules for kind in ("shipped", "hastened")
    }
    assert [r for g in groups for r in g["rules"] if r["health"] != "ok"] == []


def test_no_alert_fires_on_a_healthy_server(prometheus_server: Prometheus) -> None:
    assert [alert["alertname"] for alert in prometheus_server.firing()] == []


def test_promtool_finds_no_fault_in_the_live_page(watcher: Server) -> None:
    page = watcher.get("/metrics")
    linted = subprocess.run(
        ["promtool", "check", "metrics"], input=page.content, capture_output=True, check=False
    )
    assert (linted.returncode, linted.stderr.decode()) == (0, "")


def test_the_page_declares_a_content_type_that_prometheus_3_accepts(watcher: Server) -> None:
    assert watcher.get("/metrics").headers["content-type"].startswith("text/plain; version=")
