"""The vision encoder of Idefics3 and SmolVLM.

Source: vLLM 0.32 ``models/idefics3.py``, ``idefics2_vision_model.py``; defaults of transformers 5
``configuration_idefics3.py``.
"""

from collections.abc import Iterator

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part
from vllm_capacity.predict.models.vision.common import (
    IMAGE,
    MAX_WIDTH,
    THREE,
    Sizes,
    attention,
    convolution,
    mlp,
    towers,
)
from vllm_capacity.predict.models.vision.llava import text_width
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.vision import Group, Projection, Tower

_DEFAULTS = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}


def idefics2_vision(
    sizes: Sizes, *, layers: int | None = None, post_norm: bool = True, quantizable: bool = True
) -> tuple[Part, ...]:
    """The encoder that Idefics2 brought, of which others take fewer layers."""
    width = sizes["hidden_size"]
    layer: tuple[Part, ...] = (
        attention(
            width,
            sizes["num_attention_heads"],
            name="self_attn",
            qkv="qkv_proj",
            shards=THREE,
            out="out_proj",
            quantizable=quantizable,
        ),
        mlp(width, sizes["intermediate_size"], quantizable=quantizable),
        Vectors(name="layer_norms", elements=4 * width),
    )
    positions = (sizes["image_size"] // sizes["patch_size"]) ** 2
    kernel = sizes["patch_size"] ** 2
    return (
        convolution("embeddings.patch_embedding", sizes["num_channels"], width, kernel, bias=True),
        Vectors(name="embeddings.position_embedding", elements=positions * width),
        Group(
            name="encoder.layers",
            parts=layer,
            count=sizes.layers() if layers is None else layers,
        ),
        Vectors(name="post_layernorm", elements=2 * width if post_norm else 0),
    )


def idefics3(config: Fields, text: Fields) -> Iterator[Outside]:
    """Idefics3's, and the connector that folds patches together."""
    sizes = Sizes(config, "vision_config", _DEFAULTS, required=False)
    scale = config.integer("scale_factor", maximum=MAX_WIDTH) or 2
    connector = Projection(
        name="modality_projection.proj",
        input_size=sizes["hidden_size"] * scale**2,
        output_sizes=(text_width(text),),
        bias=False,
    )
    yield from towers(
        IMAGE,
        Tower(name="model.vision_model", parts=idefics2_vision(sizes)),
        Tower(name="model.connector", parts=(connector,)),
    )
