"""A budget with measured terms in place of estimated ones."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from vllm_capacity.predict.engine_args import EngineArgs
from vllm_capacity.predict.memory.budget import Estimate, MemoryBudget
from vllm_capacity.predict.memory.calibration import Calibration
from vllm_capacity.units import Bytes

#: Terms that a measurement replaces. The total is the GPU's, and decides nothing here.
_TERMS = ("weights_bytes", "activation_peak_bytes", "non_torch_bytes", "cuda_graph_bytes")


class Correction(NamedTuple):
    """What a measurement says of one term.

    Attributes:
        measured: at the deployment that was measured.
        predicted: for that same deployment, of its tightest rank.
    """

    measured: Estimate
    predicted: int


Corrections = Mapping[str, Correction]


def told_args(calibration: Calibration) -> EngineArgs:
    """The arguments that the source tells.

    Raises:
        EngineArgsError: the source holds what vLLM would not have taken.
    """
    return EngineArgs.from_mapping(calibration.engine_args, source=calibration.source)


def measured_args(calibration: Calibration, given: EngineArgs) -> EngineArgs:
    """The arguments that were measured: those told, and vLLM's defaults for the rest.

    A source that tells none is taken to be of the very deployment that is asked about.

    Raises:
        EngineArgsError: the source holds what vLLM would not have taken.
    """
    return told_args(calibration) if calibration.engine_args else given


def corrections(calibration: Calibration, baseline: MemoryBudget) -> Corrections:
    """What the measurement says, beside what was predicted for the same deployment."""
    return {
        name: Correction(calibration.terms[name], getattr(baseline, name))
        for name in _TERMS
        if name in calibration.terms and (name != "cuda_graph_bytes" or _subtracts(baseline))
    }


def _subtracts(budget: MemoryBudget) -> bool:
    return budget.cuda_graph_is_subtracted


def calibrated(budget: MemoryBudget, found: Corrections) -> MemoryBudget:
    """The budget with every measured term in place of the predicted one.

    Where the deployment is no longer the measured one, a term moves by as much as its prediction
    does, and keeps the prediction's bounds.
    """
    changes: dict[str, object] = {}
    origins = dict(budget.origins)
    for name, (measured, predicted) in found.items():
        if name == "cuda_graph_bytes" and not budget.cuda_graph_is_subtracted:
            continue
        moved = getattr(budget, name) - predicted
        term = _moved(measured, budget, name, moved) if moved else measured
        changes[name] = term.bytes
        changes[f"{name}_low"], changes[f"{name}_high"] = term.low, term.high
        origins[name.removesuffix("_bytes")] = term.origin
    return _summed(replace(budget, **changes, origins=origins))  # type: ignore[arg-type]


def _moved(measured: Estimate, budget: MemoryBudget, name: str, moved: int) -> Estimate:
    value = max(0, measured.bytes + moved)
    predicted = getattr(budget, name)
    return Estimate(
        bytes=Bytes(value),
        low=Bytes(max(0, value - (predicted - getattr(budget, f"{name}_low")))),
        high=Bytes(value + getattr(budget, f"{name}_high") - predicted),
        origin=f"{measured.origin}, moved as predicted for other arguments",
    )


def _summed(budget: MemoryBudget) -> MemoryBudget:
    """The KV cache as what the terms leave."""
    left = {
        suffix: budget.requested_bytes - sum(getattr(budget, f"{name}{other}") for name in _TERMS)
        for suffix, other in (("", ""), ("_low", "_high"), ("_high", "_low"))
    }
    return replace(
        budget,
        kv_cache_bytes=Bytes(left[""]),
        kv_cache_bytes_low=Bytes(left["_low"]),
        kv_cache_bytes_high=Bytes(left["_high"]),
    )
