"""What one rank of an engine holds of its GPU, term by term: predicted, and measured."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from vllm_capacity.compare.prediction_error import PredictionError
from vllm_capacity.observe.measured_memory import MeasuredMemory, MeasuredRank, MeasuredTerm
from vllm_capacity.predict import MemoryBudget, Prediction
from vllm_capacity.units import Bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryTerms:
    """One rank's memory in vLLM's own terms, by one account. None is unknown.

    Attributes:
        weights_bytes: all that loading the model allocated.
        kv_cache_bytes: the pool of blocks; allocated whole at start-up.
        cuda_graph_bytes: what captured graphs take.
        non_torch_bytes: growth outside PyTorch's allocator from the engine's first look at the
            free memory to the end of the profiling run.
        context_bytes: what stood on the GPU at that first look: CUDA context and communicators
            of the engine, and whatever others held there. An upper bound, therefore.
        activation_peak_bytes: set aside for activations. An upper bound of what PyTorch's
            allocator keeps of it between steps.
        total_bytes: of the GPU, as CUDA reports it.
        requested_bytes: total × gpu_memory_utilization.

    Source: vLLM 0.32 ``v1/worker/gpu_worker.py``, ``init_device``, ``determine_available_memory``
    and ``compile_or_warm_up_model``; ``utils/mem_utils.py``, ``memory_profiling``.
    """

    weights_bytes: Bytes | None = None
    kv_cache_bytes: Bytes | None = None
    cuda_graph_bytes: Bytes | None = None
    non_torch_bytes: Bytes | None = None
    context_bytes: Bytes | None = None
    activation_peak_bytes: Bytes | None = None
    total_bytes: Bytes | None = None
    requested_bytes: Bytes | None = None

    def by_component(self) -> Mapping[str, Bytes]:
        """The known terms by the name of their component."""
        pairs = {
            "weights": self.weights_bytes,
            "kv_cache": self.kv_cache_bytes,
            "cuda_graph": self.cuda_graph_bytes,
            "non_torch": self.non_torch_bytes,
            "context": self.context_bytes,
            "activation_peak": self.activation_peak_bytes,
        }
        return {name: size for name, size in pairs.items() if size is not None}


def predicted_terms(prediction: Prediction | None, rank: int | None) -> MemoryTerms:
    """What a prediction says of one rank.

    Args:
        prediction: None without one.
        rank: in the order of vLLM's world; None for the tightest one.
    """
    budget = None if prediction is None else _budget(prediction, rank)
    if prediction is None or budget is None:
        return MemoryTerms()
    plan = prediction.plans[0] if prediction.plans else None
    kv_cache, requested = budget.kv_cache_bytes, budget.requested_bytes
    if plan is not None and plan.num_blocks is not None:
        per_block = plan.bytes_per_block
        one = max(per_block) if rank is None or rank >= len(per_block) else per_block[rank]
        kv_cache = Bytes(plan.num_blocks * one)
    ignores_utilization = plan is not None and plan.origin == "kv_cache_memory_bytes"
    return MemoryTerms(
        weights_bytes=budget.weights_bytes,
        kv_cache_bytes=kv_cache,
        cuda_graph_bytes=budget.cuda_graph_bytes if budget.cuda_graph_is_subtracted else None,
        non_torch_bytes=budget.non_torch_bytes,
        activation_peak_bytes=budget.activation_peak_bytes,
        requested_bytes=None if ignores_utilization else requested,
    )


def _budget(prediction: Prediction, rank: int | None) -> MemoryBudget | None:
    if rank is None or rank >= len(prediction.budgets):
        return prediction.budget
    return prediction.budgets[rank]


def measured_terms(
    measured: MeasuredMemory, *, dp_rank: int = 0, rank: int | None = None
) -> MemoryTerms:
    """What a start-up measured of one rank; what it says of no single rank, of the tightest.

    Args:
        measured: at the engine's last start-up.
        dp_rank: which data-parallel engine.
        rank: within it, in the order of vLLM's world; None for the tightest.
    """
    tightest = _terms(measured.tightest)
    found = None if rank is None else _rank_of(measured, dp_rank, rank)
    own = {} if found is None else asdict(_terms(found))
    known = {name: size for name, size in own.items() if size is not None}
    return MemoryTerms(**{**asdict(tightest), **known})


def _rank_of(measured: MeasuredMemory, dp_rank: int, rank: int) -> MeasuredRank | None:
    tp_size = 1 + max((one.tensor_parallel_rank or 0 for one in measured.ranks), default=0)
    place = (dp_rank, *divmod(rank, tp_size))
    return next((one for one in measured.ranks if _place(one) == place), None)


def _place(rank: MeasuredRank) -> tuple[int | None, int | None, int | None]:
    return (rank.data_parallel_rank, rank.pipeline_parallel_rank, rank.tensor_parallel_rank)


def _terms(rank: MeasuredRank) -> MemoryTerms:
    return MemoryTerms(
        weights_bytes=_bytes(rank.weights),
        kv_cache_bytes=_bytes(rank.kv_cache),
        cuda_graph_bytes=_bytes(rank.cuda_graphs),
        non_torch_bytes=_bytes(rank.non_torch),
        context_bytes=_bytes(rank.context),
        activation_peak_bytes=_bytes(rank.activation_peak),
        total_bytes=_bytes(rank.total_memory),
        requested_bytes=_bytes(rank.requested_memory),
    )


def _bytes(term: MeasuredTerm | None) -> Bytes | None:
    return None if term is None else term.bytes


#: Terms that a prediction and a log tell of the same thing.
COMPARED = ("weights", "activation_peak", "non_torch", "cuda_graph")


def term_errors(
    measured: MemoryTerms, predicted: MemoryTerms, terms: Sequence[str] = COMPARED
) -> Mapping[str, PredictionError]:
    """By how much each term was mispredicted; a term that either side does not tell has none.

    Args:
        measured: at start-up, of the tightest rank.
        predicted: of that rank, without anything that was measured.
        terms: to look at.
    """
    was, should = measured.by_component(), predicted.by_component()
    return {
        name: PredictionError(measured=was[name], predicted=should[name])
        for name in terms
        if name in was and name in should
    }
