"""Panels of how well used blocks are predicted, and what the prediction rests on."""

from __future__ import annotations

from grafana import Query, override, stat, state_timeline, table, timeseries, value_texts
from queries import ENGINE_LEGEND, NOT_COLLECTED, engine, target

_ERROR = engine("prediction_error_blocks", 'quantity="kv_cache_used_blocks"')
_USED = engine("kv_cache_used_blocks")
_TOKENS = 'quantity="kv_cache_tokens"'
_ASSUMED = "architecture, kv_dtype, tensor_parallel_size"
_NO_LEDGER = "no prediction: the ledger is not anchored"


def _bound(name: str) -> str:
    return engine("predicted_kv_cache_used_blocks_bound", f'bound="{name}"')


def _ledger(state: str) -> str:
    return engine("ledger_state", f'state="{state}"')


# One of the two is 0: used blocks are above the one bound, below the other, or between them.
_OUTSIDE = (
    f"clamp_min({_USED} - ignoring (bound) {_bound('high')}, 0)"
    f" + clamp_min(-({_USED} - ignoring (bound) {_bound('low')}), 0)"
)

NOW = (
    stat(
        "Largest error of capacity",
        Query(
            expr=f"max(abs({engine('prediction_error_ratio', _TOKENS)}))",
            legend="of tokens",
        ),
        description="The largest |measured - predicted| / measured of the KV cache in tokens, over "
        "all engines. Red from 10 %: VLLMCapacityPredictionDrift.",
        unit="percentunit",
        no_data="no prediction: the table below says why",
        steps=((None, "green"), (0.1, "red")),
        default={"decimals": 2},
        width=6,
    ),
    stat(
        "Largest error of blocks in use",
        Query(
            expr=f"max(abs({_ERROR}) / ignoring (quantity) {engine('kv_cache_blocks')})",
            legend="of the pool",
        ),
        description="The largest |used - predicted| as a share of its pool, over all engines, now. "
        "Orange from 5 %: on our recordings the error is below it at 95 of 100 collections, "
        "but for loads made to be harsh.",
        unit="percentunit",
        no_data=_NO_LEDGER,
        steps=((None, "green"), (0.05, "orange")),
        default={"decimals": 2},
        width=6,
    ),
    stat(
        "Engines outside their interval",
        Query(expr=f"sum(({_OUTSIDE}) > bool 0)", legend="engines"),
        description="Engines whose used blocks are not between the bounds now. The interval should "
        "hold 95 of 100 collections, so now and then one is; orange from 1.",
        unit="locale",
        no_data=_NO_LEDGER,
        steps=((None, "green"), (1, "orange")),
        width=6,
    ),
    stat(
        "Targets without a prediction of capacity",
        Query(expr=f"sum(1 - {target('prediction_supported')})", legend="targets"),
        description="Targets whose predicted and measured capacity cannot be compared. The table "
        "at the end gives the reasons; orange from 1.",
        unit="locale",
        no_data="no data: exporter not scraped",
        steps=((None, "green"), (1, "orange")),
        width=6,
    ),
)

LIVE = (
    timeseries(
        "Blocks outside the bounds",
        Query(expr=_OUTSIDE, legend=ENGINE_LEGEND),
        description="How far the used blocks are outside their bounds; 0 where they are between "
        "them, as they should be 95 times of 100. A lasting excess is a load that misleads the "
        "ledger, or blocks that got lost.",
        unit="locale",
        no_data=_NO_LEDGER,
        last=False,
        default={"min": 0, "decimals": 0},
    ),
    timeseries(
        "Error of blocks in use, in shares of the pool",
        Query(
            expr=f"{_ERROR} / ignoring (quantity) {engine('kv_cache_blocks')}",
            legend=ENGINE_LEGEND,
        ),
        description="(used - predicted) / capacity, signed: positive is more in use than the "
        "tokens in flight account for. In shares of the pool, so that engines can be compared.",
        unit="percentunit",
        no_data=_NO_LEDGER,
        last=False,
        default={"decimals": 1},
    ),
    state_timeline(
        "State of the ledger",
        Query(
            expr=f"sum without (state) ({_ledger('anchored')} or {_ledger('drifting')} * 2"
            f" or {_ledger('unknown')} * 3)",
            legend=ENGINE_LEGEND,
        ),
        description="Anchored: every request is accounted for. Drifting: who hung up, was "
        "preempted or shares a prefix is inferred. Unknown: the watch began amid preempted "
        "requests, or counters are missing.",
        no_data=NOT_COLLECTED,
        width=24,
        height=8,
        default={
            "mappings": value_texts(
                {"1": ("anchored", "green"), "2": ("drifting", "yellow"), "3": ("unknown", "gray")}
            )
        },
    ),
)

ASSUMED = (
    table(
        "What each prediction was made for, or why there is none",
        Query(
            expr=f"max by (instance, target, reason) ({target('prediction_supported')})",
            instant=True,
        ),
        Query(
            expr=f"max by (instance, target, {_ASSUMED}) ({target('prediction_info')})",
            instant=True,
        ),
        description="Architecture, KV cache type and parallelism that the prediction assumed, and "
        "whether it can be compared with what was measured; if not, the reason. Wrong here, wrong "
        "everywhere above.",
        unit="none",
        no_data="no data: exporter not scraped",
        width=14,
        height=8,
        overrides=(
            override("byName", "instance", custom__width=140),
            override("byName", "architecture", custom__width=160),
            override(
                "byName",
                "compared",
                mappings=value_texts({"0": ("no", "orange"), "1": ("yes", "green")}),
                custom__cellOptions={"type": "color-text"},
            ),
        ),
        transformations=(
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True, "Value #B": True},
                    "indexByName": {
                        name: i for i, name in enumerate(("target", "instance", "Value #A"))
                    },
                    "renameByName": {
                        "Value #A": "compared",
                        "tensor_parallel_size": "tensor parallel",
                    },
                },
            },
            {"id": "sortBy", "options": {"sort": [{"field": "compared"}]}},
        ),
    ),
    timeseries(
        "vLLM's own figures that disagree",
        Query(expr=engine("reported_inconsistency_tokens"), legend=ENGINE_LEGEND),
        description="Blocks times block size less the tokens that vLLM reports as capacity: the "
        "null block, and for hybrid caches a multiple of the pool. Whoever multiplies blocks "
        "and block size is wrong by this much.",
        unit="locale",
        no_data="no data: a vLLM that does not report tokens",
        last=False,
        width=10,
    ),
)
