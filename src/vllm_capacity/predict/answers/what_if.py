"""What other arguments would give, each tried by predicting it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vllm_capacity.predict.answers.workload import Workload, workload_capacity
from vllm_capacity.predict.engine_args import EngineArgs
from vllm_capacity.predict.kv_cache.format import is_quantized
from vllm_capacity.predict.kv_cache.plan import KVCachePlan
from vllm_capacity.predict.prediction import Deployment, Prediction, predict
from vllm_capacity.predict.resolved import ResolvedArgs

_ROOMY_UTILIZATION = 0.95
_FEWEST_SEQS = 64
_FEWER_SEQS = 256
_SHORTER_STEP = 2048
_LARGER_BLOCK = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative:
    """One change of the arguments and what it gives.

    Attributes:
        flags: to add to vLLM's command line.
        price: what it costs, in words.
        starts: whether vLLM would start with it.
        reason: why it would not, or why that cannot be told.
        num_blocks: blocks of the pool, None where it does not start.
        gained_blocks: beyond today's; None where either is unknown or block sizes differ.
        requests: of the workload's mean size, or of full length without a workload, at once.
        gained_requests: beyond today's, per GPU that is used today.
        gpus: that it needs.
    """

    flags: str
    price: str
    starts: bool
    reason: str | None
    num_blocks: int | None
    gained_blocks: int | None
    requests: float | None
    gained_requests: float | None
    gpus: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Change:
    flags: str
    price: str
    args: EngineArgs


def alternatives(
    deployment: Deployment, workload: Workload | None = None
) -> tuple[Alternative, ...]:
    """Changes that may help, those that gain most requests for the same GPUs first."""
    today = predict(deployment)
    if today.resolved is None:
        return ()
    fitting = _requests(today, workload)
    tried = [
        _tried(deployment, change, today, workload)
        for change in _changes(deployment.engine_args, today.resolved, fitting)
    ]
    return tuple(sorted(tried, key=_rank, reverse=True))


def _rank(alternative: Alternative) -> tuple[bool, float]:
    return alternative.starts, alternative.gained_requests or 0.0


def _tried(
    deployment: Deployment, change: _Change, today: Prediction, workload: Workload | None
) -> Alternative:
    prediction = predict(replace(deployment, engine_args=change.args))
    plan = _plan(prediction)
    starts = plan is not None and plan.error is None
    reason = prediction.reason if plan is None else plan.error
    requests = _requests(prediction, workload)
    before, gpus = _requests(today, workload) or 0, _gpus(today)
    needed = _gpus(prediction) or gpus
    gained = None if requests is None else requests * gpus / needed - before
    return Alternative(
        flags=change.flags,
        price=change.price,
        starts=starts,
        reason=reason,
        num_blocks=None if plan is None else plan.num_blocks,
        gained_blocks=_gained_blocks(_plan(today), plan),
        requests=requests,
        gained_requests=gained,
        gpus=needed,
    )


def _plan(prediction: Prediction) -> KVCachePlan | None:
    return prediction.plans[0] if prediction.supported and prediction.plans else None


def _gained_blocks(before: KVCachePlan | None, after: KVCachePlan | None) -> int | None:
    if before is None or after is None or after.num_blocks is None:
        return None
    sizes = [[group.spec.block_size for group in plan.groups] for plan in (before, after)]
    return after.num_blocks - (before.num_blocks or 0) if sizes[0] == sizes[1] else None


def _requests(prediction: Prediction, workload: Workload | None) -> float | None:
    plan = _plan(prediction)
    if plan is None or plan.num_blocks is None or prediction.resolved is None:
        return None
    if workload is None:
        return plan.max_concurrency
    capacities = workload_capacity(plan, workload, max_num_seqs=prediction.resolved.max_num_seqs)
    return next(each.requests for each in capacities if each.basis == "mean")


def _gpus(prediction: Prediction) -> int:
    resolved = prediction.resolved
    if resolved is None:
        return 0
    return resolved.tensor_parallel_size * resolved.pipeline_parallel_size


def _changes(args: EngineArgs, resolved: ResolvedArgs, fitting: float | None) -> Iterator[_Change]:
    yield from _cheaper_cache(args, resolved)
    yield from _lighter_steps(args, resolved, fitting)
    if resolved.gpu_memory_utilization < _ROOMY_UTILIZATION:
        yield _Change(
            flags=f"--gpu-memory-utilization {_ROOMY_UTILIZATION}",
            price="less left for CUDA graphs, other processes and peaks: an out-of-memory error "
            "in service becomes likelier",
            args=replace(args, gpu_memory_utilization=_ROOMY_UTILIZATION),
        )
    doubled = 2 * resolved.tensor_parallel_size
    yield _Change(
        flags=f"--tensor-parallel-size {doubled}",
        price="twice the GPUs, and communication in every layer; gain counted per GPU",
        args=replace(args, tensor_parallel_size=doubled),
    )


def _cheaper_cache(args: EngineArgs, resolved: ResolvedArgs) -> Iterator[_Change]:
    if not is_quantized(resolved.kv_cache_dtype):
        yield _Change(
            flags="--kv-cache-dtype fp8",
            price="keys and values in 8 bits: check answers; without calibrated scales accuracy "
            "may suffer",
            args=replace(args, kv_cache_dtype="fp8"),
        )
    if resolved.block_size is not None and args.block_size is None:
        larger = _LARGER_BLOCK * resolved.block_size
        yield _Change(
            flags=f"--block-size {larger}",
            price="fewer, larger blocks: more of the last block of every request stays empty, "
            "and shorter prefixes are not shared",
            args=replace(args, block_size=larger),
        )


def _enough_seqs(fitting: float | None) -> int:
    """The power of two that the requests which fit do not exceed: more only costs memory."""
    if not fitting:
        return _FEWER_SEQS
    return max(_FEWEST_SEQS, 1 << math.ceil(math.log2(max(1.0, 1.1 * fitting))))


def _lighter_steps(
    args: EngineArgs, resolved: ResolvedArgs, fitting: float | None
) -> Iterator[_Change]:
    enough = _enough_seqs(fitting)
    if (resolved.max_num_seqs or 0) > enough:
        yield _Change(
            flags=f"--max-num-seqs {enough}",
            price=f"at most {enough} requests at once, short ones too; the sampler needs less "
            "memory",
            args=replace(args, max_num_seqs=enough),
        )
    if (resolved.max_num_batched_tokens or 0) > _SHORTER_STEP:
        seqs = min(resolved.max_num_seqs or _SHORTER_STEP, _SHORTER_STEP)
        yield _Change(
            flags=f"--max-num-batched-tokens {_SHORTER_STEP}",
            price="long prompts take more steps: a slower first token",
            args=replace(args, max_num_batched_tokens=_SHORTER_STEP, max_num_seqs=seqs),
        )
    if not resolved.enforce_eager:
        yield _Change(
            flags="--enforce-eager",
            price="no CUDA graphs: slower decoding, often much",
            args=replace(args, enforce_eager=True),
        )
