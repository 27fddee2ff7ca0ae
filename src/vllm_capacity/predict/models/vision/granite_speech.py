"""Granite Speech's encoder of sound, and the Q-Former that reads it.

Source: vLLM 0.32 ``models/granite_speech.py``, ``blip2.py`` (``Blip2QFormerModel``); defaults of
transformers 5 ``configuration_granite_speech.py`` and ``configuration_blip_2.py``.
"""

from collections.abc import Iterator

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part
from vllm_capacity.predict.models.vision.common import (
    AUDIO,
    INT64,
    MAX_WIDTH,
    Sizes,
    plain_linear,
    towers,
    two_projections,
)
from vllm_capacity.predict.models.vision.llava import text_width
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.vision import Group, Tower

_ENCODER = {
    "input_dim": 160,
    "num_layers": 10,
    "hidden_dim": 1024,
    "feedforward_mult": 4,
    "num_heads": 8,
    "dim_head": 128,
    "output_dim": 42,
    "max_pos_emb": 512,
    "conv_kernel_size": 15,
    "conv_expansion_factor": 2,
}
_QFORMER = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "cross_attention_frequency": 2,
    "encoder_hidden_size": 1408,
}
_DOWNSAMPLE_RATE = 5
_WINDOW_SIZE = 15


def granite_speech(config: Fields, text: Fields) -> Iterator[Outside]:
    """A conformer, of which only the MLPs and the ends are divided, and a Q-Former."""
    sizes = Sizes(config, "encoder_config", _ENCODER, required=False)
    reader = Sizes(config, "projector_config", _QFORMER, required=False)
    window = config.integer("window_size", maximum=MAX_WIDTH) or _WINDOW_SIZE
    queries = window // (config.integer("downsample_rate", maximum=MAX_WIDTH) or _DOWNSAMPLE_RATE)
    width = reader["hidden_size"]
    projector = (
        Vectors(name="query", elements=queries * width),
        *qformer(reader),
        plain_linear("linear", width, text_width(text)),
    )
    yield from towers(
        AUDIO,
        Tower(name="encoder", parts=tuple(_encoder(sizes)), own_names=True),
        Tower(name="projector", parts=projector),
    )


def _encoder(sizes: Sizes) -> Iterator[Part]:
    width, outputs = sizes["hidden_dim"], sizes["output_dim"]
    yield plain_linear("input_linear", sizes["input_dim"], width)
    yield Group(name="layers", parts=_block(sizes), count=sizes.layers("num_layers"))
    yield from two_projections(width, outputs, width, names=("out", "out_mid"))


def _block(sizes: Sizes) -> tuple[Part, ...]:
    width, heads = sizes["hidden_dim"], sizes["num_heads"] * sizes["dim_head"]
    inner, folded = sizes["feedforward_mult"] * width, sizes["conv_expansion_factor"] * width
    feed = two_projections(width, inner, width, names=("up_proj", "down_proj"), quantizable=False)
    positions = 2 * sizes["max_pos_emb"] + 1
    return (
        Group(name="ff1", parts=feed),
        Group(name="ff2", parts=feed),
        plain_linear("attn.to_qkv", width, 3 * heads, bias=False),
        plain_linear("attn.to_out", heads, width),
        Vectors(name="attn.rel_pos_emb", elements=positions * sizes["dim_head"]),
        plain_linear("conv.up_conv", width, 2 * folded),
        Vectors(name="conv.depth_conv", elements=folded * sizes["conv_kernel_size"]),
        plain_linear("conv.down_conv", folded, width),
        # Weight, bias, running mean and variance.
        Vectors(name="conv.batch_norm", elements=4 * folded),
        Vectors(name="conv.batch_norm.num_batches_tracked", elements=1, element_bytes=INT64),
        # Before both MLPs, attention and convolution, and after all of them.
        Vectors(name="norms", elements=10 * width),
    )


def qformer(sizes: Sizes) -> Iterator[Part]:
    """BLIP-2's Q-Former; some of its layers look at the encoder's output, none is divided."""
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    layer = (
        plain_linear("attention", width, 4 * width),
        plain_linear("intermediate_query", width, inner),
        plain_linear("output_query", inner, width),
        Vectors(name="LayerNorms", elements=4 * width),
    )
    looking = (
        plain_linear("crossattention.query", width, 2 * width),
        plain_linear("crossattention.kv", sizes["encoder_hidden_size"], 2 * width),
        Vectors(name="crossattention.LayerNorm", elements=2 * width),
    )
    layers, step = sizes.layers(), sizes["cross_attention_frequency"]
    yield Group(name="qformer.encoder.layer", parts=layer, count=layers)
    yield Group(name="qformer.encoder.looking", parts=looking, count=-(-layers // step))
    yield Vectors(name="qformer.layernorm", elements=2 * width)
