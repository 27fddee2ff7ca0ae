"""Encoders that one wrapper each has: Command A Vision, PaddleOCR-VL, LFM2-VL, Phi-3-vision.

Source: vLLM 0.32 ``models/cohere2_vision.py``, ``paddleocr_vl.py``, ``lfm2_vl.py`` with
``lfm2_siglip2.py``, and ``phi3v.py``; defaults of transformers 5 ``configuration_*.py``.
"""

from collections.abc import Iterator

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part
from vllm_capacity.predict.models.vision.clip import CLIP, SIGLIP, Depth, clip, siglip
from vllm_capacity.predict.models.vision.common import (
    FLOAT32,
    IMAGE,
    INT64,
    MAX_WIDTH,
    THREE,
    Sizes,
    attention,
    convolution,
    mlp,
    plain_linear,
    towers,
)
from vllm_capacity.predict.models.vision.llava import text_width
from vllm_capacity.predict.parts import TokenEmbedding, Vectors
from vllm_capacity.predict.parts.vision import Group, Projection, Tower
from vllm_capacity.predict.refusal import Refusal


def cohere2_vision(config: Fields, text: Fields) -> Iterator[Outside]:
    """Command A Vision: SigLIP and a gated projector."""
    sizes = Sizes(config, "vision_config", SIGLIP)
    factor = config.integer("downsample_factor", maximum=MAX_WIDTH) or 2
    inner = (config.integer("alignment_intermediate_size", maximum=MAX_WIDTH) or 36864) // 2
    projector: tuple[Part, ...] = (
        Projection(
            name="linear_1",
            input_size=sizes["hidden_size"] * factor**2,
            output_sizes=(inner, inner),
            split="column",
            quantizable=False,
        ),
        Projection(
            name="linear_2",
            input_size=inner,
            output_sizes=(text_width(text),),
            split="row",
            quantizable=False,
        ),
    )
    yield from towers(
        IMAGE,
        Tower(name="vision_tower", parts=siglip(sizes, Depth())),
        Tower(name="multi_modal_projector", parts=projector),
    )


_PADDLE = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 384,
    "patch_size": 14,
}


def paddleocr(config: Fields, text: Fields) -> Iterator[Outside]:
    """PaddleOCR-VL: SigLIP with rotary positions besides its learned ones."""
    sizes = Sizes(config, "vision_config", _PADDLE, required=False)
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    inner, kernel = sizes["intermediate_size"], sizes["patch_size"] ** 2
    layer: tuple[Part, ...] = (
        attention(width, heads, name="self_attn", qkv="qkv_proj", shards=THREE, out="out_proj"),
        mlp(width, inner, quantizable=not (width % 64 or inner % 64)),
        Vectors(name="layer_norms", elements=4 * width),
    )
    positions = (sizes["image_size"] // sizes["patch_size"]) ** 2
    frequencies = len(range(0, width // heads // 2, 2))
    parts = (
        convolution("embeddings.patch_embedding", sizes["num_channels"], width, kernel, bias=True),
        Vectors(name="embeddings.position_embedding", elements=positions * width),
        Vectors(name="embeddings.position_ids", elements=positions, element_bytes=INT64),
        Group(name="encoder.layers", parts=layer, count=sizes.layers()),
        Vectors(name="encoder.inv_freq", elements=frequencies, element_bytes=FLOAT32),
        Vectors(name="post_layernorm", elements=2 * width),
    )
    merged = 4 * width
    projector = (
        Vectors(name="pre_norm", elements=2 * width),
        plain_linear("linear_1", merged, merged),
        plain_linear("linear_2", merged, text_width(text)),
    )
    yield from towers(
        IMAGE,
        Tower(name="visual.vision_model", parts=parts, own_names=True),
        Tower(name="mlp_AR", parts=projector),
    )


_SIGLIP2 = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_patches": 256,
    "patch_size": 16,
}


def lfm2_vl(config: Fields, text: Fields) -> Iterator[Outside]:
    """LFM2-VL: SigLIP 2 that takes patches of any picture."""
    sizes = Sizes(config, "vision_config", _SIGLIP2, required=False)
    kind = sizes.fields.text("model_type") or "siglip2_vision_model"
    if kind != "siglip2_vision_model":
        raise Refusal(f"vLLM refuses to start: lfm2_vl.py knows no vision_config of {kind}")
    width = sizes["hidden_size"]
    layer: tuple[Part, ...] = (
        attention(
            width,
            sizes["num_attention_heads"],
            name="self_attn",
            qkv="qkv_proj",
            shards=THREE,
            out="out_proj",
        ),
        mlp(width, sizes["intermediate_size"]),
        Vectors(name="layer_norms", elements=4 * width),
    )
    pixels = sizes["num_channels"] * sizes["patch_size"] ** 2
    parts = (
        plain_linear("embeddings.patch_embedding", pixels, width),
        Vectors(name="embeddings.position_embedding", elements=sizes["num_patches"] * width),
        Group(name="encoder.layers", parts=layer, count=sizes.layers()),
        Vectors(name="post_layernorm", elements=2 * width),
    )
    factor = config.integer("downsample_factor", maximum=MAX_WIDTH) or 2
    inner = config.integer("projector_hidden_size", maximum=MAX_WIDTH) or 2560
    inputs = width * factor**2
    bias = config.boolean("projector_bias") is not False
    normed = config.boolean("projector_use_layernorm") is not False
    projector = (
        Vectors(name="layer_norm", elements=2 * inputs if normed else 0),
        plain_linear("linear_1", inputs, inner, bias=bias),
        plain_linear("linear_2", inner, text_width(text), bias=bias),
    )
    yield from towers(
        IMAGE,
        Tower(name="vision_tower.vision_model", parts=parts, own_names=True),
        Tower(name="multi_modal_projector", parts=projector),
    )


#: The encoder that vLLM builds whatever the file says.
_CLIP_LARGE = {
    **CLIP,
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
}


def phi3v(config: Fields, text: Fields) -> Iterator[Outside]:
    """Phi-3-vision: CLIP, and an embedding table besides the text model's own."""
    processor = config.mapping("img_processor")
    if processor is None:
        config.fault("img_processor", "is missing; add the model's value")
        return
    layer = processor.integer("layer_idx", minimum=-24, maximum=23)
    layer = -2 if layer is None else layer
    built = layer + (25 if layer < 0 else 1)
    inner = Fields({"vision_config": _CLIP_LARGE}, faults=config.faults)
    encoder = clip(Sizes(inner, "vision_config", {}), Depth(layers=built))
    folded = 4 * processor.required_integer("image_dim_out", maximum=MAX_WIDTH)
    width = text_width(text)
    outputs = config.integer("n_embd", maximum=MAX_WIDTH) or width
    parts = (
        Group(name="img_processor", parts=encoder),
        Vectors(name="separators", elements=2 * folded),
        plain_linear("img_projection.0", folded, outputs),
        plain_linear("img_projection.2", outputs, outputs),
    )
    table = TokenEmbedding(
        vocab_size=text.required_integer("vocab_size", maximum=MAX_WIDTH), hidden_size=width
    )
    yield from towers(IMAGE, Tower(name="vision_embed_tokens", parts=parts, own_names=True), table)
