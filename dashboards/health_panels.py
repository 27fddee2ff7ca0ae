"""Panels of how the watching itself goes."""

from __future__ import annotations

from grafana import Panel, Query, override, stat, state_timeline, table, timeseries, value_texts
from queries import GPU_MATCHERS, NOT_COLLECTED, TARGET_MATCHERS, runbook, series, target

_VLLM = 'source="vllm"'
_NOT_SCRAPED = "no data: exporter not scraped"
_BY_SOURCE = "{{source}} {{target}} {{instance}}"
# config.json is read rarely; an absent one, like an absent driver, is no failure.
_AGE = "time() - " + target("last_success_timestamp_seconds", 'source=~"vllm|nvml"')
_FAILURES = target("collection_errors_total", 'reason!="absent"')
_BUCKETS = target("collection_duration_seconds_bucket", _VLLM)
_UP = value_texts(
    {
        "0": ("down", "red"),
        "1": ("up", "green"),
        "2": ("absent", "gray"),
        "3": ("there", "blue"),
    }
)
_MISSING = value_texts({"0": ("missing", "red"), "1": ("present", "green")})
# Any process has such metrics; ours are those that stand beside our own.
_OURS = f" and on (job, instance) vllm_capacity_build_info{{{GPU_MATCHERS}}}"


def _tile(title: str, expr: str, steps: tuple[tuple[float | None, str], ...], **rest: str) -> Panel:
    return stat(title, Query(expr=expr, legend="now"), steps=steps, width=6, **rest)


def _versions(title: str, metric: str, description: str, matchers: str) -> Panel:
    return table(
        title,
        Query(expr=series(matchers, metric), instant=True),
        description=description,
        unit="none",
        no_data=_NOT_SCRAPED,
        width=8,
        height=8,
        overrides=(override("byName", "instance", custom__width=150),),
        transformations=(
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True, "Value": True, "__name__": True, "job": True},
                    "renameByName": {"python_version": "python", "engine_count": "engines"},
                },
            },
        ),
    )


NOW = (
    _tile(
        "vLLM that do not answer",
        f"sum(1 - {target('source_up', _VLLM)})",
        ((None, "green"), (1, "red")),
        description="Targets from which the last collection failed; the timeline below says since "
        "when, the failures why. Red from 1: VLLMCapacityTargetDown after two minutes.",
        unit="locale",
        no_data=_NOT_SCRAPED,
    ),
    _tile(
        "Oldest good collection",
        f"max({_AGE})",
        ((None, "green"), (120, "red")),
        description="Time since the last collection that worked, of the source that has waited "
        "longest. Red from 120 s: VLLMCapacityDataStale.",
        unit="s",
        no_data=_NOT_SCRAPED,
    ),
    _tile(
        "Expected metrics that are missing",
        f"sum(1 - {target('source_metric_present')})",
        ((None, "green"), (1, "orange")),
        description="Metrics that are read and not on vLLM's page under any name they ever had. "
        "What depends on them is absent, not 0. Orange from 1; the table below has their names.",
        unit="locale",
        no_data=NOT_COLLECTED,
    ),
    _tile(
        "Collections that failed lately",
        f"sum(increase({_FAILURES}[$__rate_interval]))",
        ((None, "green"), (1, "orange")),
        description="Collections that failed lately, of all sources and reasons; an absent driver "
        "or config.json is no failure. Orange from 1.",
        unit="locale",
        no_data=_NOT_SCRAPED,
    ),
)

