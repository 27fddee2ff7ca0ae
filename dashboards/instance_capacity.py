"""The dashboard "instance": one engine, closely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boards import board, engine_variables
from load_panels import DEMAND, LEDGER, NOW, REQUESTS, SINCE, WORKLOAD
from state_panels import alerts

if TYPE_CHECKING:
    from grafana import Json


def dashboard() -> Json:
    """The whole dashboard."""
    return board(
        "instance",
        "One engine: what is wrong, how badly, since when, what to do, and how many more "
        "requests fit.",
        engine_variables(one=True),
        (
            ("Now", NOW),
            ("What to do, since when", (alerts(width=11, height=7, of_one=True), *SINCE)),
            ("Demand and capacity", DEMAND),
            ("Requests", REQUESTS),
            ("Workload", WORKLOAD),
            ("Is it as it ought to be: more on the board prediction accuracy", LEDGER),
        ),
    )
