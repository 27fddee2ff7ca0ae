"""The dashboards: committed as their code writes them, and lint-clean.

The rules are those of Grafana's dashboard-linter, as far as they concern Prometheus.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# pytest's importlib mode adds no folder to the path.
sys.path.insert(0, str(Path(__file__).parent))

from promql_names import COUNTERS, KNOWN_LABELS, LABELS_BY_METRIC, faults, selectors

REPOSITORY = Path(__file__).parent.parent
BUILD = REPOSITORY / "dashboards" / "build.py"
PATHS = sorted(BUILD.parent.glob("*.json"))
RUNBOOK = (REPOSITORY / "docs" / "alerts.md").read_text("utf-8")
BOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text("utf-8")) for path in PATHS
}
PANELS_OF = {
    name: [p for p in board["panels"] if p["type"] != "row"] for name, board in BOARDS.items()
}
PANELS: list[dict[str, Any]] = [panel for panels in PANELS_OF.values() for panel in panels]
VARIABLES_OF: dict[str, dict[str, Any]] = {
    name: {v["name"]: v for v in board["templating"]["list"]} for name, board in BOARDS.items()
}
VARIABLES: dict[str, dict[str, Any]] = {
    name: v for variables in VARIABLES_OF.values() for name, v in variables.items()
}
LABEL_VARIABLES = [v for v in VARIABLES.values() if v["type"] == "query"]
TARGETS = [
    pytest.param(panel, target, id=f"{panel['title']} {target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]
TARGETS_OF = [
    pytest.param(name, target, id=f"{panel['title']} {target['refId']}")
    for name, panels in PANELS_OF.items()
    for panel in panels
    for target in panel["targets"]
]
# Of Grafana's value formats, those that mean something here.
UNITS = {"none", "locale", "percentunit", "bytes", "s", "ops"}


def title_of(panel: dict[str, Any]) -> str:
    return str(panel["title"])


def promql(template: str) -> str:
    """The expression as Grafana would send it, every variable at "all"."""
    text = template.replace("$__rate_interval", "1m")
    return re.sub(r"\$(\w+)", lambda m: VARIABLES[m[1]]["allValue"], text)


def test_the_committed_dashboards_are_what_their_code_writes() -> None:
    outcome = subprocess.run(
        [sys.executable, "-B", str(BUILD), "--check"], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_a_dashboard_that_differs_from_its_code_is_noticed(tmp_path: Path) -> None:
    for path in BUILD.parent.iterdir():
        if path.suffix in {".py", ".json"}:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    changed = tmp_path / PATHS[0].name
    changed.write_text(changed.read_text("utf-8").replace("percentunit", "percent", 1), "utf-8")
    command = [sys.executable, "-B", str(tmp_path / BUILD.name)]
    assert subprocess.run([*command, "--check"], check=False).returncode == 1
    assert subprocess.run(command, check=False).returncode == 0
    assert changed.read_bytes() == PATHS[0].read_bytes()


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_dashboard_can_be_provisioned_anywhere(board: dict[str, Any]) -> None:
    assert board["schemaVersion"] == 42
    assert re.fullmatch(r"[a-z0-9-]{1,40}", board["uid"])
    assert board["editable"] is False
    assert not {"id", "__inputs", "__requires"} & set(board)


@pytest.mark.parametrize("name", BOARDS)
def test_the_data_source_is_a_variable_everywhere(name: str) -> None:
    variables, panels = VARIABLES_OF[name], PANELS_OF[name]
    assert variables["datasource"]["label"] == "Data source"
    assert variables["datasource"]["query"] == "prometheus"
    users = [
        *panels,
        *(target for panel in panels for target in panel["targets"]),
        *(v for v in variables.values() if v["type"] == "query"),
        *BOARDS[name]["annotations"]["list"],
    ]
    assert {user["datasource"]["uid"] for user in users} == {"${datasource}"}


def test_the_variables_choose_what_a_dashboard_is_about() -> None:
    assert {name: list(variables) for name, variables in VARIABLES_OF.items()} == {
        "gpu-memory": ["datasource", "job", "instance", "gpu"],
        "instance-capacity": [
            *("datasource", "job", "instance"),
            *("target", "model_name", "engine"),
        ],
    }
    for variables in VARIABLES_OF.values():
        assert variables["job"]["label"] == "Job"
        assert variables["instance"]["label"] == "Instance"


@pytest.mark.parametrize("variable", LABEL_VARIABLES, ids=lambda v: v["name"])
def test_a_variable_takes_several_values_and_reloads_with_the_time_range(
    variable: dict[str, Any],
) -> None:
    assert variable["multi"]
    assert variable["includeAll"]
    assert variable["refresh"] == 2
    # An exporter of one vLLM has no label target: "all" has to match its absence.
    assert variable["allValue"] == (".*" if variable["name"] == "target" else ".+")


@pytest.mark.parametrize("variable", LABEL_VARIABLES, ids=lambda v: v["name"])
def test_a_variable_asks_for_a_label_that_its_metric_has(variable: dict[str, Any]) -> None:
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
    assert match
    expression = promql(match[1])
    assert faults(expression) == []
    assert match[2] in LABELS_BY_METRIC[selectors(expression)[0].metric]


@pytest.mark.parametrize("name", BOARDS)
def test_there_are_few_enough_panels_to_read(name: str) -> None:
    assert 0 < len(PANELS_OF[name]) <= 20


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_panels_have_numbers_of_their_own_and_do_not_overlap(board: dict[str, Any]) -> None:
    everything = board["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    cells = [
        (x, y)
        for panel in everything
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize("panel", PANELS, ids=title_of)
def test_a_panel_has_title_description_unit_and_queries(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 40
    assert panel["targets"]
    units = {panel["fieldConfig"]["defaults"]["unit"]}
    for override in panel["fieldConfig"]["overrides"]:
        units |= {p["value"] for p in override["properties"] if p["id"] == "unit"}
    assert units <= UNITS


@pytest.mark.parametrize("panel", PANELS, ids=title_of)
def test_a_panel_without_data_says_so_in_words(panel: dict[str, Any]) -> None:
    assert re.match(r"no (data|prediction): \w+", panel["fieldConfig"]["defaults"]["noValue"])
    if panel["type"] == "timeseries":
        assert panel["fieldConfig"]["defaults"]["custom"]["spanNulls"] is False


@pytest.mark.parametrize("panel", PANELS, ids=title_of)
def test_a_threshold_is_explained_in_the_description(panel: dict[str, Any]) -> None:
    ratio = panel["fieldConfig"]["defaults"]["unit"] == "percentunit"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        value = step["value"]
        if value in (None, 1):  # the base, and "not 0"
            continue
        text = f"{abs(value) * 100:.0f} %" if ratio else f"{value:.0f} s"
        assert text in panel["description"]


@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_a_query_names_only_metrics_and_labels_of_the_catalogue(
    panel: dict[str, Any], target: dict[str, Any]
) -> None:
    assert faults(promql(target["expr"])) == [], panel["title"]


@pytest.mark.parametrize(("name", "target"), TARGETS_OF)
def test_a_query_follows_every_variable_that_its_metric_has_a_label_for(
    name: str, target: dict[str, Any]
) -> None:
    expression = re.sub(r"\$__rate_interval", "1m", target["expr"])
    for selector in selectors(expression):
        # A GPU belongs to the machine, not to a target.
        own = LABELS_BY_METRIC[selector.metric] & set(VARIABLES_OF[name])
        of_gpu = {"target"} if "gpu" in LABELS_BY_METRIC[selector.metric] else set()
        for label in own - of_gpu:
            assert selector.matchers[label] == ("Re", f"${label}")


@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_a_range_follows_the_scrape_interval(panel: dict[str, Any], target: dict[str, Any]) -> None:
    ranges = re.findall(r"\[([^\]]+)\]", target["expr"])
    assert set(ranges) <= {"$__rate_interval"}, panel["title"]


@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_a_counter_is_shown_as_a_rate(panel: dict[str, Any], target: dict[str, Any]) -> None:
    rated = re.findall(r"(?:rate|increase)\((\w+)\{", target["expr"])
    for selector in selectors(promql(target["expr"])):
        if selector.metric in COUNTERS or selector.metric.endswith("_bucket"):
            assert selector.metric in rated, panel["title"]


@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_a_legend_uses_labels_that_the_series_has(
    panel: dict[str, Any], target: dict[str, Any]
) -> None:
    if panel["type"] == "table":
        assert target["format"] == "table"
        assert target["instant"]
        return
    metrics = {s.metric for s in selectors(promql(target["expr"]))}
    labels = set().union(*(LABELS_BY_METRIC[metric] for metric in metrics))
    in_legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    assert in_legend <= labels
    # Side cars: many exporters, each with one target, one model and an engine "0".
    tell_apart = {"instance", "target", "model_name", "engine"} & labels
    if "gpu" in labels:
        tell_apart = {"instance", "gpu"}
    assert tell_apart <= in_legend


def test_every_override_by_name_applies_to_a_series_of_its_panel() -> None:
    for panel in PANELS:
        legends = [t["legendFormat"] for t in panel["targets"]]
        columns = [
            name
            for t in panel["transformations"]
            for name in t["options"].get("renameByName", {}).values()
        ]
        for override in panel["fieldConfig"]["overrides"]:
            wanted = override["matcher"]["options"]
            if override["matcher"]["id"] == "byName":
                assert wanted in columns
            else:
                assert any(re.search(wanted.strip("/"), legend) for legend in legends)


def test_no_panel_averages_over_engines() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            assert not re.search(r"\bavg\b", target["expr"])


@pytest.mark.parametrize(
    "annotation",
    [annotation for board in BOARDS.values() for annotation in board["annotations"]["list"]],
    ids=lambda a: a["name"],
)
def test_an_annotation_asks_for_what_exists(annotation: dict[str, Any]) -> None:
    assert faults(promql(annotation["expr"])) == []
    assert set(re.findall(r"\{\{(\w+)\}\}", annotation["titleFormat"])) <= KNOWN_LABELS


def test_links_lead_to_sections_that_exist() -> None:
    links = [link["url"] for holder in (*BOARDS.values(), *PANELS) for link in holder["links"]]
    anchors = {url.partition("#")[2] for url in links if "/alerts.md" in url} - {""}
    headings = {name.lower() for name in re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)}
    assert anchors
    assert anchors <= headings
    pages = {url.partition("#")[0].rpartition("/main/")[2] for url in links}
    assert all((REPOSITORY / page).is_file() for page in pages)
