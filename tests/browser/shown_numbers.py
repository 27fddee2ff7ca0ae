"""Whether the numbers on the page are those of ``/metrics``, as far as they are written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from opened import Shown

PREFIX = "vllm_capacity_"
STATE_SETS = {"state": "state", "ledger_state": "state", "binding_limit": "limit"}
_WORDS = {
    "nothing": "none",
    "KV cache": "kv_cache",
    "max_num_seqs": "sequences",
    "max_num_batched_tokens": "batched_tokens",
    "something else (deferred)": "deferred",
}
_SIZES = {"B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "days": 86400.0}
_IGNORED = {"model_name", "engine", "target", "window"}

Key = tuple[str, str | None]


def series(page: str, *, target: str | None = None) -> dict[Key, float]:
    """Every number of an engine or a target by its metric and the label that tells it apart."""
    found: dict[Key, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = sample.labels
            if target is not None and labels.get("target", target) != target:
                continue
            name = sample.name.removeprefix(PREFIX)
            rest = [value for key, value in labels.items() if key not in _IGNORED]
            if "window" in labels:
                rest = rest or [labels["window"]]
            if len(rest) <= 1:
                found[name, rest[0] if rest else None] = sample.value
    return found


def disagreements(numbers: Iterable[Shown], metrics: Mapping[Key, float]) -> list[str]:
    """What is written otherwise than the metric says, each in a line."""
    return [line for shown in numbers if (line := _disagreement(shown, metrics)) is not None]


def _disagreement(shown: Shown, metrics: Mapping[Key, float]) -> str | None:
    if shown.metric in STATE_SETS:
        states = {at: v for (name, at), v in metrics.items() if name == shown.metric}
        word = _WORDS.get(shown.text, shown.text)
        is_true = states.get(word) == 1 or (shown.text == "unknown" and not any(states.values()))
        return None if is_true else f"{shown}: {states}"
    value = metrics.get((shown.metric, shown.at))
    if value is None:
        return None if shown.text == "unknown" else f"{shown}: no such metric"
    if shown.text == "unknown":
        return f"{shown}: the metric is {value}"
    return None if _means(shown.text, value) else f"{shown}: the metric is {value}"


def _means(text: str, value: float) -> bool:
    """Whether a number is what is written, to the last digit written."""
    if text in {"not filling", "∞"}:
        return value == float("inf")
    if text == "now":
        return value == 0
    match = re.fullmatch(r"([+−]?)([\d,]+(?:\.\d+)?)\s?(%|\w*)", text)
    if match is None:
        return False
    sign, digits, unit = match.groups()
    written = float(digits.replace(",", "")) * (-1 if sign == "−" else 1)
    scale = {"%": 0.01, "": 1.0, **_SIZES, **_SECONDS}[unit]
    places = len(digits.partition(".")[2])
    tolerance = 0.5 * 10.0**-places
    return abs(written - value / scale) <= tolerance * (1 + 1e-9)
