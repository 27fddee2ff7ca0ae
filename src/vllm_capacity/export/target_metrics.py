"""Metrics of one target and of the exporter itself."""

import platform
from collections.abc import Callable

from vllm_capacity import __version__
from vllm_capacity.compare.fleet import FAILURE_REASONS, SourceHealth, TargetAssessment
from vllm_capacity.export.metric import PREFIX, Metric, Values, of_target, of_target_by
from vllm_capacity.predict import MemoryBudget, Prediction


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


def _term_info(target: TargetAssessment) -> Values:
    prediction = target.prediction.prediction
    if prediction is None or prediction.budget is None:
        return {}
    return dict.fromkeys(prediction.budget.origins.items(), 1.0)


BUDGET = (
    of_target(
        "predicted_kv_cache_bytes_per_token",
        "KV cache bytes that one token takes on each GPU.",
        "predicted: config.json and engine arguments",
        _predicted(lambda p: max(p.bytes_per_token) if p.bytes_per_token else None),
    ),
    of_target(
        "predicted_weights_bytes",
        "Bytes of the model's weights on the fullest GPU.",
        "predicted: config.json and engine arguments",
        _predicted(lambda p: max(p.weights_bytes) if p.weights_bytes else None),
    ),
    of_target(
        "predicted_activation_peak_bytes",
        "Peak of the profiling run's activations, an estimate.",
        "the start-up log, else predicted: config.json and engine arguments",
        _budgeted(lambda b: b.activation_peak_bytes),
    ),
    of_target(
        "predicted_non_torch_bytes",
        "Memory outside PyTorch's allocator, an estimate.",
        "the start-up log, else estimated from start-ups measured on H100",
        _budgeted(lambda b: b.non_torch_bytes),
    ),
    of_target(
        "predicted_cuda_graph_bytes",
        "Memory of captured CUDA graphs, an estimate.",
        "the start-up log, else estimated from start-ups measured on H100",
        _budgeted(lambda b: b.cuda_graph_bytes),
    ),
    of_target(
        "predicted_requested_bytes",
        "GPU memory times gpu_memory_utilization: what vLLM may take.",
        "predicted: the GPU's memory and gpu_memory_utilization",
        _budgeted(lambda b: b.requested_bytes),
    ),
    Metric(
        PREFIX + "prediction_term_info",
        "How each predicted memory term was obtained: derived, estimated or measured; 1.",
        "the prediction itself",
        ("term", "origin"),
        "target",
        _term_info,
    ),
    Metric(
        PREFIX + "prediction_supported",
        "1 if predicted and measured capacity can be compared, 0 if not, with the reason.",
        "the prediction itself",
        ("reason",),
        "target",
        lambda t: {(t.prediction.reason,): float(t.prediction.supported)},
    ),
    Metric(
        PREFIX + "prediction_info",
        "What the prediction was made for; the value is 1.",
        "the prediction itself",
        ("calculator_version", "architecture", "kv_dtype", "tensor_parallel_size"),
        "target",
        _prediction_info,
    ),
)


def _health(
    read: Callable[[SourceHealth], float | None],
) -> Callable[[TargetAssessment], dict[str, float | None]]:
    return lambda t: {source: read(health) for source, health in t.health.items()}


SOURCES = (
    of_target_by(
        "source_up",
        "1 if the last collection from the source worked, 0 if it failed.",
        "this exporter's collections",
        "source",
        _health(lambda h: None if h.up is None else float(h.up)),
    ),
    of_target_by(
        "last_success_timestamp_seconds",
        "Unix time of the last collection that worked.",
        "this exporter's collections",
        "source",
        _health(lambda h: h.last_success_timestamp_seconds),
    ),
    Metric(
        PREFIX + "collection_duration_seconds",
        "Time that a collection took.",
        "this exporter's collections",
        ("source",),
        "target",
        lambda t: {(source,): health for source, health in t.health.items()},
        "histogram",
    ),
    Metric(
        PREFIX + "collection_errors_total",
        "Collections that failed, by reason.",
        "this exporter's collections",
        ("source", "reason"),
        "target",
        lambda t: {
            (source, reason): float(health.failures.get(reason, 0))
            for source, health in t.health.items()
            for reason in sorted({*FAILURE_REASONS.get(source, ()), *health.failures})
        },
        "counter",
    ),
    of_target_by(
        "source_metric_present",
        "1 if the metric is on vLLM's page under any of its names, 0 if it is missing.",
        "vLLM's page",
        "metric",
        lambda t: {name: float(present) for name, present in t.metric_present.items()},
    ),
    of_target(
        "source_response_bytes",
        "Size of vLLM's last metrics page.",
        "vLLM's page",
        lambda t: t.response_bytes,
    ),
    Metric(
        PREFIX + "target_info",
        "What the target is; the value is 1.",
        "vLLM's /version, and the engines on its page",
        ("vllm_version", "engine_count"),
        "target",
        lambda t: {(t.vllm_version or "unknown", str(len(t.engines))): 1.0} if t.engines else {},
    ),
)

EXPORTER = (
    Metric(
        PREFIX + "build_info",
        "What is running; the value is 1.",
        "this exporter",
        ("version", "python_version", "revision"),
        "exporter",
        lambda own: {(__version__, platform.python_version(), own.revision): 1.0},
    ),
    Metric(
        PREFIX + "web_config_reload_success",
        (
            "1 if the web configuration file was read without fault the last time it changed, "
            "0 if what it said before still counts."
        ),
        "this exporter",
        (),
        "exporter",
        lambda own: {
            (): None if own.web_config_reloaded is None else float(own.web_config_reloaded)
        },
    ),
)
