"""What is published: every target, its engines and the health of every source, as one value."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.compare.gpu_attribution import GpuAttribution
from vllm_capacity.compare.gpu_memory import GpuMemoryStack
from vllm_capacity.compare.started_with import StartedWith
from vllm_capacity.observe.gpu_reading import GpuReading
from vllm_capacity.observe.measured_memory import MeasuredMemory
from vllm_capacity.predict import Deployment, Prediction
from vllm_capacity.units import Bytes

DURATION_BOUNDS_SECONDS = (0.01, 0.05, 0.25, 1.0, 5.0, float("inf"))
FAILURE_REASONS = {
    "vllm": ("timeout", "connect", "http", "parse", "too_large", "invalid", "internal"),
    "nvml": ("nvml", "timeout", "absent", "internal"),
    "config": ("absent", "invalid", "internal"),
    "log": ("absent", "invalid", "internal"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceHealth:
    """How the watching itself went, for one source.

    Attributes:
        up: whether the last collection worked; None before the first.
        last_success_timestamp_seconds: Unix time of the last that did.
        last_error: why the last one failed, in one line; None if it did not.
        last_reason: the same as a label value.
        failures: failed collections by reason.
        duration_counts: collections by upper bound of ``DURATION_BOUNDS_SECONDS``, not cumulated.
        duration_sum_seconds: time spent collecting.
    """

    up: bool | None = None
    last_success_timestamp_seconds: float | None = None
    last_error: str | None = None
    last_reason: str | None = None
    failures: Mapping[str, int] = field(default_factory=dict)
    duration_counts: tuple[int, ...] = (0,) * len(DURATION_BOUNDS_SECONDS)
    duration_sum_seconds: float = 0.0

    def succeeded(self, *, at: float, seconds: float) -> "SourceHealth":
        """This health after one more collection that worked, ``at`` Unix time."""
        return replace(
            self._timed(seconds),
            up=True,
            last_success_timestamp_seconds=at,
            last_error=None,
            last_reason=None,
        )

    def failed(self, *, reason: str, message: str, seconds: float) -> "SourceHealth":
        """This health after one more collection that failed."""
        failures = {**self.failures, reason: self.failures.get(reason, 0) + 1}
        return replace(
            self._timed(seconds),
            up=False,
            last_error=message,
            last_reason=reason,
            failures=failures,
        )

    def _timed(self, seconds: float) -> "SourceHealth":
        counts = list(self.duration_counts)
        counts[next(i for i, bound in enumerate(DURATION_BOUNDS_SECONDS) if seconds <= bound)] += 1
        return replace(
            self,
            duration_counts=tuple(counts),
            duration_sum_seconds=self.duration_sum_seconds + seconds,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionStatus:
    """Whether there is a prediction to compare with, and if not why.

    Attributes:
        prediction: the prediction, None without one.
        reason: a label value: "ok", "override" (blocks were set by hand: nothing to predict in
            them), "no_config", "bad_config", "bad_arguments", "unsupported", "no_memory" (neither
            a GPU nor a cache size is known), "does_not_fit" (vLLM would refuse to start).
        message: the same in a sentence, with what to do.
        uncalibrated: the prediction that no start-up log went into, where one went into
            ``prediction``; a log's terms are graded by it alone.
        deployment: what ``prediction`` was made of, to be predicted again with other arguments;
            None where nothing could be described.
    """

    prediction: Prediction | None
    reason: str
    message: str
    uncalibrated: Prediction | None = None
    deployment: Deployment | None = None

    @property
    def unaided(self) -> Prediction | None:
        """The prediction that no measurement went into."""
        return self.prediction if self.uncalibrated is None else self.uncalibrated

    @property
    def supported(self) -> bool:
        """Whether predicted and measured capacity can be compared."""
        return self.reason in {"ok", "override"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetAssessment:
    """One vLLM server.

    Attributes:
        target: its name, host and port unless configured.
        url: where it is scraped, without credentials.
        engines: its engines; empty when it does not answer.
        prediction: what is predicted for each engine of it.
        vllm_version: as ``/version`` says.
        response_bytes: size of the last page.
        metric_present: by expected metric, whether it was on the last page; empty without a page.
        health: by source ("vllm", "config", "nvml"); a source that is switched off is not there.
        started_with: what each source tells of its arguments.
        measured: what its log says that its last start-up measured; None without one.
        gpus: of this host's GPUs and MIG instances, what is the target's; empty without NVML.
    """

    target: str
    url: str
    engines: tuple[EngineAssessment, ...] = ()
    prediction: PredictionStatus
    vllm_version: str | None = None
    response_bytes: Bytes | None = None
    metric_present: Mapping[str, bool] = field(default_factory=dict)
    health: Mapping[str, SourceHealth] = field(default_factory=dict)
    started_with: StartedWith = field(default_factory=StartedWith)
    measured: MeasuredMemory | None = None
    gpus: tuple[GpuAttribution, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetAssessment:
    """Everything that is exported, at one moment.

    Attributes:
        targets: in the order in which they were configured.
        gpus: what NVML says of this host's GPUs; empty where it says nothing.
        gpu_memory: where their memory goes; one a GPU or MIG instance.
    """

    targets: tuple[TargetAssessment, ...]
    gpus: tuple[GpuReading, ...] = ()
    gpu_memory: tuple[GpuMemoryStack, ...] = ()
