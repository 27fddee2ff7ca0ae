"""What is known of a deployment, from every source that says so."""

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_capacity.deployment import DeploymentFacts, predict_deployment
from vllm_capacity.predict import EngineArgs, KVCacheLayout

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
