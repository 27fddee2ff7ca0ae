"""The dashboard "fleet": all engines at a glance, the worst first."""

from __future__ import annotations

from boards import board, engine_variables
from grafana import Json, Panel, Query, override, stat, state_timeline, table, timeseries
from queries import (
    ENGINE_LEGEND,
    ENGINE_MATCHERS,
    NO_FOOTPRINT,
    NOT_COLLECTED,
    SYMLOG,
    engine,
    runbook,
    target,
)
from state_panels import LIMIT_TEXTS, STATE_TEXTS, alerts, limit_code, mappings, state_code

_LABELS = "instance, target, model_name, engine"
# With this value the link to an engine's board also finds an exporter without the label.
_NO_TARGET = ".*"

_HEADROOM = engine("headroom_requests", 'basis="observed_p95"')
_CAPACITY_ERROR = engine("prediction_error_ratio", 'quantity="kv_cache_tokens"')


def _summed(expr: str) -> str:
    return f"sum({expr})"


_TILES = (
    stat(
        "Engines in trouble",
        Query(expr=_summed(engine("state", 'state=~"saturated|thrashing"')), legend="engines"),
        description="Engines whose state is thrashing (they preempt again and again) or saturated "
        "(full). Red from 1: the table below has them first.",
        unit="locale",
        no_data=NOT_COLLECTED,
        steps=((None, "green"), (1, "red")),
        links=runbook("VLLMKVCacheSaturated"),
    ),
    stat(
        "Worst saturation",
        Query(expr=f"max({engine('saturation_ratio')})", legend="demand over capacity"),
        description="Demand over capacity of the tightest resource of the fullest engine, queue "
        "included; never an average. Red above 100 %: more is asked for than there is. Orange "
        "from 80 %, where the state tight begins.",
        unit="percentunit",
        no_data=NOT_COLLECTED,
        steps=((None, "green"), (0.8, "orange"), (1, "red")),
        default={"decimals": 0},
    ),
    stat(
        "Requests waiting",
        Query(
            expr=_summed(engine("waiting_requests", 'reason=~"capacity|unknown"')),
            legend="requests",
        ),
        description="Queued for KV cache, sequences or tokens, in all engines. Those deferred for "
        "something else are not counted.",
        unit="locale",
        no_data=NOT_COLLECTED,
        steps=((None, "green"), (1, "orange")),
    ),
    stat(
        "More requests fit",
        Query(expr=_summed(_HEADROOM), legend="of p95 size"),
        description="Additional requests of the observed 95th percentile size, in all engines "
        "together. Red at 0. If the router cannot reach the engine that has the room, it is none.",
        unit="locale",
        no_data=NO_FOOTPRINT,
        steps=((None, "red"), (1, "green")),
    ),
    stat(
        "vLLM not answering",
        Query(expr=_summed("1 - " + target("source_up", 'source="vllm"')), legend="targets"),
        description="Targets from which the last collection failed. Their engines have no other "
        "series, so nothing else here counts them.",
        unit="locale",
        no_data="no data: exporter not scraped",
        steps=((None, "green"), (1, "red")),
        links=runbook("VLLMCapacityTargetDown"),
    ),
    stat(
        "Pools not as predicted",
        Query(
            expr=_summed(f"abs({_CAPACITY_ERROR}) > bool 0.10"),
            legend="engines",
        ),
        description="Engines whose KV cache is more than 10 % larger or smaller than model, "
        "arguments and GPU account for: VLLMCapacityPredictionDrift.",
        unit="locale",
        no_data="no prediction: see exporter health",
        steps=((None, "green"), (1, "orange")),
        links=runbook("VLLMCapacityPredictionDrift"),
    ),
)

# Heading, expression, and how its column is shown.
_COLUMNS: tuple[tuple[str, str, Json], ...] = (
    ("state", state_code(ENGINE_MATCHERS), {"mappings": mappings(STATE_TEXTS), "width": 95}),
    (
        "binding limit",
        limit_code(ENGINE_MATCHERS),
        {"mappings": mappings(LIMIT_TEXTS), "width": 150},
    ),
    ("saturation", engine("saturation_ratio"), {"unit": "percentunit", "width": 90}),
    ("in use", engine("kv_cache_usage_ratio"), {"unit": "percentunit", "width": 75}),
    ("running", engine("running_requests"), {"width": 75}),
    ("waiting", f"sum without (reason) ({engine('waiting_requests')})", {"width": 75}),
    ("more fit", _HEADROOM, {"width": 80}),
    ("full in", f"{engine('time_to_exhaustion_seconds')} < 86400", {"unit": "s", "width": 80}),
    ("tokens", engine("kv_cache_capacity_tokens"), {"width": 90}),
)
_COLORED = {"type": "color-background", "mode": "basic"}


