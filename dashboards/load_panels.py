"""Panels of what an engine holds and serves: now, its pool, its requests."""

from __future__ import annotations

from grafana import Query, override, stat, timeseries, value_texts
from queries import (
    DASHED,
    ENGINE_LEGEND,
    NO_FOOTPRINT,
    NOT_COLLECTED,
    NOT_PREDICTED,
    engine,
    runbook,
    target,
)

NOW = (
    stat(
        "KV cache in use",
        Query(expr=engine("kv_cache_usage_ratio"), legend=ENGINE_LEGEND),
        description="Share of the KV cache held by requests. Full and without a queue is "
        "healthy. Red from 95 %, where VLLMKVCacheSaturated pages if requests queue as well; "
        "orange from 90 %, where one more long prompt often has to wait.",
        unit="percentunit",
        no_data=NOT_COLLECTED,
        steps=((None, "green"), (0.90, "orange"), (0.95, "red")),
        default={"min": 0, "max": 1},
        links=runbook("VLLMKVCacheSaturated"),
    ),
    stat(
        "Free tokens",
        Query(expr=engine("kv_cache_free_tokens"), legend=ENGINE_LEGEND),
        description="Tokens that fit into blocks nobody holds; cached prefixes that can be "
        "evicted count as free. Not coloured: how many are few depends on your requests.",
        unit="locale",
        no_data=NOT_COLLECTED,
        steps=((None, "blue"),),
    ),
    stat(
        "More requests that fit (p95)",
        Query(expr=engine("headroom_requests", 'basis="observed_p95"'), legend=ENGINE_LEGEND),
        description="Additional requests of the observed 95th percentile size before the KV "
        "cache or max_num_seqs binds, the queue served first. Red at 0: the next one waits.",
        unit="locale",
        no_data=NO_FOOTPRINT,
        steps=((None, "red"), (1, "green")),
    ),
    stat(
        "Prediction error of capacity",
        Query(
            expr=engine("prediction_error_ratio", 'quantity="kv_cache_tokens"'),
            legend=ENGINE_LEGEND,
        ),
        description="(measured - predicted) / measured KV cache tokens. Negative: there is "
        "less than there ought to be. Red beyond ±10 %, the threshold of "
        "VLLMCapacityPredictionDrift.",
        unit="percentunit",
        no_data=NOT_PREDICTED,
        steps=((None, "red"), (-0.10, "green"), (0.10, "red")),
        default={"decimals": 2},
        links=runbook("VLLMCapacityPredictionDrift"),
    ),
    stat(
        "vLLM answers",
        Query(expr=target("source_up", 'source="vllm"'), legend="{{target}} {{instance}}"),
        description="Whether the exporter's last collection from vLLM worked. When it did not, "
        "the engine's series are withdrawn: panels go empty and do not repeat old values.",
        unit="none",
        no_data="no data: exporter not scraped",
        default={"mappings": value_texts({"0": ("down", "red"), "1": ("up", "green")})},
        links=runbook("VLLMCapacityTargetDown"),
    ),
)


