"""What a metric is: one row of the catalogue."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.compare.fleet import TargetAssessment

PREFIX = "vllm_capacity_"

Kind = Literal["gauge", "counter", "histogram"]
Scope = Literal["engine", "target", "gpu", "gpu_memory", "exporter"]
Values = Mapping[tuple[str, ...], float | None]

SCOPE_LABELS: Mapping[Scope, tuple[str, ...]] = {
    "engine": ("model_name", "engine"),
    "target": (),
    "gpu": ("gpu", "gpu_uuid"),
    "gpu_memory": ("gpu", "gpu_uuid", "mig_uuid"),
    "exporter": (),
}


@dataclass(frozen=True, slots=True)
class ExporterState:
    """What the exporter says of itself.

    Attributes:
        revision: of the source that runs, or "unknown".
        web_config_reloaded: whether the web configuration was read well last; None: there is none.
    """

    revision: str
    web_config_reloaded: bool | None


@dataclass(frozen=True, slots=True)
class Metric:
    """One row: a family of series.

    Attributes:
        name: with the prefix; a counter's ends in ``_total``.
        help: what it means and in which unit.
        origin: where its number comes from, in a short phrase.
        labels: beside those of its scope.
        scope: what one series is about.
        read: values by label values, from an EngineAssessment, a TargetAssessment, a GpuReading
            or a GpuMemoryStack; of a histogram, the SourceHealth that holds its counts; of the
            exporter, its ExporterState.
        kind: Prometheus's type.
    """

    name: str
    help: str
    origin: str
    labels: tuple[str, ...]
    scope: Scope
    read: Callable[[Any], Mapping[tuple[str, ...], Any]]
    kind: Kind = "gauge"

    @property
    def all_labels(self) -> tuple[str, ...]:
        """Labels in the order of exposition, without ``target``."""
        return SCOPE_LABELS[self.scope] + self.labels


def of_engine(
    name: str,
    help_text: str,
    origin: str,
    read: Callable[[EngineAssessment], float | None],
) -> Metric:
    """A gauge with one series an engine."""
    return Metric(PREFIX + name, help_text, origin, (), "engine", lambda a: {(): read(a)})


def of_engine_by(
    name: str,
    help_text: str,
    origin: str,
    label: str,
    read: Callable[[EngineAssessment], Mapping[str, float | None]],
) -> Metric:
    """A gauge with one series an engine and value of a label."""
    return Metric(
        PREFIX + name,
        help_text,
        origin,
        (label,),
        "engine",
        lambda a: {(value,): number for value, number in read(a).items()},
    )


def of_target(
    name: str, help_text: str, origin: str, read: Callable[[TargetAssessment], float | None]
) -> Metric:
    """A gauge with one series a target."""
    return Metric(PREFIX + name, help_text, origin, (), "target", lambda t: {(): read(t)})


def of_target_by(
    name: str,
    help_text: str,
    origin: str,
    label: str,
    read: Callable[[TargetAssessment], Mapping[str, float | None]],
) -> Metric:
    """A gauge with one series a target and value of a label."""
    return Metric(
        PREFIX + name,
        help_text,
        origin,
        (label,),
        "target",
        lambda t: {(value,): number for value, number in read(t).items()},
    )
