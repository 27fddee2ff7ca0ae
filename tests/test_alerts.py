"""The alert rules: they load, fire, stay silent, and name only what exists."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

# pytest's importlib mode adds no folder to the path.
sys.path.insert(0, str(Path(__file__).parent))

from promql_names import (
    ADDED_LABELS,
    KNOWN_LABELS,
    LABELS_BY_METRIC,
    RECORDED_PAGE,
    faults,
    nodes,
    selectors,
)

REPOSITORY = Path(__file__).parent.parent
RULES_PATH = REPOSITORY / "alerts" / "vllm-capacity.rules.yml"
RULE_TESTS_PATHS = sorted((REPOSITORY / "alerts").glob("*.rules.test.yml"))
RUNBOOK = (REPOSITORY / "docs" / "alerts.md").read_text("utf-8")
RUNBOOK_URL = "https://github.com/vllm-capacity/vllm-capacity/blob/main/docs/alerts.md#"

RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load(RULES_PATH.read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = [rule for rule in RULES if "record" in rule]
# A record's name begins with what its series are about.
LEVELS = {
    "engine": frozenset({"model_name", "engine"}) | ADDED_LABELS,
    "model": frozenset({"model_name"}),
}
RECORDED_LABELS = {rule["record"]: LEVELS[rule["record"].partition(":")[0]] for rule in RECORDED}
CASES: list[dict[str, Any]] = [
    case for path in RULE_TESTS_PATHS for case in yaml.safe_load(path.read_text("utf-8"))["tests"]
]
# A query inside an annotation's template, its %q not yet filled in.
TEMPLATE_QUERY = re.compile(r'printf ("(?:[^"\\]|\\.)*\{(?:[^"\\]|\\.)*")')


def name_of(rule: dict[str, Any]) -> str:
    return str(rule.get("alert") or rule["record"])


def metrics_of(expression: str) -> set[str]:
    """The metrics of an expression, those of the records that it reads among them."""
    recorded = {rule["record"]: rule["expr"] for rule in RECORDED}
    found: set[str] = set()
    for selector in selectors(expression):
        name = selector.metric
        found |= metrics_of(recorded[name]) if name in recorded else {name}
    return found - {"ALERTS"}


def annotation_queries(rule: dict[str, Any]) -> list[str]:
    found = TEMPLATE_QUERY.findall(" ".join(rule.get("annotations", {}).values()))
    return [yaml.safe_load(text).replace("%q", '"x"') for text in found]


def fires_in(case: dict[str, Any], alert: str) -> bool:
    by_alert = any(
        test["alertname"] == alert and test["exp_alerts"]
        for test in case.get("alert_rule_test", ())
    )
    by_series = any(
        f'alertname="{alert}"' in sample["labels"]
        for test in case.get("promql_expr_test", ())
        for sample in test["exp_samples"]
    )
    return by_alert or by_series


def is_silent(case: dict[str, Any]) -> bool:
    tests = [*case.get("alert_rule_test", ()), *case.get("promql_expr_test", ())]
    return not any(test.get("exp_alerts") or test.get("exp_samples") for test in tests)


@pytest.mark.parametrize(
    "arguments", [["check", "rules", RULES_PATH], ["test", "rules", *RULE_TESTS_PATHS]], ids=str
)
def test_promtool_accepts_the_rules_and_their_cases(arguments: list[str | Path]) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    outcome = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("vllm_capacity_kv_cache_blocs", "unknown metric 'vllm_capacity_kv_cache_blocs'"),
        ("vllm_capacity_kv_cache_blocks{model='m'}", "has no label 'model'"),
        ("rate(vllm_capacity_headroom_requests{base='x'}[5m])", "has no label 'base'"),
        ("max by (engin) (vllm_capacity_kv_cache_blocks)", "no metric has a label 'engin'"),
        ("up and ignoring (resaon) up", "no metric has a label 'resaon'"),
    ],
)
def test_a_misspelt_metric_or_label_is_found(expression: str, fault: str) -> None:
    assert fault in " ".join(faults(expression))


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_a_rule_names_only_metrics_and_labels_of_the_catalogue(rule: dict[str, Any]) -> None:
    assert faults(rule["expr"], RECORDED_LABELS) == []


@pytest.mark.parametrize("rule", ALERTS, ids=name_of)
def test_a_query_in_an_annotation_names_only_metrics_and_labels_of_the_catalogue(
    rule: dict[str, Any],
) -> None:
    queries = annotation_queries(rule)
    assert len(queries) == " ".join(rule["annotations"].values()).count("| query")
    assert [fault for query in queries for fault in faults(query, RECORDED_LABELS)] == []


@pytest.mark.parametrize("rule", ALERTS, ids=name_of)
def test_a_query_in_an_annotation_asks_about_the_very_engine_or_target(
    rule: dict[str, Any],
) -> None:
    labels = LABELS_BY_METRIC | RECORDED_LABELS
    asked = [s for query in annotation_queries(rule) for s in selectors(query)]
    for selector in asked:
        about = {"instance", "target", "model_name", "engine"} & labels[selector.metric]
        # An alert of a whole server asks which of its engines it is.
        about -= {"engine"} if "$labels.engine" not in rule["annotations"]["summary"] else set()
        assert about <= set(selector.matchers), selector


@pytest.mark.parametrize("rule", ALERTS, ids=name_of)
def test_a_label_in_an_annotation_exists(rule: dict[str, Any]) -> None:
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    assert used <= KNOWN_LABELS


@pytest.mark.parametrize("rule", ALERTS, ids=name_of)
def test_an_alert_says_what_how_bad_how_long_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["labels"]["severity"] in {"page", "ticket", "info"}
    assert "for" in rule


@pytest.mark.parametrize("rule", ALERTS, ids=name_of)
def test_an_alert_has_a_runbook_section_and_links_to_it(rule: dict[str, Any]) -> None:
    assert re.search(rf"^## {rule['alert']}$", RUNBOOK, re.MULTILINE)
    assert rule["annotations"]["runbook_url"] == RUNBOOK_URL + rule["alert"].lower()


def test_the_runbook_has_no_section_for_an_alert_that_does_not_exist() -> None:
    sections = set(re.findall(r"^## (VLLM\w+)$", RUNBOOK, re.MULTILINE))
    assert sections == {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("rule", ALERTS, ids=name_of)
def test_the_runbook_gives_the_severity_and_the_waiting_time_of_the_rule(
    rule: dict[str, Any],
) -> None:
    section = RUNBOOK.split(f"## {rule['alert']}\n")[1].split("\n## ")[0]
    assert f"Severity: {rule['labels']['severity']}" in section
    assert f"`for: {rule['for']}`" in section


@pytest.mark.parametrize("rule", ALERTS, ids=name_of)
def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_its_metrics_move_in_silence(
    rule: dict[str, Any],
) -> None:
    alert, metrics = rule["alert"], metrics_of(rule["expr"])
    silent = [
        case
        for case in CASES
        if is_silent(case)
        and any(e["series"].split("{")[0] in metrics for e in case["input_series"])
    ]
    assert any(fires_in(case, alert) for case in CASES)
    assert silent


def test_the_cases_feed_only_series_that_the_exporter_or_vllm_has() -> None:
    series = {entry["series"] for case in CASES for entry in case["input_series"]}
    allowed_extra = "cluster"  # one case is about a label that Prometheus adds
    found = {text: [f for f in faults(text) if allowed_extra not in f] for text in sorted(series)}
    assert {text: wrong for text, wrong in found.items() if wrong} == {}


def test_the_cases_give_each_series_all_of_its_labels() -> None:
    series = {entry["series"] for case in CASES for entry in case["input_series"]}
    for text in series:
        (selector,) = selectors(text)
        own = LABELS_BY_METRIC[selector.metric] - ADDED_LABELS
        assert own <= set(selector.matchers), text


def test_every_metric_of_vllm_that_is_named_is_on_a_recorded_page() -> None:
    named = set()
    for text in (*(path.read_text("utf-8") for path in (RULES_PATH, *RULE_TESTS_PATHS)), RUNBOOK):
        named |= set(re.findall(r"\bvllm:\w+", text))
    page = RECORDED_PAGE.read_text("utf-8")
    on_page = set(re.findall(r"^# TYPE (vllm:\w+)", page, re.MULTILINE))
    on_page |= set(re.findall(r"^(vllm:\w+)", page, re.MULTILINE))
    assert named
    assert named - on_page == set()


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_no_rule_averages_over_engines(rule: dict[str, Any]) -> None:
    assert not re.search(r"\bavg\s*(by|without)?\s*\(", rule["expr"])


@pytest.mark.parametrize("rule", RECORDED, ids=name_of)
def test_a_record_is_read_by_an_alert_or_named_in_the_runbook(rule: dict[str, Any]) -> None:
    read = {s.metric for alert in ALERTS for s in selectors(alert["expr"])}
    assert rule["record"] in read or f"`{rule['record']}`" in RUNBOOK


def test_nothing_is_recorded_twice() -> None:
    expressions = [" ".join(rule["expr"].split()) for rule in RECORDED]
    assert len(set(expressions)) == len(expressions)


PAGES_FOR_SYMPTOMS = {
    "vllm_capacity_waiting_requests",  # requests wait,
    "vllm:request_queue_time_seconds_count",  # have waited,
    "vllm_capacity_preempted_requests_ratio",  # are computed twice,
    "vllm:admission_rejections_total",  # are turned away,
    "vllm_capacity_source_up",  # or are not answered at all
}


@pytest.mark.parametrize("rule", ALERTS, ids=name_of)
def test_only_symptoms_page(rule: dict[str, Any]) -> None:
    is_page = rule["labels"]["severity"] == "page"
    assert not is_page or metrics_of(rule["expr"]) & PAGES_FOR_SYMPTOMS


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_an_objective_reads_only_boundaries_that_the_histogram_has(rule: dict[str, Any]) -> None:
    page = RECORDED_PAGE.read_text("utf-8")
    for selector in selectors(rule["expr"]):
        if "le" in selector.matchers:
            bound = selector.matchers["le"][1]
            assert re.search(rf'^{selector.metric}\{{[^}}]*le="{bound}"', page, re.MULTILINE)


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_no_rule_is_newer_than_prometheus_2_42(rule: dict[str, Any]) -> None:
    newer = {
        "info",
        "sort_by_label",
        "sort_by_label_desc",
        "mad_over_time",
        "double_exponential_smoothing",
    }
    called = {node.func.name for node in nodes(rule["expr"]) if hasattr(node, "func")}
    assert not called & newer
    assert not re.search(r"\b(limitk|limit_ratio)\b", rule["expr"])
