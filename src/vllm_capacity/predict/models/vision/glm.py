"""The vision encoders of GLM-4.1V, GLM-4.5V and GLM-OCR.

Source: vLLM 0.32 ``models/glm4_1v.py`` and ``glm_ocr.py``; defaults of transformers 5
``configuration_glm4v.py`` and ``configuration_glm_ocr.py``.
"""

from collections.abc import Iterator

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part
from vllm_capacity.predict.models.vision.common import (
    IMAGE_AND_VIDEO,
    INT64,
    MAX_WIDTH,
    Sizes,
    attention,
    convolution,
    gated_mlp,
    half_rotary,
    towers,
)
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.vision import Group, Projection, RotaryTower

_GLM4V = {
    "depth": 24,
    "hidden_size": 1536,
    "num_heads": 12,
    "in_channels": 3,
    "image_size": 336,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 4096,
    "intermediate_size": 13696,
}
_GLM_OCR = {
    **_GLM4V,
    "hidden_size": 1024,
    "num_heads": 16,
    "out_hidden_size": 1536,
    "intermediate_size": 4096,
}


def _tower(sizes: Sizes, parts: tuple[Part, ...]) -> Iterator[Outside]:
    table = half_rotary(max(1, sizes["hidden_size"] // sizes["num_heads"]))
    tower = RotaryTower(name="visual", parts=parts, data_parallel=True, table=table)
    yield from towers(IMAGE_AND_VIDEO, tower)


def _merger(outputs: int, inner: int) -> Group:
    proj = Projection(
        name="proj", input_size=outputs, output_sizes=(outputs,), split="column", bias=False
    )
    # Its gate, up and down stand beside the projection, not under a name of their own.
    gate = Projection(
        name="gate_up_proj",
        input_size=outputs,
        output_sizes=(inner, inner),
        split="column",
        bias=False,
        shards=("gate_proj", "up_proj"),
    )
    down = Projection(
        name="down_proj", input_size=inner, output_sizes=(outputs,), split="row", bias=False
    )
    norm = Vectors(name="post_projection_norm", elements=2 * outputs)
    return Group(name="merger", parts=(proj, norm, gate, down))


def _common(sizes: Sizes) -> tuple[Part, ...]:
    width, outputs = sizes["hidden_size"], sizes["out_hidden_size"]
    kernel = sizes["temporal_patch_size"] * sizes["patch_size"] ** 2
    return (
        convolution("patch_embed.proj", sizes["in_channels"], width, kernel, bias=True),
        convolution("downsample", width, outputs, sizes["spatial_merge_size"] ** 2, bias=True),
        Vectors(name="post_layernorm", elements=width),
    )


def glm4v(config: Fields, text: Fields) -> Iterator[Outside]:
    """GLM-4.1V's and GLM-4.5V's; its MLPs are as wide as what the encoder puts out."""
    del text
    sizes = Sizes(config, "vision_config", _GLM4V, required=False)
    width, outputs = sizes["hidden_size"], sizes["out_hidden_size"]
    block: tuple[Part, ...] = (
        attention(width, sizes["num_heads"], bias=False),
        gated_mlp(width, outputs),
        Vectors(name="norms", elements=2 * width),
    )
    positions = (sizes["image_size"] // sizes["patch_size"]) ** 2
    parts = (
        *_common(sizes),
        Group(name="blocks", parts=block, count=sizes.layers("depth")),
        _merger(outputs, sizes["intermediate_size"]),
        Vectors(name="embeddings.position_embedding", elements=positions * width),
        Vectors(name="embeddings.position_ids", elements=positions, element_bytes=INT64),
        Vectors(name="post_conv_layernorm", elements=width),
    )
    yield from _tower(sizes, parts)


def glm_ocr(config: Fields, text: Fields) -> Iterator[Outside]:
    """GLM-OCR's, whose merger is as wide as the text model's MLPs."""
    sizes = Sizes(config, "vision_config", _GLM_OCR, required=False)
    width, heads = sizes["hidden_size"], sizes["num_heads"]
    block: tuple[Part, ...] = (
        attention(width, heads, extra_elements=2 * max(1, width // heads)),
        gated_mlp(width, sizes["intermediate_size"], bias=True),
        Vectors(name="norms", elements=2 * width),
    )
    inner = text.required_integer("intermediate_size", maximum=MAX_WIDTH)
    parts = (
        *_common(sizes),
        Group(name="blocks", parts=block, count=sizes.layers("depth")),
        _merger(sizes["out_hidden_size"], inner),
    )
    yield from _tower(sizes, parts)
