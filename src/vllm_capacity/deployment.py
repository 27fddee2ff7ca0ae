"""What an engine was started with, from every source that says so, and the prediction for it.

Only declared arguments are read of what the engine exports, never what it measured:
a prediction that read the measurement would grade its own exam.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_capacity.compare.fleet import PredictionStatus
from vllm_capacity.compare.headroom import Limits
from vllm_capacity.compare.started_with import ArgumentSource, StartedWith
from vllm_capacity.errors import EngineArgsError, ModelConfigError
from vllm_capacity.observe.gpu_reading import GpuReading, MigInstance
from vllm_capacity.predict import (
    Deployment,
    EngineArgs,
    Gpu,
    KVCacheLayout,
    ModelConfig,
    Prediction,
    VllmVersion,
    predict,
)
from vllm_capacity.predict.kv_cache.planner import CAPABILITIES
from vllm_capacity.predict.memory.calibrated_deployment import calibrated_deployment
from vllm_capacity.predict.memory.calibration import Calibration
from vllm_capacity.predict.memory.checkpoint_check import checkpoint_mismatch
from vllm_capacity.units import GIB, Bytes

_LIMITS = ("max_model_len", "max_num_seqs", "max_num_batched_tokens")


@dataclass(frozen=True, kw_only=True)
class DeploymentFacts:
    """Everything that describes one deployment, as found.

    Attributes:
        config: the model's config.json; None if not at hand.
        hf_quant_config: hf_quant_config.json beside it, if there.
        config_problem: why there is no config, in one sentence.
        config_source: where it was read, for messages.
        checkpoint_bytes: of the tensors beside it; None if not at hand.
        given_args: arguments given to us by flag or file.
        log_args: arguments that the start-up log tells; None without one.
        process_args: arguments on the command line of the engine's process; None if not visible.
        cache_config: labels of ``vllm:cache_config_info``.
        max_model_len: as ``/v1/models`` says.
        vllm_version: as given, or as ``/version`` says.
        gpu: as given.
        nvml_gpu: the host's first GPU, by NVML.
        calibration: what the start-up log measured and tells of the arguments; None without one.
    """

    config: Mapping[str, Any] | None = None
    hf_quant_config: Mapping[str, Any] | None = None
    config_problem: str = "no config.json: give --model-config"
    config_source: str = "config.json"
    checkpoint_bytes: Bytes | None = None
    given_args: EngineArgs
    log_args: EngineArgs | None = None
    process_args: EngineArgs | None = None
    cache_config: Mapping[str, str] = field(default_factory=dict)
    max_model_len: int | None = None
    vllm_version: VllmVersion | None = None
    gpu: Gpu | None = None
    nvml_gpu: Gpu | None = None
    calibration: Calibration | None = None

    def with_labels(self, cache_config: Mapping[str, str]) -> "DeploymentFacts":
        """These facts and what an engine's ``cache_config_info`` declares."""
        return replace(self, cache_config=cache_config)


def predict_deployment(facts: DeploymentFacts) -> PredictionStatus:
    """The prediction for a deployment, or why there is none."""
    if facts.config is None:
        return PredictionStatus(prediction=None, reason="no_config", message=facts.config_problem)
    try:
        model = ModelConfig.from_dict(
            facts.config, hf_quant_config=facts.hf_quant_config, source=facts.config_source
        )
        deployment = Deployment(
            model=model,
            engine_args=started_with(facts).engine_args,
            gpu=facts.gpu or facts.nvml_gpu,
            vllm_version=facts.vllm_version,
        )
        if facts.calibration is not None:
            deployment = calibrated_deployment(deployment, facts.calibration)
        mismatch = _mismatch(facts, deployment)
        if mismatch is not None:
            return PredictionStatus(prediction=None, reason="bad_config", message=mismatch)
        prediction = _with_layout(predict(deployment), deployment, facts.cache_config)
        uncalibrated = (
            None
            if deployment.calibration is None
            else predict(replace(deployment, calibration=None))
        )
    except ModelConfigError as error:
        return PredictionStatus(prediction=None, reason="bad_config", message=str(error))
    except EngineArgsError as error:
        return PredictionStatus(prediction=None, reason="bad_arguments", message=str(error))
    return PredictionStatus(
        prediction=prediction,
        uncalibrated=uncalibrated,
        deployment=deployment,
        **_verdict(prediction),
    )


