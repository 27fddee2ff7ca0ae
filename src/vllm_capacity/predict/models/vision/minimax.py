"""The vision encoder of MiniMax-M3.

Source: vLLM 0.32 ``vllm/models/minimax_m3/common/vision_tower.py``.
"""

from collections.abc import Iterator

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part
from vllm_capacity.predict.models.vision.common import (
    FLOAT32,
    IMAGE_AND_VIDEO,
    MAX_WIDTH,
    THREE,
    Sizes,
    attention,
    convolution,
    towers,
    two_projections,
)
from vllm_capacity.predict.models.vision.llava import text_width
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.vision import Group, Tower

#: Time, rows and columns rotate a share of a head each.
_AXES = 3


def minimax_m3(config: Fields, text: Fields) -> Iterator[Outside]:
    """Patches of two frames, then two projections, then four patches into one."""
    sizes = Sizes(config, "vision_config", {})
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    compression = sizes.fields.mapping("img_token_compression_config")
    merge = frames = 2
    if compression is None:
        sizes.fields.fault("img_token_compression_config", "is missing; add the model's value")
    else:
        merge = compression.integer("spatial_merge_size", maximum=MAX_WIDTH) or merge
        frames = compression.integer("temporal_patch_size", maximum=MAX_WIDTH) or frames
    layer: tuple[Part, ...] = (
        attention(width, heads, name="self_attn", qkv="qkv_proj", shards=THREE, out="out_proj"),
        *two_projections(width, sizes["intermediate_size"], width, names=("fc1", "fc2")),
        Vectors(name="layer_norms", elements=4 * width),
    )
    rotated = 2 * (max(1, width // heads) // 2)
    frequencies = _AXES * len(range(0, 2 * (rotated // _AXES // 2), 2))
    kernel = frames * sizes["patch_size"] ** 2
    encoder = (
        Vectors(name="inv_freq", elements=frequencies, element_bytes=FLOAT32),
        convolution("embeddings.patch_embedding", sizes["num_channels"], width, kernel),
        Vectors(name="pre_layrnorm", elements=2 * width),
        Group(name="encoder.layers", parts=layer, count=sizes.layers()),
    )
    outputs = text_width(text)
    middle = config.integer("projector_hidden_size", maximum=MAX_WIDTH) or outputs
    projector = two_projections(width, middle, outputs, bias=_bias(sizes, "multimodal_projector"))
    merger = two_projections(outputs * merge**2, middle, outputs, bias=_bias(sizes, "patch_merge"))
    parts = (
        Group(name="vision_model", parts=encoder),
        Group(name="multi_modal_projector", parts=projector),
        Group(name="patch_merge_mlp", parts=merger),
    )
    yield from towers(IMAGE_AND_VIDEO, Tower(name="vision_tower", parts=parts, data_parallel=True))


def _bias(sizes: Sizes, name: str) -> bool:
    return sizes.fields.boolean(f"{name}_bias") is not False