def _shown(width: int, **properties: Json | str) -> Json:
    colored = {"custom__cellOptions": _COLORED} if "mappings" in properties else {"decimals": 0}
    return {"custom__width": width, **colored, **properties}


def _per_engine(expr: str) -> Query:
    labelled = f'label_replace({expr}, "target", "{_NO_TARGET}", "target", "")'
    return Query(expr=f"max by ({_LABELS}) ({labelled})", instant=True)


def _engines() -> Panel:
    to_board = "/d/vllm-capacity-instance?${datasource:queryparam}&${__url_time_range}" + "".join(
        f"&var-{label}=${{__data.fields.{label}}}"
        for label in ("instance", "target", "model_name", "engine")
    )
    headings = {f"Value #{chr(ord('A') + i)}": c[0] for i, c in enumerate(_COLUMNS)}
    order = ("model_name", "engine", "target", "instance", *headings)
    return table(
        "Engines, the worst first: follow one to its board",
        *(_per_engine(expr) for _, expr, _ in _COLUMNS),
        description="One row for each engine, never averaged. States in their order of badness; "
        "what they mean stands in docs/live.md. More fit: "
        "requests of p95 size. Tokens: capacity. An empty cell is unknown, or for 'full in' that "
        "the cache does not fill; it is not 0.",
        unit="locale",
        no_data=NOT_COLLECTED,
        width=24,
        height=9,
        overrides=(
            *(override("byName", name, **_shown(**shown)) for name, _, shown in _COLUMNS),
            override(
                "byName",
                "model_name",
                links=[{"title": "This engine", "url": to_board, "targetBlank": False}],
            ),
            override("byName", "engine", custom__width=65),
            override(
                "byName",
                "target",
                custom__width=110,
                mappings=[
                    {
                        "type": "value",
                        "options": {_NO_TARGET: {"text": "the only one", "index": 0}},
                    }
                ],
            ),
            override("byName", "instance", custom__width=150),
        ),
        transformations=(
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True},
                    "indexByName": {name: i for i, name in enumerate(order)},
                    "renameByName": headings,
                },
            },
            {"id": "sortBy", "options": {"sort": [{"field": "state", "desc": True}]}},
        ),
    )


_SINCE = (
    state_timeline(
        "State of each engine",
        Query(expr=state_code(ENGINE_MATCHERS), legend=ENGINE_LEGEND),
        description="Since when each engine is in its state. Idle, ok, tight (what is admitted "
        "or expected will not fit), saturated (full), thrashing (it preempts again and again); "
        "a gap is an engine that was not seen.",
        no_data=NOT_COLLECTED,
        width=24,
        height=8,
        default={"mappings": mappings(STATE_TEXTS)},
    ),
    timeseries(
        "Saturation of each engine",
        Query(expr=engine("saturation_ratio"), legend=ENGINE_LEGEND),
        description="Demand over capacity of the tightest resource, for autoscalers too. Lines far "
        "apart are engines that the router does not balance. Line at 100 %: more is asked for "
        "than there is.",
        unit="percentunit",
        no_data=NOT_COLLECTED,
        last=False,
        height=10,
        default={"min": 0},
        # A queue can be many pools long, and what happens below 100 % matters most.
        custom={"thresholdsStyle": {"mode": "line"}, "scaleDistribution": SYMLOG},
        steps=((None, "transparent"), (1, "red")),
    ),
    timeseries(
        "More requests that fit, by model",
        Query(
            expr=f"sum by (model_name) ({_HEADROOM})",
            legend="{{model_name}}",
        ),
        description="Additional requests of the observed 95th percentile size, all engines of a "
        "model together: counts add up, ratios do not.",
        unit="locale",
        no_data=NO_FOOTPRINT,
        height=10,
        default={"min": 0, "decimals": 0},
    ),
)


def dashboard() -> Json:
    """The whole dashboard."""
    return board(
        "fleet",
        "All engines at a glance: which is in trouble, how badly, since when, what to do.",
        engine_variables(),
        (
            ("Now", _TILES),
            ("What to do", (alerts(width=24, height=5), _engines())),
            ("Since when", _SINCE),
        ),
    )
