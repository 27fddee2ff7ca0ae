"""Panels of how much memory there is: capacity and GPU, measured and predicted."""

from __future__ import annotations

from grafana import Query, override, table, timeseries
from queries import (
    DASHED,
    ENGINE_LEGEND,
    GPU_MATCHERS,
    NOT_COLLECTED,
    NOT_PREDICTED,
    engine,
    runbook,
    series,
    target,
)

# One column each: its heading, its expression, its unit.
_CAPACITY_COLUMNS = (
    ("tokens", engine("kv_cache_capacity_tokens"), "locale"),
    ("predicted tokens", engine("predicted_kv_cache_capacity_tokens"), "locale"),
    ("blocks", engine("kv_cache_blocks"), "locale"),
    ("predicted blocks", engine("predicted_kv_cache_blocks"), "locale"),
    ("bytes", engine("kv_cache_capacity_bytes"), "bytes"),
    ("predicted bytes", engine("predicted_kv_cache_capacity_bytes"), "bytes"),
    ("full-length requests", engine("full_length_concurrency"), "none"),
    ("predicted full-length", engine("predicted_full_length_concurrency"), "none"),
)


_ROW_LABELS = "instance, target, model_name, engine"
_HEADINGS = {f"Value #{chr(ord('A') + i)}": c[0] for i, c in enumerate(_CAPACITY_COLUMNS)}
CAPACITY = (
    table(
        "Capacity: measured and predicted",
        *(
            Query(expr=f"max by ({_ROW_LABELS}) ({expr})", instant=True)
            for _, expr, _ in _CAPACITY_COLUMNS
        ),
        description="What vLLM reports (or, where it says nothing, what follows from its "
        "blocks), beside what config.json, engine arguments and GPU predict. An empty cell is "
        "unknown, not 0. Bytes are of the fullest GPU.",
        unit="locale",
        no_data=NOT_COLLECTED,
        width=14,
        height=8,
        overrides=tuple(override("byName", name, unit=u) for name, _, u in _CAPACITY_COLUMNS),
        transformations=(
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {"excludeByName": {"Time": True}, "renameByName": _HEADINGS},
            },
        ),
    ),
    timeseries(
        "Prediction error of capacity, by quantity",
        Query(
            expr=engine("prediction_error_ratio", 'quantity!="kv_cache_used_blocks"'),
            legend=f"{{{{quantity}}}} {ENGINE_LEGEND}",
        ),
        description="(measured - predicted) / measured, signed. Changes only when an engine "
        "restarts. Lines at ±10 %: VLLMCapacityPredictionDrift.",
        unit="percentunit",
        no_data=NOT_PREDICTED,
        width=10,
        custom={"thresholdsStyle": {"mode": "line"}},
        default={"decimals": 2},
        steps=((None, "transparent"), (-0.10, "red"), (0.10, "red")),
        links=runbook("VLLMCapacityPredictionDrift"),
    ),
)


_TERMS = (
    ("weights", "predicted_weights_bytes"),
    ("activation peak", "predicted_activation_peak_bytes"),
    ("non-torch", "predicted_non_torch_bytes"),
    ("CUDA graphs", "predicted_cuda_graph_bytes"),
)


_GPU_LEGEND = "GPU {{gpu}} {{instance}}"
GPU = (
    timeseries(
        "GPU memory: used and total",
        Query(expr=series(GPU_MATCHERS, "gpu_memory_used_bytes"), legend=f"used {_GPU_LEGEND}"),
        Query(expr=series(GPU_MATCHERS, "gpu_memory_total_bytes"), legend=f"total {_GPU_LEGEND}"),
        Query(
            expr=target("predicted_requested_bytes"),
            legend="vLLM's budget {{target}} {{instance}}",
        ),
        description="By NVML, of all processes on the GPU. The budget is total memory times "
        "gpu_memory_utilization; vLLM fills it at start-up, so used memory near the budget "
        "says nothing about load.",
        unit="bytes",
        no_data="no data: no NVIDIA GPU seen",
        default={"min": 0},
        overrides=(override("byRegexp", "/^(total|vLLM)/", custom__lineStyle=DASHED),),
    ),
    timeseries(
        "Predicted memory, by term",
        *(
            Query(expr=target(name), legend=f"{term} {{{{target}}}} {{{{instance}}}}")
            for term, name in _TERMS
        ),
        Query(expr=engine("predicted_kv_cache_capacity_bytes"), legend=f"KV cache {ENGINE_LEGEND}"),
        description="What one GPU (the fullest rank) is predicted to hold, term by term. Each "
        "engine of a data-parallel server has GPUs of its own, so pick one engine to read the "
        "sum. Activation peak, non-torch and CUDA graphs are estimates.",
        unit="bytes",
        no_data=NOT_PREDICTED,
        custom={"fillOpacity": 30, "stacking": {"mode": "normal", "group": "A"}},
        default={"min": 0},
    ),
)
