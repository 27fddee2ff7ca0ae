"""Prometheus exporter and live capacity monitor for vLLM."""

from typing import Any


def __getattr__(name: str) -> Any:
    """``__version__``, read when it is asked for: the metadata of packages is slow to open."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version  # noqa: PLC0415

    return version("vllm-capacity")
