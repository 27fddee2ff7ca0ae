"""Which rank of which deployment is on which GPU, and what follows for its engines."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.compare.capacity import planned
from vllm_capacity.compare.fleet import TargetAssessment
from vllm_capacity.compare.gpu_attribution import GpuAttribution
from vllm_capacity.compare.gpu_memory import GpuMemoryStack, Occupant, gpu_memory_stacks
from vllm_capacity.compare.memory_terms import (
    MemoryTerms,
    measured_terms,
    predicted_terms,
    term_errors,
)
from vllm_capacity.compare.prediction_error import PredictionError
from vllm_capacity.observe.gpu_reading import GpuReading, MigInstance
from vllm_capacity.observe.measured_memory import MeasuredMemory
from vllm_capacity.units import Bytes

Device = tuple[GpuReading, MigInstance | None]


def gpu_memory(
    gpus: Iterable[GpuReading], targets: Sequence[TargetAssessment]
) -> tuple[GpuMemoryStack, ...]:
    """The stacks of all GPUs of this host, whoever is on them."""
    occupants = [occupant for target in targets for occupant in occupants_of(target)]
    seen = [a for target in targets for a in target.gpus if not _is_here(a)]
    return tuple(
        stack
        for gpu in gpus
        for stack in gpu_memory_stacks(
            gpu,
            [o for o in occupants if _is_on(o.attribution, gpu)],
            [a for a in seen if _is_on(a, gpu)],
        )
    )


def occupants_of(target: TargetAssessment) -> tuple[Occupant, ...]:
    """The ranks of a deployment on this host's GPUs.

    An engine's ranks take its GPUs in NVML's order: vLLM numbers ranks by visible devices.
    """
    ranks: dict[str | None, int] = {}
    found = []
    for attribution in sorted(target.gpus, key=lambda a: (a.gpu, a.mig_uuid or "")):
        if not _is_here(attribution):
            continue
        labels = attribution.engines or tuple(e.snapshot.engine for e in target.engines[:1])
        engine = labels[0] if labels else None
        rank = ranks[engine] = ranks.get(engine, -1) + 1
        found.append(_occupant(target, attribution, labels, rank))
    return tuple(found)


def device_of(target: TargetAssessment, gpus: Iterable[GpuReading]) -> Device | None:
    """The first GPU or MIG instance that a deployment is known to be on."""
    for gpu in gpus:
        here = [one for one in target.gpus if _is_on(one, gpu) and _is_here(one)]
        if here:
            uuids = {one.mig_uuid for one in here}
            return gpu, next((one for one in gpu.mig_instances if one.uuid in uuids), None)
    return None


def _is_on(attribution: GpuAttribution, gpu: GpuReading) -> bool:
    return (attribution.gpu, attribution.gpu_uuid) == (gpu.index, gpu.uuid)


def _is_here(attribution: GpuAttribution) -> bool:
    """Whether the deployment is known to be on the GPU."""
    return bool(attribution.engine_bytes or attribution.engines)


def _occupant(
    target: TargetAssessment, attribution: GpuAttribution, labels: tuple[str, ...], rank: int
) -> Occupant:
    engine = next((e for e in target.engines if e.snapshot.engine in labels), None)
    return Occupant(
        target=target.target,
        attribution=attribution,
        engines=labels,
        measured=_measured(target, engine, labels, rank),
        predicted=MemoryTerms()
        if engine is None  # it may be starting, or gone
        else predicted_terms(target.prediction.unaided, rank),
        is_awake=engine is None or not engine.snapshot.is_asleep,
    )


def _measured(
    target: TargetAssessment,
    engine: EngineAssessment | None,
    labels: tuple[str, ...],
    rank: int | None,
) -> MemoryTerms:
    """What the log says; without it the KV cache as large as the blocks that the engine reports.

    The log prints what is left for the cache, which is not its size where blocks were set by hand.
    """
    measured = target.measured
    terms = MemoryTerms()
    if measured is not None:
        terms = measured_terms(measured, dp_rank=_dp_rank(labels), rank=rank)
    pool = None if engine is None else _pool_bytes(target, engine, rank)
    if engine is None or pool is None:
        return terms
    plan = planned(target.prediction.prediction)
    by_hand = plan is not None and plan.origin == "num_gpu_blocks_override"
    if terms.kv_cache_bytes is None or (by_hand and _is_of(measured, engine)):
        return replace(terms, kv_cache_bytes=pool)
    return terms


def _is_of(measured: MeasuredMemory | None, engine: EngineAssessment) -> bool:
    """Whether the log is that of the very start-up whose blocks the engine reports."""
    if measured is None:
        return False
    snapshot = engine.snapshot
    blocks, size = snapshot.num_gpu_blocks, snapshot.block_size_tokens
    sizes = {snapshot.kv_cache_size_tokens, None if not blocks or not size else blocks * size}
    return measured.kv_cache_size_tokens in sizes - {None}


def _pool_bytes(
    target: TargetAssessment, engine: EngineAssessment, rank: int | None
) -> Bytes | None:
    plan, blocks = planned(target.prediction.prediction), engine.snapshot.num_gpu_blocks
    if plan is None or blocks is None:
        return None
    sizes = plan.bytes_per_block
    return Bytes(blocks * (max(sizes) if rank is None or rank >= len(sizes) else sizes[rank]))


def _dp_rank(labels: tuple[str, ...]) -> int:
    return int(labels[0]) if labels and labels[0].isdecimal() else 0


def with_gpu_memory(target: TargetAssessment, stacks: Sequence[GpuMemoryStack]) -> TargetAssessment:
    """The target with what its GPUs and its start-up log say of each of its engines."""
    return replace(
        target,
        engines=tuple(
            replace(
                engine,
                errors={**engine.errors, **_term_errors(target, engine)},
                gpu_memory_headroom_ratio=_headroom(target, engine, stacks),
            )
            for engine in target.engines
        ),
    )


def _term_errors(
    target: TargetAssessment, engine: EngineAssessment
) -> Mapping[str, PredictionError]:
    """Errors of the tightest rank, the one that decides the number of blocks."""
    measured, predicted = tightest_terms(target, engine.snapshot.engine)
    return term_errors(measured, predicted)


def tightest_terms(target: TargetAssessment, engine: str = "0") -> tuple[MemoryTerms, MemoryTerms]:
    """What the log measured, and what was predicted without it, of an engine's tightest rank."""
    prediction, log = target.prediction.unaided, target.measured
    tightest = None
    if prediction is not None and prediction.budget is not None:
        tightest = prediction.budgets.index(prediction.budget)
    return (
        MemoryTerms()
        if log is None
        else measured_terms(log, dp_rank=_dp_rank((engine,)), rank=tightest),
        predicted_terms(prediction, tightest),
    )


def _headroom(
    target: TargetAssessment, engine: EngineAssessment, stacks: Sequence[GpuMemoryStack]
) -> float | None:
    """Of its fullest GPU."""
    here = (target.target, engine.snapshot.engine)
    ratios = [stack.headroom_ratio for stack in stacks if here in stack.engines]
    return min((ratio for ratio in ratios if ratio is not None), default=None)
