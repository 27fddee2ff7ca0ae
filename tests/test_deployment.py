"""What is known of a deployment, from every source that says so."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_capacity.compare.headroom import Limits
from vllm_capacity.deployment import (
    DeploymentFacts,
    limits_of,
    predict_deployment,
    started_with,
    started_with_at_least,
)
from vllm_capacity.predict import EngineArgs, KVCacheLayout, gpu_named, predict
from vllm_capacity.predict.memory.budget import Estimate
from vllm_capacity.predict.memory.calibration import Calibration
from vllm_capacity.units import GIB, Bytes

MODELS = Path(__file__).parent / "data" / "models"
GEMMA = json.loads((MODELS / "small-gemma3" / "config.json").read_bytes())
LARGE_HEADS = GEMMA | {"head_dim": 256}
GIB_LABEL = str(1 << 30)


def layout(config: dict[str, Any], **labels: str) -> KVCacheLayout | None:
    facts = DeploymentFacts(
        config=config, given_args=EngineArgs.from_mapping({}), cache_config=labels
    )
    prediction = predict_deployment(facts).prediction
    return None if prediction is None else prediction.layout


def test_what_requests_hold_is_known_where_no_plan_can_be_made() -> None:
    labels = {"block_size": "32", "kv_cache_memory_bytes": GIB_LABEL}
    facts = DeploymentFacts(
        config=GEMMA, given_args=EngineArgs.from_mapping({}), cache_config=labels
    )
    status = predict_deployment(facts)
    assert status.reason == "unsupported"
    assert "max_num_batched_tokens" in status.message
    assert status.prediction is not None
    assert status.prediction.layout is not None
    kinds = [spec.kind for spec in status.prediction.layout.specs]
    assert sorted(kinds) == ["full_attention", *["sliding_window"] * 5]


def test_the_block_size_tells_what_hangs_on_an_unknown_gpu() -> None:
    assert layout(LARGE_HEADS) is None
    found = layout(LARGE_HEADS, block_size="16", user_specified_block_size="False")
    assert found is not None
    assert {spec.block_size for spec in found.specs} == {16}


def test_a_block_size_that_no_gpu_leads_to_tells_nothing() -> None:
    assert layout(LARGE_HEADS, block_size="48", user_specified_block_size="False") is None


@pytest.mark.parametrize(
    ("labels", "slots"),
    [({"kv_cache_memory_bytes": GIB_LABEL}, -1.0), ({}, 0.0)],
    ids=["on a CPU", "on a GPU"],
)
def test_steps_overlap_unless_a_cpu_runs_them(labels: dict[str, str], slots: float) -> None:
    found = layout(GEMMA, block_size="32", **labels)
    assert found is not None
    assert found.slots_ahead_tokens == slots


LLAMA = json.loads((MODELS / "small-llama" / "config.json").read_bytes())
NOTHING_GIVEN = EngineArgs.from_mapping({})


def _limits(**facts: Any) -> Limits:
    given = DeploymentFacts(given_args=NOTHING_GIVEN, config=LLAMA, gpu=gpu_named("H100"))
    known = replace(given, **facts)
    return limits_of(known, predict_deployment(known))


@pytest.mark.parametrize(
    ("told", "seqs", "origin"),
    [
        ({}, 1024, "predicted"),
        ({"process_args": 64}, 64, "process"),
        ({"process_args": 64, "log_args": 128}, 128, "log"),
        ({"process_args": 64, "log_args": 128, "given_args": 256}, 256, "flag"),
    ],
)
def test_a_limit_is_that_of_the_most_trusted_source(
    told: dict[str, int], seqs: int, origin: str
) -> None:
    limits = _limits(**{name: EngineArgs(max_num_seqs=value) for name, value in told.items()})
    assert limits.max_num_seqs == seqs
    assert limits.origins["max_num_seqs"] == origin


def test_the_prediction_is_made_for_what_the_most_trusted_source_tells() -> None:
    facts = DeploymentFacts(
        given_args=EngineArgs(max_num_seqs=256),
        log_args=EngineArgs(max_num_seqs=128, max_model_len=512),
        process_args=EngineArgs(max_model_len=256, block_size=32),
        cache_config={"gpu_memory_utilization": "0.5", "block_size": "16", "num_gpu_blocks": "7"},
        max_model_len=128,
        config=LLAMA,
        gpu=gpu_named("H100"),
    )
    prediction = predict_deployment(facts).prediction
    assert prediction is not None
    assert prediction.resolved is not None
    resolved = prediction.resolved
    assert (resolved.max_num_seqs, resolved.max_model_len) == (256, 512)
    assert started_with(facts).engine_args.given == {
        "max_num_seqs": 256,
        "max_model_len": 512,
        "block_size": 32,
        "gpu_memory_utilization": 0.5,
    }


def test_labels_that_cannot_be_read_hide_no_other_source() -> None:
    facts = DeploymentFacts(
        given_args=EngineArgs(max_num_seqs=256), cache_config={"gpu_memory_utilization": "lots"}
    )
    assert started_with_at_least(facts).engine_args.given == {"max_num_seqs": 256}
    assert predict_deployment(replace(facts, config=LLAMA)).reason == "bad_arguments"


def test_a_calibrated_prediction_stands_beside_the_one_that_no_log_went_into() -> None:
    measured = Estimate(
        bytes=Bytes(5 * GIB), low=Bytes(5 * GIB), high=Bytes(5 * GIB), origin="measured"
    )
    facts = DeploymentFacts(given_args=NOTHING_GIVEN, config=LLAMA, gpu=gpu_named("H100"))
    plain = predict_deployment(facts)
    assert plain.uncalibrated is None
    calibration = Calibration(source="vllm.log", weights_bytes=measured)
    status = predict_deployment(replace(facts, calibration=calibration))
    assert status.prediction is not None
    assert status.prediction.budget is not None
    assert status.prediction.budget.weights_bytes == 5 * GIB
    assert status.uncalibrated == plain.prediction


@pytest.mark.parametrize("is_calibrated", [False, True])
def test_the_deployment_that_was_predicted_is_kept_to_be_asked_again(is_calibrated: bool) -> None:
    measured = Estimate(
        bytes=Bytes(5 * GIB), low=Bytes(5 * GIB), high=Bytes(5 * GIB), origin="measured"
    )
    calibration = Calibration(source="vllm.log", weights_bytes=measured)
    facts = DeploymentFacts(
        given_args=NOTHING_GIVEN,
        config=LLAMA,
        gpu=gpu_named("H100"),
        calibration=calibration if is_calibrated else None,
    )
    status = predict_deployment(facts)
    assert status.deployment is not None
    assert predict(status.deployment) == status.prediction
