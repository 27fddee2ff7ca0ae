"""A deployment with what was measured of it, and told of it, elsewhere."""

from dataclasses import replace

from vllm_capacity.predict.gpu import Gpu
from vllm_capacity.predict.memory.calibrated_budget import told_args
from vllm_capacity.predict.memory.calibration import Calibration
from vllm_capacity.predict.prediction import Deployment
from vllm_capacity.predict.vllm_version import VllmVersion


def calibrated_deployment(deployment: Deployment, calibration: Calibration) -> Deployment:
    """The deployment with measured terms, and with what their source tells of it beside.

    What the deployment says itself wins; the GPU's memory is taken where no GPU is given.

    Raises:
        EngineArgsError: the source's arguments are none of vLLM's.
    """
    gpu, total = deployment.gpu, calibration.total_memory_bytes
    if gpu is None and total is not None:
        gpu = Gpu(name="", compute_capability=None, total_memory_bytes=total.bytes)
    return replace(
        deployment,
        engine_args=deployment.engine_args.merged_over(told_args(calibration)),
        gpu=gpu,
        vllm_version=deployment.vllm_version or _release(calibration.vllm_version),
        calibration=calibration,
    )


def _release(text: str | None) -> VllmVersion | None:
    try:
        return None if text is None else VllmVersion.parse(text)
    except ValueError:
        return None
