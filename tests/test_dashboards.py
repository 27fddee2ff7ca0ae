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

from promql_names import COUNTERS, KNOWN_LABELS, LABELS_BY_METRIC, faults, kept_labels, selectors

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
# One engine is shown at a time, and whose engine it is: its graphs compare quantities, not engines.
OF_ONE = {"instance-capacity": {"instance", "target", "model_name", "engine"}}
LABEL_VARIABLES = [
    pytest.param(variable, id=f"{name} {variable['name']}")
    for name, variables in VARIABLES_OF.items()
    for variable in variables.values()
    if variable["type"] == "query"
]
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
LEGENDS = [
    pytest.param(name, panel, target, id=f"{panel['title']} {target['refId']}")
    for name, panels in PANELS_OF.items()
    for panel in panels
    for target in panel["targets"]
]
# These are of an exporter, whatever targets it has.
OF_EXPORTER = {
    "vllm_capacity_build_info",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
}
# Of Grafana's value formats, those that mean something here.
UNITS = {"none", "locale", "percentunit", "bytes", "s", "ops", "reqps"}


def title_of(panel: dict[str, Any]) -> str:
    return str(panel["title"])


def promql(template: str) -> str:
    """The expression as Grafana would send it, every variable at "all"."""
    text = template.replace("$__rate_interval", "1m")
    return re.sub(r"\$\w+", ".+", text)


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


OF_SOURCE = ["datasource", "job", "instance", "target"]


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
        "exporter-health": OF_SOURCE,
        "fleet": [*OF_SOURCE, "model_name", "engine"],
        "gpu-memory": ["datasource", "job", "instance", "gpu"],
        "instance-capacity": [*OF_SOURCE, "model_name", "engine"],
        "prediction-accuracy": [*OF_SOURCE, "model_name", "engine"],
    }
    for variables in VARIABLES_OF.values():
        assert variables["job"]["label"] == "Job"
        assert variables["instance"]["label"] == "Instance"


@pytest.mark.parametrize("name", BOARDS)
def test_a_variable_takes_several_values_but_where_one_engine_is_shown(name: str) -> None:
    for variable in VARIABLES_OF[name].values():
        if variable["type"] == "datasource":
            continue
        one = variable["name"] in OF_ONE.get(name, ())
        assert variable["multi"] is variable["includeAll"] is not one
        # An exporter of one vLLM has no label target: "all" has to match its absence.
        every = ".*" if variable["name"] == "target" else ".+"
        assert variable.get("allValue") == (None if one else every)


@pytest.mark.parametrize("variable", LABEL_VARIABLES)
def test_a_variable_reloads_with_the_time_range(variable: dict[str, Any]) -> None:
    assert variable["refresh"] == 2


@pytest.mark.parametrize("variable", LABEL_VARIABLES)
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
    for override in panel["fieldConfig"]["overrides"]:
        for of_cell in (p["value"] for p in override["properties"] if p["id"] == "noValue"):
            assert not re.search(r"\d", of_cell)
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
        # A GPU belongs to the machine, not to a target; a process or a build to the exporter.
        own = LABELS_BY_METRIC[selector.metric] & set(VARIABLES_OF[name])
        of_machine = "gpu" in LABELS_BY_METRIC[selector.metric] or selector.metric in OF_EXPORTER
        # An alert of a whole model lacks the labels that it was summed over.
        or_none = "|" if selector.metric.startswith("ALERTS") else ""
        for label in own - ({"target"} if of_machine else set()):
            assert selector.matchers[label] == ("Re", f"${label}{or_none}")


@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_a_range_follows_the_scrape_interval(panel: dict[str, Any], target: dict[str, Any]) -> None:
    ranges = re.findall(r"\[([^\]]+)\]", target["expr"])
    assert set(ranges) <= {"$__rate_interval"}, panel["title"]


@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_a_counter_is_shown_as_a_rate(panel: dict[str, Any], target: dict[str, Any]) -> None:
    rated = re.findall(r"(?:rate|increase)\((\w+)\{", target["expr"])
    for selector in selectors(promql(target["expr"])):
        if selector.metric in COUNTERS or selector.metric.endswith(("_total", "_bucket")):
            assert selector.metric in rated, panel["title"]


