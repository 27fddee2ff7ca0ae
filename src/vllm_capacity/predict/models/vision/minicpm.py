"""The encoders and the resampler of MiniCPM-V 2.5 to 4.5 and MiniCPM-o 2.6 and 4.5.

Source: vLLM 0.32 ``models/minicpmv.py``, ``minicpmo.py``, ``layers/resampler.py``.
"""

from collections.abc import Iterator, Mapping

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Outside, Part
from vllm_capacity.predict.models.vision.audio import transformers_encoder
from vllm_capacity.predict.models.vision.common import (
    AUDIO,
    IMAGE,
    IMAGE_AND_VIDEO,
    MAX_WIDTH,
    THREE,
    Sizes,
    attention,
    plain_linear,
    towers,
)
from vllm_capacity.predict.models.vision.idefics import idefics2_vision
from vllm_capacity.predict.models.vision.llava import text_width
from vllm_capacity.predict.models.wrapper import Wrapper, build_wrapped
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.vision import Projection, Tower
from vllm_capacity.predict.refusal import Refusal

#: Text model by the file's own version.
_TEXT = {
    "2.5": ("LlamaForCausalLM", "llama"),
    "2.6": ("Qwen2ForCausalLM", "qwen2"),
    "4.0": ("LlamaForCausalLM", "llama"),
    "4.5": ("Qwen3ForCausalLM", "qwen3"),
}
#: Positions that the resampler keeps: rows and columns, and moments from 4.5 on.
_PLACES = 70 * 70
_MOMENTS = 36000


def build_minicpmv(config: Fields, *, path: str = "", head_path: str = "") -> Model:
    """MiniCPM-V.

    Raises:
        Refusal: its version is not described exactly.
    """
    del path, head_path
    version = str(config.values.get("version", "2.5"))
    if "version" not in config.values and config.values.get("hidden_size") == 2304:
        version = "2.0"
    return _build(config, "minicpmv.py", version, _TEXT)


def build_minicpmo(config: Fields, *, path: str = "", head_path: str = "") -> Model:
    """MiniCPM-o: MiniCPM-V of the same version, and an encoder of sound.

    Raises:
        Refusal: its version is not described exactly.
    """
    del path, head_path
    version = str(config.values.get("version", "2.6"))
    known = {key: _TEXT[key] for key in ("2.6", "4.5")}
    return _build(config, "minicpmo.py", version, known, sound=True)


def _build(
    config: Fields,
    source: str,
    version: str,
    known: Mapping[str, tuple[str, str]],
    *,
    sound: bool = False,
) -> Model:
    if version not in known:
        raise Refusal(f"{source} of version {version} is not described exactly yet")
    architecture, kind = known[version]

    def built(outer: Fields, text: Fields) -> Iterator[Outside]:
        yield from _towers(outer, text, moments=_MOMENTS if version == "4.5" else 0)
        if sound:
            yield from _sound(outer, text)

    wrapper = Wrapper(
        source=source,
        towers=built,
        architecture=architecture,
        text_type=kind,
        text_type_decides=False,
        flat=True,
        tied=None,
        said_tie=True,
        path="llm.model",
        head_path="llm",
    )
    return build_wrapped(config, wrapper)


_WHISPER = {
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
}


def _sound(config: Fields, text: Fields) -> Iterator[Outside]:
    """Whisper's encoder and two linear layers.

    Source: vLLM 0.32 ``models/minicpmo.py``, ``init_audio_module``; defaults of transformers 5
    ``configuration_whisper.py``.
    """
    sizes = Sizes(config, "audio_config", _WHISPER)
    inputs, outputs = sizes["encoder_ffn_dim"] // 4, text_width(text)
    projection = (
        plain_linear("linear1", inputs, outputs),
        plain_linear("linear2", outputs, outputs),
    )
    yield from towers(
        AUDIO,
        Tower(name="apm", parts=transformers_encoder(sizes, positions=True)),
        Tower(name="audio_projection_layer", parts=projection),
    )


