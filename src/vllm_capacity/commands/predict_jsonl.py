"""One line of ``predict --jsonl``: JSON in, JSON out."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_capacity.commands.predict_answers import Question, answers, read_question
from vllm_capacity.errors import EngineArgsError, Fault, InputError, ModelConfigError
from vllm_capacity.predict import (
    Deployment,
    EngineArgs,
    Gpu,
    KVCachePlan,
    MemoryBudget,
    ModelConfig,
    Prediction,
    VllmVersion,
    gpu_named,
    predict,
)
from vllm_capacity.predict.fields import Fields
from vllm_capacity.units import Bytes

_RESOLVED = (
    "architecture",
    "dtype",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "kv_cache_dtype",
    "quantization",
)
_BUDGET = (
    "requested_bytes",
    "weights_bytes",
    "weights_bytes_low",
    "weights_bytes_high",
    "activation_peak_bytes",
    "activation_peak_bytes_low",
    "activation_peak_bytes_high",
    "activation_peak_phase",
    "non_torch_bytes",
    "non_torch_bytes_low",
    "non_torch_bytes_high",
    "cuda_graph_bytes",
    "cuda_graph_bytes_low",
    "cuda_graph_bytes_high",
    "kv_cache_bytes",
    "kv_cache_bytes_low",
    "kv_cache_bytes_high",
)
_LONGEST_VALUE = 200


def answer_line(line: bytes) -> dict[str, Any]:
    """The answer to one line; an unusable one is answered with its faults."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _refused(None, InputError("line", [Fault("", None, f"is not JSON: {error}")]))
    if not isinstance(request, Mapping):
        return _refused(None, InputError("line", [Fault("", request, "must be an object")]))
    identity = _plain(request.get("id"))
    try:
        asked, deployment = _read(request)
        question = _question(request)
        prediction = predict(deployment, available_kv_cache_bytes=asked)
    except InputError as error:
        return _refused(identity, error)
    answer = {"id": identity, **_answer(prediction, asked)}
    if question is not None and prediction.supported:
        answer["answers"] = answers(deployment, question)
    return answer


def _question(request: Mapping[str, Any]) -> Question | None:
    """What is asked beside the prediction: the optional key ``workload``.

    Raises:
        InputError: with every fault found.
    """
    faults: list[Fault] = []
    fields = Fields(request, faults=faults).mapping("workload")
    question = None if fields is None else read_question(fields)
    if faults:
        raise InputError("line", faults)
    return question


def _read(request: Mapping[str, Any]) -> tuple[list[Any] | None, Deployment]:
    """The deployment of a line, all faults of all of its parts at once.

    Raises:
        InputError: with every fault found.
    """
    faults: list[Fault] = []
    fields = Fields(request, faults=faults)
    model = engine_args = None
    try:
        model = ModelConfig.from_dict(
            request.get("config") or {}, hf_quant_config=request.get("hf_quant_config")
        )
    except ModelConfigError as error:
        faults.extend(_under("config", error))
    try:
        engine_args = EngineArgs.from_mapping(request.get("engine_args") or {})
    except EngineArgsError as error:
        faults.extend(_under("engine_args", error))
    gpu, version = _gpu(fields), _version(fields)
    env, flashinfer, asked = _env(fields), fields.boolean("flashinfer"), _asked(fields)
    if faults or model is None or engine_args is None:
        raise InputError("line", faults)
    return asked, Deployment(
        model=model,
        engine_args=engine_args,
        gpu=gpu,
        vllm_version=version,
        env=env,
        flashinfer=flashinfer,
    )


def _under(key: str, error: InputError) -> list[Fault]:
    return [
        Fault(f"{key}.{fault.key}".rstrip("."), fault.value, fault.problem)
        for fault in error.faults
    ]


def _gpu(fields: Fields) -> Gpu | None:
    gpu = fields.mapping("gpu")
    if gpu is None:
        return None
    name, total = gpu.text("name") or "", gpu.integer("total_memory")
    if total is None:
        # A known GPU's name says what CUDA reports of it.
        known = gpu_named(name)
        if known is None:
            gpu.fault("total_memory", "is missing; give the bytes that CUDA reports")
            return None
        total = known.total_memory_bytes
    return Gpu(
        name=name,
        compute_capability=gpu.text("compute_capability"),
        total_memory_bytes=Bytes(total),
    )


def _version(fields: Fields) -> VllmVersion | None:
    text = fields.text("vllm_version")
    if text is None:
        return None
    try:
        return VllmVersion.parse(text)
    except ValueError:
        fields.fault("vllm_version", "must look like 0.32.0")
        return None


def _env(fields: Fields) -> dict[str, str]:
    env = fields.mapping("env")
    if env is None:
        return {}
    for key, value in env.values.items():
        if not isinstance(value, str):
            env.fault(key, "must be a string, as environment variables are")
    return {key: str(value) for key, value in env.values.items()}


def _asked(fields: Fields) -> list[Any] | None:
    key = "available_kv_cache_bytes"
    value = fields.values.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(
        _is_bytes(item) or (isinstance(item, list) and item and all(map(_is_bytes, item)))
        for item in value
    ):
        fields.fault(key, "must be a list of whole numbers, or of lists of them per stage")
        return None
    return value


def _is_bytes(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 60


def _refused(identity: Any, error: InputError) -> dict[str, Any]:
    faults = [
        {"key": fault.key, "value": _plain(fault.value), "problem": fault.problem}
        for fault in error.faults
    ]
    return {"id": identity, "error": {"message": str(error), "faults": faults}}


def _plain(value: Any) -> Any:
    """A value that any JSON reader takes, shortened where it is long."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) <= _LONGEST_VALUE:
        return value
    if isinstance(value, int) and abs(value) < 1 << 62:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return _shortened(value)


def _shortened(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _answer(prediction: Prediction, asked: Sequence[Any] | None) -> dict[str, Any]:
    if not prediction.supported:
        return {"supported": False, "reason": prediction.reason}
    resolved = prediction.resolved
    labels = [_available(plan) for plan in prediction.plans] if asked is None else asked
    return {
        "supported": True,
        "resolved": {key: getattr(resolved, key) for key in _RESOLVED},
        "weights_bytes": list(prediction.weights_bytes or ()),
        "budget": None if prediction.budget is None else _budget(prediction.budget),
        "kv_cache": [
            _plan(plan, label) for plan, label in zip(prediction.plans, labels, strict=False)
        ],
    }


def _budget(budget: MemoryBudget) -> dict[str, Any]:
    return {key: getattr(budget, key) for key in _BUDGET}


def _available(plan: KVCachePlan) -> int | list[int]:
    numbers = set(plan.available_bytes)
    return numbers.pop() if len(numbers) == 1 else list(plan.available_bytes)


def _plan(plan: KVCachePlan, available: Any) -> dict[str, Any]:
    return {
        "available_bytes": available,
        "bytes_per_block": list(plan.bytes_per_block),
        "num_blocks": plan.num_blocks,
        "kv_cache_size_tokens": plan.kv_cache_size_tokens,
        "max_concurrency": plan.max_concurrency,
        "blocks_per_max_len_request": list(plan.blocks_per_max_len_request),
        "groups": [
            {
                "kind": group.kind,
                "layers": group.layers,
                "block_size": group.spec.block_size,
                "page_size_bytes": group.spec.page_size_bytes,
            }
            for group in plan.groups
        ],
        "error": plan.error,
        "estimated_max_model_len": plan.estimated_max_model_len,
    }
