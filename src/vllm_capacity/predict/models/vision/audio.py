"""Encoders of sound.

Source: vLLM 0.32 ``models/qwen2_audio.py``, ``qwen2_5_omni_thinker.py``,
``qwen3_omni_moe_thinker.py``, ``qwen3_asr.py``, ``voxtral.py``, ``ultravox.py``; transformers 5
``modeling_qwen2_audio.py`` and ``modeling_qwen2_5_omni.py`` where vLLM takes theirs.
"""

from collections.abc import Iterator
from dataclasses import replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part
from vllm_capacity.predict.models.vision.common import (
    AUDIO,
    FLOAT32,
    IMAGE_AND_VIDEO,
    THREE,
    Sizes,
    attention,
    convolution,
    half_rotary,
    mlp,
    plain_linear,
    towers,
    two_projections,
)
from vllm_capacity.predict.models.vision.llava import text_width
from vllm_capacity.predict.models.vision.qwen import qwen2_5_parts
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.vision import Group, RotaryTower, Tower

_WHISPER_LARGE = {
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
}
_OMNI2 = {**_WHISPER_LARGE, "output_dim": 3584}
_OMNI3 = {**_OMNI2, "downsample_hidden_size": 480}
_OMNI3_VISION = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
}
#: Layers whose output is added to the text model's where the file names none.
_DEEPSTACK = 3


def transformers_encoder(sizes: Sizes, *, positions: bool) -> tuple[Part, ...]:
    """Whisper's encoder as transformers builds it, which no rank divides."""
    width, inner = sizes["d_model"], sizes["encoder_ffn_dim"]
    # Queries, values and the output have biases, keys none.
    own = 4 * width * width + 3 * width
    feed = 2 * width * inner + inner + width
    parts: list[Part] = [
        Vectors(
            name="convolutions", elements=width * (3 * sizes["num_mel_bins"] + 1 + 3 * width + 1)
        ),
        Group(
            name="layers",
            parts=(Vectors(name="parameters", elements=own + feed + 4 * width),),
            count=sizes.layers("encoder_layers"),
        ),
        Vectors(name="layer_norm", elements=2 * width),
    ]
    if positions:
        table = sizes["max_source_positions"] * width
        parts.append(Vectors(name="embed_positions", elements=table))
    return tuple(parts)


def qwen2_audio(config: Fields, text: Fields) -> Iterator[Outside]:
    """Qwen2-Audio's."""
    sizes = Sizes(config, "audio_config", _WHISPER_LARGE, required=False)
    linear = plain_linear("linear", sizes["d_model"], text_width(text))
    yield from towers(
        AUDIO,
        Tower(name="audio_tower", parts=transformers_encoder(sizes, positions=True)),
        Tower(name="multi_modal_projector", parts=(linear,)),
    )


def qwen2_5_omni(config: Fields, text: Fields) -> Iterator[Outside]:
    """Qwen2.5-Omni's encoders of sound and of pictures; its talker is not built."""
    sizes = Sizes(config, "audio_config", _OMNI2, required=False)
    width, outputs = sizes["d_model"], sizes["output_dim"]
    audio = (
        *transformers_encoder(sizes, positions=False),
        Vectors(name="audio_bos_eos_token", elements=2 * outputs),
        plain_linear("proj", width, outputs),
        Vectors(
            name="positional_embedding",
            elements=sizes["max_source_positions"] * width,
            element_bytes=FLOAT32,
        ),
    )
    yield from towers(AUDIO, Tower(name="audio_tower", parts=audio))
    yield from qwen2_5_parts(config, text, data_parallel=False)


def qwen3_audio(config: Fields, text: Fields) -> Iterator[Outside]:
    """Qwen3-Omni's and Qwen3-ASR's: whole on every rank where these do not divide its heads."""
    del text
    sizes = Sizes(config, "audio_config", _OMNI3, required=False)
    width, heads, down = (
        sizes["d_model"],
        sizes["encoder_attention_heads"],
        sizes["downsample_hidden_size"],
    )
    layer: tuple[Part, ...] = (
        attention(
            width,
            heads,
            name="self_attn",
            qkv="qkv_proj",
            shards=THREE,
            out="out_proj",
            quantizable=False,
        ),
        mlp(width, sizes["encoder_ffn_dim"], quantizable=False),
        Vectors(name="layer_norms", elements=4 * width),
    )
    bins = sizes["num_mel_bins"]
    for _ in range(3):
        bins = (bins + 1) // 2
    parts = (
        Vectors(
            name="positional_embedding",
            elements=sizes["max_source_positions"] * width,
            element_bytes=FLOAT32,
        ),
        convolution("conv2d1", 1, down, 9, bias=True),
        convolution("conv2d2", down, down, 9, bias=True),
        convolution("conv2d3", down, down, 9, bias=True),
        plain_linear("conv_out", down * bins, width, bias=False),
        Group(name="layers", parts=layer, count=sizes.layers("encoder_layers")),
        Vectors(name="ln_post", elements=2 * width),
        plain_linear("proj1", width, width),
        plain_linear("proj2", width, sizes["output_dim"]),
    )
    yield from towers(AUDIO, Tower(name="audio_tower", parts=parts, heads=heads))


