"""The catalogue's rows over the latest published value → Prometheus families."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import structlog
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from vllm_capacity.compare.fleet import DURATION_BOUNDS_SECONDS, FleetAssessment, SourceHealth
from vllm_capacity.export.catalogue import CATALOGUE
from vllm_capacity.export.metric import ExporterState, Metric

log = structlog.get_logger()

_FAMILIES = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
}
Subjects = Sequence[tuple[tuple[str, ...], object]]


class CapacityCollector(Collector):
    """Reads the value that was published last; never waits and never fetches.

    Args:
        published: gives that value.
        revision: of the source that runs, or "unknown".
        web_config_reloaded: whether the web configuration was read well last; None: there is none.
        with_target: whether series carry a ``target`` label: where several are watched.
    """

    def __init__(
        self,
        published: Callable[[], FleetAssessment],
        *,
        with_target: bool,
        revision: str = "unknown",
        web_config_reloaded: Callable[[], bool | None] = lambda: None,
    ) -> None:
        self._published = published
        self._revision, self._web_config_reloaded = revision, web_config_reloaded
        self._broken: set[str] = set()
        self._target_label = ("target",) if with_target else ()

    def describe(self) -> Iterable[Family]:
        """Every family, without series, so that ``name[]`` filters work."""
        return [self._family(metric) for metric in CATALOGUE]

    def collect(self) -> Iterator[Family]:
        """Every family with the series that are known now."""
        subjects = self._subjects(self._published())
        for metric in CATALOGUE:
            family = self._family(metric)
            for labels, subject in subjects[metric.scope]:
                self._add(family, metric, labels, subject)
            yield family

    def _add(
        self, family: Family, metric: Metric, labels: tuple[str, ...], subject: object
    ) -> None:
        """Add one subject's series; a row that breaks is left out and said once."""
        try:
            _add(family, metric, labels, subject)
        except Exception:
            if metric.name not in self._broken:
                self._broken.add(metric.name)
                log.exception("a metric cannot be read, please report it", metric=metric.name)

    def _family(self, metric: Metric) -> Family:
        own = self._target_label if metric.scope in {"engine", "target"} else ()
        labels = (*own, *metric.all_labels)
        family: Family = _FAMILIES[metric.kind](metric.name, metric.help, labels=labels)
        return family

    def _subjects(self, fleet: FleetAssessment) -> dict[str, Subjects]:
        targets, engines = [], []
        for target in fleet.targets:
            name = (target.target,) if self._target_label else ()
            targets.append((name, target))
            engines += [
                ((*name, a.snapshot.model_name or "", a.snapshot.engine), a) for a in target.engines
            ]
        gpus = [((str(gpu.index), gpu.uuid), gpu) for gpu in fleet.gpus]
        return {
            "target": targets,
            "engine": engines,
            "gpu": gpus,
            "gpu_memory": [
                ((str(one.gpu), one.gpu_uuid, one.mig_uuid or ""), one) for one in fleet.gpu_memory
            ],
            "exporter": [((), ExporterState(self._revision, self._web_config_reloaded()))],
        }


def _add(family: Family, metric: Metric, labels: tuple[str, ...], subject: object) -> None:
    for more, value in metric.read(subject).items():
        if value is None:
            continue
        if isinstance(family, HistogramMetricFamily):
            _add_durations(family, (*labels, *more), value)
        else:
            family.add_metric((*labels, *more), value)  # type: ignore[attr-defined]


def _add_durations(
    family: HistogramMetricFamily, labels: tuple[str, ...], health: SourceHealth
) -> None:
    buckets, cumulated = [], 0
    for bound, count in zip(DURATION_BOUNDS_SECONDS, health.duration_counts, strict=True):
        cumulated += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), float(cumulated)))
    family.add_metric(labels, buckets, health.duration_sum_seconds)
