"""Panels of one engine: how it is, its demand, its requests, its workload.

One engine is shown at a time, so a legend need not name it.
"""

from __future__ import annotations

from grafana import Json, Query, override, stat, state_timeline, timeseries
from queries import (
    DASHED,
    ENGINE_MATCHERS,
    NO_FOOTPRINT,
    NOT_COLLECTED,
    SYMLOG,
    engine,
    runbook,
    target,
)
from state_panels import LIMIT_TEXTS, STATE_TEXTS, limit_code, mappings, state_code

_LINE: Json = {"thresholdsStyle": {"mode": "line"}}
_NO_LINE = (None, "transparent")


def _fixed(pattern: str, color: str, **more: Json | int) -> Json:
    return override("byRegexp", pattern, color={"mode": "fixed", "fixedColor": color}, **more)


_TILE_WIDTH = 3
NOW = (
    stat(
        "State",
        Query(expr=state_code(ENGINE_MATCHERS), legend="state"),
        description="Idle, ok, tight (what is admitted or expected will not fit), saturated "
        "(full), thrashing (it preempts again and again). With hysteresis; how each is entered "
        "stands in docs/live.md.",
        width=_TILE_WIDTH,
        unit="none",
        no_data=NOT_COLLECTED,
        default={"mappings": mappings(STATE_TEXTS)},
        links=runbook("VLLMKVCacheSaturated"),
    ),
    stat(
        "Binding limit",
        Query(expr=limit_code(ENGINE_MATCHERS), legend="limit"),
        description="What stops the next request, by the scheduler's order of questions. "
        "max_num_seqs: raise it if the cache has room. "
        "max_num_batched_tokens: prefills take the steps, blocks are not short. KV cache: more "
        "pool or fewer requests.",
        width=_TILE_WIDTH,
        unit="none",
        no_data=NOT_COLLECTED,
        default={"mappings": mappings(LIMIT_TEXTS)},
    ),
    stat(
        "Saturation",
        Query(expr=engine("saturation_ratio"), legend="demand over capacity"),
        description="Demand over capacity of the tightest resource, queue and last minute's peak "
        "included. Red above 100 %: more is asked for than there is. Orange from 80 %, where the "
        "state tight begins.",
        width=_TILE_WIDTH,
        unit="percentunit",
        no_data=NOT_COLLECTED,
        steps=((None, "green"), (0.8, "orange"), (1, "red")),
        default={"decimals": 0},
    ),
    stat(
        "More requests fit",
        Query(expr=engine("headroom_requests", 'basis="observed_p95"'), legend="of p95 size"),
        description="Additional requests of the observed 95th percentile size before the KV "
        "cache or max_num_seqs binds, the queue served first. Red at 0: the next one waits.",
        width=_TILE_WIDTH,
        unit="locale",
        no_data=NO_FOOTPRINT,
        steps=((None, "red"), (1, "green")),
    ),
    stat(
        "Full in",
        Query(expr=engine("time_to_exhaustion_seconds"), legend="time to exhaustion"),
        description="Until no KV cache block is free, by committed demand or by trend. Infinite "
        "while the cache does not fill. Red below 60 s: preemptions are next; orange below "
        "1800 s, half an hour, in which a replica can start.",
        width=_TILE_WIDTH,
        unit="s",
        no_data="no data: vLLM not collected",
        steps=((None, "red"), (60, "orange"), (1800, "green")),
        default={
            "decimals": 0,
            "mappings": [
                {
                    "type": "special",
                    "options": {
                        "match": "null+nan",
                        "result": {"text": "not filling", "color": "green", "index": 0},
                    },
                },
                {
                    "type": "range",
                    "options": {
                        "from": 1e15,
                        "to": None,
                        "result": {"text": "not filling", "color": "green", "index": 1},
                    },
                },
            ],
        },
    ),
    stat(
        "Requests waiting",
        Query(expr=f"sum without (reason) ({engine('waiting_requests')})", legend="in the queue"),
        description="Requests in the queue, for whatever reason; by reason below. Orange from 1.",
        width=_TILE_WIDTH,
        unit="locale",
        no_data=NOT_COLLECTED,
        steps=((None, "green"), (1, "orange")),
    ),
    stat(
        "Fit at once",
        Query(
            expr=engine("running_requests_limit", 'basis="observed_p95"'),
            legend="of p95 size",
        ),
        description="Requests of the observed 95th percentile size that can run at once: what to "
        "set --max-num-seqs to if requests are preempted. At most what it is set to now.",
        width=_TILE_WIDTH,
        unit="locale",
        no_data=NO_FOOTPRINT,
        steps=((None, "blue"),),
        links=runbook("VLLMPreempting"),
    ),
    stat(
        "vLLM answers",
        Query(expr=target("source_up", 'source="vllm"'), legend="last collection"),
        description="Whether the exporter's last collection from vLLM worked. When it did not, "
        "the engine's series are withdrawn: panels go empty and do not repeat old values.",
        width=_TILE_WIDTH,
        unit="none",
        no_data="no data: exporter not scraped",
        default={"mappings": mappings({"0": ("no", "red"), "1": ("yes", "green")})},
        links=runbook("VLLMCapacityTargetDown"),
    ),
)


