"""Whether a checkpoint's size is that of the model which its ``config.json`` describes."""

from dataclasses import replace

from vllm_capacity.predict.prediction import Deployment, predict
from vllm_capacity.units import format_gib

#: Tied heads, rotary tables, draft layers and scales explain less; another quantisation more.
_LEAST, _MOST = 0.7, 1.4


def checkpoint_mismatch(deployment: Deployment, checkpoint_bytes: int) -> str | None:
    """Why the file and the checkpoint cannot belong together, in one sentence; else None.

    A quantisation that ``config.json`` does not declare shows here: such a model would otherwise
    be predicted at full width.
    """
    alone = replace(
        deployment.engine_args,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        data_parallel_size=None,
        enable_expert_parallel=None,
        speculative_config=None,
        decode_context_parallel_size=None,
    )
    prediction = predict(replace(deployment, engine_args=alone, gpu=None, calibration=None))
    if prediction.weights_bytes is None:
        return None
    described = prediction.weights_bytes[0]
    if _LEAST <= described / checkpoint_bytes <= _MOST:
        return None
    return (
        f"config.json describes {format_gib(described)} of weights, but the checkpoint beside it "
        f"holds {format_gib(checkpoint_bytes)}: it is of another model, or quantised in a way that "
        "neither config.json nor hf_quant_config.json declares"
    )
