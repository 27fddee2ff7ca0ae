"""What vLLM answered for a deployment, beside what is predicted for it."""

from typing import Any

from recorded import gpu_of

from vllm_capacity.predict import (
    Deployment,
    EngineArgs,
    ModelConfig,
    Prediction,
    VllmVersion,
    predict,
)


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
