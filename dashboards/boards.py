"""What all dashboards have in common: variables, annotations, links to each other."""

from __future__ import annotations

from grafana import (
    SCHEMA_VERSION,
    Json,
    Panel,
    annotation,
    datasource_variable,
    link,
    place,
    query_variable,
)
from queries import DOCS, GPU_MATCHERS, TARGET_MATCHERS

TAG = "vllm-capacity"
_OF_ENGINE = ("job", "instance", "target", "model_name", "engine")
_BUILD = "vllm_capacity_build_info"
_BLOCKS = "vllm_capacity_kv_cache_blocks"
_OF_MODEL = f'{TARGET_MATCHERS},model_name=~"$model_name"'


def source_variables(*, one: bool = False) -> list[Json]:
    """Whose series: data source, job, exporter, target; ``one`` exporter and one target."""
    return [
        datasource_variable(),
        query_variable("job", "Job", f"label_values({_BUILD}, job)"),
        query_variable(
            "instance", "Instance", f'label_values({_BUILD}{{job=~"$job"}}, instance)', one=one
        ),
        # An exporter of one vLLM has no such label: "all", like no value, matches its absence.
        query_variable(
            "target",
            "Target",
            f"label_values(vllm_capacity_source_up{{{GPU_MATCHERS}}}, target)",
            all_value=".*",
            one=one,
        ),
    ]


def engine_variables(*, one: bool = False) -> list[Json]:
    """The same and which engines: model and number."""
    return [
        *source_variables(one=one),
        query_variable(
            "model_name",
            "Model",
            f"label_values({_BLOCKS}{{{TARGET_MATCHERS}}}, model_name)",
            one=one,
        ),
        query_variable(
            "engine", "Engine", f"label_values({_BLOCKS}{{{_OF_MODEL}}}, engine)", one=one
        ),
    ]


def _annotations(variables: list[Json]) -> list[Json]:
    """Marks of what the variables choose."""
    names = [v["name"] for v in variables if v["name"] in _OF_ENGINE]
    matchers = ",".join(f'{name}=~"${name}"' for name in names)
    restarts = f"vllm_capacity_engine_restarts_total{{{matchers}}}"
    alert_matchers = ",".join(f'{name}=~"${name}|"' for name in names) + ',alertname=~"VLLM.+"'
    return [
        annotation(
            "Engine restarts",
            "blue",
            # The series is withdrawn while vLLM is down: what it was before the gap counts.
            f"{restarts} > last_over_time({restarts}[1h] offset $__rate_interval)",
            "restart of {{model_name}} engine {{engine}} {{target}} {{instance}}",
        ),
        annotation(
            "Alerts that fire",
            "red",
            f'ALERTS{{{alert_matchers},alertstate="firing"}}',
            "{{alertname}} {{model_name}} {{engine}} {{target}} {{instance}}",
        ),
    ]


def _links() -> list[Json]:
    siblings = {
        "type": "dashboards",
        "title": "vLLM capacity",
        "tags": [TAG],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "url": "",
    }
    pages = (("Alerts and what to do", "alerts"), ("How to read this", "dashboards"))
    return [
        siblings,
        *(
            {"type": "link", "icon": "doc", **link(title, f"{DOCS}/{page}.md")}
            for title, page in pages
        ),
    ]


def board(
    name: str,
    description: str,
    variables: list[Json],
    rows: tuple[tuple[str, tuple[Panel, ...]], ...],
    *,
    hours: int = 1,
) -> Json:
    """A whole dashboard.

    Args:
        name: what it shows; its address is made of it.
        description: the question that it answers.
        variables: what can be chosen; restarts and alerts of that are marked on the graphs.
        rows: headings and their panels, what is needed most first.
        hours: the time range at first.
    """
    return {
        "uid": f"{TAG}-{name.lower().replace(' ', '-')}",
        "title": f"vLLM capacity / {name}",
        "description": description,
        "tags": ["vllm", TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": f"now-{hours}h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": variables},
        "annotations": {"list": _annotations(variables)},
        "links": _links(),
        "panels": place(rows),
    }