def qwen3_omni(config: Fields, text: Fields) -> Iterator[Outside]:
    """Qwen3-Omni's encoders of sound and of pictures; its talker is not built."""
    yield from qwen3_audio(config, text)
    sizes = Sizes(config, "vision_config", _OMNI3_VISION, required=False)
    width, heads = sizes["hidden_size"], sizes["num_heads"]
    block: tuple[Part, ...] = (
        attention(width, heads),
        mlp(width, sizes["intermediate_size"], up="linear_fc1", down="linear_fc2"),
        Vectors(name="norms", elements=4 * width),
    )
    merged = width * sizes["spatial_merge_size"] ** 2
    merger = two_projections(merged, merged, sizes["out_hidden_size"], names=("mlp.0", "mlp.2"))
    late = (*merger, Vectors(name="ln_q", elements=2 * merged))
    deep = sizes.fields.integers("deepstack_visual_indexes")
    grid = (sizes["image_size"] // sizes["patch_size"]) ** 2
    kernel = sizes["temporal_patch_size"] * sizes["patch_size"] ** 2
    parts = (
        convolution("patch_embed.proj", sizes["in_channels"], width, kernel, bias=True),
        Vectors(name="pos_embed", elements=grid * width),
        Group(name="blocks", parts=block, count=sizes.layers("depth")),
        Group(name="merger", parts=(*merger, Vectors(name="ln_q", elements=2 * width))),
        Group(name="merger_list", parts=late, count=_DEEPSTACK if deep is None else len(deep)),
    )
    table = half_rotary(max(1, width // heads))
    yield from towers(IMAGE_AND_VIDEO, RotaryTower(name="visual", parts=parts, table=table))


_GLMASR = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "num_mel_bins": 128,
}
_HALF = 0.5


def glm_asr(config: Fields, text: Fields) -> Iterator[Outside]:
    """GLM-ASR's: rotary, grouped attention, and a projector that folds frames.

    Source: vLLM 0.32 ``models/glmasr.py``; transformers 5 ``configuration_glmasr.py``.
    """
    sizes = Sizes(config, "audio_config", _GLMASR, required=False)
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    own = attention(width, heads, name="self_attn", qkv="qkv_proj", shards=THREE, out="o_proj")
    layer: tuple[Part, ...] = (
        replace(own, num_kv_heads=sizes.fields.integer("num_key_value_heads") or heads),
        mlp(width, sizes["intermediate_size"]),
        Vectors(name="layernorms", elements=4 * width),
    )
    parts = (
        convolution("conv1", sizes["num_mel_bins"], width, 3, bias=True),
        convolution("conv2", width, width, 3, bias=True),
        Group(name="layers", parts=layer, count=sizes.layers()),
        Vectors(name="norm", elements=2 * width),
        Vectors(
            name="rotary_emb.inv_freq",
            elements=len(range(0, int(max(1, width // heads) * _rotated(sizes)), 2)),
            element_bytes=FLOAT32,
        ),
    )
    outputs = text_width(text)
    projector = two_projections(sizes["intermediate_size"], 2 * outputs, outputs)
    yield from towers(
        AUDIO,
        Tower(name="audio_tower", parts=parts),
        Tower(name="multi_modal_projector", parts=projector),
    )


def _rotated(sizes: Sizes) -> float:
    """Which part of a head is rotated."""
    parameters = sizes.fields.mapping("rope_parameters")
    for reader in (parameters, sizes.fields):
        ratio = (
            None
            if reader is None
            else reader.number("partial_rotary_factor", minimum=0.0, maximum=1.0)
        )
        if ratio is not None:
            return ratio
    return _HALF


_FLAMINGO_NAMES = {
    "d_model": "hidden_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_ffn_dim": "intermediate_size",
}


def audio_flamingo3(config: Fields, text: Fields) -> Iterator[Outside]:
    """Audio Flamingo 3: Whisper's encoder under names of its own, and two linear layers.

    Source: vLLM 0.32 ``models/audioflamingo3.py``; transformers 5
    ``configuration_audioflamingo3.py``.
    """
    sizes = Sizes(config, "audio_config", _WHISPER_LARGE, required=False)
    values = dict(sizes.fields.values)
    values.update(
        {ours: values[theirs] for ours, theirs in _FLAMINGO_NAMES.items() if theirs in values}
    )
    sizes.fields = Fields(values, path=sizes.fields.path, faults=config.faults)
    outputs, bias = text_width(text), config.boolean("projector_bias") is not False
    projector = (
        plain_linear("linear_1", sizes["d_model"], outputs, bias=bias),
        plain_linear("linear_2", outputs, outputs, bias=bias),
    )
    yield from towers(
        AUDIO,
        Tower(name="audio_tower", parts=transformers_encoder(sizes, positions=True)),
        Tower(name="multi_modal_projector", parts=projector),
    )
