"""The two encoders of DeepSeek-OCR: SAM's and CLIP's, of fixed sizes.

Source: vLLM 0.32 ``models/deepseek_ocr.py``, ``deepencoder.py``, ``deepseek_vl2.py``
(``MlpProjector``).
"""

from collections.abc import Iterator

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part
from vllm_capacity.predict.models.vision.clip import CLIP, Depth, clip
from vllm_capacity.predict.models.vision.common import (
    IMAGE,
    Sizes,
    convolution,
    plain_linear,
    towers,
)
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.vision import Group, Tower
from vllm_capacity.predict.refusal import Refusal

#: vLLM's own numbers, whatever the file says.
_CLIP = {
    **CLIP,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "image_size": 224,
    "patch_size": 14,
}
_SAM_WIDTH = 768
_SAM_LAYERS = 12
_SAM_GLOBAL_LAYERS = 4
_SAM_GRID = 64
_SAM_WINDOW = 14
_SAM_HEAD = 64
PROJECTOR = {
    "projector_type": "downsample_mlp_gelu",
    "input_dim": 1152,
    "n_embed": 2048,
    "depth": 2,
    "mlp_ratio": 1,
    "downsample_ratio": 2,
}


def deepseek_ocr(config: Fields, text: Fields) -> Iterator[Outside]:
    """SAM's encoder, CLIP's without its last norm, and the projector.

    Raises:
        Refusal: vLLM knows no such projector or tiling.
    """
    del text
    check_tiles(config)
    inner = Fields({"vision_config": _CLIP}, faults=config.faults)
    # Unlike CLIP, it keeps no norm after its layers.
    encoder = clip(Sizes(inner, "vision_config", {}), Depth(post_norm=False))
    sizes = Sizes(config, "projector_config", PROJECTOR, required=False)
    yield from towers(
        IMAGE,
        Tower(name="sam_model", parts=sam()),
        Tower(name="vision_model", parts=encoder, own_names=True),
        Tower(name="projector", parts=tuple(projector(sizes))),
    )
    # Parameters of the class itself stay whatever is allowed.
    yield from towers(frozenset(), Vectors(name="image_newline", elements=2 * sizes["n_embed"]))


def check_tiles(config: Fields) -> None:
    """Refuse what the class does: another order of tiles.

    Raises:
        Refusal: vLLM knows no such tiling.
    """
    if config.text("tile_tag") != "2D":
        raise Refusal("vLLM refuses to start: tile_tag must be 2D")


def sam(outputs: int = 1024) -> tuple[Part, ...]:
    """SAM's encoder with its convolutions; ``outputs`` channels come out."""
    width = _SAM_WIDTH
    attention = 4 * width * (width + 1)
    feed = 8 * width * width + 5 * width
    layer = attention + feed + 4 * width
    local = 2 * (2 * _SAM_WINDOW - 1) * _SAM_HEAD
    everywhere = 2 * (2 * _SAM_GRID - 1) * _SAM_HEAD
    return (
        convolution("patch_embed", 3, width, 256, bias=True),
        Vectors(name="pos_embed", elements=_SAM_GRID**2 * width),
        Group(
            name="blocks",
            parts=(Vectors(name="parameters", elements=layer + local),),
            count=_SAM_LAYERS,
        ),
        Vectors(name="rel_pos", elements=_SAM_GLOBAL_LAYERS * (everywhere - local)),
        convolution("neck.0", width, 256, 1),
        convolution("neck.2", 256, 256, 9),
        Vectors(name="neck.norms", elements=4 * 256),
        convolution("net_2", 256, 512, 9),
        convolution("net_3", 512, outputs, 9),
    )


def projector(sizes: Sizes) -> Iterator[Part]:
    """What makes embeddings of the encoders' output."""
    kind = sizes.fields.text("projector_type")
    outputs, inputs = sizes["n_embed"], sizes["input_dim"]
    if kind == "linear":
        yield plain_linear("layers", inputs, outputs)
        return
    if kind != "downsample_mlp_gelu":
        raise Refusal(f"vLLM refuses to start: projector_type {kind} is not known")
    wide = outputs * sizes["mlp_ratio"]
    yield plain_linear("layers.0", inputs * sizes["downsample_ratio"] ** 2, wide)
    for index in range(1, sizes["depth"] - 1):
        yield plain_linear(f"layers.{2 * index}", wide, wide)
    yield plain_linear("layers.last", wide, outputs)
