"""An engine's state and what binds it as numbers with words, and the alerts that fire."""

from __future__ import annotations

from grafana import Json, Panel, Query, link, override, table, value_texts
from queries import ALERT_MATCHERS, DOCS, series

# From docs/live.md; the worse, the larger.
STATES = {
    "idle": "gray",
    "ok": "green",
    "tight": "yellow",
    "saturated": "orange",
    "thrashing": "red",
}
_WHOSE = ("model_name", "engine", "target", "instance")
_UNKNOWN = "unknown"
LIMITS = {
    "none": ("nothing", "green"),
    "deferred": ("something else (deferred)", "blue"),
    "batched_tokens": ("max_num_batched_tokens", "purple"),
    "sequences": ("max_num_seqs", "yellow"),
    "kv_cache": ("KV cache", "red"),
}
_FIRST_LIMIT = 10
STATE_TEXTS = {
    **{str(i): (name, color) for i, (name, color) in enumerate(STATES.items())},
    "-1": (_UNKNOWN, "gray"),
}
LIMIT_TEXTS = {str(_FIRST_LIMIT + i): shown for i, shown in enumerate(LIMITS.values())}


def _coded(metric: str, label: str, codes: dict[str, int], matchers: str) -> str:
    chosen = " or ".join(
        series(matchers, metric, f'{label}="{value}"') + f" * {code}"
        for value, code in codes.items()
    )
    # Each series is its code or 0, and one of them is 1: the sum is the code.
    return f"sum without ({label}) ({chosen})"


def state_code(matchers: str) -> str:
    """The state of each engine as a number of STATE_TEXTS."""
    codes = {name: i for i, name in enumerate(STATES)} | {_UNKNOWN: -1}
    return _coded("state", "state", codes, matchers)


def limit_code(matchers: str) -> str:
    """What stops the next request, as a number of LIMIT_TEXTS."""
    codes = {name: _FIRST_LIMIT + i for i, name in enumerate(LIMITS)}
    return _coded("binding_limit", "limit", codes, matchers)


def mappings(*texts: dict[str, tuple[str, str]]) -> list[Json]:
    """The words for such numbers."""
    return value_texts({value: shown for part in texts for value, shown in part.items()})


def alerts(*, width: int, height: int, of_one: bool = False) -> Panel:
    """What fires, since when, and where it says what to do; ``of_one`` engine: not whose it is."""
    hidden = ["Time", "__name__", "job", *(_WHOSE if of_one else ())]
    firing = f'ALERTS{{{ALERT_MATCHERS},alertstate="firing"}}'
    return table(
        "Alerts that fire: follow one to what to do",
        Query(
            expr=f"sort_desc(time() - ALERTS_FOR_STATE{{{ALERT_MATCHERS}}} "
            f"and ignoring (alertstate) {firing})",
            instant=True,
        ),
        description="Alerts of this project that fire now, the longest first. The name leads to "
        "its section of the runbook: what it means, what to look at, what to do. "
        "'Holds for' is how long its condition has been met. Needs a ruler that records ALERTS, "
        "as Prometheus does.",
        unit="none",
        no_data="no data: no alert of vllm-capacity fires",
        width=width,
        height=height,
        overrides=(
            override("byName", "holds for", unit="s", decimals=0, custom__width=90),
            override(
                "byName",
                "alert",
                custom__width=240,
                links=[link("What to do", f"{DOCS}/alerts.md#${{__value.raw}}")],
            ),
            override(
                "byName",
                "severity",
                custom__width=90,
                custom__cellOptions={"type": "color-background", "mode": "basic"},
                mappings=value_texts(
                    {
                        "page": ("page", "red"),
                        "ticket": ("ticket", "orange"),
                        "info": ("info", "blue"),
                    }
                ),
            ),
        ),
        transformations=(
            {
                "id": "organize",
                "options": {
                    "excludeByName": dict.fromkeys(hidden, True),
                    "indexByName": {
                        name: i
                        for i, name in enumerate(("severity", "alertname", "Value", *_WHOSE))
                    },
                    "renameByName": {"alertname": "alert", "Value": "holds for"},
                },
            },
        ),
    )
