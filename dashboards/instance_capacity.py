"""The dashboard "instance capacity": one exporter's engines, closely."""

from __future__ import annotations

from grafana import (
    SCHEMA_VERSION,
    Json,
    annotation,
    datasource_variable,
    link,
    place,
    query_variable,
)
from health_panels import HEALTH
from load_panels import NOW, POOL, REQUESTS
from memory_panels import CAPACITY, GPU
from queries import DOCS, ENGINE_LEGEND, GPU_MATCHERS, TARGET_MATCHERS, engine


def _variables() -> list[Json]:
    blocks = "vllm_capacity_kv_cache_blocks"
    of_target = f"{blocks}{{{TARGET_MATCHERS}}}"
    return [
        datasource_variable(),
        query_variable("job", "Job", "label_values(vllm_capacity_build_info, job)"),
        query_variable(
            "instance",
            "Instance",
            'label_values(vllm_capacity_build_info{job=~"$job"}, instance)',
        ),
        # An exporter of one vLLM has no such label: "all" must match its absence too.
        query_variable(
            "target",
            "Target",
            f"label_values(vllm_capacity_source_up{{{GPU_MATCHERS}}}, target)",
            all_value=".*",
        ),
        query_variable("model_name", "Model", f"label_values({of_target}, model_name)"),
        query_variable(
            "engine",
            "Engine",
            f'label_values({blocks}{{{TARGET_MATCHERS},model_name=~"$model_name"}}, engine)',
        ),
    ]


def _annotations() -> list[Json]:
    return [
        annotation(
            "Engine restarts",
            "blue",
            f"changes({engine('engine_restarts_total')}[$__rate_interval]) > 0",
            f"restart of {ENGINE_LEGEND}",
        ),
        annotation(
            "Alerts that fire",
            "red",
            f'ALERTS{{{GPU_MATCHERS},alertname=~"VLLM.+",alertstate="firing"}}',
            "{{alertname}}",
        ),
    ]


def dashboard() -> Json:
    """The whole dashboard."""
    return {
        "uid": "vllm-capacity-instance",
        "title": "vLLM capacity / instance",
        "description": "How full each engine's KV cache is, how full it ought to be, and how many "
        "more requests fit.",
        "tags": ["vllm", "vllm-capacity"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": _annotations()},
        "links": [
            {"type": "link", "icon": "doc", **link("Alerts and what to do", f"{DOCS}/alerts.md")},
            {"type": "link", "icon": "doc", **link("How to read this", f"{DOCS}/dashboards.md")},
        ],
        "panels": place(
            (
                ("Now", NOW),
                ("Pool", POOL),
                ("Requests", REQUESTS),
                ("Capacity, measured and predicted", CAPACITY),
                ("GPU memory", GPU),
                ("How the watching goes", HEALTH),
            )
        ),
    }
