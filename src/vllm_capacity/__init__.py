"""Prometheus exporter and live capacity monitor for vLLM."""

from importlib.metadata import version

__version__ = version("vllm-capacity")
