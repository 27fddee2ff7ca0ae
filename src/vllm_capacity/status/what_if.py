"""What other arguments would give a running engine, beside what is predicted for it today."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.compare.capacity import planned, predicted_capacity
from vllm_capacity.predict import Deployment, EngineArgs, Prediction, predict
from vllm_capacity.predict.answers import (
    Alternative,
    Workload,
    alternatives,
    full_length_capacity,
    workload_capacity,
)
from vllm_capacity.predict.command_line import flags_of
from vllm_capacity.status.question import Question

#: Arguments that an outcome shows, resolved.
SHOWN_ARGUMENTS = (
    *("kv_cache_dtype", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization"),
    *("max_model_len", "block_size", "tensor_parallel_size", "pipeline_parallel_size"),
    *("data_parallel_size", "enforce_eager", "dtype"),
)
_REFUSES = "vLLM refuses to start"
#: Why nothing is planned for a model that is described.
NO_SIZE = (
    "the cache's size is unknown: start vllm-capacity with --gpu or where NVML sees the GPU, "
    "or ask with kv_cache_memory_bytes"
)
_NUMBERS = ("blocks", "capacity_tokens", "full_length_concurrency", "headroom_requests")


@dataclass(frozen=True, kw_only=True, slots=True)
class Explored:
    """What took predicting to find out.

    Attributes:
        changes: of the arguments asked for, those that differ from today's.
        changed: the prediction with them; today's own where none does.
        alternatives: other changes of today's arguments that may help.
    """

    changes: EngineArgs
    changed: Prediction
    alternatives: tuple[Alternative, ...]


def explore(
    deployment: Deployment,
    today: Prediction,
    question: Question,
    *,
    known: Explored | None = None,
) -> Explored:
    """Predict what is asked.

    Args:
        deployment: as it runs.
        today: what is predicted for it.
        question: what is asked.
        known: an answer about the same deployment and workload, if there is one.
    """
    changes = changed_arguments(deployment.engine_args, today, question.arguments)
    changed = today
    if changes.given:
        args = changes.merged_over(deployment.engine_args)
        changed = predict(replace(deployment, engine_args=args))
    return Explored(
        changes=changes,
        changed=changed,
        alternatives=alternatives(deployment, question.workload)
        if known is None
        else known.alternatives,
    )


def changed_arguments(args: EngineArgs, today: Prediction, asked: EngineArgs) -> EngineArgs:
    """Of the arguments asked for, those that are neither given today nor what vLLM makes of it."""
    shown = _arguments(today)
    return EngineArgs(
        **{
            name: value
            for name, value in asked.given.items()
            if value not in (getattr(args, name), shown.get(name))
        }
    )


def answer(
    today: Prediction, explored: Explored, question: Question, engine: EngineAssessment | None
) -> dict[str, Any]:
    """The answer as JSON values; null is unknown.

    Args:
        today: what is predicted for the engine as it runs.
        explored: what else was predicted.
        question: what was asked.
        engine: as it is now; None where it is not seen.
    """
    workload = question.workload
    before = _outcome(today, workload)
    after = _outcome(explored.changed, workload)
    spoken_for = _spoken_for(engine, question, before)
    for outcome in (before, after):
        outcome["headroom_requests"] = _headroom(outcome, spoken_for)
    return {
        "workload": None
        if workload is None
        else {**_known(asdict(workload)), "origin": question.origin},
        "today": before,
        "changed": after,
        "difference": _difference(before, after),
        "flags": flags_of(explored.changes.given),
        "alternatives": [asdict(each) for each in explored.alternatives],
    }


def _outcome(prediction: Prediction, workload: Workload | None) -> dict[str, Any]:
    plan, capacity = planned(prediction), predicted_capacity(prediction)
    starts, error = _starts(prediction)
    return {
        "arguments": _arguments(prediction),
        "starts": starts,
        "error": error,
        "planned_from": None if plan is None else plan.origin,
        "blocks": capacity.blocks,
        "capacity_tokens": capacity.tokens,
        "capacity_bytes": capacity.bytes_per_gpu,
        "full_length_concurrency": capacity.full_length_concurrency,
        "requests": _requests(prediction, workload) if starts else None,
    }


def _starts(prediction: Prediction) -> tuple[bool | None, str | None]:
    """Whether vLLM would start, None where that cannot be told; and why not."""
    plan = planned(prediction)
    if not prediction.supported:
        reason = prediction.reason or "not described exactly"
        return False if reason.startswith(_REFUSES) else None, reason
    if plan is None:
        return None, NO_SIZE
    return plan.error is None, plan.error


def _arguments(prediction: Prediction) -> dict[str, Any]:
    resolved, plan = prediction.resolved, planned(prediction)
    if resolved is None:
        return {}
    shown = {name: getattr(resolved, name) for name in SHOWN_ARGUMENTS}
    if plan is not None:
        shown["max_model_len"] = plan.max_model_len  # as it was fitted to memory
    return shown


def _requests(prediction: Prediction, workload: Workload | None) -> dict[str, int] | None:
    plan, resolved = planned(prediction), prediction.resolved
    if plan is None or resolved is None:
        return None
    seqs = resolved.max_num_seqs
    found = {"full_length": full_length_capacity(plan, max_num_seqs=seqs).requests}
    if workload is not None:
        sizes = workload_capacity(plan, workload, max_num_seqs=seqs)
        found |= {each.basis: each.requests for each in sizes if each.basis in {"mean", "p95"}}
    return found


def _spoken_for(
    engine: EngineAssessment | None, question: Question, today: Mapping[str, Any]
) -> int | None:
    """Requests of the mean size that there is no room for, since others are there or will grow.

    Those in the engine; for requests of the observed size as many as the exported headroom leaves
    out, so that today's headroom is that one.
    """
    if engine is None or engine.snapshot.running is None:
        return None
    inside = engine.snapshot.running + (engine.snapshot.waiting or 0)
    headroom = engine.headroom.requests.get("observed_mean")
    fitting: int | None = (today["requests"] or {}).get("mean")
    if question.origin != "observed" or headroom is None or fitting is None:
        return inside
    return fitting - headroom if headroom else max(inside, fitting)


def _headroom(outcome: Mapping[str, Any], spoken_for: int | None) -> int | None:
    fitting = (outcome["requests"] or {}).get("mean")
    return None if fitting is None or spoken_for is None else max(0, fitting - spoken_for)


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: _less(after[name], before[name]) for name in _NUMBERS}
    sizes = [outcome["arguments"].get("block_size") for outcome in (before, after)]
    if sizes[0] != sizes[1]:
        found["blocks"] = None  # blocks of unequal size do not compare
    requests = before["requests"] or {}, after["requests"] or {}
    found["requests"] = {
        basis: requests[1][basis] - count
        for basis, count in requests[0].items()
        if basis in requests[1]
    }
    return found


def _less(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
