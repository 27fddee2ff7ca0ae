"""The vision encoders of InternVL, as its own files and as transformers name it.

Source: vLLM 0.32 ``models/intern_vit.py``, ``internvl.py``, ``interns1_vit.py``, ``interns1.py``.
"""

from collections.abc import Iterator

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part
from vllm_capacity.predict.models.vision.common import (
    IMAGE_AND_VIDEO,
    Sizes,
    attention,
    convolution,
    mlp,
    plain_linear,
    towers,
)
from vllm_capacity.predict.models.vision.llava import text_width
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.vision import Group, Tower, Unless
from vllm_capacity.predict.refusal import Refusal

_NORMS = {"rms_norm": 1, "layer_norm": 2}
_TRANSFORMERS = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "norm_type": "layer_norm",
    "image_size": [448, 448],
    "patch_size": [14, 14],
    "num_channels": 3,
    "use_absolute_position_embeddings": True,
    "use_mean_pooling": True,
}


def _norm(sizes: Sizes) -> int:
    kind = sizes.fields.text("norm_type")
    if kind not in _NORMS:
        raise Refusal(f"vLLM refuses to start: vision_config.norm_type {kind} is not known")
    return _NORMS[kind]


def folded(config: Fields, default: float | None) -> int:
    """How many patches become one."""
    ratio = config.number("downsample_ratio", minimum=1e-3, maximum=1.0)
    if ratio is None and default is None:
        config.fault("downsample_ratio", "is missing; add the model's value")
    return int(1 / (ratio or default or 1.0)) ** 2


def internvl_chat(config: Fields, text: Fields) -> Iterator[Outside]:
    """InternVLChatModel."""
    sizes = Sizes(config, "vision_config", {})
    merged = sizes["hidden_size"] * folded(config, None)
    outputs = text_width(text)
    projector = (
        Vectors(name="0", elements=2 * merged),
        plain_linear("1", merged, outputs),
        plain_linear("3", outputs, outputs),
    )
    parts = intern_vit(sizes, built_layers(config, sizes.layers()))
    yield from towers(
        IMAGE_AND_VIDEO,
        Tower(name="vision_model", parts=parts, data_parallel=True),
        Tower(name="mlp1", parts=projector),
    )


def built_layers(config: Fields, layers: int) -> int:
    """Layers up to ``select_layer``."""
    selected = config.integer("select_layer", minimum=-4096, maximum=4096)
    if selected is None:
        config.fault("select_layer", "is missing; add the model's value")
        return 0
    return layers + selected + 1 if selected < 0 else selected + 1


def intern_vit(
    sizes: Sizes, layers: int, *, idle_heads: int = 0, quantizable: bool = True
) -> tuple[Part, ...]:
    """InternViT.

    Args:
        sizes: its configuration.
        layers: how many are built.
        idle_heads: heads besides its own, so that more ranks divide them.
        quantizable: whether quantisation reaches it.
    """
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    head_size = max(1, width // heads)
    heads += idle_heads
    own = attention(
        width,
        heads,
        head_size=head_size,
        bias=sizes.flag("qkv_bias"),
        out_bias=True,
        extra_elements=2 * heads * head_size if sizes.flag("qk_normalization") else 0,
        quantizable=quantizable,
    )
    layer: tuple[Part, ...] = (
        Unless(part=own, heads=heads),
        mlp(width, sizes["intermediate_size"], quantizable=quantizable),
        Vectors(name="norms", elements=2 * _norm(sizes) * width + 2 * width),
    )
    positions = (sizes["image_size"] // sizes["patch_size"]) ** 2 + 1
    return (
        Vectors(name="embeddings", elements=(1 + positions) * width),
        convolution("embeddings.patch_embedding", 3, width, sizes["patch_size"] ** 2, bias=True),
        Group(name="encoder.layers", parts=layer, count=layers),
    )


def internvl(config: Fields, text: Fields) -> Iterator[Outside]:
    """InternVL as transformers names it, and Intern-S1: attention is never divided."""
    sizes = Sizes(config, "vision_config", _TRANSFORMERS, required=False)
    width, outputs = sizes["hidden_size"], text_width(text)
    merged = width * folded(config, 0.5)
    projector = (
        Vectors(name="layer_norm", elements=2 * merged),
        plain_linear("linear_1", merged, outputs),
        plain_linear("linear_2", outputs, outputs),
    )
    yield from towers(
        IMAGE_AND_VIDEO,
        Tower(name="vision_tower", parts=tuple(_interns1_vit(sizes))),
        Tower(name="multi_modal_projector", parts=projector),
    )


def _interns1_vit(sizes: Sizes) -> Iterator[Part]:
    width = sizes["hidden_size"]
    bias = sizes.flag("attention_bias")
    vectors = 2 * _norm(sizes) * width + 2 * width
    layer: tuple[Part, ...] = (
        *(plain_linear(f"attention.{name}", width, width, bias=bias) for name in "qkv"),
        plain_linear("attention.projection_layer", width, width),
        mlp(width, sizes["intermediate_size"], quantizable=False),
        Vectors(name="vectors", elements=vectors + (2 * width if sizes.flag("use_qk_norm") else 0)),
    )
    image, patch = sizes.pair("image_size"), sizes.pair("patch_size")
    positions = (image[0] // patch[0]) * (image[1] // patch[1]) + 1
    rows = 1 + sizes.flag("use_mask_token")
    if sizes.flag("use_absolute_position_embeddings"):
        rows += positions
    yield Vectors(name="embeddings", elements=rows * width)
    yield convolution(
        "embeddings.patch_embeddings.projection",
        sizes["num_channels"],
        width,
        patch[0] * patch[1],
        bias=True,
    )
    yield Group(name="encoder.layer", parts=layer, count=sizes.layers())
    if not sizes.flag("use_mean_pooling"):
        yield Vectors(name="layernorm", elements=2 * width)