_BAND = override(
    "byRegexp",
    "/^[-+]1 block/",
    color={"mode": "fixed", "fixedColor": "gray"},
    custom__lineStyle=DASHED,
)
POOL = (
    timeseries(
        "Blocks: used, predicted, capacity",
        Query(expr=engine("kv_cache_used_blocks"), legend=f"used {ENGINE_LEGEND}"),
        Query(expr=engine("predicted_kv_cache_used_blocks"), legend=f"predicted {ENGINE_LEGEND}"),
        Query(expr=engine("kv_cache_blocks"), legend=f"capacity {ENGINE_LEGEND}"),
        description="Blocks that requests hold, blocks that the tokens in flight ought to "
        "need, and all blocks (vLLM's null block not counted). Used and predicted come from "
        "different metrics of vLLM and should lie on each other.",
        unit="locale",
        no_data=NOT_COLLECTED,
        default={"min": 0},
        overrides=(
            override("byRegexp", "/^predicted/", custom__lineStyle=DASHED),
            override("byRegexp", "/^capacity/", color={"mode": "fixed", "fixedColor": "red"}),
        ),
    ),
    timeseries(
        "Prediction error of used blocks",
        Query(
            expr=engine("prediction_error_blocks", 'quantity="kv_cache_used_blocks"'),
            legend=f"used - predicted {ENGINE_LEGEND}",
        ),
        Query(expr=engine("running_requests"), legend=f"+1 block a request {ENGINE_LEGEND}"),
        Query(expr=f"-{engine('running_requests')}", legend=f"-1 block a request {ENGINE_LEGEND}"),
        description="Measured - predicted, in blocks. The dashed band is one block for each "
        "running request: how full a request's last block is cannot be known from outside. "
        "Beyond the band the ledger is misled: hang-ups, preemptions or shared prefixes.",
        unit="locale",
        no_data="no prediction: ledger not anchored",
        overrides=(_BAND,),
    ),
    timeseries(
        "Usage and its peaks",
        Query(expr=engine("kv_cache_usage_ratio"), legend=f"now {ENGINE_LEGEND}"),
        Query(
            expr=engine("kv_cache_usage_peak_ratio"),
            legend=f"peak of {{{{window}}}} {ENGINE_LEGEND}",
        ),
        description="Share of the KV cache in use. Peaks are over the exporter's own, more "
        "frequent samples, so a slow Prometheus sees them too. Line at 95 %: "
        "VLLMKVCacheSaturated.",
        unit="percentunit",
        no_data=NOT_COLLECTED,
        custom={"thresholdsStyle": {"mode": "line"}},
        default={"min": 0, "max": 1},
        steps=((None, "transparent"), (0.95, "red")),
    ),
    timeseries(
        "Tokens: in flight, queued, capacity",
        Query(expr=engine("in_flight_tokens"), legend=f"in flight {ENGINE_LEGEND}"),
        Query(expr=engine("queued_demand_tokens"), legend=f"queue will need {ENGINE_LEGEND}"),
        Query(
            expr=engine("kv_cache_capacity_tokens"),
            legend=f"capacity {{{{source}}}} {ENGINE_LEGEND}",
        ),
        description="Tokens of requests past their first token, tokens that the waiting ones "
        "are expected to need, and how many fit. In flight may exceed capacity: shared "
        "prefixes are stored once, preempted requests hold nothing.",
        unit="locale",
        no_data=NOT_COLLECTED,
        default={"min": 0},
        overrides=(
            override("byRegexp", "/^capacity/", color={"mode": "fixed", "fixedColor": "red"}),
        ),
    ),
)


REQUESTS = (
    timeseries(
        "More requests that fit",
        Query(expr=engine("headroom_requests"), legend=f"{{{{basis}}}} {ENGINE_LEGEND}"),
        description="Additional requests before the KV cache or max_num_seqs binds, for "
        "requests of the observed mean, of the observed 95th percentile, and of "
        "max_model_len tokens.",
        unit="locale",
        no_data=NO_FOOTPRINT,
        default={"min": 0},
    ),
    timeseries(
        "Requests: running, waiting, limit",
        Query(expr=engine("running_requests"), legend=f"running {ENGINE_LEGEND}"),
        Query(
            expr=engine("waiting_requests"),
            legend=f"waiting ({{{{reason}}}}) {ENGINE_LEGEND}",
        ),
        Query(
            expr=engine("running_requests_limit"),
            legend=f"limit {{{{basis}}}} {ENGINE_LEGEND}",
        ),
        description="Requests in the batch and in the queue, beside how many of each size can "
        "run at once. The observed_p95 limit is the --max-num-seqs that fits; running above "
        "it ends in preemptions.",
        unit="locale",
        no_data=NOT_COLLECTED,
        default={"min": 0},
        overrides=(override("byRegexp", "/^limit/", custom__lineStyle=DASHED),),
    ),
    timeseries(
        "Request footprint",
        Query(expr=engine("request_footprint_tokens"), legend=f"{{{{basis}}}} {ENGINE_LEGEND}"),
        description="Prompt and output tokens of lately finished requests. The 95th percentile "
        "is an upper bound: it is read from histogram buckets.",
        unit="locale",
        no_data=NO_FOOTPRINT,
        default={"min": 0},
    ),
    timeseries(
        "Preemptions per request",
        Query(
            expr=engine("preempted_requests_ratio"),
            legend=f"{{{{window}}}} {ENGINE_LEGEND}",
        ),
        description="Preemptions for each request that got its first token within the window; "
        "each one computes its tokens again. Above 100 % requests are preempted repeatedly. "
        "Line at 5 %: VLLMPreempting.",
        unit="percentunit",
        no_data="no data: no request started",
        custom={"thresholdsStyle": {"mode": "line"}},
        default={"min": 0},
        steps=((None, "transparent"), (0.05, "red")),
        links=runbook("VLLMPreempting"),
    ),
)
