"""One target of the status document: what was predicted and told of it, and how watching goes."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from vllm_capacity.compare.capacity import planned
from vllm_capacity.compare.fleet import SourceHealth, TargetAssessment
from vllm_capacity.compare.gpu_occupants import tightest_terms
from vllm_capacity.compare.memory_terms import COMPARED, term_errors
from vllm_capacity.compare.started_with import EngineArgument
from vllm_capacity.predict import MemoryBudget, Prediction
from vllm_capacity.status.engine import engine_status
from vllm_capacity.status.values import values_of

_TERMS = (*COMPARED, "kv_cache")


def target_status(target: TargetAssessment) -> dict[str, Any]:
    """What is known of one target and its engines."""
    return {
        "target": target.target,
        "url": target.url,
        "vllm_version": target.vllm_version,
        "values": values_of("target", target),
        "prediction": _prediction(target),
        "memory_terms": list(_memory_terms(target)),
        "arguments": [_argument(each) for each in target.started_with.arguments()],
        "sources": [_source(name, health) for name, health in target.health.items()],
        "missing_metrics": [name for name, there in target.metric_present.items() if not there],
        "engines": [engine_status(engine, target.prediction) for engine in target.engines],
    }


def _prediction(target: TargetAssessment) -> Mapping[str, Any]:
    status = target.prediction
    resolved = None if status.prediction is None else status.prediction.resolved
    return {
        "supported": status.supported,
        "reason": status.reason,
        "message": status.message,
        "architecture": None if resolved is None else resolved.architecture,
        "kv_cache_dtype": None if resolved is None else resolved.kv_cache_dtype,
        "tensor_parallel_size": None if resolved is None else resolved.tensor_parallel_size,
    }


def _memory_terms(target: TargetAssessment) -> Iterable[Mapping[str, Any]]:
    """Each term as predicted without the log, and as the log says; one that neither tells is out.

    Of the rank that decides how many blocks there are.
    """
    unaided = target.prediction.unaided
    estimates = {} if unaided is None else _estimates(unaided)
    measured, predicted = tightest_terms(target)
    if _is_set_by_hand(unaided):  # the log tells what was left, which is then not the cache's size
        measured = replace(measured, kv_cache_bytes=None)
    should, was = predicted.by_component(), measured.by_component()
    errors = term_errors(measured, predicted, _TERMS)
    for term in _TERMS:
        if term in should or term in was:
            error = errors.get(term)
            yield {
                "term": term,
                "predicted_bytes": should.get(term),
                "origin": None,
                **(estimates.get(term, {}) if term in should else {}),
                "reported_bytes": was.get(term),
                "error_ratio": None if error is None else error.ratio,
            }


def _is_set_by_hand(prediction: Prediction | None) -> bool:
    plan = planned(prediction)
    return plan is not None and plan.origin == "num_gpu_blocks_override"


def _estimates(prediction: Prediction) -> Mapping[str, Mapping[str, Any]]:
    """By term, its bounds and how it was obtained; the cache has bounds where the rest decides."""
    budget, plan = prediction.budget, planned(prediction)
    if budget is None:
        return {}
    found: dict[str, Mapping[str, Any]] = {
        term: {**_bounds(budget, term), "origin": origin} for term, origin in budget.origins.items()
    }
    if plan is not None:
        is_the_rest = plan.origin == "predicted budget"
        bounds = _bounds(budget, "kv_cache") if is_the_rest else {}
        found["kv_cache"] = {**bounds, "origin": plan.origin}
    return found


def _bounds(budget: MemoryBudget, term: str) -> Mapping[str, int]:
    return {
        f"predicted_{end}_bytes": max(0, getattr(budget, f"{term}_bytes_{end}"))
        for end in ("low", "high")
    }


def _argument(argument: EngineArgument) -> Mapping[str, Any]:
    believed, *others = argument.told
    denied = {other.source: other.value for other in others if not other.agrees}
    return {
        "argument": argument.name,
        "value": believed.value,
        "source": believed.source,
        **({"denied_by": denied} if denied else {}),
    }


def _source(name: str, health: SourceHealth) -> Mapping[str, Any]:
    return {
        "source": name,
        "up": health.up,
        "last_success_timestamp_seconds": health.last_success_timestamp_seconds,
        "last_error": health.last_error,
        "last_reason": health.last_reason,
        "failed_collections": sum(health.failures.values()),
    }
