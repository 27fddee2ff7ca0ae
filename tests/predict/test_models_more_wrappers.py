"""Further wrappers around text models against vLLM 0.32's own answers.

``models_more_wrappers.jsonl.xz`` holds what vLLM 0.32 answered on an H100 of 80 GiB with a faked
CUDA: bytes of parameters and buffers of the first rank of every pipeline stage, the longest
request, the block size, and blocks and tokens of the cache plan for a given amount of memory.
Configurations have published shapes or those of their classes' defaults.
"""

from typing import Any

import pytest
from recorded import rows

from vllm_capacity.predict import (
    Deployment,
    EngineArgs,
    Gpu,
    ModelConfig,
    Prediction,
    VllmVersion,
    predict,
)
from vllm_capacity.predict.models.more_wrappers import WRAPPERS
from vllm_capacity.units import Bytes

CASES = rows("models_more_wrappers")
FIRST = {case["config"]["architectures"][0]: case for case in reversed(CASES)}
H100 = Gpu(
    name="NVIDIA H100 80GB HBM3",
    compute_capability="9.0",
    total_memory_bytes=Bytes(80 << 30),
)


def _predicted(case: dict[str, Any]) -> Prediction:
    deployment = Deployment(
        model=ModelConfig.from_dict(case["config"]),
        engine_args=EngineArgs.from_mapping(case["engine_args"]),
        gpu=H100,
        vllm_version=VllmVersion.parse("0.32.0"),
    )
    available = [Bytes(plan[0]) for plan in case["expected"]["plans"]]
    return predict(deployment, available_kv_cache_bytes=available)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_every_stage_weighs_what_vllm_built(case: dict[str, Any]) -> None:
    predicted = _predicted(case)
    assert predicted.supported, predicted.reason
    ranks = case["engine_args"].get("tensor_parallel_size", 1)
    assert list(predicted.weights_bytes[::ranks]) == case["expected"]["weights_bytes"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_cache_is_planned_as_vllm_plans_it(case: dict[str, Any]) -> None:
    predicted, expected = _predicted(case), case["expected"]
    assert predicted.resolved.max_model_len == expected["max_model_len"]
    assert predicted.resolved.block_size == expected["block_size"]
    plans = [[plan.num_blocks, plan.kv_cache_size_tokens] for plan in predicted.plans]
    assert plans == [plan[1:] for plan in expected["plans"]]


def test_every_further_wrapper_has_a_case() -> None:
    assert set(WRAPPERS) <= set(FIRST)


def _unsupported(architecture: str, **changes: Any) -> str:
    """Why the class's first case with these keys is refused; None takes a key away."""
    config = {**FIRST[architecture]["config"], **changes}
    config = {key: value for key, value in config.items() if value is not None}
    return ModelConfig.from_dict(config).unsupported or ""


@pytest.mark.parametrize(
    ("architecture", "changes", "said"),
    [
        ("LlavaNextVideoForConditionalGeneration", {"spatial_pool_mode": "conv"}, "pool_mode conv"),
        ("DeepseekVLV2ForCausalLM", {"tile_tag": "1D"}, "tile_tag must be 2D"),
        ("DotsOCRForCausalLM", {"tie_word_embeddings": None}, "tie_word_embeddings"),
        ("Ovis2_5", {"vit_config": {"model_type": "aimv2"}}, "must be siglip2_navit"),
        ("Phi4MMForCausalLM", {"embd_layer": {}}, "audio_embd_layer"),
        ("MiniCPMO", {"version": "3.0"}, "version 3.0"),
    ],
)
def test_what_a_class_does_not_build_is_refused(
    architecture: str, changes: dict[str, Any], said: str
) -> None:
    assert said in _unsupported(architecture, **changes)


def test_parameters_of_the_class_itself_stay_without_any_image() -> None:
    case = FIRST["BeeForConditionalGeneration"]
    model = ModelConfig.from_dict(case["config"]).model
    assert model is not None
    kept = model.without_towers(lambda _: False)
    assert len(kept.outside) == len(model.outside) - 1