@pytest.mark.parametrize(("name", "panel", "target"), LEGENDS)
def test_a_legend_tells_the_series_apart_by_labels_that_they_have(
    name: str, panel: dict[str, Any], target: dict[str, Any]
) -> None:
    if panel["type"] == "table":
        assert target["format"] == "table"
        assert target["instant"]
        return
    labels = kept_labels(promql(target["expr"]))
    in_legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    assert in_legend <= labels
    # Side cars: many exporters, each with one target, one model and an engine "0".
    tell_apart = {"instance", "target", "model_name", "engine"} & labels - OF_ONE.get(name, set())
    if "gpu" in labels:
        tell_apart = {"instance", "gpu"}
    if {s.metric for s in selectors(promql(target["expr"]))} & OF_EXPORTER:
        tell_apart = {"instance"}
    assert tell_apart <= in_legend


def test_every_override_by_name_applies_to_a_series_of_its_panel() -> None:
    for panel in PANELS:
        legends = [t["legendFormat"] for t in panel["targets"]]
        columns = {
            name
            for t in panel["transformations"]
            for name in t["options"].get("renameByName", {}).values()
        }
        labels = set().union(*(kept_labels(promql(t["expr"])) for t in panel["targets"]))
        for override in panel["fieldConfig"]["overrides"]:
            wanted = override["matcher"]["options"]
            if override["matcher"]["id"] == "byName":
                assert wanted in columns | labels
            elif panel["type"] != "table":
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
    pages = {url.partition("#")[0].rpartition("/main/")[2] for url in links if url}
    assert all((REPOSITORY / page).is_file() for page in pages)


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_every_dashboard_links_to_all_the_others_by_their_tag(board: dict[str, Any]) -> None:
    (siblings,) = [link for link in board["links"] if link["type"] == "dashboards"]
    assert siblings["includeVars"]
    assert siblings["keepTime"]
    assert all(set(siblings["tags"]) <= set(other["tags"]) for other in BOARDS.values())


def links_of_cells() -> list[str]:
    return [
        link["url"]
        for panel in PANELS
        for override in panel["fieldConfig"]["overrides"]
        for p in override["properties"]
        if p["id"] == "links"
        for link in p["value"]
    ]


def test_an_engine_in_the_fleet_leads_to_its_own_board_with_every_variable_set() -> None:
    (url,) = [url for url in links_of_cells() if url.startswith("/d/")]
    board = next(n for n, b in BOARDS.items() if b["uid"] == url.split("?")[0].split("/")[-1])
    chosen = dict(re.findall(r"var-(\w+)=\$\{__data\.fields\.(\w+)\}", url))
    assert chosen == {name: name for name in OF_ONE[board]}
    assert "${datasource:queryparam}" in url
    (engines,) = [p for p in PANELS_OF["fleet"] if p["title"].startswith("Engines, ")]
    for target in engines["targets"]:
        assert kept_labels(promql(target["expr"])) == set(chosen)
        # An exporter of one vLLM has no such label, and a link cannot name what is not there.
        assert '"target", ".*", "target", "")' in target["expr"]


def test_an_alert_that_fires_leads_to_its_section_of_the_runbook() -> None:
    urls = {url for url in links_of_cells() if "alerts.md" in url}
    assert {url.partition("#")[2] for url in urls} == {"${__value.raw}"}


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("name", BOARDS)
def test_there_is_a_small_picture_of_every_dashboard_in_both_themes(name: str, theme: str) -> None:
    picture = REPOSITORY / "docs" / "images" / f"dashboard-{name}-{theme}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 300_000
    assert f"images/{picture.name}" in (REPOSITORY / "docs" / "dashboards.md").read_text("utf-8")


def test_the_pictures_are_drawn_with_pinned_versions() -> None:
    package = json.loads((BUILD.parent / "pictures" / "package.json").read_text("utf-8"))
    versions = [*package["dependencies"].values(), *package["devDependencies"].values()]
    assert versions
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions)