SINCE = (
    state_timeline(
        "State, and what stops the next request",
        Query(expr=state_code(ENGINE_MATCHERS), legend="state"),
        Query(expr=limit_code(ENGINE_MATCHERS), legend="limit"),
        description="Since when. A gap is an engine that was not seen: vLLM down or restarting.",
        no_data=NOT_COLLECTED,
        width=13,
        height=7,
        default={"mappings": mappings(STATE_TEXTS, LIMIT_TEXTS)},
    ),
)


_COMMITTED = "kv_cache_committed_blocks"
DEMAND = (
    timeseries(
        "Blocks: used, committed, capacity",
        Query(expr=engine("kv_cache_used_blocks"), legend="used"),
        Query(expr=engine(_COMMITTED, 'requests="admitted"'), legend="committed to those admitted"),
        Query(
            expr=engine(_COMMITTED, 'requests="expected"'),
            legend="committed, with those expected",
        ),
        Query(expr=engine("kv_cache_blocks"), legend="capacity"),
        description="Blocks in use, and blocks that the requests in the engine, its queue "
        "included, are expected to hold at their joint peak; expected adds those that keep "
        "coming. Above capacity, preemptions or a queue follow.",
        unit="locale",
        no_data=NOT_COLLECTED,
        width=8,
        default={"min": 0, "decimals": 0},
        overrides=(
            _fixed("/^used/", "green", custom__fillOpacity=20),
            _fixed("/^committed to/", "orange"),
            _fixed("/^committed,/", "yellow", custom__lineStyle=DASHED),
            _fixed("/^capacity/", "red", custom__lineWidth=2),
        ),
    ),
    timeseries(
        "KV cache in use, and its peaks",
        Query(expr=engine("kv_cache_usage_ratio"), legend="now"),
        Query(expr=engine("kv_cache_usage_peak_ratio"), legend="peak of {{window}}"),
        description="Share of the KV cache in use, and its peaks over the exporter's own samples, "
        "which a slow Prometheus misses. Full and without a queue is healthy. Line at 95 %: "
        "VLLMKVCacheSaturated, if requests queue as well.",
        unit="percentunit",
        no_data=NOT_COLLECTED,
        width=8,
        custom=_LINE,
        default={"min": 0, "max": 1},
        steps=(_NO_LINE, (0.95, "red")),
        links=runbook("VLLMKVCacheSaturated"),
    ),
    timeseries(
        "Saturation",
        Query(expr=engine("saturation_ratio"), legend="demand over capacity"),
        description="Of the tightest resource, queue included: at 200 % twice the capacity is "
        "asked for. Line at 100 %.",
        unit="percentunit",
        no_data=NOT_COLLECTED,
        width=8,
        custom={**_LINE, "scaleDistribution": SYMLOG},
        default={"min": 0},
        steps=(_NO_LINE, (1, "red")),
    ),
)

