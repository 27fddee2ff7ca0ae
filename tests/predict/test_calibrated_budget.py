"""Measured terms in place of estimated ones."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import LLAMA_8B, deployment

from vllm_capacity.predict import Deployment, MemoryBudget, predict
from vllm_capacity.predict.memory.budget import Estimate
from vllm_capacity.predict.memory.calibration import Calibration
from vllm_capacity.units import GIB, MIB, Bytes

ARGS = {"max_model_len": 8192, "gpu_memory_utilization": 0.95}


def _measured(gib: float) -> Estimate:
    size = round(gib * GIB)
    return Estimate(
        bytes=Bytes(size), low=Bytes(size - 5 * MIB), high=Bytes(size + 5 * MIB), origin="measured"
    )


MEASURED = Calibration(
    source="vllm.log",
    engine_args=ARGS,
    weights_bytes=_measured(15.1),
    activation_peak_bytes=_measured(2.0),
    non_torch_bytes=_measured(0.3),
    cuda_graph_bytes=_measured(0.7),
)


def _budget(asked: Deployment) -> MemoryBudget:
    budget = predict(asked).budget
    assert budget is not None
    return budget


def _asked(calibration: Calibration | None, **changed: object) -> Deployment:
    asked = deployment(LLAMA_8B, **(ARGS | changed))
    return replace(asked, calibration=calibration)


def test_every_measured_term_replaces_the_estimate_and_says_so() -> None:
    budget = _budget(_asked(MEASURED))
    assert budget.weights_bytes == round(15.1 * GIB)
    assert budget.activation_peak_bytes == round(2.0 * GIB)
    assert budget.non_torch_bytes == round(0.3 * GIB)
    assert budget.cuda_graph_bytes == round(0.7 * GIB)
    assert set(budget.origins.values()) == {"measured"}


def test_terms_still_sum_to_what_was_requested() -> None:
    budget = _budget(_asked(MEASURED))
    taken = (
        budget.weights_bytes
        + budget.activation_peak_bytes
        + budget.non_torch_bytes
        + budget.cuda_graph_bytes
    )
    assert taken + budget.kv_cache_bytes == budget.requested_bytes
    assert budget.kv_cache_bytes_high - budget.kv_cache_bytes_low == 4 * 2 * 5 * MIB


def test_a_term_that_was_not_measured_stays_as_predicted() -> None:
    only = Calibration(source="vllm.log", engine_args=ARGS, non_torch_bytes=_measured(0.3))
    budget, predicted = _budget(_asked(only)), _budget(_asked(None))
    assert budget.activation_peak_bytes == predicted.activation_peak_bytes
    assert budget.weights_bytes_high == predicted.weights_bytes_high
    assert budget.kv_cache_bytes == predicted.kv_cache_bytes - round(0.3 * GIB) + round(0.25 * GIB)


def test_changed_arguments_move_a_measured_term_as_they_move_its_prediction() -> None:
    few, many = _asked(MEASURED, max_num_seqs=256), _asked(MEASURED)
    moved = _budget(few).activation_peak_bytes - _budget(many).activation_peak_bytes
    predicted = [
        _budget(_asked(None, **changed)).activation_peak_bytes
        for changed in ({"max_num_seqs": 256}, {})
    ]
    assert moved == predicted[0] - predicted[1] < 0
    assert "moved as predicted" in _budget(few).origins["activation_peak"]
    assert _budget(few).non_torch_bytes == round(0.3 * GIB)


def test_a_source_that_tells_no_arguments_is_of_the_very_deployment() -> None:
    untold = replace(MEASURED, engine_args={})
    budget = _budget(_asked(untold, max_num_seqs=256))
    assert budget.activation_peak_bytes == round(2.0 * GIB)


def test_a_release_that_sets_nothing_aside_for_graphs_is_not_charged_for_them() -> None:
    asked = replace(deployment(LLAMA_8B, version="0.19.0", **ARGS), calibration=MEASURED)
    assert _budget(asked).cuda_graph_bytes == 0


@given(st.floats(0.1, 30), st.floats(0, 5))
def test_the_heavier_the_measurement_the_smaller_the_cache(first: float, more: float) -> None:
    sizes = [
        _budget(_asked(replace(MEASURED, weights_bytes=_measured(gib)))).kv_cache_bytes
        for gib in (first, first + more)
    ]
    assert sizes[1] <= sizes[0]


@pytest.mark.parametrize("tensor_parallel_size", [2, 4])
def test_other_parallelism_moves_measured_weights(tensor_parallel_size: int) -> None:
    budget = _budget(_asked(MEASURED, tensor_parallel_size=tensor_parallel_size))
    predicted = _budget(_asked(None, tensor_parallel_size=tensor_parallel_size))
    assert budget.weights_bytes == pytest.approx(predicted.weights_bytes, abs=GIB // 4)