def _towers(config: Fields, text: Fields, *, moments: int) -> Iterator[Outside]:
    sizes = Sizes(config, "vision_config", {"num_channels": 3})
    layers = sizes.layers()
    if config.boolean("drop_vision_last_layer"):
        layers -= 1
    yield from towers(
        IMAGE_AND_VIDEO,
        Tower(
            name="vpm",
            parts=idefics2_vision(sizes, layers=layers),
            data_parallel=True,
            own_names=True,
        ),
        Tower(name="resampler", parts=tuple(_resampler(config, sizes, text, moments))),
    )


#: What keeps no float8, which the class would make the model's dtype again.
_INTEGERS = frozenset({"auto-round", "awq", "awq_marlin", "bitsandbytes", "gptq", "gptq_marlin"})


def _check_quantization(config: Fields) -> None:
    """Refuse quantised weights that the resampler's ``.to(dtype)`` widens again.

    Raises:
        Refusal: they may be float8.

    Source: vLLM 0.32 ``models/minicpmv.py``, ``init_resampler``.
    """
    quantization = config.mapping("quantization_config")
    method = None if quantization is None else quantization.text("quant_method")
    if quantization is not None and method not in _INTEGERS:
        raise Refusal(f"minicpmv.py with quant_method {method} is not described exactly yet")


def _resampler(config: Fields, sizes: Sizes, text: Fields, moments: int) -> Iterator[Part]:
    width, inputs = text_width(text), sizes["hidden_size"]
    queries = config.required_integer("query_num", maximum=MAX_WIDTH)
    if inputs != width:
        _check_quantization(config)
        yield Projection(name="kv_proj", input_size=inputs, output_sizes=(width,), bias=False)
    # Queries, PyTorch's own attention, three norms and the last projection.
    own = queries * width + 4 * width * (width + 1) + 6 * width + width * width
    yield Vectors(name="parameters", elements=own)
    yield Vectors(name="pos_embed", elements=(_PLACES + moments) * width)


_MERGED = 4
_MINICPMV4_6 = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
}


def minicpmv4_6(config: Fields, text: Fields) -> Iterator[Outside]:
    """MiniCPM-V 4.6: a merger in the middle of the encoder, and one after it.

    Source: vLLM 0.32 ``models/minicpmv4_6.py``; transformers 5
    ``configuration_minicpmv4_6.py``.
    """
    dropped = bool(config.boolean("drop_vision_last_layer"))
    yield from _merging(config, text, dropped=dropped)


def minicpmv4_7(config: Fields, text: Fields) -> Iterator[Outside]:
    """MiniCPM-V 4.7, which keeps every layer of the encoder.

    Source: vLLM 0.32 ``models/minicpmv4_7.py``.
    """
    yield from _merging(config, text, dropped=False)


def _merging(config: Fields, text: Fields, *, dropped: bool) -> Iterator[Outside]:
    sizes = Sizes(config, "vision_config", _MINICPMV4_6, required=False)
    width, outputs = sizes["hidden_size"], text_width(text)
    folded, inner = _MERGED * width, _MERGED * sizes["intermediate_size"]
    own = attention(
        width,
        sizes["num_attention_heads"],
        name="self_attn",
        qkv="qkv_proj",
        shards=THREE,
        out="out_proj",
    )
    middle = (
        own,
        Vectors(name="norms", elements=2 * width + 2 * folded),
        plain_linear("linear_1", folded, inner),
        plain_linear("linear_2", inner, width),
    )
    last = (
        Vectors(name="pre_norm", elements=2 * folded),
        plain_linear("linear_1", folded, folded),
        plain_linear("linear_2", folded, outputs),
    )
    encoder = idefics2_vision(sizes, layers=sizes.layers() - dropped)
    yield from towers(
        IMAGE,
        Tower(name="vpm", parts=encoder, data_parallel=True),
        Tower(name="vit_merger", parts=middle, data_parallel=True),
        Tower(name="merger.mlp.0", parts=last),
    )
