"""The encoders of DeepSeek-VL2 and DeepSeek-OCR 2, of fixed sizes.

Source: vLLM 0.32 ``models/deepseek_vl2.py``, ``deepseek_ocr2.py``, ``deepencoder2.py``.
"""

from collections.abc import Iterator

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part
from vllm_capacity.predict.models.vision.common import (
    FLOAT32,
    IMAGE,
    Sizes,
    convolution,
    plain_linear,
    towers,
    two_projections,
)
from vllm_capacity.predict.models.vision.deepseek_ocr import (
    PROJECTOR,
    check_tiles,
    projector,
    sam,
)
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.vision import Group, Tower
from vllm_capacity.predict.refusal import Refusal

#: timm's ``vit_so400m_patch14_siglip_384``, whatever the file says.
_WIDTH = 1152
_INNER = 4304
_LAYERS = 27
_PATCHES = 729
_KERNEL = 14 * 14

#: Qwen2 as an encoder, and what it is asked with.
_OCR2_WIDTH = 896
_OCR2_INNER = 4864
_OCR2_LAYERS = 24
_OCR2_KEYS = 128
_OCR2_FREQUENCIES = 32
_OCR2_QUERIES = 144 + 256


def deepseek_vl2(config: Fields, text: Fields) -> Iterator[Outside]:
    """SigLIP with a pooling head that nothing uses; only its MLPs are divided.

    Raises:
        Refusal: vLLM knows no such tiling, or the encoder may be quantised on several ranks.
    """
    del text
    check_tiles(config)
    if config.has("quantization_config"):
        raise Refusal("deepseek_vl2.py with quantization_config is not described exactly yet")
    sizes = Sizes(config, "projector_config", PROJECTOR, required=False)
    feed = Group(name="mlp", parts=two_projections(_WIDTH, _INNER, _WIDTH, names=("fc1", "fc2")))
    block: tuple[Part, ...] = (
        plain_linear("attn.qkv", _WIDTH, 3 * _WIDTH),
        plain_linear("attn.proj", _WIDTH, _WIDTH),
        feed,
        Vectors(name="norms", elements=4 * _WIDTH),
    )
    pool = (
        Vectors(name="latent", elements=_WIDTH),
        plain_linear("q", _WIDTH, _WIDTH),
        plain_linear("kv", _WIDTH, 2 * _WIDTH),
        plain_linear("proj", _WIDTH, _WIDTH),
        Vectors(name="norm", elements=2 * _WIDTH),
        feed,
    )
    parts = (
        Vectors(name="pos_embed", elements=_PATCHES * _WIDTH),
        convolution("patch_embed.proj", 3, _WIDTH, _KERNEL, bias=True),
        Group(name="blocks", parts=block, count=_LAYERS),
        Vectors(name="norm", elements=2 * _WIDTH),
        Group(name="attn_pool", parts=pool),
    )
    yield from towers(
        IMAGE,
        Tower(name="vision", parts=parts),
        Tower(name="projector", parts=tuple(projector(sizes))),
    )
    # Parameters of the class itself stay whatever is allowed.
    yield from towers(frozenset(), Vectors(name="separators", elements=2 * sizes["n_embed"]))


def deepseek_ocr2(config: Fields, text: Fields) -> Iterator[Outside]:
    """SAM's encoder, and a Qwen2 that reads its output; neither is divided nor quantised.

    Raises:
        Refusal: vLLM knows no such tiling.
    """
    del text
    check_tiles(config)
    sizes = Sizes(config, "projector_config", PROJECTOR, required=False)
    width = _OCR2_WIDTH
    layer = (
        plain_linear("q_proj", width, width),
        plain_linear("kv_proj", width, 2 * _OCR2_KEYS),
        plain_linear("o_proj", width, width, bias=False),
        plain_linear("mlp", width, 3 * _OCR2_INNER, bias=False),
        Vectors(name="layernorms", elements=2 * width),
    )
    frequencies = Vectors(name="rotary_emb", elements=2 * _OCR2_FREQUENCIES, element_bytes=FLOAT32)
    encoder = (
        Group(name="layers", parts=layer, count=_OCR2_LAYERS),
        Vectors(name="norm", elements=width),
        frequencies,
        Vectors(name="queries", elements=_OCR2_QUERIES * width),
    )
    yield from towers(
        IMAGE,
        Tower(name="sam_model", parts=sam(width)),
        Tower(name="qwen2_model", parts=encoder),
        Tower(name="projector", parts=tuple(projector(sizes))),
    )
    yield from towers(frozenset(), Vectors(name="view_seperator", elements=sizes["n_embed"]))
