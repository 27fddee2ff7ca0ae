"""What LLaVA and its descendants build beside their text models.

Source: vLLM 0.32 ``models/llava.py``, ``llava_next.py``, ``llava_onevision.py``, ``mistral3.py``,
``pixtral.py`` and ``gemma3_mm.py``.
"""

from collections.abc import Iterator

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part
from vllm_capacity.predict.models.vision.clip import (
    PIXTRAL,
    SIGLIP,
    Depth,
    built_layers,
    feature_layers,
    llava_tower,
    pixtral,
    siglip,
)
from vllm_capacity.predict.models.vision.common import (
    IMAGE,
    IMAGE_AND_VIDEO,
    MAX_WIDTH,
    VIDEO,
    Sizes,
    attention,
    convolution,
    gated_mlp,
    plain_linear,
    towers,
    two_projections,
)
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.vision import Group, Projection, Tower
from vllm_capacity.predict.refusal import Refusal


def text_width(text: Fields) -> int:
    """Width of the text model."""
    return text.required_integer("hidden_size", maximum=MAX_WIDTH)


def vision_width(config: Fields, default: int) -> int:
    """Width of the encoder."""
    inner = config.mapping("vision_config")
    return (None if inner is None else inner.integer("hidden_size")) or default


_WIDTHS = {"clip_vision_model": 768, "siglip_vision_model": 768, "pixtral": 1024}


def _llava_width(config: Fields, default: str) -> int:
    inner = config.mapping("vision_config")
    kind = (None if inner is None else inner.text("model_type")) or default
    return vision_width(config, _WIDTHS.get(kind, 1))


def _bias(config: Fields, *, default: bool) -> bool:
    bias = config.boolean("multimodal_projector_bias")
    return default if bias is None else bias


def llava(config: Fields, text: Fields) -> Iterator[Outside]:
    """LLaVA, and Pixtral as transformers names it."""
    tower = llava_tower(config, default="clip_vision_model", feature_layer=-2)
    inputs, outputs = _llava_width(config, "clip_vision_model"), text_width(text)
    projector = two_projections(inputs, outputs, outputs, bias=_bias(config, default=True))
    yield from towers(
        IMAGE,
        Tower(name="vision_tower", parts=tower),
        Tower(name="multi_modal_projector", parts=projector),
    )


def llava_next(config: Fields, text: Fields) -> Iterator[Outside]:
    """LLaVA-NeXT, whose projector may take several layers at once."""
    tower = llava_tower(config, default="clip_vision_model", feature_layer=-2)
    taken = len(feature_layers(config, -2))
    if not isinstance(config.values.get("vision_feature_layer"), list):
        taken = 1
    inputs, outputs = taken * _llava_width(config, "clip_vision_model"), text_width(text)
    projector = two_projections(inputs, outputs, outputs, bias=_bias(config, default=True))
    # A parameter of the class itself stays whatever is allowed.
    newline = Vectors(name="image_newline", elements=outputs)
    yield from towers(
        IMAGE,
        Tower(name="vision_tower", parts=tower),
        Tower(name="multi_modal_projector", parts=projector),
    )
    yield from towers(frozenset(), newline)


def llava_onevision(config: Fields, text: Fields) -> Iterator[Outside]:
    """LLaVA-OneVision, whose projector no rank divides."""
    tower = llava_tower(config, default="siglip_vision_model", feature_layer=-1)
    inputs, outputs = _llava_width(config, "siglip_vision_model"), text_width(text)
    bias = _bias(config, default=True)
    projector = (
        plain_linear("linear_1", inputs, outputs, bias=bias),
        plain_linear("linear_2", outputs, outputs, bias=bias),
    )
    # A parameter of the class itself stays whatever is allowed.
    newline = Vectors(name="image_newline", elements=outputs)
    yield from towers(
        IMAGE_AND_VIDEO,
        Tower(name="vision_tower", parts=tower, own_names=True),
        Tower(name="multi_modal_projector", parts=projector),
    )
    yield from towers(frozenset(), newline)


