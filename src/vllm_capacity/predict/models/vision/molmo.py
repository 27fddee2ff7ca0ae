"""Molmo: a decoder like Llama's with another table of tokens, and CLIP of fixed sizes.

Source: vLLM 0.32 ``models/molmo.py``.
"""

from collections.abc import Iterator
from dataclasses import replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Outside, Part, Stages
from vllm_capacity.predict.models.registry import text_builder_of
from vllm_capacity.predict.models.vision.common import (
    IMAGE,
    MAX_WIDTH,
    plain_linear,
    towers,
    two_projections,
)
from vllm_capacity.predict.parts import TokenEmbedding, Vectors
from vllm_capacity.predict.parts.vision import Group, Projection, Tower
from vllm_capacity.predict.refusal import Refusal

#: vLLM's own numbers, whatever the file says: ``VisionBackboneConfig``.
_WIDTH = 1024
_INNER = 4096
_PIXELS = 3 * 14 * 14
_POSITIONS = 577
#: The last that is read, and how many are.
_LAYERS = 23
_READ = 2
#: Rows for tokens that stand for pictures.
_ADDITIONAL_ROWS = 128


def build_molmo(config: Fields, *, path: str = "", head_path: str = "") -> Model:
    """Molmo.

    Raises:
        Refusal: its decoder is not described exactly.
    """
    del path, head_path
    for key in ("attention_layer_norm", "norm_after", "weight_tying"):
        if config.boolean(key) is not False:
            raise Refusal(f"molmo.py without {key} false is not described exactly yet")
    if config.text("layer_norm_type") != "rms":
        raise Refusal("vLLM refuses to start: layer_norm_type must be rms")
    build = text_builder_of("LlamaForCausalLM")
    if build is None or config.boolean("qkv_bias") is None:
        raise Refusal("molmo.py without qkv_bias is not described exactly yet")
    model = build(_decoder(config), path="model", head_path="")
    return replace(
        model,
        source="molmo.py",
        outside=(*map(_everywhere, model.outside), *_tower(config)),
        encoder_elements=model.hidden_size,
    )


def _decoder(config: Fields) -> Fields:
    """The same decoder as Llama would name it."""
    values = {key: value for key, value in config.values.items() if key != "head_dim"}
    wide = config.required_integer("intermediate_size", maximum=MAX_WIDTH)
    values |= {
        "intermediate_size": wide // 2,
        "vocab_size": values.get("embedding_size") or values.get("vocab_size"),
        "attention_bias": False,
        "tie_word_embeddings": False,
    }
    return Fields(values, path=config.path, faults=config.faults)


def _everywhere(outside: Outside) -> Outside:
    """The class builds both tables and the last norm on every stage, and one of them is longer."""
    part = outside.part
    if isinstance(part, TokenEmbedding):
        part = replace(part, vocab_size=part.vocab_size + _ADDITIONAL_ROWS)
    return replace(outside, part=part, stages=Stages.EVERY)


def _attention(inputs: int) -> tuple[Part, ...]:
    projections = (
        Projection(name=name, input_size=inputs, output_sizes=(_WIDTH,), split="column")
        for name in ("wq", "wk", "wv")
    )
    out = Projection(name="wo", input_size=_WIDTH, output_sizes=(_WIDTH,), split="row")
    return (*projections, out)


def _tower(config: Fields) -> Iterator[Outside]:
    width, read = _WIDTH, _READ * _WIDTH
    block: tuple[Part, ...] = (
        Group(name="attention", parts=_attention(width)),
        Group(name="feed_forward", parts=two_projections(width, _INNER, width, names=("w1", "w2"))),
        Vectors(name="norms", elements=4 * width),
    )
    wide = config.required_integer("intermediate_size", maximum=MAX_WIDTH) // 2
    outputs = config.required_integer("hidden_size", maximum=MAX_WIDTH)
    projector = (
        Projection(
            name="merged_linear",
            input_size=width,
            output_sizes=(wide, wide),
            split="column",
            bias=False,
            shards=("gate_proj", "up_proj"),
        ),
        Projection(
            name="down_proj",
            input_size=wide,
            output_sizes=(outputs,),
            split="row",
            bias=False,
        ),
    )
    parts = (
        Vectors(name="pad_embed", elements=2 * read),
        Vectors(name="image_vit.class_embedding", elements=width),
        Vectors(name="image_vit.positional_embedding", elements=_POSITIONS * width),
        plain_linear("image_vit.patch_embedding", _PIXELS, width, bias=False),
        Vectors(name="image_vit.pre_ln", elements=2 * width),
        Group(name="image_vit.transformer.resblocks", parts=block, count=_LAYERS),
        Group(name="image_pooling_2d", parts=_attention(read)),
        Group(name="image_projector", parts=projector),
    )
    yield from towers(IMAGE, Tower(name="vision_backbone", parts=parts))
