"""The dashboard "exporter health": does the watching work?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from boards import board, source_variables
from health_panels import COLLECTIONS, COST, NOW, SEEN

if TYPE_CHECKING:
    from grafana import Json


def dashboard() -> Json:
    """The whole dashboard."""
    return board(
        "exporter health",
        "Whether every source is up, fresh and quick, and what the watching costs.",
        source_variables(),
        (
            ("Now", NOW),
            ("Collections", COLLECTIONS),
            ("What is seen", SEEN),
            ("What it costs", COST),
        ),
        hours=6,
    )