def llava_next_video(config: Fields, text: Fields) -> Iterator[Outside]:
    """LLaVA-NeXT-Video, whose projector no rank divides.

    Raises:
        Refusal: vLLM knows no such pooling.

    Source: vLLM 0.32 ``models/llava_next_video.py``.
    """
    mode = config.text("spatial_pool_mode") or "average"
    if mode not in {"average", "max"}:
        raise Refusal(f"vLLM refuses to start: spatial_pool_mode {mode} is not known")
    tower = llava_tower(config, default="clip_vision_model", feature_layer=-2)
    inputs, outputs = _llava_width(config, "clip_vision_model"), text_width(text)
    bias = _bias(config, default=True)
    projector = (
        plain_linear("linear_1", inputs, outputs, bias=bias),
        plain_linear("linear_2", outputs, outputs, bias=bias),
    )
    yield from towers(
        VIDEO,
        Tower(name="vision_tower", parts=tower),
        Tower(name="multi_modal_projector", parts=projector),
    )


def bee(config: Fields, text: Fields) -> Iterator[Outside]:
    """Bee: LLaVA-OneVision's encoder, and what is built whatever is allowed.

    Source: vLLM 0.32 ``models/bee.py``.
    """
    tower = llava_tower(config, default="siglip_vision_model", feature_layer=-1)
    inputs, outputs = _llava_width(config, "siglip_vision_model"), text_width(text)
    projector = (
        Vectors(name="pre_norm", elements=2 * inputs),
        plain_linear("linear_1", inputs, 4 * outputs),
        plain_linear("linear_2", 4 * outputs, outputs),
    )
    yield from towers(IMAGE_AND_VIDEO, Tower(name="vision_tower", parts=tower, own_names=True))
    yield from towers(
        frozenset(),
        Tower(name="multi_modal_projector", parts=projector),
        Vectors(name="image_newline", elements=outputs),
    )


def mistral3(config: Fields, text: Fields) -> Iterator[Outside]:
    """Mistral 3: Pixtral's encoder, its patches merged."""
    sizes = Sizes(config, "vision_config", PIXTRAL)
    layers = built_layers(config, sizes.layers(), -1)
    inputs, outputs = sizes["hidden_size"], text_width(text)
    merge = (config.integer("spatial_merge_size", maximum=MAX_WIDTH) or 2) ** 2
    projector: tuple[Part, ...] = (
        Vectors(name="norm", elements=inputs),
        plain_linear("patch_merger.merging_layer", inputs * merge, inputs, bias=False),
        *two_projections(inputs, outputs, outputs, bias=_bias(config, default=False)),
    )
    yield from towers(
        IMAGE,
        Tower(name="vision_tower", parts=pixtral(sizes, layers)),
        Tower(name="multi_modal_projector", parts=projector),
    )


def gemma3(config: Fields, text: Fields) -> Iterator[Outside]:
    """Gemma 3: SigLIP without its pooling head."""
    sizes = Sizes(config, "vision_config", SIGLIP)
    width = sizes["hidden_size"]
    projection = Vectors(name="mm_input_projection_weight", elements=width * text_width(text))
    projector = (projection, Vectors(name="mm_soft_emb_norm", elements=width))
    yield from towers(
        IMAGE,
        Tower(name="vision_tower", parts=siglip(sizes, Depth())),
        Tower(name="multi_modal_projector", parts=projector),
    )


_PALIGEMMA_WIDTH = 2048


def paligemma(config: Fields, text: Fields) -> Iterator[Outside]:
    """PaliGemma: SigLIP and one linear layer.

    Source: vLLM 0.32 ``models/paligemma.py``.
    """
    del text
    sizes = Sizes(config, "vision_config", SIGLIP)
    # The outer class writes its own over the encoder's.
    outputs = config.integer("projection_dim", maximum=MAX_WIDTH) or _PALIGEMMA_WIDTH
    linear = plain_linear("linear", sizes["hidden_size"], outputs)
    yield from towers(
        IMAGE,
        Tower(name="vision_tower", parts=siglip(sizes, Depth())),
        Tower(name="multi_modal_projector", parts=(linear,)),
    )


