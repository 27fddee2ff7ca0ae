"""Rows of the catalogue as JSON: the numbers of a document are those of ``/metrics``."""

import math
from collections.abc import Mapping
from typing import Any

from vllm_capacity.export.catalogue import CATALOGUE
from vllm_capacity.export.metric import PREFIX, Metric, Scope

#: Rows with one series a state, of which one is 1: their value is that state.
STATE_SETS = frozenset({"state", "binding_limit", "ledger_state"})


def values_of(scope: Scope, subject: object) -> dict[str, Any]:
    """What is known of a subject by the name of its metric, the prefix left off.

    A number; with labels a map by their values; of a state set the state. Unknown is absent.

    Args:
        scope: "engine" or "target".
        subject: an EngineAssessment or a TargetAssessment.
    """
    values = {}
    for metric in CATALOGUE:
        if metric.scope == scope and is_in_values(metric):
            value = _value(metric, _read(metric, subject))
            if value is not None:
                values[key_of(metric)] = value
    return values


def is_in_values(metric: Metric) -> bool:
    """Whether ``values`` hold the row: of an engine all, of a target those without labels."""
    return metric.scope == "engine" or (metric.scope == "target" and not metric.labels)


def key_of(metric: Metric) -> str:
    """The name of a metric in a document."""
    return metric.name.removeprefix(PREFIX)


def as_json(number: float | None) -> float | str | None:
    """A number as JSON holds it; infinity as Prometheus' HTTP API writes it, NaN as unknown."""
    if number is None or math.isfinite(number):
        return number
    return None if math.isnan(number) else "+Inf" if number > 0 else "-Inf"


def _read(metric: Metric, subject: object) -> Mapping[tuple[str, ...], Any]:
    try:
        return metric.read(subject)
    except Exception:  # noqa: BLE001 (the collector of /metrics meets it too, and says so)
        return {}


def _value(metric: Metric, series: Mapping[tuple[str, ...], Any]) -> Any:
    known = {
        labels: value for labels, number in series.items() if (value := as_json(number)) is not None
    }
    if key_of(metric) in STATE_SETS:
        return next((state for (state,), is_it in known.items() if is_it == 1), None)
    if not metric.labels:
        return known.get(())
    return _nested(known) or None


def _nested(series: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for labels, value in series.items():
        inner = nested
        for label in labels[:-1]:
            inner = inner.setdefault(label, {})
        inner[labels[-1]] = value
    return nested