_BOUND = "predicted_kv_cache_used_blocks_bound"
LEDGER = (
    timeseries(
        "Blocks in use, between their predicted bounds",
        Query(expr=engine(_BOUND, 'bound="high"'), legend="high"),
        Query(expr=engine(_BOUND, 'bound="low"'), legend="low"),
        Query(expr=engine("kv_cache_used_blocks"), legend="used"),
        Query(expr=engine("predicted_kv_cache_used_blocks"), legend="predicted"),
        description="Blocks that requests hold, and what the tokens in flight ought to need, with "
        "the bounds that should hold 95 of 100 collections. Used and predicted come from "
        "different metrics of vLLM; where they part for long, blocks got lost or the ledger "
        "is misled.",
        unit="locale",
        no_data="no prediction: the ledger is not anchored",
        width=24,
        default={"min": 0, "decimals": 0},
        overrides=(
            _fixed("/^low/", "gray"),
            _fixed("/^high/", "gray", custom__fillBelowTo="low", custom__fillOpacity=25),
            _fixed("/^predicted/", "blue", custom__lineStyle=DASHED),
            _fixed("/^used/", "green", custom__lineWidth=2),
        ),
    ),
)


REQUESTS = (
    timeseries(
        "Requests: running, waiting, and what fits",
        Query(expr=engine("running_requests"), legend="running"),
        Query(expr=engine("waiting_requests"), legend="waiting ({{reason}})"),
        Query(
            expr=engine("running_requests_limit", 'basis="observed_p95"'),
            legend="of p95 size fit",
        ),
        description="Requests in the batch and in the queue, beside how many of the observed 95th "
        "percentile size can run at once: the --max-num-seqs that fits. Running above it ends in "
        "preemptions.",
        unit="locale",
        no_data=NOT_COLLECTED,
        width=8,
        default={"min": 0, "decimals": 0},
        overrides=(override("byRegexp", "/fit$/", custom__lineStyle=DASHED),),
    ),
    timeseries(
        "More requests that fit, by size",
        Query(expr=engine("headroom_requests"), legend="{{basis}}"),
        description="Additional requests before the KV cache or max_num_seqs binds, for "
        "requests of the observed mean, of the observed 95th percentile, and of "
        "max_model_len tokens.",
        unit="locale",
        no_data=NO_FOOTPRINT,
        width=8,
        default={"min": 0, "decimals": 0},
    ),
    timeseries(
        "Preemptions per request",
        Query(expr=engine("preempted_requests_ratio"), legend="of {{window}}"),
        description="Preemptions for each request that got its first token within the window; "
        "each one computes its tokens again. Above 100 % requests are preempted repeatedly. "
        "Line at 5 %: VLLMPreempting.",
        unit="percentunit",
        no_data="no data: no request started",
        width=8,
        custom={**_LINE, "axisSoftMax": 0.1},
        default={"min": 0},
        steps=(_NO_LINE, (0.05, "red")),
        links=runbook("VLLMPreempting"),
    ),
)


WORKLOAD = (
    timeseries(
        "Request sizes",
        Query(expr=engine("request_footprint_tokens"), legend="whole, {{basis}}"),
        Query(expr=engine("request_length_tokens"), legend="{{part}}, {{basis}}"),
        description="Tokens of lately finished requests: prompts, outputs, both together; mean and "
        "95th percentile. When they grow, fewer requests fit into the same cache.",
        unit="locale",
        no_data=NO_FOOTPRINT,
        width=8,
        default={"min": 0, "decimals": 0},
    ),
    timeseries(
        "Arrivals and completions",
        Query(
            expr=engine("arrived_requests_per_second", 'window="1m"'),
            legend="arrived",
        ),
        Query(
            expr=engine("completed_requests_per_second", 'window="1m"'),
            legend="completed",
        ),
        description="Requests a second over a minute. Arrivals above completions fill the queue; "
        "where clients hang up, they also differ for good.",
        unit="reqps",
        no_data="no data: watched for less than ten seconds",
        width=8,
        default={"min": 0},
    ),
    timeseries(
        "Prompt tokens from a cache",
        Query(expr=engine("cached_prompt_tokens_ratio"), legend="{{source}} cache, {{window}}"),
        description="Share of prompt tokens that were not computed: local is the prefix cache in "
        "the pool, external a KV connector. When it falls, prefills take longer.",
        unit="percentunit",
        no_data="no data: no prompt within the window, or a vLLM that does not say",
        width=8,
        default={"min": 0, "max": 1},
    ),
)
