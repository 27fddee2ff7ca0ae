"""What a page says of the Python process that wrote it."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_START_TIME = "process_start_time_seconds"


def register_process(registry: CollectorRegistry, started_at: float | None) -> None:
    """Add the families of the Python client library.

    Args:
        registry: where to.
        started_at: Unix time at which the server claims to have started; None tells the truth.
    """
    GCCollector(registry)
    PlatformCollector(registry)
    registry.register(_Process(started_at))


class _Process(Collector):
    def __init__(self, started_at: float | None) -> None:
        self._started_at = started_at
        self._measured = ProcessCollector(registry=None)

    def collect(self) -> Iterator[Metric]:
        for family in self._measured.collect():
            if self._started_at is not None and family.name == _START_TIME:
                family.samples = [
                    sample._replace(value=self._started_at) for sample in family.samples
                ]
            yield family
