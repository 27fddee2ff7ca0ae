"""The encoders of Gemma 4: transformers' own modules, which no rank divides.

Source: vLLM 0.32 ``models/gemma4_mm.py``; transformers 5 ``modeling_gemma4.py`` and
``configuration_gemma4.py``. vLLM swaps their linear layers for replicated ones.
"""

from collections.abc import Iterator

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part
from vllm_capacity.predict.models.vision.common import (
    AUDIO,
    FLOAT32,
    IMAGE_AND_VIDEO,
    MAX_WIDTH,
    Sizes,
    towers,
)
from vllm_capacity.predict.models.vision.llava import text_width
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.vision import Group, Projection, Tower

_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
    "patch_size": 16,
    "position_embedding_size": 10240,
}
_AUDIO = {
    "hidden_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "subsampling_conv_channels": [128, 32],
    "conv_kernel_size": 5,
    "attention_context_left": 13,
    "use_clipped_linears": True,
    "output_proj_dims": 1536,
}
#: Bounds of a clipped linear layer: of its input and of its output.
_BOUNDS = 4
#: Methods whose kernels take any width.
_ANY_WIDTH = frozenset({"bitsandbytes", "torchao", "compressed-tensors"})
_QUANTIZED_WIDTH = 64


def gemma4(config: Fields, text: Fields) -> Iterator[Outside]:
    """Gemma 4's encoder of pictures, and of sound where the file has one."""
    sizes = Sizes(config, "vision_config", _VISION)
    quantizable = _quantizable(config, sizes)
    outputs = text_width(text)
    yield from towers(
        IMAGE_AND_VIDEO,
        Tower(name="vision_tower", parts=_vision(sizes, quantizable=quantizable)),
        _embedder("embed_vision", sizes["hidden_size"], outputs, quantizable=quantizable),
    )
    if config.has("audio_config"):
        audio = Sizes(config, "audio_config", _AUDIO)
        width = audio.fields.integer("output_proj_dims", maximum=MAX_WIDTH)
        yield from towers(
            AUDIO,
            Tower(name="audio_tower", parts=_audio(audio, quantizable=quantizable)),
            _embedder(
                "embed_audio", width or audio["hidden_size"], outputs, quantizable=quantizable
            ),
        )


def _quantizable(config: Fields, sizes: Sizes) -> bool:
    quantization = config.mapping("quantization_config")
    method = None if quantization is None else quantization.text("quant_method")
    if (method or "").replace("_", "-") in _ANY_WIDTH:
        return True
    return not (sizes["hidden_size"] % _QUANTIZED_WIDTH or sizes["intermediate_size"] % 64)


def _embedder(name: str, inputs: int, outputs: int, *, quantizable: bool) -> Tower:
    linear = _linear("embedding_projection", inputs, outputs, quantizable=quantizable)
    return Tower(name=name, parts=(linear,))


def _linear(
    name: str, inputs: int, outputs: int, *, quantizable: bool, bias: bool = False
) -> Projection:
    return Projection(
        name=name, input_size=inputs, output_sizes=(outputs,), bias=bias, quantizable=quantizable
    )


def _clippable(
    pairs: dict[str, tuple[int, int]], *, clipped: bool, quantizable: bool
) -> Iterator[Part]:
    for name, (inputs, outputs) in pairs.items():
        yield _linear(f"{name}.linear", inputs, outputs, quantizable=quantizable)
        if clipped:
            yield Vectors(name=f"{name}.bounds", elements=_BOUNDS)


def _vision(sizes: Sizes, *, quantizable: bool) -> tuple[Part, ...]:
    width, inner, head = sizes["hidden_size"], sizes["intermediate_size"], sizes["head_dim"]
    query = sizes["num_attention_heads"] * head
    key = sizes["num_key_value_heads"] * head
    pairs = {
        "self_attn.q_proj": (width, query),
        "self_attn.k_proj": (width, key),
        "self_attn.v_proj": (width, key),
        "self_attn.o_proj": (query, width),
        "mlp.gate_proj": (width, inner),
        "mlp.up_proj": (width, inner),
        "mlp.down_proj": (inner, width),
    }
    clipped = sizes.flag("use_clipped_linears")
    layer = (
        *_clippable(pairs, clipped=clipped, quantizable=quantizable),
        Vectors(name="norms", elements=4 * width + 2 * head),
    )
    pixels = 3 * sizes["patch_size"] ** 2
    parts: list[Part] = [
        Vectors(
            name="patch_embedder.position_embedding_table",
            elements=2 * sizes["position_embedding_size"] * width,
        ),
        _linear("patch_embedder.input_proj", pixels, width, quantizable=quantizable),
        Group(name="encoder.layers", parts=layer, count=sizes.layers()),
        # Frequencies of rows and columns, and a copy of them.
        Vectors(
            name="encoder.rotary_emb",
            elements=2 * len(range(0, head // 2, 2)),
            element_bytes=FLOAT32,
        ),
    ]
    if sizes.flag("standardize"):
        parts.append(Vectors(name="standardize", elements=2 * width))
    return tuple(parts)


def _audio(sizes: Sizes, *, quantizable: bool) -> tuple[Part, ...]:
    width, kernel = sizes["hidden_size"], sizes["conv_kernel_size"]
    head = max(1, width // sizes["num_attention_heads"])
    pairs = {
        "feed_forward1.ffw_layer_1": (width, 4 * width),
        "feed_forward1.ffw_layer_2": (4 * width, width),
        "feed_forward2.ffw_layer_1": (width, 4 * width),
        "feed_forward2.ffw_layer_2": (4 * width, width),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width, width),
        "self_attn.v_proj": (width, width),
        "self_attn.post": (width, width),
        "lconv1d.linear_start": (width, 2 * width),
        "lconv1d.linear_end": (width, width),
    }
    layer = (
        *_clippable(pairs, clipped=sizes.flag("use_clipped_linears"), quantizable=quantizable),
        _linear("self_attn.relative_k_proj", width, width, quantizable=quantizable),
        # Nine norms, the depthwise convolution, the scale of a head and the cap of the logits.
        Vectors(name="vectors", elements=(9 + kernel) * width + head + 1),
    )
    first, second = sizes.pair("subsampling_conv_channels")
    convolutions = 9 * first * (1 + second) + first + second
    timescales = width // 2
    return (
        Vectors(name="subsample_conv_projection", elements=convolutions),
        _linear(
            "subsample_conv_projection.input_proj_linear",
            first // 4 * second,
            width,
            quantizable=quantizable,
        ),
        Vectors(name="rel_pos_enc", elements=timescales),
        Group(name="layers", parts=layer, count=sizes.layers()),
        _linear(
            "output_proj", width, sizes["output_proj_dims"], bias=True, quantizable=quantizable
        ),
    )
