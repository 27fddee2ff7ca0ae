"""Every metric exported: its name, help, labels, and how it is read off an assessment.

Collector, documentation, dashboards and alert tests all read this table.
A reading that is None leaves its series out: unknown is absent, never 0.
"""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vllm_capacity import __version__
from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.compare.fleet import FAILURE_REASONS, SourceHealth, TargetAssessment
from vllm_capacity.observe.gpu_reading import GpuReading
from vllm_capacity.observe.token_ledger import LEDGER_STATES
from vllm_capacity.predict import MemoryBudget, Prediction

PREFIX = "vllm_capacity_"

Kind = Literal["gauge", "counter", "histogram"]
Scope = Literal["engine", "target", "gpu", "exporter"]
Values = Mapping[tuple[str, ...], float | None]

SCOPE_LABELS: Mapping[Scope, tuple[str, ...]] = {
    "engine": ("model_name", "engine"),
    "target": (),
    "gpu": ("gpu", "gpu_uuid"),
    "exporter": (),
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One row: a family of series.

    Attributes:
        name: with the prefix; a counter's ends in ``_total``.
        help: what it means and in which unit.
        labels: beside those of its scope.
        scope: what one series is about.
        read: values by label values, from an EngineAssessment, a TargetAssessment or a GpuReading;
            of a histogram, the SourceHealth that holds its counts; of the exporter, its revision.
        kind: Prometheus's type.
    """

    name: str
    help: str
    labels: tuple[str, ...]
    scope: Scope
    read: Callable[[Any], Mapping[tuple[str, ...], Any]]
    kind: Kind = "gauge"

    @property
    def all_labels(self) -> tuple[str, ...]:
        """Labels in the order of exposition, without ``target``."""
        return SCOPE_LABELS[self.scope] + self.labels


def _engine(
    name: str,
    help_text: str,
    read: Callable[[EngineAssessment], float | None],
) -> Metric:
    return Metric(PREFIX + name, help_text, (), "engine", lambda a: {(): read(a)})


def _engine_by(
    name: str,
    help_text: str,
    label: str,
    read: Callable[[EngineAssessment], Mapping[str, float | None]],
) -> Metric:
    return Metric(
        PREFIX + name,
        help_text,
        (label,),
        "engine",
        lambda a: {(value,): number for value, number in read(a).items()},
    )


def _target(name: str, help_text: str, read: Callable[[TargetAssessment], float | None]) -> Metric:
    return Metric(PREFIX + name, help_text, (), "target", lambda t: {(): read(t)})


def _target_by(
    name: str,
    help_text: str,
    label: str,
    read: Callable[[TargetAssessment], Mapping[str, float | None]],
) -> Metric:
    return Metric(
        PREFIX + name,
        help_text,
        (label,),
        "target",
        lambda t: {(value,): number for value, number in read(t).items()},
    )


def _error(a: EngineAssessment, unit_quantities: tuple[str, ...]) -> dict[str, float | None]:
    return {q: a.errors[q].difference for q in unit_quantities if q in a.errors}


def _limit(a: EngineAssessment, name: str, value: int | None) -> dict[str, float | None]:
    return {} if value is None else {a.limits.origins.get(name, "flag"): value}


CAPACITY = (
    _engine(
        "kv_cache_blocks",
        "KV cache blocks that requests can hold; vLLM's null block is not counted.",
        lambda a: a.reported.blocks,
    ),
    _engine(
        "kv_cache_block_size_tokens",
        "Tokens a block.",
        lambda a: a.snapshot.block_size_tokens,
    ),
    _engine_by(
        "kv_cache_capacity_tokens",
        "KV cache capacity in tokens, aware of layer groups; reported by vLLM (0.25 and newer) "
        "or derived from its blocks.",
        "source",
        lambda a: {"reported": a.reported.tokens, "derived": a.derived.tokens},
    ),
    _engine_by(
        "kv_cache_capacity_bytes",
        "Bytes of the KV cache on the fullest GPU, derived from reported blocks and the "
        "model's bytes per block.",
        "source",
        lambda a: {"derived": a.derived.bytes_per_gpu},
    ),
    _engine_by(
        "full_length_concurrency",
        "Requests of max_model_len tokens that fit into the KV cache; reported by vLLM (0.25 and "
        "newer) or derived from its blocks.",
        "source",
        lambda a: {
            "reported": a.reported.full_length_concurrency,
            "derived": a.derived.full_length_concurrency,
        },
    ),
    _engine(
        "reported_inconsistency_tokens",
        "Blocks times block size less vLLM's own capacity in tokens; large for hybrid caches, "
        "where blocks times block size misleads.",
        lambda a: (
            a.snapshot.num_gpu_blocks * a.snapshot.block_size_tokens - a.reported.tokens
            if a.snapshot.num_gpu_blocks is not None
            and a.snapshot.block_size_tokens is not None
            and a.reported.tokens is not None
            else None
        ),
    ),
    _engine_by(
        "max_model_len_tokens",
        "Longest request in tokens, by where the value came from.",
        "source",
        lambda a: _limit(a, "max_model_len", a.limits.max_model_len),
    ),
    _engine_by(
        "max_sequences",
        "Most requests in one batch (max_num_seqs), by where the value came from.",
        "source",
        lambda a: _limit(a, "max_num_seqs", a.limits.max_num_seqs),
    ),
    _engine_by(
        "max_batched_tokens",
        "Most tokens in one step (max_num_batched_tokens), by where the value came from.",
        "source",
        lambda a: _limit(a, "max_num_batched_tokens", a.limits.max_num_batched_tokens),
    ),
)


OCCUPANCY = (
    _engine(
        "kv_cache_used_blocks",
        "KV cache blocks held by requests.",
        lambda a: a.snapshot.used_blocks,
    ),
    _engine(
        "kv_cache_free_blocks",
        "KV cache blocks that a request can take, cached ones that nobody holds included.",
        lambda a: a.snapshot.free_blocks,
    ),
    _engine(
        "kv_cache_used_tokens", "Held blocks in tokens, whole blocks.", lambda a: a.used_tokens
    ),
    _engine(
        "kv_cache_free_tokens", "Free blocks in tokens, whole blocks.", lambda a: a.free_tokens
    ),
    _engine(
        "kv_cache_used_bytes",
        "Held blocks in bytes on the fullest GPU; needs the model's config.json.",
        lambda a: (
            a.derived.bytes_per_gpu * a.snapshot.used_blocks / a.snapshot.num_gpu_blocks
            if a.derived.bytes_per_gpu is not None
            and a.snapshot.used_blocks is not None
            and a.snapshot.num_gpu_blocks
            else None
        ),
    ),
    _engine(
        "kv_cache_usage_ratio",
        "Share of the KV cache in use at the last collection, 0 to 1.",
        lambda a: a.snapshot.kv_cache_usage_ratio,
    ),
    _engine_by(
        "kv_cache_usage_peak_ratio",
        "Largest share of the KV cache in use at any collection within the window, 0 to 1.",
        "window",
        lambda a: dict(a.recent.usage_peak_ratio),
    ),
    _engine(
        "running_requests",
        "Requests in the batch at the last collection.",
        lambda a: a.snapshot.running,
    ),
    _engine_by(
        "waiting_requests",
        "Requests queued at the last collection, by reason; unknown before vLLM 0.21.",
        "reason",
        lambda a: (
            dict(a.snapshot.waiting_by_reason)
            if a.snapshot.waiting_by_reason
            else {"unknown": a.snapshot.waiting}
        ),
    ),
    _engine_by(
        "preempted_requests_ratio",
        "Preemptions for each request that got its first token within the window.",
        "window",
        lambda a: {"5m": a.recent.preempted_requests_ratio},
    ),
)

HEADROOM = (
    _engine(
        "headroom_blocks",
        "Free blocks less those that queued requests will take; negative when the queue wants "
        "more than is free.",
        lambda a: a.headroom.blocks,
    ),
    _engine(
        "headroom_tokens",
        "Free tokens less those that queued requests will take.",
        lambda a: a.headroom.tokens,
    ),
    _engine_by(
        "headroom_requests",
        "Additional requests before the KV cache or the sequence limit binds, for requests of "
        "the observed mean or 95th percentile size, or of full length.",
        "basis",
        lambda a: dict(a.headroom.requests),
    ),
    _engine_by(
        "running_requests_limit",
        "Requests of that size that can run at once: by KV cache and by max_num_seqs.",
        "basis",
        lambda a: dict(a.headroom.running_requests_limit),
    ),
    _engine(
        "queued_demand_tokens",
        "Tokens that the waiting requests are expected to need.",
        lambda a: a.headroom.queued_demand_tokens,
    ),
    _engine_by(
        "request_footprint_tokens",
        "Prompt and output tokens of lately finished requests; p95 is an upper bound.",
        "basis",
        lambda a: (
            {}
            if a.footprint is None
            else {"mean": a.footprint.mean_tokens, "p95": a.footprint.p95_tokens}
        ),
    ),
)

LEDGER = (
    _engine(
        "in_flight_tokens",
        "Prompt and generated tokens of the requests past their first token, from counters alone.",
        lambda a: a.ledger.in_flight_tokens,
    ),
    _engine(
        "predicted_kv_cache_used_blocks",
        "Blocks that ought to be in use, from the tokens in flight; never from the used blocks.",
        lambda a: a.predicted_used_blocks,
    ),
    _engine_by(
        "predicted_kv_cache_used_blocks_bound",
        "Bounds (low, high) that should hold the used blocks at 95 of 100 collections.",
        "bound",
        lambda a: {} if a.occupancy is None else {"low": a.occupancy.low, "high": a.occupancy.high},
    ),
    _engine_by(
        "ledger_state",
        "1 for the state of the token ledger: anchored, drifting (who hung up or was preempted is "
        "inferred), unknown.",
        "state",
        lambda a: {state: float(state == a.ledger.state) for state in LEDGER_STATES},
    ),
)

PREDICTION = (
    _engine(
        "predicted_kv_cache_blocks",
        "KV cache blocks that ought to exist, the null block not counted, from config.json, "
        "engine arguments and GPU.",
        lambda a: a.predicted.blocks,
    ),
    _engine(
        "predicted_kv_cache_capacity_tokens",
        "KV cache capacity in tokens that ought to exist, as vLLM counts it.",
        lambda a: a.predicted.tokens,
    ),
    _engine(
        "predicted_kv_cache_capacity_bytes",
        "Bytes that the KV cache ought to take on the fullest GPU.",
        lambda a: a.predicted.bytes_per_gpu,
    ),
    _engine(
        "predicted_full_length_concurrency",
        "Requests of max_model_len tokens that ought to fit.",
        lambda a: a.predicted.full_length_concurrency,
    ),
    _engine_by(
        "prediction_error_ratio",
        "(measured - predicted) / measured, signed.",
        "quantity",
        lambda a: {quantity: error.ratio for quantity, error in a.errors.items()},
    ),
    _engine_by(
        "prediction_error_blocks",
        "measured - predicted, in blocks.",
        "quantity",
        lambda a: _error(a, ("kv_cache_blocks", "kv_cache_used_blocks")),
    ),
    _engine_by(
        "prediction_error_tokens",
        "measured - predicted, in tokens.",
        "quantity",
        lambda a: _error(a, ("kv_cache_tokens",)),
    ),
    Metric(
        PREFIX + "engine_restarts_total",
        "Restarts of the engine that this exporter saw.",
        (),
        "engine",
        lambda a: {(): float(a.restarts)},
        "counter",
    ),
)


def _predicted(
    read: Callable[[Prediction], float | None],
) -> Callable[[TargetAssessment], float | None]:
    def value(target: TargetAssessment) -> float | None:
        prediction = target.prediction.prediction
        return None if prediction is None else read(prediction)

    return value


def _budgeted(
    read: Callable[[MemoryBudget], float | None],
) -> Callable[[TargetAssessment], float | None]:
    return _predicted(lambda p: None if p.budget is None else read(p.budget))


def _prediction_info(target: TargetAssessment) -> Values:
    prediction = target.prediction.prediction
    if prediction is None or prediction.resolved is None:
        return {}
    resolved = prediction.resolved
    return {
        (
            __version__,
            resolved.architecture,
            resolved.kv_cache_dtype,
            str(resolved.tensor_parallel_size),
        ): 1.0
    }


BUDGET = (
    _target(
        "predicted_kv_cache_bytes_per_token",
        "KV cache bytes that one token takes on each GPU.",
        _predicted(lambda p: max(p.bytes_per_token) if p.bytes_per_token else None),
    ),
    _target(
        "predicted_weights_bytes",
        "Bytes of the model's weights on the fullest GPU.",
        _predicted(lambda p: max(p.weights_bytes) if p.weights_bytes else None),
    ),
    _target(
        "predicted_activation_peak_bytes",
        "Peak of the profiling run's activations, an estimate.",
        _budgeted(lambda b: b.activation_peak_bytes),
    ),
    _target(
        "predicted_non_torch_bytes",
        "Memory outside PyTorch's allocator, an estimate.",
        _budgeted(lambda b: b.non_torch_bytes),
    ),
    _target(
        "predicted_cuda_graph_bytes",
        "Memory of captured CUDA graphs, an estimate.",
        _budgeted(lambda b: b.cuda_graph_bytes),
    ),
    _target(
        "predicted_requested_bytes",
        "GPU memory times gpu_memory_utilization: what vLLM may take.",
        _budgeted(lambda b: b.requested_bytes),
    ),
    Metric(
        PREFIX + "prediction_supported",
        "1 if predicted and measured capacity can be compared, 0 if not, with the reason.",
        ("reason",),
        "target",
        lambda t: {(t.prediction.reason,): float(t.prediction.supported)},
    ),
    Metric(
        PREFIX + "prediction_info",
        "What the prediction was made for; the value is 1.",
        ("calculator_version", "architecture", "kv_dtype", "tensor_parallel_size"),
        "target",
        _prediction_info,
    ),
)


def _gpu(name: str, help_text: str, read: Callable[[GpuReading], float | None]) -> Metric:
    return Metric(PREFIX + name, help_text, (), "gpu", lambda gpu: {(): read(gpu)})


GPU = (
    _gpu("gpu_memory_total_bytes", "GPU memory, by NVML.", lambda g: g.total_bytes),
    _gpu("gpu_memory_used_bytes", "GPU memory in use by anyone, by NVML.", lambda g: g.used_bytes),
    _gpu("gpu_memory_free_bytes", "GPU memory free, by NVML.", lambda g: g.free_bytes),
    _gpu(
        "gpu_memory_reserved_bytes",
        "GPU memory that the driver keeps for itself, by NVML.",
        lambda g: g.reserved_bytes,
    ),
)


def _health(
    read: Callable[[SourceHealth], float | None],
) -> Callable[[TargetAssessment], dict[str, float | None]]:
    return lambda t: {source: read(health) for source, health in t.health.items()}


SOURCES = (
    _target_by(
        "source_up",
        "1 if the last collection from the source worked, 0 if it failed.",
        "source",
        _health(lambda h: None if h.up is None else float(h.up)),
    ),
    _target_by(
        "last_success_timestamp_seconds",
        "Unix time of the last collection that worked.",
        "source",
        _health(lambda h: h.last_success_timestamp_seconds),
    ),
    Metric(
        PREFIX + "collection_duration_seconds",
        "Time that a collection took.",
        ("source",),
        "target",
        lambda t: {(source,): health for source, health in t.health.items()},
        "histogram",
    ),
    Metric(
        PREFIX + "collection_errors_total",
        "Collections that failed, by reason.",
        ("source", "reason"),
        "target",
        lambda t: {
            (source, reason): float(health.failures.get(reason, 0))
            for source, health in t.health.items()
            for reason in sorted({*FAILURE_REASONS.get(source, ()), *health.failures})
        },
        "counter",
    ),
    _target_by(
        "source_metric_present",
        "1 if the metric is on vLLM's page under any of its names, 0 if it is missing.",
        "metric",
        lambda t: {name: float(present) for name, present in t.metric_present.items()},
    ),
    _target(
        "source_response_bytes", "Size of vLLM's last metrics page.", lambda t: t.response_bytes
    ),
    Metric(
        PREFIX + "target_info",
        "What the target is; the value is 1.",
        ("vllm_version", "engine_count"),
        "target",
        lambda t: {(t.vllm_version or "unknown", str(len(t.engines))): 1.0} if t.engines else {},
    ),
)

EXPORTER = (
    Metric(
        PREFIX + "build_info",
        "What is running; the value is 1.",
        ("version", "python_version", "revision"),
        "exporter",
        lambda revision: {(__version__, platform.python_version(), revision): 1.0},
    ),
)

CATALOGUE: tuple[Metric, ...] = (
    *CAPACITY,
    *OCCUPANCY,
    *HEADROOM,
    *LEDGER,
    *PREDICTION,
    *BUDGET,
    *GPU,
    *SOURCES,
    *EXPORTER,
)
