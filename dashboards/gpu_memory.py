"""The dashboard "GPU memory": who holds it, and what was predicted to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boards import board, engine_variables
from memory_panels import GPU

if TYPE_CHECKING:
    from grafana import Json


def dashboard() -> Json:
    """The whole dashboard."""
    return board(
        "GPU memory",
        "Who holds the GPU, and what was predicted to.",
        engine_variables(),
        (("GPU memory", GPU),),
        hours=6,
    )
