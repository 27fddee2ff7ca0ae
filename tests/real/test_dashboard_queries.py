"""Every query of the dashboard, asked of a real Prometheus that scrapes a real exporter.

The engine behind the exporter is the embedded simulation; see its log for the word.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import pytest
from harness import REPOSITORY, Prometheus, exporter, prometheus, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.real

DASHBOARD: dict[str, Any] = json.loads(
    (REPOSITORY / "dashboards" / "instance-capacity.json").read_text("utf-8")
)
VARIABLES = {v["name"]: v for v in DASHBOARD["templating"]["list"]}
TARGETS = [
    pytest.param(panel["title"], target, id=f"{panel['title']} {target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
]

NO_GPU = "NVML needs an NVIDIA GPU"
NO_BUDGET = "the simulated engine is given kv_cache_memory_bytes, so nothing is budgeted"
# Queries that rightly answer nothing here, by panel and query.
EMPTY = {
    ("GPU memory: used and total", "A"): NO_GPU,
    ("GPU memory: used and total", "B"): NO_GPU,
    ("GPU memory: used and total", "C"): NO_BUDGET,
    ("Predicted memory, by term", "B"): NO_BUDGET,
    ("Predicted memory, by term", "C"): NO_BUDGET,
    ("Predicted memory, by term", "D"): NO_BUDGET,
    ("Collection: time, age, failures", "C"): "only reasons that occurred are shown",
}
# The last things to appear: a peak needs a sample, these need requests that came and went.
LATE = (
    'vllm_capacity_request_footprint_tokens{basis="p95"}',
    'vllm_capacity_headroom_requests{basis="observed_p95"}',
    "vllm_capacity_preempted_requests_ratio",
    "vllm_capacity_prediction_error_blocks",
    "rate(vllm_capacity_collection_duration_seconds_count[15s])",
)


def promql(template: str) -> str:
    """The expression as Grafana would send it, every variable at "all"."""
    text = template.replace("$__rate_interval", "15s")
    return re.sub(r"\$(\w+)", lambda match: VARIABLES[match[1]]["allValue"], text)


def legend(template: str, labels: dict[str, str]) -> str:
    """The name of a series as Grafana writes it: a label that it lacks is empty."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), template)


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has watched a simulated engine until requests of all kinds were seen."""
    folder = tmp_path_factory.mktemp("dashboard")
    with (
        exporter(folder, "--simulate", "--scrape-interval", "1s") as server,
        prometheus(folder / "prometheus", {"vllm-capacity": server.url}) as asked,
    ):
        for expression in LATE:
            wait_until(lambda e=expression: asked.query(e), seconds=120, what=expression)
        yield asked


@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_a_query_answers_with_finite_numbers(
    watching: Prometheus, panel: str, target: dict[str, Any]
) -> None:
    answer = watching.query(promql(target["expr"]))
    why_empty = EMPTY.get((panel, target["refId"]))
    if why_empty:
        assert why_empty != NO_BUDGET or not answer
        pytest.skip(why_empty)
    assert answer
    assert all(math.isfinite(value) for _, value in answer)


@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_a_query_gives_each_series_a_legend_of_its_own(
    watching: Prometheus, panel: str, target: dict[str, Any]
) -> None:
    answer = watching.query(promql(target["expr"]))
    legends = [legend(target["legendFormat"], labels) for labels, _ in answer]
    if target["legendFormat"]:
        assert len(legends) == len(set(legends)), panel


@pytest.mark.parametrize("name", ["job", "instance", "model_name", "engine"])
def test_a_variable_finds_its_values(watching: Prometheus, name: str) -> None:
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", VARIABLES[name]["definition"])
    assert match
    values = {labels.get(match[2]) for labels, _ in watching.query(promql(match[1]))}
    assert values
    assert None not in values


def test_the_table_of_capacity_has_one_row_for_each_engine(watching: Prometheus) -> None:
    (table,) = [p for p in DASHBOARD["panels"] if p["title"].startswith("Capacity: measured")]
    rows = [
        {tuple(sorted(labels.items())) for labels, _ in watching.query(promql(target["expr"]))}
        for target in table["targets"]
    ]
    engines = watching.query("vllm_capacity_kv_cache_blocks")
    assert len(set().union(*rows)) == len(engines)
