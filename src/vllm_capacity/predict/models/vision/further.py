"""Encoders that one wrapper each has: Ovis 2.5, Step-3, GLM-4V, Phi-4-multimodal.

Source: vLLM 0.32 ``models/ovis2_5.py`` with ``siglip2navit.py``, ``step3_vl.py``, ``glm4v.py``,
``phi4mm.py`` with ``phi4mm_audio.py``.
"""

from collections.abc import Iterator
from dataclasses import replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Outside, Part
from vllm_capacity.predict.models.chatglm import build_chatglm
from vllm_capacity.predict.models.vision.common import (
    AUDIO,
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
)
from vllm_capacity.predict.models.vision.idefics import idefics2_vision
from vllm_capacity.predict.models.vision.llava import text_width
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.vision import Group, Projection, Tower
from vllm_capacity.predict.refusal import Refusal

#: Tokens of Ovis 2.5 that its visual head has no row for.
_OVIS_INDICATORS = 4


def ovis2_5(config: Fields, text: Fields) -> Iterator[Outside]:
    """Ovis 2.5 and 2.6: SigLIP 2 with rotary positions, and a table of visual words.

    Raises:
        Refusal: vLLM knows no such encoder.
    """
    sizes = Sizes(config, "vit_config", {})
    if sizes.fields.text("model_type") != "siglip2_navit":
        raise Refusal("vLLM refuses to start: vit_config.model_type must be siglip2_navit")
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    layer: tuple[Part, ...] = (
        attention(width, heads, name="self_attn", qkv="qkv_proj", shards=THREE, out="out_proj"),
        mlp(width, sizes["intermediate_size"]),
        Vectors(name="layer_norms", elements=4 * width),
    )
    encoder = (
        *_navit_embeddings(sizes),
        Group(name="encoder.layers", parts=layer, count=sizes.layers()),
        Vectors(
            name="encoder.inv_freq",
            elements=len(range(0, width // heads // 2, 2)),
            element_bytes=FLOAT32,
        ),
        Vectors(name="post_layernorm", elements=2 * width),
    )
    words = config.required_integer("visual_vocab_size", maximum=MAX_WIDTH)
    outputs = config.integer("hidden_size", maximum=MAX_WIDTH) or text_width(text)
    rows = words - _OVIS_INDICATORS
    head = plain_linear("head.0", width * sizes["hidden_stride"] ** 2, rows, bias=False)
    parts = (
        Group(name="vit.vision_model", parts=encoder),
        head,
        Vectors(name="head.1", elements=2 * rows),
    )
    yield from towers(
        IMAGE_AND_VIDEO,
        Tower(name="visual_tokenizer", parts=parts, own_names=True),
        Vectors(name="vte", elements=words * outputs),
    )


def _navit_embeddings(sizes: Sizes) -> Iterator[Part]:
    width, kernel = sizes["hidden_size"], sizes["patch_size"] ** 2
    patches = sizes.fields.integer("num_patches", minimum=-1, maximum=MAX_WIDTH)
    if patches is None:
        sizes.fields.fault("num_patches", "is missing; add the model's value")
    if not patches or patches < 0:
        patches = (sizes["image_size"] // sizes["patch_size"]) ** 2
    yield convolution("embeddings.patch_embedding", sizes["num_channels"], width, kernel, bias=True)
    positions = patches if sizes.flag("preserve_original_pe") else 0
    yield Vectors(name="embeddings.position_embedding", elements=positions * width)


_STEP3 = {
    "hidden_size": 1792,
    "intermediate_size": 3072,
    "output_hidden_size": 4096,
    "num_hidden_layers": 63,
    "num_attention_heads": 16,
    "image_size": 728,
    "patch_size": 14,
}


def step3_vl(config: Fields, text: Fields) -> Iterator[Outside]:
    """Step-3's, which quantisation never reaches.

    Source: also vLLM 0.32 ``transformers_utils/configs/step3_vl.py``.
    """
    sizes = Sizes(config, "vision_config", _STEP3, required=False)
    width, middle = sizes["hidden_size"], sizes["output_hidden_size"]
    own = attention(
        width,
        sizes["num_attention_heads"],
        name="self_attn",
        qkv="qkv_proj",
        shards=THREE,
        out="out_proj",
        quantizable=False,
    )
    layer: tuple[Part, ...] = (
        own,
        mlp(width, sizes["intermediate_size"], quantizable=False),
        Vectors(name="layer_norms", elements=4 * width),
    )
    positions = (sizes["image_size"] // sizes["patch_size"]) ** 2 + 1
    encoder = (
        Vectors(name="embeddings", elements=(1 + positions) * width),
        Vectors(name="embeddings.position_ids", elements=positions, element_bytes=INT64),
        convolution("embeddings.patch_embedding", 3, width, sizes["patch_size"] ** 2, bias=True),
        Group(name="transformer.layers", parts=layer, count=sizes.layers()),
    )
    bias = config.boolean("projector_bias") is not False
    yield from towers(
        IMAGE,
        Tower(name="vision_model", parts=encoder, data_parallel=True),
        convolution("vit_downsampler", width, middle, 4, bias=True),
        convolution("vit_downsampler2", middle, 2 * middle, 9, bias=True),
        plain_linear("vit_large_projector", 2 * middle, text_width(text), bias=bias),
    )


def build_glm4v(config: Fields, *, path: str = "", head_path: str = "") -> Model:
    """GLM-4V: ChatGLM with EVA-CLIP.

    Source: vLLM 0.32 ``models/glm4v.py``; its encoder's keys have no defaults.
    """
    del path, head_path
    values = {key: value for key, value in config.values.items() if key != "vision_config"}
    model = build_chatglm(Fields(values, path=config.path, faults=config.faults))
    return replace(
        model,
        source="glm4v.py",
        outside=(*model.outside, *_eva_clip(config)),
        encoder_elements=model.hidden_size,
    )


def _eva_clip(config: Fields) -> Iterator[Outside]:
    sizes = Sizes(config, "vision_config", {})
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    outputs = config.required_integer("hidden_size", maximum=MAX_WIDTH)
    wide = config.required_integer("ffn_hidden_size", maximum=MAX_WIDTH)
    own = attention(width, sizes["num_heads"], name="attention", qkv="query_key_value", out="dense")
    layer: tuple[Part, ...] = (
        own,
        mlp(width, inner),
        Vectors(name="layernorms", elements=4 * width),
    )
    projector = (
        Projection(name="linear_proj", input_size=outputs, output_sizes=(outputs,), bias=False),
        Vectors(name="norm1", elements=2 * outputs),
        Projection(
            name="merged_proj",
            input_size=outputs,
            output_sizes=(wide, wide),
            split="column",
            bias=False,
            shards=("gate_proj", "dense_h_to_4h"),
        ),
        Projection(
            name="dense_4h_to_h",
            input_size=wide,
            output_sizes=(outputs,),
            split="row",
            bias=False,
        ),
    )
    parts = (
        Vectors(name="ends", elements=2 * outputs),
        Vectors(name="patch_embedding", elements=(1 + sizes["num_positions"]) * width),
        convolution(
            "patch_embedding.proj", sizes["in_channels"], width, sizes["patch_size"] ** 2, bias=True
        ),
        Group(name="transformer.layers", parts=layer, count=sizes.layers()),
        Group(name="linear_proj", parts=projector),
        convolution("conv", width, outputs, 4, bias=True),
    )
    yield from towers(IMAGE, Tower(name="transformer.vision", parts=parts))


#: vLLM's own numbers of SigLIP, whatever the file says.
_NAVIT = {
    "hidden_size": 1152,
    "image_size": 448,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
#: What the encoder of sound is described for; other values make other layers.
_CONFORMER = {
    "activation": "swish",
    "batch_norm": False,
    "bias_in_glu": True,
    "cnn_layer_norm": True,
    "conv_activation": "swish",
    "conv_glu_type": "swish",
    "depthwise_multiplier": 1,
    "ext_pw_kernel_size": 1,
    "input_layer": "nemo_conv",
    "time_reduction": 8,
}
_BIASES_PER_DISTANCE = 2


def phi4mm(config: Fields, text: Fields) -> Iterator[Outside]:
    """Phi-4-multimodal: SigLIP of fixed sizes, and a conformer for sound."""
    width, outputs = _NAVIT["hidden_size"], text_width(text)
    if config.has("img_processor"):
        raise Refusal("phi4mm.py with img_processor is not described exactly yet")
    inner = Fields({"vision_config": _NAVIT}, faults=config.faults)
    sizes = Sizes(inner, "vision_config", {})
    encoder = idefics2_vision(
        sizes, layers=_NAVIT["num_hidden_layers"] - 1, post_norm=False, quantizable=False
    )
    parts = (
        Group(name="img_processor", parts=encoder),
        Vectors(name="separators", elements=2 * width),
        plain_linear("img_projection.0", width, outputs),
        plain_linear("img_projection.2", outputs, outputs),
    )
    yield from towers(IMAGE_AND_VIDEO, Tower(name="vision_encoder", parts=parts))
    sound = Tower(name="embed_tokens_extend", parts=tuple(_conformer(config, outputs)))
    yield from towers(AUDIO, sound)


def _conformer(config: Fields, outputs: int) -> Iterator[Part]:
    sizes = _conformer_sizes(config)
    width, units = sizes["attention_dim"], sizes["linear_units"]
    feed = plain_linear("up", width, 2 * units), plain_linear("down", units, width)
    block = (
        *feed,
        *feed,
        plain_linear("self_attn", width, 4 * width),
        plain_linear("conv.glu", width, 2 * width),
        plain_linear("conv.ext_pw_conv_1d", width, width),
        convolution("conv.dw_conv", 1, width, sizes["kernel_size"], bias=True),
        plain_linear("conv.pw_conv", width, width),
        # Five norms, and the gate's own biases.
        Vectors(name="norms", elements=12 * width),
    )
    settings = sizes.fields.mapping("nemo_conv_settings")
    channels = width if settings is None else settings.integer("conv_channels") or width
    bins = sizes["input_size"]
    distances = sizes.fields.mapping("relative_attention_bias_args")
    furthest = 0 if distances is None else distances.required_integer("t5_bias_max_distance")
    yield Group(name="encoder.encoders", parts=block, count=sizes.layers("num_blocks"))
    for index in range(3):
        yield convolution(f"encoder.embed.conv.{index}", 1, channels, 9, bias=True)
    for index in range(2):
        yield plain_linear(f"encoder.embed.pointwise.{index}", channels, channels)
    yield plain_linear("encoder.embed.out", channels * (bins // 8), width)
    biases = _BIASES_PER_DISTANCE * furthest * sizes["attention_heads"]
    yield Vectors(name="encoder.bias_values", elements=biases)
    yield Vectors(name="encoder.encoder_embedding", elements=2 * bins)
    yield Vectors(name="encoder.dev_type", elements=1)
    for name in ("audio_projection", "audio_projection_for_vision"):
        yield plain_linear(f"{name}.0", width, outputs)
        yield plain_linear(f"{name}.2", outputs, outputs)


def _conformer_sizes(config: Fields) -> Sizes:
    processor = config.mapping("audio_processor")
    if processor is None:
        config.fault("audio_processor", "is missing; add the encoder's configuration")
        processor = Fields({}, path="audio_processor.", faults=config.faults)
    sizes = Sizes(processor, "config", {})
    for key, expected in _CONFORMER.items():
        if sizes.fields.values.get(key, expected) != expected:
            raise Refusal(f"phi4mm.py with this audio_processor.config.{key} is not described")
    if sizes["input_size"] % 8:
        raise Refusal("phi4mm.py with this audio_processor.config.input_size is not described")
    layers = config.mapping("embd_layer")
    audio = None if layers is None else layers.mapping("audio_embd_layer")
    plain = audio is not None and audio.text("projection_cls") == "mlp"
    if (
        audio is None
        or not plain
        or any(map(audio.boolean, ("use_qformer", "use_conv_downsample")))
    ):
        raise Refusal("phi4mm.py with this embd_layer.audio_embd_layer is not described")
    if (audio.integer("downsample_rate") or 1) != 1:
        raise Refusal("phi4mm.py with this embd_layer.audio_embd_layer is not described")
    return sizes
