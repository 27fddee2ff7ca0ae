"""vLLM 0.32's own answers for 110 deployments; what is called supported must be equal."""

import math
import sys
from collections import Counter
from typing import Any

import pytest
from recorded import gpu_of, rows

from vllm_capacity.predict import (
    Deployment,
    EngineArgs,
    ModelConfig,
    Prediction,
    VllmVersion,
    predict,
)

CASES = rows("oracle")
MUST_BE_SUPPORTED = {
    *("gqa", "mha", "mqa", "moe", "gqa-fp8kv", "gqa-kv-replicated", "gqa-pp"),
    *("moe-ep", "moe-ep-dp", "moe-fp8-block", "swa-uniform"),
    *("quant-ct-fp8", "quant-fp8-block", "quant-fp8-static", "quant-ct-int4", "quant-ct-int8"),
    *("quant-awq", "quant-gptq", "moe-awq"),
}


def predicted(case: dict[str, Any]) -> Prediction:
    """What is predicted for the bytes that vLLM was asked about."""
    results = case.get("expected", {}).get("results", ())
    asked = [result["available_memory"] for result in results]
    return predict(
        Deployment(
            model=ModelConfig.from_dict(
                case["config"], hf_quant_config=case.get("hf_quant_config")
            ),
            engine_args=EngineArgs.from_mapping(case["engine_args"]),
            gpu=gpu_of(case),
            vllm_version=VllmVersion.parse(case["vllm_version"]),
            env=case["env"],
            flashinfer=case["flashinfer"],
        ),
        available_kv_cache_bytes=asked,
    )


def differences(case: dict[str, Any], prediction: Prediction) -> list[str]:
    """Every number that is not vLLM's."""
    return [
        f"{name}: predicted {mine}, vLLM {theirs}"
        for name, mine, theirs in (
            *_resolved(case, prediction),
            *_weights(case, prediction),
            *_plans(case, prediction),
        )
        if mine != theirs
    ]


def _resolved(case: dict[str, Any], prediction: Prediction) -> list[tuple[str, Any, Any]]:
    expected, resolved = case["expected"]["resolved"], prediction.resolved
    assert resolved is not None
    pairs = [
        (name, getattr(resolved, name), expected[name])
        for name in (
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "block_size",
            "quantization",
            "max_in_flight_tokens",
            "gpu_memory_utilization",
        )
    ]
    dtype = expected["dtype"].removeprefix("torch.")
    cache = ("kv_cache_dtype", resolved.kv_cache_dtype, expected["cache_dtype"])
    return [*pairs, ("dtype", resolved.dtype, dtype), cache]


def _weights(case: dict[str, Any], prediction: Prediction) -> list[tuple[str, Any, Any]]:
    assert prediction.resolved is not None
    assert prediction.weights_bytes is not None
    tp = prediction.resolved.tensor_parallel_size
    return [
        (f"weights of stage {pp_rank}", prediction.weights_bytes[pp_rank * tp + tp_rank], size)
        for pp_rank, tp_rank, size in case["expected"]["weights"]
    ]


def _plans(case: dict[str, Any], prediction: Prediction) -> list[tuple[str, Any, Any]]:
    pairs: list[tuple[str, Any, Any]] = []
    for plan, result in zip(prediction.plans, case["expected"]["results"], strict=True):
        at = f" at {result['available_memory']} bytes"
        estimated = result["estimated_max_model_len"]
        pairs += [
            ("refusal" + at, plan.error is not None, result["refuses"]),
            ("num_blocks" + at, plan.num_blocks, result["num_blocks"]),
            ("tokens" + at, plan.kv_cache_size_tokens, result["kv_cache_tokens"]),
            ("concurrency" + at, plan.max_concurrency, result["max_concurrency"]),
            ("estimated_max_model_len" + at, plan.estimated_max_model_len, estimated),
        ]
        if not result["refuses"]:
            per_request = result["blocks_per_max_len_request_by_group"]
            pairs.append(("blocks" + at, list(plan.blocks_per_max_len_request), per_request))
    return pairs


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_supported_deployment_is_predicted_exactly(case: dict[str, Any]) -> None:
    prediction = predicted(case)
    if prediction.supported:
        assert differences(case, prediction) == []
    else:
        assert prediction.reason
        assert case["cls"] not in MUST_BE_SUPPORTED
        assert prediction.plans == ()
        assert prediction.weights_bytes is None


def test_the_table_of_classes_has_no_inexact_answer(capsys: pytest.CaptureFixture[str]) -> None:
    cases, supported, exact = Counter[str](), Counter[str](), Counter[str]()
    for case in CASES:
        prediction = predicted(case)
        cases[case["cls"]] += 1
        supported[case["cls"]] += prediction.supported
        exact[case["cls"]] += prediction.supported and not differences(case, prediction)
    lines = [f"{'class':<22}{'cases':>6}{'supported':>11}{'exact':>7}"]
    lines += [
        f"{cls:<22}{cases[cls]:>6}{supported[cls]:>11}{exact[cls]:>7}" for cls in sorted(cases)
    ]
    lines.append(f"{'all':<22}{cases.total():>6}{supported.total():>11}{exact.total():>7}")
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    assert exact == supported


def test_bytes_of_a_block_are_those_that_vllm_allocates() -> None:
    for case in CASES:
        prediction = predicted(case)
        if prediction.supported and prediction.resolved is not None:
            tp = prediction.resolved.tensor_parallel_size
            expected = case["expected"]["bytes_per_block"]
            assert list(prediction.plans[0].bytes_per_block[::tp]) == expected, case["id"]


def test_concurrency_agrees_to_six_significant_digits() -> None:
    for case in CASES:
        prediction = predicted(case)
        for plan, result in zip(prediction.plans, case["expected"]["results"], strict=False):
            if plan.max_concurrency is not None:
                assert math.isclose(
                    plan.max_concurrency, result["max_concurrency"], rel_tol=1e-6
                ), case["id"]
