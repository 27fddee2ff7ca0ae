"""Every query of every dashboard, asked of a real Prometheus that scrapes real exporters.

They watch recordings of a real vLLM and the embedded simulated engine: see recorded_fleet.py.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import pytest
from harness import REPOSITORY, Prometheus, wait_until
from recorded_fleet import RECORDINGS, watched

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.real

BOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text("utf-8"))
    for path in sorted((REPOSITORY / "dashboards").glob("*.json"))
}
TARGETS = [
    pytest.param(name, panel["title"], target, id=f"{name} {panel['title']} {target['refId']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    for target in panel.get("targets", ())
]
VARIABLES = [
    pytest.param(name, variable, id=f"{name} {variable['name']}")
    for name, board in BOARDS.items()
    for variable in board["templating"]["list"]
    if variable["type"] == "query" and variable["name"] != "gpu"
]
# Where no variable can stand for all, one engine is looked at.
CHOSEN = {"target": "ramp", "model_name": ".+", "engine": "0", "instance": ".+"}

NO_GPU = "NVML needs an NVIDIA GPU"
# Queries that rightly answer nothing here, by panel and query.
EMPTY = {
    ("Prediction error of each term", "A"): "needs the start-up log of a vLLM on a GPU",
    ("Failures, by reason", "A"): "only reasons that occurred are shown",
}
INFINITE = {("Full in", "A"): "+Inf says that the cache does not fill"}
# The last things to appear: a peak needs a sample, these need requests that came and went.
LATE = (
    'ALERTS{alertstate="firing",target="ramp"}',
    'vllm_capacity_request_footprint_tokens{basis="p95",target="ramp"}',
    'vllm_capacity_headroom_requests{basis="observed_p95",target="ramp"}',
    'vllm_capacity_preempted_requests_ratio{target="ramp"}',
    'vllm_capacity_arrived_requests_per_second{target="ramp"}',
    'vllm_capacity_prediction_error_blocks{target="ramp"}',
    "vllm_capacity_time_to_exhaustion_seconds < 86400",
    "rate(vllm_capacity_collection_duration_seconds_count[15s])",
)


def promql(template: str, board: str) -> str:
    """The expression as Grafana would send it, every variable at "all" or at the one engine."""
    values = {v["name"]: v.get("allValue") for v in BOARDS[board]["templating"]["list"]}
    text = template.replace("$__rate_interval", "15s")
    return re.sub(r"\$(\w+)", lambda m: values[m[1]] or CHOSEN[m[1]], text)


def legend(template: str, labels: dict[str, str]) -> str:
    """The name of a series as Grafana writes it: a label that it lacks is empty."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), template)


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has watched the recordings until requests of all kinds were seen."""
    with watched(tmp_path_factory.mktemp("dashboards"), hasten=True) as asked:
        for expression in LATE:
            wait_until(lambda e=expression: asked.query(e), seconds=120, what=expression)
        yield asked


@pytest.mark.parametrize(("board", "panel", "target"), TARGETS)
def test_a_query_answers_with_finite_numbers(
    watching: Prometheus, board: str, panel: str, target: dict[str, Any]
) -> None:
    answer = watching.query(promql(target["expr"], board))
    of_gpu = "vllm_capacity_gpu_" in target["expr"]
    why_empty = NO_GPU if of_gpu else EMPTY.get((panel, target["refId"]))
    if why_empty and not answer:
        pytest.skip(why_empty)
    assert answer
    values = [value for _, value in answer if value != math.inf or (panel, "A") not in INFINITE]
    assert all(math.isfinite(value) for value in values)


@pytest.mark.parametrize(("board", "panel", "target"), TARGETS)
def test_a_query_gives_each_series_a_legend_of_its_own(
    watching: Prometheus, board: str, panel: str, target: dict[str, Any]
) -> None:
    answer = watching.query(promql(target["expr"], board))
    legends = [legend(target["legendFormat"], labels) for labels, _ in answer]
    if target["legendFormat"]:
        assert len(legends) == len(set(legends)), panel


@pytest.mark.parametrize(("board", "variable"), VARIABLES)
def test_a_variable_finds_its_values(
    watching: Prometheus, board: str, variable: dict[str, Any]
) -> None:
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
    assert match
    values = {labels.get(match[2]) for labels, _ in watching.query(promql(match[1], board))}
    assert values - {None}
    # An exporter of one vLLM has no such label.
    assert None not in values or variable["name"] == "target"


def rows_of(watching: Prometheus, board: str, title: str) -> list[set[tuple[Any, ...]]]:
    (table,) = [p for p in BOARDS[board]["panels"] if p["title"].startswith(title)]
    return [
        {
            tuple(sorted(labels.items()))
            for labels, _ in watching.query(promql(target["expr"], board))
        }
        for target in table["targets"]
    ]


@pytest.mark.parametrize(
    ("board", "table"), [("fleet", "Engines, "), ("prediction-accuracy", "Capacity: measured")]
)
def test_a_table_of_engines_has_one_row_for_each(
    watching: Prometheus, board: str, table: str
) -> None:
    engines = watching.query("vllm_capacity_kv_cache_blocks")
    assert len(engines) > len(RECORDINGS)
    assert len(set().union(*rows_of(watching, board, table))) == len(engines)


def test_the_codes_of_state_and_limit_are_those_of_the_series_that_is_1(
    watching: Prometheus,
) -> None:
    (engines,) = [p for p in BOARDS["fleet"]["panels"] if p["title"].startswith("Engines, ")]
    words = {
        p["value"][0]["type"]: p["value"][0]["options"]
        for override in engines["fieldConfig"]["overrides"]
        for p in override["properties"]
        if p["id"] == "mappings" and override["matcher"]["options"] == "state"
    }["value"]
    code = engines["targets"][0]["expr"]
    for labels, value in watching.query(promql(code, "fleet")):
        where = ",".join(f'{k}="{v}"' for k, v in labels.items() if v != ".*")
        shown = watching.query(f"vllm_capacity_state{{{where}}} == 1")
        if shown:  # it may change between two questions
            assert words[f"{value:.0f}"]["text"] in {row["state"] for row, _ in shown}
