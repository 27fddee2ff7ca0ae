"""Panels of how the watching itself goes."""

from __future__ import annotations

from grafana import Panel, Query, override, table, timeseries, value_texts
from queries import NOT_COLLECTED, runbook, target


def _collection_time() -> Panel:
    buckets = target("collection_duration_seconds_bucket")
    failures = target("collection_errors_total", 'reason!="absent"')
    age = "time() - " + target("last_success_timestamp_seconds", 'source=~"vllm|nvml"')
    return timeseries(
        "Collection: time, age, failures",
        Query(
            # A source that was not asked meanwhile has NaN, which no comparison keeps.
            expr="histogram_quantile(0.95, sum by (le, source, target, instance) "
            f"(rate({buckets}[$__rate_interval]))) >= 0",
            legend="p95 time {{source}} {{target}} {{instance}}",
        ),
        Query(expr=age, legend="age {{source}} {{target}} {{instance}}"),
        Query(
            expr="sum by (source, reason, target, instance) "
            f"(rate({failures}[$__rate_interval])) > 0",
            legend="failures {{source}} {{reason}} {{target}} {{instance}}",
        ),
        description="How long a collection takes (vLLM renders its page on the event loop that "
        "serves requests, so this grows with load), how old the last good one is, and failures a "
        "second by reason (an absent driver or config.json is no failure). Line at 120 s: "
        "VLLMCapacityDataStale.",
        unit="s",
        no_data="no data: exporter not scraped",
        width=9,
        custom={"thresholdsStyle": {"mode": "line"}},
        steps=((None, "transparent"), (120, "red")),
        overrides=(override("byRegexp", "/^failures/", unit="ops", custom__axisPlacement="right"),),
        links=runbook("VLLMCapacityDataStale"),
    )


HEALTH = (
    Panel(
        title="Sources, and whether a prediction exists",
        kind="state-timeline",
        queries=(
            Query(expr=target("source_up"), legend="{{source}} {{target}} {{instance}}"),
            Query(
                expr=target("prediction_supported"),
                legend="prediction ({{reason}}) {{target}} {{instance}}",
            ),
        ),
        description="1 where the last collection worked, and where predicted and measured "
        "capacity can be compared, with the reason if they cannot. A source that is switched "
        "off has no row.",
        unit="none",
        no_data="no data: exporter not scraped",
        width=9,
        height=8,
        default={"mappings": value_texts({"0": ("no", "red"), "1": ("yes", "green")})},
        options={"showValue": "auto", "mergeValues": True, "rowHeight": 0.8},
        links=runbook("VLLMCapacityTargetDown"),
    ),
    _collection_time(),
    table(
        "Metrics expected of vLLM",
        Query(
            expr=f"min by (metric) ({target('source_metric_present')})",
            instant=True,
        ),
        description="Whether each of the metrics that the exporter reads is on vLLM's page, "
        "under any name it ever had. A missing one makes what depends on it absent, not 0.",
        unit="none",
        no_data=NOT_COLLECTED,
        width=6,
        height=8,
        default={
            "mappings": value_texts({"0": ("missing", "red"), "1": ("present", "green")}),
            "custom": {"cellOptions": {"type": "color-text"}},
        },
        transformations=(
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True},
                    "renameByName": {"metric": "metric", "Value": "on the page"},
                },
            },
            {"id": "sortBy", "options": {"sort": [{"field": "on the page"}]}},
        ),
        links=runbook("VLLMSourceMetricMissing"),
    ),
)