def _with_layout(
    prediction: Prediction, deployment: Deployment, labels: Mapping[str, str]
) -> Prediction:
    """With what requests hold; where that hangs on a GPU that is unknown, by its block size.

    The block size was resolved at the start-up. Of all that a request may hold on one GPU or
    another it leaves but one, as a rule.
    """
    if prediction.layout is not None or deployment.gpu is not None:
        return prediction
    layouts = {
        layout
        for capability in CAPABILITIES
        if (layout := _layout_on(capability, deployment)) is not None
        and str(layout.block_size_tokens) == labels.get("block_size")
    }
    return replace(prediction, layout=layouts.pop()) if len(layouts) == 1 else prediction


def _layout_on(capability: tuple[int, int], deployment: Deployment) -> KVCacheLayout | None:
    gpu = Gpu(
        name="unknown",
        compute_capability=".".join(map(str, capability)),
        total_memory_bytes=Bytes(80 * GIB),
    )
    layout = predict(replace(deployment, gpu=gpu)).layout
    return None if layout is None else replace(layout, max_num_batched_tokens=None)


def _mismatch(facts: DeploymentFacts, deployment: Deployment) -> str | None:
    if facts.checkpoint_bytes is None:
        return None
    return checkpoint_mismatch(deployment, facts.checkpoint_bytes)


def _verdict(prediction: Prediction) -> dict[str, str]:
    if not prediction.supported:
        return {"reason": "unsupported", "message": prediction.reason or "not supported"}
    if not prediction.plans:
        message = "the cache's size is unknown: give --gpu, or run where NVML sees the GPU"
        return {"reason": "no_memory", "message": message}
    plan = prediction.plans[0]
    if plan.error is not None:
        return {"reason": "does_not_fit", "message": plan.error}
    if plan.origin == "num_gpu_blocks_override":
        message = "blocks were set by --num-gpu-blocks-override; tokens and concurrency follow"
        return {"reason": "override", "message": message}
    return {"reason": "ok", "message": f"planned from the {plan.origin}"}


def limits_of(facts: DeploymentFacts, status: PredictionStatus) -> Limits:
    """Limits of the engine: as its API says, else as it was started, else as vLLM would choose."""
    known = started_with_at_least(facts)
    served = {"max_model_len": facts.max_model_len}
    resolved = None if status.prediction is None else status.prediction.resolved
    values: dict[str, int | None] = {}
    origins: dict[str, str] = {}
    for name in _LIMITS:
        for origin, value in (
            ("api", served.get(name)),
            (known.source_of(name), getattr(known.engine_args, name)),
            ("predicted", getattr(resolved, name, None)),
        ):
            if origin is not None and value is not None and value > 0:
                values[name], origins[name] = value, origin
                break
    return Limits(**values, origins=origins)


def started_with(facts: DeploymentFacts) -> StartedWith:
    """What each source tells of the engine's arguments.

    Raises:
        EngineArgsError: a label of ``vllm:cache_config_info`` is none of vLLM's.
    """
    return _told(facts, metrics=EngineArgs.declared_in_cache_config(facts.cache_config))


def started_with_at_least(facts: DeploymentFacts) -> StartedWith:
    """The same, without labels that cannot be read."""
    try:
        return started_with(facts)
    except EngineArgsError:
        return _told(facts, metrics=None)


def _told(facts: DeploymentFacts, *, metrics: EngineArgs | None) -> StartedWith:
    told: dict[ArgumentSource, EngineArgs | None] = {
        "flag": facts.given_args,
        "log": facts.log_args,
        "process": facts.process_args,
        "metrics": metrics,
        "api": EngineArgs.as_told({"max_model_len": facts.max_model_len}),
    }
    return StartedWith(sources={source: args for source, args in told.items() if args is not None})


def gpu_of_reading(reading: GpuReading, instance: MigInstance | None = None) -> Gpu | None:
    """The GPU that NVML read, as the predictor wants it; None if its memory is unknown.

    Args:
        reading: of the whole GPU.
        instance: the part of it that an engine runs on, if it is divided.
    """
    space = reading if instance is None else instance
    if space.total_bytes is None:
        return None
    capability = reading.compute_capability
    return Gpu(
        name=reading.name,
        compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        # CUDA reports what the driver leaves.
        total_memory_bytes=Bytes(space.total_bytes - (space.reserved_bytes or 0)),
    )


def served_version(text: str | None) -> VllmVersion | None:
    """What ``/version`` answers as a release; None for a build that names none."""
    try:
        return None if text is None else VllmVersion.parse(text)
    except ValueError:
        return None
