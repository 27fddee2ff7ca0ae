"""The longest context that fits, and the fewest GPUs that serve a number of users."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vllm_capacity.predict.answers.workload import Workload, workload_capacity
from vllm_capacity.predict.prediction import Deployment, predict
from vllm_capacity.units import Tokens, ceil_div

_LARGEST_NODE = 8
_MOST_STAGES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """One way to spread a model over GPUs.

    Attributes:
        tensor_parallel_size, pipeline_parallel_size: of one server.
        replicas: servers, or data-parallel ranks, that serve the users together.
        gpus: in all.
        requests: that one replica runs at once.
        reason: why it does not serve them; None where it does.
    """

    tensor_parallel_size: int
    pipeline_parallel_size: int
    replicas: int | None
    gpus: int | None
    requests: int
    reason: str | None


def longest_context(deployment: Deployment) -> Tokens | None:
    """The longest request that the deployment could serve, if only one ran.

    At most what the model allows; found as vLLM finds it for ``--max-model-len -1``.
    None where nothing fits or it cannot be told.
    """
    args = replace(deployment.engine_args, max_model_len=-1)
    prediction = predict(replace(deployment, engine_args=args))
    if not prediction.supported or not prediction.plans:
        return None
    plan = prediction.plans[0]
    return None if plan.error is not None else plan.max_model_len


def fewest_gpus(deployment: Deployment, workload: Workload, users: int) -> tuple[Layout, ...]:
    """Layouts that run ``users`` requests of the mean size at once, fewest GPUs first.

    Layouts that do not start stand last, with the reason.
    """
    layouts = [_layout(deployment, workload, users, tensor, stages) for tensor, stages in _shapes()]
    return tuple(sorted(layouts, key=_order))


def _order(layout: Layout) -> tuple[bool, int, int, int]:
    return (
        layout.gpus is None,
        layout.gpus or 0,
        layout.pipeline_parallel_size,
        layout.tensor_parallel_size,
    )


def _shapes() -> Iterator[tuple[int, int]]:
    """One node's GPUs share layers; beyond one node stages do, as vLLM's documentation advises."""
    tensor = 1
    while tensor < _LARGEST_NODE:
        yield tensor, 1
        tensor *= 2
    stages = 1
    while stages <= _MOST_STAGES:
        yield _LARGEST_NODE, stages
        stages *= 2


def _layout(
    deployment: Deployment, workload: Workload, users: int, tensor: int, stages: int
) -> Layout:
    args = replace(
        deployment.engine_args,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=stages,
        data_parallel_size=None,
    )
    prediction = predict(replace(deployment, engine_args=args))
    reason, requests = prediction.reason, 0
    if prediction.plans and prediction.resolved is not None:
        plan = prediction.plans[0]
        reason = plan.error
        capacities = workload_capacity(
            plan, workload, max_num_seqs=prediction.resolved.max_num_seqs
        )
        requests = next(each.requests for each in capacities if each.basis == "mean")
    if requests == 0:
        reason = reason or "no request of the mean size fits"
    replicas = ceil_div(users, requests) if reason is None else None
    return Layout(
        tensor_parallel_size=tensor,
        pipeline_parallel_size=stages,
        replicas=replicas,
        gpus=None if replicas is None else replicas * tensor * stages,
        requests=requests,
        reason=reason,
    )
