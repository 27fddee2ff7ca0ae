"""The dashboard "prediction accuracy": is it as it ought to be, and can that be told?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from boards import board, engine_variables
from grafana import override
from memory_panels import CAPACITY
from prediction_panels import ASSUMED, LIVE, NOW

if TYPE_CHECKING:
    from grafana import Json

_WIDTHS = (("engine", 65), ("instance", 150), ("model_name", 160), ("target", 100))
# Many columns, and many legends.
_TABLE, _ERRORS = (replace(panel, width=24) for panel in CAPACITY)
_WIDE = (
    replace(
        _TABLE,
        height=10,
        overrides=(
            *_TABLE.overrides,
            *(override("byName", name, custom__width=width) for name, width in _WIDTHS),
        ),
    ),
    replace(
        _ERRORS,
        default={
            **_ERRORS.default,
            # Room for both lines of the threshold.
            "custom": {**_ERRORS.default["custom"], "axisSoftMin": -0.15, "axisSoftMax": 0.15},
        },
    ),
)


def dashboard() -> Json:
    """The whole dashboard."""
    return board(
        "prediction accuracy",
        "Predicted and measured: capacity since the start, blocks in use from moment to moment.",
        engine_variables(),
        (
            ("Now", NOW),
            ("Capacity: changes only when an engine restarts", _WIDE),
            ("Blocks in use: from moment to moment", LIVE),
            ("What the prediction rests on", ASSUMED),
        ),
        hours=6,
    )
