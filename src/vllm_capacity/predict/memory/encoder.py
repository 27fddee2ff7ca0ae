"""What the encoder of a multimodal model needs in the profiling run, and what it keeps.

vLLM encodes a batch of the largest items that the encoder's budget holds before it profiles the
text model, and keeps inputs and outputs until the sampler has run.
"""

from dataclasses import dataclass

from vllm_capacity.predict.vllm_version import VllmVersion
from vllm_capacity.units import Bytes

#: First release whose encoder cache holds embeddings only; read in 0.16, while 0.11.2 still
#: copied every item's output into a tensor of the whole budget.
_EMBEDDINGS_ONLY = VllmVersion(0, 14)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderItem:
    """The largest image (or video) that a class profiles.

    Attributes:
        tokens: places that it takes in the prompt; the encoder's budget counts these.
        embeddings: rows that the encoder puts out for it.
        input_elements: its pixels, in the model's dtype.
        patches: rows that pass through the tower.
        tower_elements: elements that the tower holds at once for every patch.
        buffer_bytes: what the tower makes at its first run and keeps.
    """

    tokens: int
    embeddings: int
    input_elements: int
    patches: int = 0
    tower_elements: int = 0
    buffer_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """The encoder's share of the profiling run.

    Attributes:
        kept_bytes: what stays while the text model and the sampler run.
        peak_bytes: what the encoder itself needs at most.
    """

    kept_bytes: Bytes
    peak_bytes: Bytes


def encoded(
    item: EncoderItem,
    *,
    output_elements: int,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    element_bytes: int,
    version: VllmVersion,
) -> Encoded:
    """What profiling the encoder takes.

    Args:
        item: the largest item.
        output_elements: elements of a row that the encoder puts out.
        max_num_batched_tokens: tokens of a batch, the least budget of the encoder.
        max_num_seqs: requests, of which each brings an item.
        element_bytes: width of the model's dtype.
        version: releases before 0.14 pad the output of every item.

    Source: vLLM 0.19 ``v1/worker/gpu_model_runner.py``, ``profile_run``; ``multimodal/
    encoder_budget.py``; 0.11 ``profile_run``, where the last output stays referenced besides
    the padded ones.
    """
    budget = max(max_num_batched_tokens, item.tokens)
    items = max(1, min(budget // item.tokens, max_num_seqs))
    inputs = element_bytes * items * item.input_elements
    outputs = element_bytes * items * item.embeddings * output_elements
    if version < _EMBEDDINGS_ONLY and item.embeddings < budget:
        outputs += element_bytes * items * budget * output_elements
    tower = element_bytes * items * item.patches * item.tower_elements
    return Encoded(
        kept_bytes=Bytes(inputs + outputs + item.buffer_bytes),
        peak_bytes=Bytes(inputs + tower + item.buffer_bytes),
    )
