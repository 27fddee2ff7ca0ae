"""Encoders whose patches a small network folds together: InternViT's and SigLIP's descendants.

Source: vLLM 0.32 ``models/nvlm_d.py``, ``skyworkr1v.py``, ``qianfan_ocr.py``, ``eagle2_5_vl.py``,
``keye.py``, ``keye_vl1_5.py``, ``phi4siglip.py``, ``dots_ocr.py``.
"""

from collections.abc import Iterator

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part
from vllm_capacity.predict.models.vision.clip import SIGLIP, Depth, siglip
from vllm_capacity.predict.models.vision.common import (
    FLOAT32,
    IMAGE,
    IMAGE_AND_VIDEO,
    INT64,
    MAX_WIDTH,
    THREE,
    Sizes,
    attention,
    convolution,
    mlp,
    plain_linear,
    towers,
    two_projections,
)
from vllm_capacity.predict.models.vision.intern import built_layers, folded, intern_vit
from vllm_capacity.predict.models.vision.llava import text_width
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.vision import Group, Projection, Tower

#: Heads that vLLM adds to NVLM's encoder.
_NVLM_IDLE_HEADS = 7
_QIANFAN = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
}


def nvlm(config: Fields, text: Fields) -> Iterator[Outside]:
    """NVLM-D: InternViT with idle heads, and a projector as wide as the text model's MLPs."""
    sizes = Sizes(config, "vision_config", {})
    merged = sizes["hidden_size"] * folded(config, None)
    inner = text.required_integer("intermediate_size", maximum=MAX_WIDTH)
    projector = (
        Vectors(name="0", elements=2 * merged),
        plain_linear("1", merged, inner, bias=False),
        plain_linear("3", inner, text_width(text), bias=False),
    )
    parts = intern_vit(sizes, built_layers(config, sizes.layers()), idle_heads=_NVLM_IDLE_HEADS)
    yield from towers(
        IMAGE_AND_VIDEO,
        Tower(name="vision_model", parts=parts, data_parallel=True),
        Tower(name="mlp1", parts=projector),
    )


def skywork(config: Fields, text: Fields) -> Iterator[Outside]:
    """Skywork-R1V: InternViT, and a projector that quantisation reaches."""
    sizes = Sizes(config, "vision_config", {})
    merged, outputs = sizes["hidden_size"] * folded(config, None), text_width(text)
    projector = (
        Vectors(name="0", elements=2 * merged),
        Projection(name="1", input_size=merged, output_sizes=(outputs,)),
        Projection(name="3", input_size=outputs, output_sizes=(outputs,)),
    )
    parts = intern_vit(sizes, built_layers(config, sizes.layers()))
    yield from towers(
        IMAGE,
        Tower(name="vision_model", parts=parts),
        Tower(name="mlp1", parts=projector),
    )


def _intern_projector(merged: int, outputs: int) -> Tower:
    """InternVL's projector."""
    parts = (
        Vectors(name="0", elements=2 * merged),
        plain_linear("1", merged, outputs),
        plain_linear("3", outputs, outputs),
    )
    return Tower(name="mlp1", parts=parts)


def qianfan(config: Fields, text: Fields) -> Iterator[Outside]:
    """Qianfan-OCR: InternVL's, with sizes of its own and never in FP8.

    Source: vLLM 0.32 ``transformers_utils/configs/qianfan_ocr.py``.
    """
    sizes = Sizes(config, "vision_config", _QIANFAN, required=False)
    merged, outputs = sizes["hidden_size"] * folded(config, 0.5), text_width(text)
    quantization = config.mapping("quantization_config")
    fp8 = quantization is not None and quantization.text("quant_method") == "fp8"
    layers = sizes.layers()
    if config.has("select_layer"):
        layers = built_layers(config, layers)
    parts = intern_vit(sizes, layers, quantizable=not fp8)
    yield from towers(
        IMAGE_AND_VIDEO,
        Tower(name="vision_model", parts=parts, data_parallel=True),
        _intern_projector(merged, outputs),
    )


def eagle2_5(config: Fields, text: Fields) -> Iterator[Outside]:
    """Eagle 2.5: SigLIP, and InternVL's projector."""
    sizes = Sizes(config, "vision_config", SIGLIP)
    layers = sizes.layers()
    if config.has("select_layer"):
        layers = built_layers(config, layers)
    merged, outputs = sizes["hidden_size"] * folded(config, 0.5), text_width(text)
    parts = siglip(sizes, Depth(layers=layers))
    yield from towers(
        IMAGE,
        Tower(name="vision_model", parts=parts, data_parallel=True, own_names=True),
        _intern_projector(merged, outputs),
    )


