"""What a PromQL expression names: its selectors and the labels that it groups and joins by."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser

from vllm_capacity.export.catalogue import CATALOGUE

RECORDED_PAGE = Path(__file__).parent / "data" / "vllm-0.32-metrics.txt"
# Labels that Prometheus or a central exporter adds to any series.
ADDED_LABELS = frozenset({"job", "instance", "target"})
ALERT_LABELS = frozenset({"alertname", "alertstate", "severity"})


def _of_vllm() -> dict[str, frozenset[str]]:
    """The series of a recorded page of vLLM, and their labels."""
    found: dict[str, frozenset[str]] = {}
    for line in RECORDED_PAGE.read_text("utf-8").splitlines():
        series = re.match(r"(vllm:\w+)\{(.*)\} ", line)
        if series:
            labels = frozenset(re.findall(r'(\w+)="', series[2]))
            found[series[1]] = labels | ADDED_LABELS | found.get(series[1], frozenset())
    return found


LABELS_BY_METRIC: Mapping[str, frozenset[str]] = (
    _of_vllm()
    | {
        series: frozenset(row.all_labels)
        | ADDED_LABELS
        | ({"le"} if series.endswith("_bucket") else set())
        for row in CATALOGUE
        for series in (
            [f"{row.name}_{part}" for part in ("bucket", "sum", "count")]
            if row.kind == "histogram"
            else [row.name]
        )
    }
    | {
        "up": ADDED_LABELS,
        "ALERTS": ADDED_LABELS | ALERT_LABELS | {"model_name", "engine", "source"},
        "ALERTS_FOR_STATE": ADDED_LABELS | ALERT_LABELS | {"model_name", "engine", "source"},
        "process_cpu_seconds_total": ADDED_LABELS,
        "process_resident_memory_bytes": ADDED_LABELS,
    }
)
COUNTERS = frozenset(row.name for row in CATALOGUE if row.kind == "counter")
KNOWN_LABELS = frozenset().union(*LABELS_BY_METRIC.values())


@dataclass(frozen=True, slots=True)
class Selector:
    """One selector: the metric and the labels that it matches, as (operator, value)."""

    metric: str
    matchers: Mapping[str, tuple[str, str]]


def nodes(expression: str) -> list[Any]:
    """Every node of the expression; ValueError if it is not PromQL."""
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(expression), found.append)
    return found


def selectors(expression: str) -> list[Selector]:
    return [
        Selector(
            node.name or "",
            {m.name: (str(m.op).rpartition(".")[2], m.value) for m in node.matchers.matchers},
        )
        for node in nodes(expression)
        if isinstance(node, promql_parser.VectorSelector)
    ]


def grouping_labels(expression: str) -> set[str]:
    """Labels in ``by``, ``without``, ``on``, ``ignoring`` and ``group_left``."""
    labels: set[str] = set()
    for node in nodes(expression):
        modifier = getattr(node, "modifier", None)
        if isinstance(node, promql_parser.AggregateExpr) and modifier:
            labels.update(modifier.labels)
        if isinstance(node, promql_parser.BinaryExpr) and modifier:
            labels.update(modifier.matching.labels if modifier.matching else ())
            labels.update(getattr(modifier, "group_labels", None) or ())
    return labels


def kept_labels(expression: str) -> set[str]:
    """Labels that the series of the answer can have, after its outermost aggregation."""
    metrics = {selector.metric for selector in selectors(expression)}
    labels = set().union(*(LABELS_BY_METRIC[metric] for metric in metrics))
    for node in nodes(expression):
        if isinstance(node, promql_parser.AggregateExpr):
            named = set(node.modifier.labels) if node.modifier else set()
            without = node.modifier and node.modifier.type == promql_parser.AggModifierType.Without
            return labels - named if without else labels & named
    return labels


def faults(expression: str, also: Mapping[str, frozenset[str]] | None = None) -> list[str]:
    """What the expression names that no exporter of ours has."""
    known = {**LABELS_BY_METRIC, **(also or {})}
    found = []
    for selector in selectors(expression):
        if selector.metric not in known:
            found.append(f"unknown metric {selector.metric!r}")
            continue
        strange = set(selector.matchers) - known[selector.metric]
        found += [f"{selector.metric} has no label {label!r}" for label in sorted(strange)]
    strange = grouping_labels(expression) - KNOWN_LABELS
    return found + [f"no metric has a label {label!r}" for label in sorted(strange)]