COLLECTIONS = (
    state_timeline(
        "Did the last collection work?",
        Query(expr=target("source_up", _VLLM), legend=_BY_SOURCE),
        # No driver and no config.json are no failures: words and colours of their own.
        Query(expr=target("source_up", 'source!="vllm"') + " + 2", legend=_BY_SOURCE),
        description="By source, since when. A source that is switched off has no row; one that is "
        "absent has no driver, or no config.json.",
        no_data=_NOT_SCRAPED,
        width=12,
        height=8,
        default={"mappings": _UP},
        links=runbook("VLLMCapacityTargetDown"),
    ),
    timeseries(
        "Failures, by reason",
        Query(
            expr=f"sum by (source, reason, target, instance) (rate({_FAILURES}[$__rate_interval]))"
            " > 0",
            legend="{{source}} {{reason}} {{target}} {{instance}}",
        ),
        description="Failed collections a second. connect: process gone or wrong port; timeout: "
        "the API server is blocked; http, parse: something else answers. Only what occurred.",
        unit="ops",
        last=False,
        no_data="no data: no collection failed",
        default={"min": 0},
        links=runbook("VLLMCapacityTargetDown"),
    ),
    timeseries(
        "Age of the last good collection",
        Query(expr=_AGE, legend=_BY_SOURCE),
        description="A sawtooth as high as the interval. Line at 120 s: VLLMCapacityDataStale. "
        "By two clocks: Prometheus's and the exporter's.",
        unit="s",
        no_data=_NOT_SCRAPED,
        custom={"thresholdsStyle": {"mode": "line"}},
        last=False,
        default={"min": 0},
        steps=((None, "transparent"), (120, "red")),
        links=runbook("VLLMCapacityDataStale"),
    ),
    timeseries(
        "Time that a collection takes (p95)",
        Query(
            # A source that was not asked meanwhile has NaN, which no comparison keeps.
            expr="histogram_quantile(0.95, sum by (le, source, target, instance) "
            f"(rate({_BUCKETS}[$__rate_interval]))) >= 0",
            legend=_BY_SOURCE,
        ),
        description="vLLM renders its page on the event loop that serves requests, so this grows "
        "with load. Keep --scrape-timeout well above it.",
        unit="s",
        no_data=_NOT_SCRAPED,
        last=False,
        default={"min": 0},
    ),
)

SEEN = (
    table(
        "Metrics expected of vLLM",
        Query(expr=f"min by (metric) ({target('source_metric_present')})", instant=True),
        description="Whether each of the metrics that the exporter reads is on the page of every "
        "vLLM. `vllm-capacity check` says what a gap costs.",
        unit="none",
        no_data=NOT_COLLECTED,
        width=8,
        height=8,
        default={"mappings": _MISSING, "custom": {"cellOptions": {"type": "color-text"}}},
        transformations=(
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True},
                    "renameByName": {"Value": "on the page"},
                },
            },
            {"id": "sortBy", "options": {"sort": [{"field": "on the page"}]}},
        ),
        links=runbook("VLLMSourceMetricMissing"),
    ),
    _versions(
        "Exporters",
        "build_info",
        "What runs: version, revision and Python of each exporter.",
        GPU_MATCHERS,
    ),
    _versions(
        "Versions of vLLM",
        "target_info",
        "What is watched: vLLM's version and how many engines are behind its address.",
        TARGET_MATCHERS,
    ),
)

COST = (
    timeseries(
        "Size of vLLM's page",
        Query(expr=target("source_response_bytes"), legend="{{target}} {{instance}}"),
        description="Bytes of the last metrics page. It grows with engines; --max-page-size "
        "refuses more than 8 MiB.",
        unit="bytes",
        no_data=NOT_COLLECTED,
        last=False,
        width=8,
        default={"min": 0},
    ),
    timeseries(
        "CPU of the exporter",
        Query(
            expr=f"rate(process_cpu_seconds_total{{{GPU_MATCHERS}}}[$__rate_interval]){_OURS}",
            legend="{{instance}}",
        ),
        description="Share of one core that the exporter takes. docs/costs.md has what is normal.",
        unit="percentunit",
        no_data="no data: another name, or no /proc",
        width=8,
        default={"min": 0},
    ),
    timeseries(
        "Memory of the exporter",
        Query(
            expr=f"process_resident_memory_bytes{{{GPU_MATCHERS}}}{_OURS}", legend="{{instance}}"
        ),
        description="Resident memory of the exporter. It does not grow with time: all windows are "
        "bounded.",
        unit="bytes",
        no_data="no data: another name, or no /proc",
        width=8,
        default={"min": 0},
    ),
)
