"""Variations of config.json and arguments, built by vLLM 0.32's own model classes.

Each was constructed on PyTorch's meta device, one pipeline stage after another, and measured:
bytes of parameters and buffers, kinds of attention layers, dtype and longest request.
"""

from typing import Any

import pytest
from recorded import H100, rows

from vllm_capacity.predict import Deployment, EngineArgs, ModelConfig, VllmVersion, predict

CASES = rows("variations")
#: vLLM builds it; we refuse it.
REFUSED = {"multi_query"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_variation_is_predicted_to_the_byte(case: dict[str, Any]) -> None:
    prediction = predict(
        Deployment(
            model=ModelConfig.from_dict(case["config"]),
            engine_args=EngineArgs.from_mapping(case["engine_args"]),
            gpu=H100,
            vllm_version=VllmVersion.parse("0.32.0"),
        ),
        available_kv_cache_bytes=[1 << 40],
    )
    if not prediction.supported:
        assert any(word in (prediction.reason or "") for word in REFUSED)
        return
    resolved, expected, plan = prediction.resolved, case["expected"], prediction.plans[0]
    assert resolved is not None
    assert prediction.weights_bytes is not None
    ranks = range(0, len(prediction.weights_bytes), resolved.tensor_parallel_size)
    assert [prediction.weights_bytes[rank] for rank in ranks] == expected["weights_bytes"]
    assert resolved.max_model_len == expected["max_model_len"]
    assert resolved.dtype == expected["dtype"]
    for rank, layers in zip(ranks, expected["layers"], strict=True):
        group = plan.groups[0]
        window = getattr(group.spec, "sliding_window", None)
        count = group.layers_per_rank[rank]
        heads, size = group.spec.num_kv_heads, group.spec.head_size
        assert [[group.kind, heads, size, window, count]] == layers


def test_nearly_all_variations_are_supported() -> None:
    reasons = [ModelConfig.from_dict(case["config"]).unsupported for case in CASES]
    assert sum(reason is not None for reason in reasons) <= 1