_PATCH_MERGE = "patch_merge"
_MISTRAL_FORMAT = (
    "hidden_size",
    "num_channels",
    "image_size",
    "patch_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def pixtral_native(config: Fields, text: Fields) -> Iterator[Outside]:
    """Pixtral as Mistral's own files name it: params.json, read into the same keys."""
    sizes = Sizes(config, "vision_config", {})
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    for key in _MISTRAL_FORMAT:
        sizes[key]
    layer: tuple[Part, ...] = (
        attention(
            width,
            heads,
            name="attention",
            qkv="wqkv",
            shards=("wq", "wk", "wv"),
            out="wo",
            bias=False,
            quantizable=False,
        ),
        gated_mlp(width, sizes["intermediate_size"], name="feed_forward", quantizable=False),
        Vectors(name="norms", elements=2 * width),
    )
    encoder = (
        convolution("patch_conv", sizes["num_channels"], width, sizes["patch_size"] ** 2),
        Vectors(name="ln_pre", elements=width),
        Group(name="transformer.layers", parts=layer, count=sizes.layers()),
    )
    yield from towers(IMAGE, Tower(name="vision_encoder", parts=encoder))
    yield from towers(IMAGE, *_pixtral_projector(sizes, width, text_width(text)))


def _pixtral_projector(sizes: Sizes, width: int, outputs: int) -> Iterator[Part]:
    if sizes.flag("add_pre_mm_projector_layer_norm"):
        yield Vectors(name="pre_mm_projector_norm", elements=width)
    if sizes.fields.text("mm_projector_id") == _PATCH_MERGE:
        merge = (sizes.fields.integer("spatial_merge_size", maximum=MAX_WIDTH) or 1) ** 2
        yield plain_linear("patch_merger.merging_layer", width * merge, width, bias=False)
    bias = sizes.fields.boolean("adapter_bias") is not False
    adapter = (
        plain_linear("w_in", width, outputs, bias=bias),
        plain_linear("w_out", outputs, outputs, bias=bias),
    )
    yield Tower(name="vision_language_adapter", parts=adapter)


_LLAMA4 = {
    "hidden_size": 768,
    "num_hidden_layers": 34,
    "num_attention_heads": 16,
    "num_channels": 3,
    "intermediate_size": 5632,
    "vision_output_dim": 7680,
    "image_size": 448,
    "patch_size": 14,
    "pixel_shuffle_ratio": 0.5,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
}


def llama4(config: Fields, text: Fields) -> Iterator[Outside]:
    """Llama 4: none of it is quantised, and its frequencies are complex numbers.

    Source: vLLM 0.32 ``models/mllama4.py``; ``rotary_embedding/llama4_vision_rope.py``.
    """
    sizes = Sizes(config, "vision_config", _LLAMA4, required=False)
    width, heads, inner = (
        sizes["hidden_size"],
        sizes["num_attention_heads"],
        sizes["intermediate_size"],
    )
    patches = (sizes["image_size"] // sizes["patch_size"]) ** 2
    layer: tuple[Part, ...] = (
        attention(
            width,
            heads,
            name="self_attn",
            qkv="qkv_proj",
            shards=("q_proj", "k_proj", "v_proj"),
            out="o_proj",
            quantizable=False,
        ),
        Group(
            name="mlp",
            parts=two_projections(width, inner, width, names=("fc1", "fc2"), quantizable=False),
        ),
        Vectors(name="layernorms", elements=4 * width),
    )
    adapter = two_projections(
        inner,
        sizes["projector_input_dim"],
        sizes["projector_output_dim"],
        names=("mlp.fc1", "mlp.fc2"),
        bias=sizes.flag("multi_modal_projector_bias"),
        quantizable=False,
    )
    parts = (
        Vectors(name="class_embedding", elements=width),
        Vectors(name="positional_embedding_vlm", elements=(patches + 1) * width),
        Projection(
            name="patch_embedding.linear",
            input_size=sizes["num_channels"] * sizes["patch_size"] ** 2,
            output_sizes=(width,),
            split="column",
            bias=False,
            quantizable=False,
        ),
        Vectors(name="layernorms", elements=4 * width),
        Group(name="model.layers", parts=layer, count=sizes.layers()),
        Group(name="vision_adapter", parts=adapter),
        Vectors(
            name="rotary_emb.cos_sin_cache",
            elements=(patches + 1) * (width // heads // 2),
            element_bytes=8,
        ),
    )
    projector = Projection(
        name="linear_1",
        input_size=sizes["vision_output_dim"],
        output_sizes=(text_width(text),),
        split="column",
        bias=False,
        quantizable=False,
    )
    yield from towers(
        IMAGE,
        Tower(name="vision_model", parts=parts, data_parallel=True),
        Tower(name="multi_modal_projector", parts=(projector,)),
    )
