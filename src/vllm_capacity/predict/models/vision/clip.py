"""CLIP, SigLIP and Pixtral encoders, which many wrappers share."""

from dataclasses import dataclass

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Part
from vllm_capacity.predict.models.vision.common import (
    FLOAT32,
    INT64,
    THREE,
    Sizes,
    attention,
    convolution,
    gated_mlp,
    mlp,
)
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.vision import Group
from vllm_capacity.predict.refusal import Refusal

CLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}
SIGLIP = {**CLIP, "patch_size": 16}
PIXTRAL = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 1024,
    "patch_size": 16,
}
#: vLLM's kernels for quantised encoders need widths that are multiples of this.
_QUANTIZED_WIDTH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Depth:
    """How much of an encoder is built.

    Attributes:
        layers: layers that are built, None for all.
        post_norm: whether the norm after them is; None where that follows from the layers.
    """

    layers: int | None = None
    post_norm: bool | None = None

    def has_post_norm(self, configured: int) -> bool:
        """Whether the last norm is built."""
        return self.layers in {None, configured} if self.post_norm is None else self.post_norm


def siglip(sizes: Sizes, depth: Depth) -> tuple[Part, ...]:
    """SigLIP without its pooling head.

    Source: vLLM 0.32 ``models/siglip.py``, ``SiglipVisionTransformer``.
    """
    width, layers = sizes["hidden_size"], sizes.layers()
    divisible = not (width % _QUANTIZED_WIDTH or sizes["intermediate_size"] % _QUANTIZED_WIDTH)
    positions = (sizes["image_size"] // sizes["patch_size"]) ** 2
    feed = mlp(width, sizes["intermediate_size"], quantizable=divisible)
    kernel = sizes["patch_size"] ** 2
    parts: list[Part] = [
        convolution("embeddings.patch_embedding", sizes["num_channels"], width, kernel, bias=True),
        *_positions(positions, width),
        Group(
            name="encoder.layers",
            parts=_layer(width, sizes["num_attention_heads"], feed),
            count=layers if depth.layers is None else depth.layers,
        ),
    ]
    if depth.has_post_norm(layers):
        parts.append(Vectors(name="post_layernorm", elements=2 * width))
    return (Group(name="vision_model", parts=tuple(parts)),)


def clip(sizes: Sizes, depth: Depth) -> tuple[Part, ...]:
    """CLIP.

    Source: vLLM 0.32 ``models/clip.py``, ``CLIPVisionTransformer``.
    """
    width, layers = sizes["hidden_size"], sizes.layers()
    positions = (sizes["image_size"] // sizes["patch_size"]) ** 2 + 1
    feed = mlp(width, sizes["intermediate_size"])
    parts: list[Part] = [
        Vectors(name="embeddings.class_embedding", elements=width),
        convolution(
            "embeddings.patch_embedding", sizes["num_channels"], width, sizes["patch_size"] ** 2
        ),
        *_positions(positions, width),
        Vectors(name="pre_layrnorm", elements=2 * width),
        Group(
            name="encoder.layers",
            parts=_layer(width, sizes["num_attention_heads"], feed),
            count=layers if depth.layers is None else depth.layers,
        ),
    ]
    if depth.has_post_norm(layers):
        parts.append(Vectors(name="post_layernorm", elements=2 * width))
    return (Group(name="vision_model", parts=tuple(parts)),)


def _positions(rows: int, width: int) -> tuple[Part, Part]:
    return (
        Vectors(name="embeddings.position_embedding", elements=rows * width),
        Vectors(name="embeddings.position_ids", elements=rows, element_bytes=INT64),
    )


def _layer(width: int, heads: int, feed: Part) -> tuple[Part, ...]:
    own = attention(width, heads, name="self_attn", qkv="qkv_proj", shards=THREE, out="out_proj")
    return (own, feed, Vectors(name="layer_norms", elements=4 * width))


def pixtral(sizes: Sizes, layers: int | None = None) -> tuple[Part, ...]:
    """Pixtral as transformers names it.

    Source: vLLM 0.32 ``models/pixtral.py``, ``PixtralHFVisionModel``; its frequencies are
    transformers 5 ``modeling_pixtral.py``, ``PixtralVisionRotaryEmbedding``.
    """
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    head_size = sizes.fields.integer("head_dim") or max(1, width // heads)
    layer: tuple[Part, ...] = (
        attention(
            width,
            heads,
            name="attention",
            qkv="qkv_proj",
            shards=THREE,
            out="o_proj",
            bias=False,
        ),
        gated_mlp(width, sizes["intermediate_size"], name="feed_forward"),
        Vectors(name="norms", elements=2 * width),
    )
    kernel = sizes["patch_size"] ** 2
    return (
        convolution("patch_conv", sizes["num_channels"], width, kernel),
        Vectors(name="ln_pre", elements=width),
        Group(
            name="transformer.layers",
            parts=layer,
            count=sizes.layers() if layers is None else layers,
        ),
        Vectors(
            name="patch_positional_embedding.inv_freq",
            elements=2 * len(range(0, head_size, 2)),
            element_bytes=FLOAT32,
        ),
    )


def llava_tower(config: Fields, *, default: str, feature_layer: int) -> tuple[Part, ...]:
    """The encoder that ``vision_config`` names, up to the deepest layer that is used.

    Args:
        config: the wrapper's configuration.
        default: ``model_type`` of the encoder where it names none.
        feature_layer: the wrapper's own where the file names none.

    Source: vLLM 0.32 ``models/llava.py``, ``init_vision_tower_for_llava``.

    Raises:
        Refusal: vLLM knows no such encoder here.
    """
    inner = config.mapping("vision_config")
    kind = (None if inner is None else inner.text("model_type")) or default
    known = {"clip_vision_model": CLIP, "siglip_vision_model": SIGLIP, "pixtral": PIXTRAL}
    if kind not in known:
        raise Refusal(f"a vision_config of model_type {kind} is not described exactly yet")
    sizes = Sizes(config, "vision_config", known[kind])
    layers = built_layers(config, sizes.layers(), feature_layer)
    if kind == "pixtral":
        return pixtral(sizes, layers)
    depth = Depth(layers=layers, post_norm=False)
    return clip(sizes, depth) if kind == "clip_vision_model" else siglip(sizes, depth)


def feature_layers(config: Fields, default: int) -> tuple[int, ...]:
    """``vision_feature_layer``, one or several."""
    value = config.values.get("vision_feature_layer")
    if isinstance(value, list):
        return config.integers("vision_feature_layer") or (default,)
    one = config.integer("vision_feature_layer", minimum=-4096, maximum=4096)
    return (default if one is None else one,)


def built_layers(config: Fields, layers: int, default: int) -> int:
    """Layers up to the deepest feature layer.

    Source: vLLM 0.32 ``models/llava.py``, ``_get_num_hidden_layers``; ``models/vision.py``,
    ``get_layer_index``.

    Raises:
        Refusal: the encoder has not as many.
    """
    wanted = feature_layers(config, default)
    deepest = max(layers + index + 1 if index < 0 else index for index in wanted)
    if not 0 <= deepest <= layers:
        raise Refusal("vLLM refuses to start: vision_feature_layer is not a layer of the encoder")
    return deepest
