"""The dashboard "GPU memory": where every byte of each GPU goes."""

from __future__ import annotations

from boards import board, source_variables
from grafana import (
    Json,
    Panel,
    Query,
    link,
    override,
    query_variable,
    table,
    timeseries,
)
from queries import (
    DASHED,
    DOCS,
    ENGINE_LEGEND,
    GPU_MATCHERS,
    NOT_PREDICTED,
    device,
    runbook,
    series,
)

_LEGEND = "GPU {{gpu}} {{mig_uuid}} {{instance}}"
_BY_COMPONENT = f"{{{{component}}}} {_LEGEND}"
_NO_GPU = "no data: no NVIDIA GPU seen"
_NVML, _PREDICTED = 'source="nvml"', 'source="predicted"'
_REMAINDER = 'component=~"unaccounted|unattributed|other_processes"'
_TERMS = 'quantity=~"weights|activation_peak|non_torch|cuda_graph"'


def _components(more: str) -> str:
    return device("gpu_memory_component_bytes", more)


_STACK = timeseries(
    "Where the memory of GPU $gpu goes",
    Query(expr=_components(_NVML), legend=_BY_COMPONENT),
    Query(expr=device("gpu_memory_total_bytes"), legend="total GPU {{gpu}} {{instance}}"),
    Query(expr=device("gpu_memory_budget_bytes"), legend=f"vLLM's budget {_LEGEND}"),
    description="Components stacked to what the driver counts as used. The budget is total memory "
    "times gpu_memory_utilization; vLLM fills it at start-up, so used memory near it says nothing "
    "about load. CUDA context and communicators stand beside the budget.",
    unit="bytes",
    no_data=_NO_GPU,
    custom={"fillOpacity": 30, "stacking": {"mode": "normal", "group": "A"}},
    overrides=(
        override(
            "byRegexp",
            "/^(total|vLLM)/",
            custom__lineStyle=DASHED,
            custom__fillOpacity=0,
            custom__stacking={"mode": "none"},
        ),
    ),
    links=(link("What each component is", f"{DOCS}/gpu-memory.md"),),
    repeat="gpu",
)

_COMPARED: tuple[Panel, ...] = (
    timeseries(
        "Predicted, by component",
        Query(expr=_components(_PREDICTED), legend=_BY_COMPONENT),
        description="The same components from config.json, engine arguments and GPU alone; the "
        "activation peak is what is set aside, of which only a part is held.",
        unit="bytes",
        no_data=NOT_PREDICTED,
        custom={"fillOpacity": 30, "stacking": {"mode": "normal", "group": "A"}},
    ),
    timeseries(
        "Held less predicted, by component",
        Query(
            expr=f"{_components(_NVML)} - ignoring (source) {_components(_PREDICTED)}",
            legend=_BY_COMPONENT,
        ),
        description="Above 0 more is held than was predicted without any measurement. The "
        "activation peak lies below 0 by what is set aside and not held.",
        unit="bytes",
        no_data=NOT_PREDICTED,
    ),
    timeseries(
        "Prediction error of each term",
        Query(
            expr=series(GPU_MATCHERS, "prediction_error_ratio", _TERMS),
            legend=f"{{{{quantity}}}} {ENGINE_LEGEND}",
        ),
        description="(measured - predicted) / measured, signed; measured is what the start-up log "
        "says, predicted is what it had no part in. Needs --vllm-log.",
        unit="percentunit",
        no_data=NOT_PREDICTED,
    ),
)

_UNEXPLAINED: tuple[Panel, ...] = (
    timeseries(
        "What no term accounts for, and what others hold",
        Query(expr=_components(f"{_NVML},{_REMAINDER}"), legend=_BY_COMPONENT),
        description="Unaccounted: held by the engines beyond all of their terms; below 0, terms "
        "are held only in part. Unattributed: whose it is cannot be told from here.",
        unit="bytes",
        no_data=_NO_GPU,
        links=runbook("VLLMGPUMemoryUnaccounted"),
    ),
    timeseries(
        "Growth of unaccounted memory, bytes an hour",
        Query(
            expr=f"3600 * {device('gpu_memory_unaccounted_growth_bytes_per_second')}",
            legend=_LEGEND,
        ),
        description="The median slope over the last hour. Steadily above 0 it is a leak; the alert "
        "asks for more than 1 GiB in six hours.",
        unit="bytes",
        no_data="no data: fewer than eight readings, or not attributed",
        links=runbook("VLLMGPUMemoryUnaccounted"),
    ),
    table(
        "Whose memory it is, and how that is known",
        Query(expr=device("gpu_memory_attribution_info"), instant=True),
        description="pid and cgroup: by the processes that the driver lists; exclusive: the engine "
        "has the GPU to itself; none: it cannot be told from here.",
        unit="none",
        no_data=_NO_GPU,
        width=12,
        height=8,
        transformations=(
            {
                "id": "organize",
                "options": {"excludeByName": {"Time": True, "Value": True, "__name__": True}},
            },
        ),
    ),
)


def dashboard() -> Json:
    """The whole dashboard."""
    used = f"vllm_capacity_gpu_memory_used_bytes{{{GPU_MATCHERS}}}"
    # A GPU is the machine's: no target chooses it.
    variables = [v for v in source_variables() if v["name"] != "target"]
    return board(
        "GPU memory",
        "Where every byte of each GPU goes, held and predicted.",
        [*variables, query_variable("gpu", "GPU", f"label_values({used}, gpu)")],
        (
            ("Held", (_STACK,)),
            ("Held and predicted", _COMPARED),
            ("What is left over", _UNEXPLAINED),
        ),
        hours=6,
    )
