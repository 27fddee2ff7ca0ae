"""Whisper: an encoder of sound, and a decoder that attends to it.

Source: vLLM 0.32 ``models/whisper.py``; defaults of transformers 5
``configuration_whisper.py``.
"""

from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Outside, Part, Stages
from vllm_capacity.predict.models.vision.common import AUDIO, MAX_LAYERS, MAX_WIDTH, mlp
from vllm_capacity.predict.parts import LogitsHead, SelfAttention, Vectors
from vllm_capacity.predict.parts.cross_attention import CrossAttention
from vllm_capacity.predict.parts.vision import Group, Tower
from vllm_capacity.predict.refusal import Refusal

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 51865,
    "num_mel_bins": 80,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_layers": 4,
    "decoder_attention_heads": 6,
    "decoder_ffn_dim": 1536,
    "encoder_ffn_dim": 1536,
    "d_model": 384,
    "max_source_positions": 1500,
    "max_target_positions": 448,
}
#: Source: transformers 5 ``configuration_whisper.py``, ``WhisperConfig.attribute_map``.
_ALIASES = {
    "num_key_value_heads": "encoder_attention_heads",
    "num_attention_heads": "encoder_attention_heads",
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
}
_THREE = ("q_proj", "k_proj", "v_proj")


def build_whisper(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Encoder and decoder.

    Raises:
        Refusal: it is not described exactly.
    """
    fields = _aliased(config)
    for key in ("sliding_window", "pos_embed"):
        if fields.has(key):
            raise Refusal(f"whisper.py with {key} is not described exactly yet")
    width = fields.required_integer("d_model", maximum=MAX_WIDTH)
    heads = fields.required_integer("decoder_attention_heads", maximum=MAX_WIDTH)
    layers = fields.required_integer("decoder_layers", maximum=MAX_LAYERS)
    vocabulary = fields.required_integer("vocab_size", maximum=MAX_WIDTH)
    targets = fields.required_integer("max_target_positions", maximum=MAX_WIDTH)
    positions = fields.required_integer("max_source_positions", maximum=MAX_WIDTH)
    layer: tuple[Part, ...] = (
        _self_attention(width, heads, cached=True),
        CrossAttention(hidden_size=width, num_heads=heads, input_tokens=positions),
        mlp(width, fields.required_integer("decoder_ffn_dim", maximum=MAX_WIDTH)),
        Vectors(name="layer_norms", elements=6 * width),
    )
    tables = Vectors(name="decoder.embeddings", elements=(vocabulary + targets + 2) * width)
    head = LogitsHead(vocab_size=vocabulary, hidden_size=width, tied=True, name="proj_out")
    return Model(
        source="whisper.py",
        hidden_size=width,
        vocab_size=vocabulary,
        # vLLM's names: its decoder passes no name of its own on.
        layers=tuple(
            Layer(path=f".decoder.layers.{index}.layers", parts=layer) for index in range(layers)
        ),
        outside=(
            Outside(part=_encoder(fields, width), stages=Stages.EVERY, path=path, modalities=AUDIO),
            Outside(part=tables, stages=Stages.EVERY, path=path),
            Outside(part=head, stages=Stages.EVERY, path=head_path),
        ),
        quantized=False,
        stages_refusal="vLLM refuses to start: whisper.py cannot be divided into pipeline stages",
        text_values=fields.values,
    )


def _aliased(config: Fields) -> Fields:
    """With defaults; the names that all models share count where the file has them."""
    shared = {own: config.values[name] for name, own in _ALIASES.items() if name in config.values}
    values = {**_DEFAULTS, **config.values, **shared}
    return Fields(values, path=config.path, faults=config.faults)


def _self_attention(width: int, heads: int, *, cached: bool) -> SelfAttention:
    return SelfAttention(
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_size=max(1, width // heads),
        qkv_bias=True,
        o_bias=True,
        cached=cached,
        qkv_shards=_THREE,
        o_name="out_proj",
    )


def encoder_parts(fields: Fields, width: int) -> tuple[Part, ...]:
    """Convolutions, positions, layers and the last norm."""
    heads = fields.required_integer("encoder_attention_heads", maximum=MAX_WIDTH)
    bins = fields.required_integer("num_mel_bins", maximum=MAX_WIDTH)
    positions = fields.required_integer("max_source_positions", maximum=MAX_WIDTH)
    layer: tuple[Part, ...] = (
        _self_attention(width, heads, cached=False),
        mlp(width, fields.required_integer("encoder_ffn_dim", maximum=MAX_WIDTH)),
        Vectors(name="layer_norms", elements=4 * width),
    )
    count = fields.required_integer("encoder_layers", maximum=MAX_LAYERS)
    return (
        Vectors(name="convolutions", elements=width * (3 * bins + 1 + 3 * width + 1)),
        Group(name="layers", parts=layer, count=count),
        Vectors(name="layer_norm", elements=2 * width),
        Vectors(name="embed_positions", elements=positions * width),
    )


def _encoder(fields: Fields, width: int) -> Tower:
    return Tower(name="encoder", parts=encoder_parts(fields, width))