#: Positions that Keye keeps for packed pictures.
_PACKED = 32768


def keye(config: Fields, text: Fields) -> Iterator[Outside]:
    """Keye-VL: its norm before the projector sees one patch."""
    yield from _keye(config, text, normed=1)


def keye1_5(config: Fields, text: Fields) -> Iterator[Outside]:
    """Keye-VL 1.5: its norm sees four patches at once."""
    yield from _keye(config, text, normed=4)


def _keye(config: Fields, text: Fields, *, normed: int) -> Iterator[Outside]:
    sizes = Sizes(config, "vision_config", {"num_channels": 3})
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
        Vectors(name="embeddings.packing_position_embedding", elements=_PACKED * width),
        Vectors(name="embeddings.position_ids", elements=positions, element_bytes=INT64),
        Group(name="encoder.layers", parts=layer, count=sizes.layers()),
        Vectors(name="encoder.inv_freq", elements=frequencies, element_bytes=FLOAT32),
        Vectors(name="post_layernorm", elements=2 * width),
    )
    projector = (
        Vectors(name="pre_norm", elements=2 * normed * width),
        *two_projections(4 * width, 4 * width, text_width(text)),
    )
    yield from towers(
        IMAGE_AND_VIDEO,
        Tower(name="visual.vision_model", parts=parts),
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


def phi4_siglip(config: Fields, text: Fields) -> Iterator[Outside]:
    """Phi-4-reasoning-vision: SigLIP 2 without its last layer and norm."""
    sizes = Sizes(config, "vision_config", _SIGLIP2)
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
        Group(name="encoder.layers", parts=layer, count=max(0, sizes.layers() - 1)),
    )
    inputs = config.required_integer("mm_hidden_size", maximum=MAX_WIDTH)
    outputs = text_width(text)
    yield from towers(
        IMAGE,
        Tower(name="vision_tower.vision_model", parts=parts, own_names=True),
        Tower(name="multi_modal_projector", parts=two_projections(inputs, outputs, outputs)),
    )


_DOTS = {
    "embed_dim": 1536,
    "hidden_size": 1536,
    "intermediate_size": 4224,
    "num_hidden_layers": 42,
    "num_attention_heads": 12,
    "num_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "use_bias": False,
    "post_norm": True,
}


def dots_ocr(config: Fields, text: Fields) -> Iterator[Outside]:
    """dots.ocr's; its merger is never quantised.

    Source: also vLLM 0.32 ``transformers_utils/configs/dotsocr.py``.
    """
    del text
    sizes = Sizes(config, "vision_config", _DOTS, required=False)
    width, heads = sizes["embed_dim"], sizes["num_attention_heads"]
    bias = sizes.flag("use_bias")
    feed: tuple[Part, ...] = (
        Projection(
            name="fc13",
            input_size=width,
            output_sizes=(sizes["intermediate_size"],) * 2,
            split="column",
            bias=bias,
            shards=("fc1", "fc3"),
        ),
        Projection(
            name="fc2",
            input_size=sizes["intermediate_size"],
            output_sizes=(width,),
            split="row",
            bias=bias,
        ),
    )
    block: tuple[Part, ...] = (
        attention(width, heads, bias=bias),
        Group(name="mlp", parts=feed),
        Vectors(name="norms", elements=2 * width),
    )
    merged = width * sizes["spatial_merge_size"] ** 2
    merger = two_projections(
        merged, merged, sizes["hidden_size"], names=("mlp.0", "mlp.2"), quantizable=False
    )
    parts = (
        convolution(
            "patch_embed.patchifier.proj",
            sizes["num_channels"],
            width,
            sizes["patch_size"] ** 2,
            bias=True,
        ),
        Vectors(name="patch_embed.patchifier.norm", elements=width),
        Group(name="blocks", parts=block, count=sizes.layers()),
        Vectors(name="post_trunk_norm", elements=width if sizes.flag("post_norm") else 0),
        Group(name="merger", parts=(*merger, Vectors(name="ln_q", elements=2 * width))),
        Vectors(
            name="rotary_pos_emb.inv_freq",
            elements=len(range(0, width // heads // 2, 2)),
            element_bytes=FLOAT32,
        ),
    )
    yield from towers(IMAGE, Tower(name="vision_tower", parts=parts, data_parallel=True))
