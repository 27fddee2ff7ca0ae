"""Status documents for tests: as ``docs/api.md`` promises them, small, to be changed at will."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_capacity.top.feed import Feed
from vllm_capacity.top.pen import UNICODE, Glyphs, Pen
from vllm_capacity.top.screen import Place, screen
from vllm_capacity.top.view import View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_capacity.top.moments import Moment

NOW = 1000.0
MADE = 1795280000.0

VALUES: dict[str, Any] = {
    "kv_cache_blocks": 8191,
    "kv_cache_used_blocks": 5079,
    "kv_cache_usage_ratio": 5079 / 8191,
    "kv_cache_used_tokens": 81264,
    "kv_cache_free_tokens": 49792,
    "kv_cache_capacity_tokens": {"reported": 131056},
    "kv_cache_committed_blocks": {"admitted": 5900.0, "expected": 6552.8},
    "predicted_kv_cache_used_blocks": 5090.2,
    "predicted_kv_cache_used_blocks_bound": {"low": 4914.6, "high": 5242.2},
    "prediction_error_ratio": {"kv_cache_tokens": 0.031},
    "prediction_error_blocks": {"kv_cache_used_blocks": -11.2},
    "headroom_requests": {"observed_mean": 14, "observed_p95": 6, "full_length": 1},
    "running_requests": 33,
    "waiting_requests": {"capacity": 0, "deferred": 0},
    "max_sequences": {"flag": 256},
    "time_to_exhaustion_seconds": 545.0,
    "saturation_ratio": 0.62,
    "binding_limit": "none",
    "state": "ok",
    "ledger_state": "anchored",
}


def engine(label: str = "0", *, severity: str = "ok", **values: Any) -> dict[str, Any]:
    """An engine; a value of None takes that one out."""
    known = {name: value for name, value in {**VALUES, **values}.items() if value is not None}
    return {
        "engine": label,
        "model_name": "a-model",
        "state": known.get("state", "unknown"),
        "severity": severity,
        "verdict": {
            "headline": "Room for 14 more requests of the usual size",
            "parts": ["KV cache 62 % used, as predicted", "full in about 9 min at this rate"],
            "sentence": "Room for 14 more requests of the usual size; KV cache 62 % used.",
        },
        "values": known,
        "reasons": {"ledger": "all accounted for", "occupancy": None},
    }


def source(name: str = "vllm", *, age: float | None = 2.0, error: str | None = None) -> Any:
    return {
        "source": name,
        "up": error is None,
        "last_success_timestamp_seconds": None if age is None else MADE - age,
        "last_error": error,
        "last_reason": None if error is None else "connect",
        "failed_collections": 0,
    }


def target(
    *engines: dict[str, Any], name: str = "a:8000", sources: Sequence[Any] = (), **more: Any
) -> dict[str, Any]:
    return {
        "target": name,
        "url": f"http://{name}",
        "vllm_version": "0.32.0",
        "values": {},
        "prediction": {"supported": True, "reason": "ok", "message": "planned from the budget"},
        "memory_terms": [],
        "arguments": [],
        "sources": list(sources) or [source()],
        "missing_metrics": [],
        "engines": list(engines),
        **more,
    }


def document(*targets: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "api_version": 1,
        "version": "0.1.0",
        "sequence": 17,
        "generated_timestamp_seconds": MADE,
        "scrape_interval_seconds": 5.0,
        "stale_after_seconds": 15.0,
        "verdict": {"severity": "ok", "sentence": "None of the engines needs attention."},
        "targets": list(targets),
        "gpus": [],
        **more,
    }


def drawn(  # noqa: PLR0917
    shown: dict[str, Any] | Sequence[Feed],
    width: int = 100,
    height: int | None = None,
    view: View | None = None,
    glyphs: Glyphs = UNICODE,
    moments: Sequence[Moment] = (),
    *,
    age: float = 0.0,
) -> list[str]:
    """The screen's lines as text."""
    feeds = (
        [Feed(origin="", document=shown, made_seconds=NOW - age)]
        if isinstance(shown, dict)
        else shown
    )
    lines = screen(
        feeds,
        moments,
        view or View(),
        now=NOW,
        place=Place(width=width, height=height, keys=height is not None),
        pen=Pen(glyphs=glyphs),
    )
    return [line.plain for line in lines]
