"""What each number means and where it comes from, for whoever shows it."""

from typing import Any

from vllm_capacity.export.catalogue import CATALOGUE
from vllm_capacity.status.values import key_of


def descriptions() -> dict[str, dict[str, Any]]:
    """Every row of the catalogue by its key: help, metric, own labels and origin."""
    return {
        key_of(metric): {
            "help": metric.help,
            "metric": metric.name,
            "labels": metric.labels,
            "origin": metric.origin,
        }
        for metric in CATALOGUE
    }
