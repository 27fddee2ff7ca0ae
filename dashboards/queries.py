"""The exporter's series as the dashboard asks for them, and words that several panels share."""

from __future__ import annotations

import re

from grafana import Json, link

DOCS = "https://github.com/vllm-capacity/vllm-capacity/blob/main/docs"
GPU_MATCHERS = 'job=~"$job",instance=~"$instance"'
TARGET_MATCHERS = f'{GPU_MATCHERS},target=~"$target"'
DEVICE_MATCHERS = f'{GPU_MATCHERS},gpu=~"$gpu"'
ENGINE_MATCHERS = f'{TARGET_MATCHERS},model_name=~"$model_name",engine=~"$engine"'
ENGINE_LEGEND = "{{model_name}} engine {{engine}} {{target}} {{instance}}"
# What alerts are about; one of a whole model lacks the labels that it was summed over.
ALERT_MATCHERS = re.sub(r'"(\$\w+)"', r'"\1|"', ENGINE_MATCHERS) + ',alertname=~"VLLM.+"'
# Linear up to 1, then by decades.
SYMLOG = {"type": "symlog", "log": 10, "linearThreshold": 1}
DASHED = {"fill": "dash", "dash": [8, 6]}
NOT_COLLECTED = "no data: vLLM not collected"
NOT_PREDICTED = "no prediction: its reason is on the board prediction accuracy"
NO_FOOTPRINT = "no data: no finished request yet"


def series(matchers: str, name: str, more: str = "") -> str:
    """Series of the metric of this name (without prefix) that the matchers select."""
    extra = f",{more}" if more else ""
    return f"vllm_capacity_{name}{{{matchers}{extra}}}"


def engine(name: str, more: str = "") -> str:
    """Series of the chosen engines."""
    return series(ENGINE_MATCHERS, name, more)


def target(name: str, more: str = "") -> str:
    """Series of the chosen targets."""
    return series(TARGET_MATCHERS, name, more)


def device(name: str, more: str = "") -> str:
    """Series of the chosen GPUs."""
    return series(DEVICE_MATCHERS, name, more)


def runbook(alert: str) -> tuple[Json, ...]:
    """A panel's link to what the alert means."""
    return (link(f"Runbook: {alert}", f"{DOCS}/alerts.md#{alert.lower()}"),)
