"""What a start-up measured of its memory, rank by rank, as the terms of a budget.

For whoever compares a prediction or a GPU's memory with it: only printed numbers and their
differences, never an estimate of ours. A prediction that was calibrated by these terms must not be
graded by them: the error of a term is that of ``PredictionStatus.uncalibrated``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from vllm_capacity.observe.startup_log import RankStartup, StartupLog
from vllm_capacity.units import Blocks, Bytes, Tokens

#: vLLM 0.32 ``v1/executor/multiproc_executor.py``, ``setup_proc_title_and_log_prefix``;
#: ``v1/engine/core.py``, ``run_engine_core``: a dimension of size 1 is not named.
_NAME = re.compile(
    r"(?:Worker|EngineCore)(?:_(?:DP)?(?P<dp>\d+))?(?:_PP(?P<pp>\d+))?(?:_PCP\d+)?(?:_TP(?P<tp>\d+))?"
    r"(?:_DCP\d+)?(?:_EP\d+)?"
)
#: Terms that belong together: they add up within one rank.
_SUMMED = {"weights_bytes", "activation_peak_bytes", "consumed_bytes", "non_torch_bytes"}


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredTerm:
    """One printed number, or the difference of two.

    Attributes:
        bytes: never negative.
        uncertainty_bytes: how far rounding allows the true number to be from it.
    """

    bytes: Bytes
    uncertainty_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRank:
    """What one GPU's process measured; None where the log does not say.

    Attributes:
        name: of the process, as in ``Worker_DP0_TP1``; empty where the log names none.
        data_parallel_rank, pipeline_parallel_rank, tensor_parallel_rank: of the process; None where
            its name does not say. The first is vLLM's ``engine`` label.
        weights: model, draft model, LoRA slots and rope caches.
        activation_peak: what the profiling run needed above all that stays; set aside, not held.
        non_torch: what stays beside weights: CUDA context, NCCL, workspaces.
        cuda_graphs: what capturing took.
        cuda_graph_reserve: what was set aside for it; None where the release sets nothing aside.
        kv_cache: what was left for the KV cache; the rank with the least decides for all of its
            engine how many blocks there are.
        total_memory: of the device, as CUDA reports it.
        requested_memory: total × utilisation.
        context: what stood on the device at the first look at its free memory, the engine's CUDA
            context and communicators and whatever others held; not in ``non_torch``.
    """

    name: str = ""
    data_parallel_rank: int | None = None
    pipeline_parallel_rank: int | None = None
    tensor_parallel_rank: int | None = None
    weights: MeasuredTerm | None = None
    activation_peak: MeasuredTerm | None = None
    non_torch: MeasuredTerm | None = None
    cuda_graphs: MeasuredTerm | None = None
    cuda_graph_reserve: MeasuredTerm | None = None
    kv_cache: MeasuredTerm | None = None
    total_memory: MeasuredTerm | None = None
    requested_memory: MeasuredTerm | None = None
    context: MeasuredTerm | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredMemory:
    """What the last start-up that is known measured.

    Attributes:
        vllm_version: as printed.
        is_started: whether it went on to serve.
        tightest: the rank with the smallest KV cache, whose terms belong together; where it lacks
            some, of each term the tightest of all ranks.
        ranks: each process that measured anything, in the order of their names.
        kv_cache_size_tokens: capacity of one engine.
        num_gpu_blocks: with the null block.
    """

    vllm_version: str | None = None
    is_started: bool = False
    tightest: MeasuredRank
    ranks: tuple[MeasuredRank, ...]
    kv_cache_size_tokens: Tokens | None = None
    num_gpu_blocks: Blocks | None = None


def measured_memory(log: StartupLog) -> MeasuredMemory | None:
    """The terms that a start-up printed; None before the first."""
    if not log.ranks:
        return None
    names = [rank.name for rank in log.ranks]
    return MeasuredMemory(
        vllm_version=log.vllm_version,
        is_started=log.is_started,
        tightest=_rank(_tightest(log), names),
        ranks=tuple(_rank(rank, names) for rank in log.ranks),
        kv_cache_size_tokens=log.kv_cache_size_tokens,
        num_gpu_blocks=log.num_gpu_blocks,
    )


def _tightest(log: StartupLog) -> RankStartup:
    """One rank, so that its terms belong together; all ranks' tightest where it lacks some."""
    sized = [rank for rank in log.ranks if rank.kv_cache_bytes is not None]
    if not sized:
        return _together(log)
    tightest = min(sized, key=lambda rank: rank.kv_cache_bytes or 0)
    return _together(log) if set(log.lines) & _SUMMED - set(tightest.lines) else tightest


def _together(log: StartupLog) -> RankStartup:
    """Of each term the tightest of all ranks; the name of none."""
    names = (item.name for item in fields(RankStartup) if item.name != "name")
    return RankStartup(**{name: getattr(log, name) for name in names})


def _rank(rank: RankStartup, names: Sequence[str]) -> MeasuredRank:
    return MeasuredRank(
        name=rank.name,
        **_place(rank.name, names),
        weights=_term(rank, "weights_bytes"),
        activation_peak=_activation_peak(rank),
        non_torch=_term(rank, "non_torch_bytes")
        or _term(rank, "consumed_bytes", less="weights_bytes"),
        cuda_graphs=_term(rank, "cuda_graph_bytes"),
        cuda_graph_reserve=_term(rank, "cuda_graph_estimate_bytes"),
        kv_cache=_term(rank, "kv_cache_bytes"),
        total_memory=_term(rank, "total_memory_bytes"),
        requested_memory=_term(rank, "requested_memory_bytes"),
        context=_term(rank, "total_memory_bytes", less="free_memory_bytes"),
    )


def _place(name: str, names: Sequence[str]) -> Mapping[str, int | None]:
    """The ranks in a name; a process that is called as another (``Worker``) tells none."""
    match = _NAME.fullmatch(name)
    parts = {"dp": "data", "pp": "pipeline", "tp": "tensor"}
    if match is None or names.count(name) > 1:
        only = 0 if len(names) == 1 else None
        return {f"{word}_parallel_rank": only for word in parts.values()}
    return {f"{word}_parallel_rank": int(match[part] or 0) for part, word in parts.items()}


def _activation_peak(rank: RankStartup) -> MeasuredTerm | None:
    """What the profiling run needs above all that stays.

    Where the log tells what stays (``consumed_bytes``, since 0.28), the peak is what the profile
    adds to that; the printed one includes the estimate for CUDA graphs
    (``v1/worker/gpu_worker.py``, ``determine_available_memory``; ``utils/mem_utils.py``).
    """
    if rank.consumed_bytes is None:
        return _term(rank, "activation_peak_bytes")
    if rank.non_kv_cache_bytes is not None:
        return _term(rank, "non_kv_cache_bytes", less="consumed_bytes")
    if rank.cuda_graph_estimate_bytes is not None:
        return _term(rank, "activation_peak_bytes", less="cuda_graph_estimate_bytes")
    return None if rank.cuda_graph_bytes else _term(rank, "activation_peak_bytes")


def _term(rank: RankStartup, name: str, less: str = "") -> MeasuredTerm | None:
    """A printed number, less another one, within what their rounding allows."""
    value = getattr(rank, name)
    subtracted = getattr(rank, less) if less else 0
    if value is None or subtracted is None:
        return None
    rounding = sum(rank.uncertainty_bytes.get(key, 0) for key in (name, less))
    return MeasuredTerm(bytes=Bytes(max(0, value - subtracted)), uncertainty_bytes=rounding)
