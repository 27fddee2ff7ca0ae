"""The encoders of Gemma 3n: timm's MobileNet-V5 and transformers' own audio encoder.

Source: vLLM 0.32 ``models/gemma3n_mm.py``; transformers 5 ``modeling_gemma3n.py`` and
``configuration_gemma3n.py``.
"""

from collections.abc import Iterator

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part
from vllm_capacity.predict.models.vision.common import (
    AUDIO,
    FLOAT32,
    IMAGE,
    Sizes,
    plain_linear,
    towers,
)
from vllm_capacity.predict.models.vision.llava import text_width
from vllm_capacity.predict.parts import TokenEmbedding, Vectors
from vllm_capacity.predict.parts.vision import Group, Projection, Tower
from vllm_capacity.predict.refusal import Refusal

#: Elements of the one timm architecture that these models use.
#: Source: timm 1.0 ``models/mobilenetv5.py``, ``mobilenetv5_300m_enc``.
_TIMM_ELEMENTS = {"mobilenetv5_300m_enc": 294_126_912}
_VISION = {
    "architecture": "mobilenetv5_300m_enc",
    "hidden_size": 2048,
    "vocab_size": 128,
}
_AUDIO = {
    "vocab_size": 128,
    "input_feat_size": 128,
    "hidden_size": 1536,
    "conf_attention_chunk_size": 12,
    "conf_attention_context_left": 13,
    "conf_attention_context_right": 0,
    "conf_num_attention_heads": 8,
    "conf_num_hidden_layers": 12,
    "conf_conv_kernel_size": 5,
    "sscp_conv_channel_size": [128, 32],
}
_CONVOLUTIONS = (
    ("sscp_conv_kernel_size", [[3, 3], [3, 3]]),
    ("sscp_conv_stride_size", [[2, 2]] * 2),
)


def gemma3n(config: Fields, text: Fields) -> Iterator[Outside]:
    """Both encoders; ranks divide only the embedder's tables.

    Raises:
        Refusal: another vision architecture or other convolutions.
    """
    outputs = text_width(text)
    vision = Sizes(config, "vision_config", _VISION, required=False)
    name = vision.fields.text("architecture") or ""
    if name not in _TIMM_ELEMENTS or vision.fields.has("model_args"):
        raise Refusal(f"vision_config.architecture {name} is not described exactly yet")
    tower = Vectors(name="timm_model", elements=_TIMM_ELEMENTS[name])
    yield from towers(
        IMAGE,
        Tower(name="vision_tower", parts=(tower,)),
        Tower(name="embed_vision", parts=_embedder(vision, outputs)),
    )
    audio = Sizes(config, "audio_config", _AUDIO, required=False)
    for key, known in _CONVOLUTIONS:
        if audio.fields.values.get(key, known) != known:
            raise Refusal(f"audio_config.{key} other than the usual is not described exactly yet")
    yield from towers(
        AUDIO,
        Tower(name="audio_tower", parts=_audio(audio)),
        Tower(name="embed_audio", parts=_embedder(audio, outputs)),
    )


def _embedder(sizes: Sizes, outputs: int) -> tuple[Part, ...]:
    width = sizes["hidden_size"]
    return (
        TokenEmbedding(vocab_size=sizes["vocab_size"], hidden_size=width, name="embedding"),
        Vectors(name="norms", elements=2 * width),
        Projection(
            name="embedding_projection",
            input_size=width,
            output_sizes=(outputs,),
            split="row",
            bias=False,
            quantizable=False,
        ),
    )


def _audio(sizes: Sizes) -> tuple[Part, ...]:
    width, kernel = sizes["hidden_size"], sizes["conf_conv_kernel_size"]
    head = max(1, width // sizes["conf_num_attention_heads"])
    chunk = sizes["conf_attention_chunk_size"]
    context = chunk + max(0, sizes["conf_attention_context_left"] - 1)
    right = sizes.fields.integer("conf_attention_context_right", minimum=0) or 0
    # Query, key, value, position and output; two feed-forwards of four widths; the convolution.
    linears = (5 + 2 * 8 + 3) * width * width
    # Scalars: a clip of each of the five modules, and the scale of queries.
    vectors = (2 + 2 * 2 + 2 + 1 + kernel) * width + head + 6
    layer = (
        Vectors(name="parameters", elements=linears + vectors),
        Vectors(name="mask", elements=chunk * (context + right), element_bytes=1),
        Vectors(name="float32s", elements=width // 2 + 1, element_bytes=FLOAT32),
    )
    first, second = sizes.pair("sscp_conv_channel_size")
    bins = sizes["input_feat_size"]
    for _ in range(2):
        bins = (bins + 2 - 3) // 2 + 1
    return (
        Vectors(
            name="subsample_conv_projection", elements=9 * first * (1 + second) + first + second
        ),
        plain_linear("input_proj_linear", second * bins, width, bias=False),
        Group(name="conformer", parts=layer, count=sizes.layers("conf_num_hidden_layers")),
    )
