"""How a deployment that does not start fails, and what would mend it."""

from dataclasses import dataclass, replace

from vllm_capacity.predict.answers.what_if import alternatives
from vllm_capacity.predict.kv_cache.plan import KVCachePlan
from vllm_capacity.predict.prediction import Deployment, Prediction, predict

_MORE_GPUS = (2, 4, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictedFailure:
    """Why vLLM would not start.

    Attributes:
        kind: ``oom`` while weights load, ``no_kv_cache_room``, or ``max_len_too_long``; the words
            of ``parse-log``.
        message: in one sentence.
        remedies: changes that let it start, the smallest first, as flags.
    """

    kind: str
    message: str
    remedies: tuple[str, ...]


def predicted_failure(deployment: Deployment) -> PredictedFailure | None:
    """The failure that is predicted; None where the deployment starts or cannot be told."""
    prediction = predict(deployment)
    plan = prediction.plans[0] if prediction.plans else None
    if plan is None or plan.error is None:
        return None
    kind = _kind(deployment, prediction, plan)
    return PredictedFailure(
        kind=kind, message=plan.error, remedies=tuple(_remedies(deployment, plan))
    )


def _kind(deployment: Deployment, prediction: Prediction, plan: KVCachePlan) -> str:
    budget, gpu = prediction.budget, deployment.gpu
    if budget is not None and gpu is not None and budget.weights_bytes > gpu.total_memory_bytes:
        return "oom"
    return "max_len_too_long" if plan.estimated_max_model_len else "no_kv_cache_room"


def _remedies(deployment: Deployment, plan: KVCachePlan) -> list[str]:
    found = []
    if plan.estimated_max_model_len:
        found.append(f"--max-model-len {plan.estimated_max_model_len}")
    found += [
        each.flags
        for each in alternatives(deployment)
        if each.starts and "parallel" not in each.flags
    ]
    enough = _enough_gpus(deployment)
    return found if enough is None else [*found, f"--tensor-parallel-size {enough}"]


def _enough_gpus(deployment: Deployment) -> int | None:
    """The fewest GPUs that share layers with which it starts."""
    today = deployment.engine_args.tensor_parallel_size or 1
    for factor in _MORE_GPUS:
        args = replace(deployment.engine_args, tensor_parallel_size=factor * today)
        prediction = predict(replace(deployment, engine_args=args))
        if prediction.plans and prediction.plans[0].error is None:
            return factor * today
    return None
