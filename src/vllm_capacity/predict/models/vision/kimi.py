"""The vision encoders of Kimi: MoonViT, for pictures and for clips.

Source: vLLM 0.32 ``models/moonvit.py``, ``kimi_vl.py``, ``kimi_k25_vit.py`` and
``vllm/models/kimi_k3``; defaults of ``transformers_utils/configs/moonvit.py``, ``kimi_k3.py`` and
transformers 5 ``configuration_kimi_k25.py``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part
from vllm_capacity.predict.models.vision.common import (
    FLOAT32,
    IMAGE,
    MAX_WIDTH,
    Sizes,
    attention,
    convolution,
    mlp,
    plain_linear,
    towers,
)
from vllm_capacity.predict.models.vision.llava import text_width
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.vision import Group, Projection, Tower
from vllm_capacity.predict.refusal import Refusal

_CLIPS = frozenset({"vision_chunk"})
_MOONVIT = {
    "patch_size": 14,
    "init_pos_emb_height": 64,
    "init_pos_emb_width": 64,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "merge_kernel_size": [2, 2],
}
_K25 = {
    "patch_size": 14,
    "pos_emb_height": 64,
    "pos_emb_width": 64,
    "pos_emb_time": 4,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "merge_kernel_size": [2, 2],
}
_K3 = {
    "patch_size": 14,
    "init_pos_emb_height": 64,
    "init_pos_emb_width": 64,
    "init_pos_emb_time": 4,
    "vt_num_attention_heads": 12,
    "vt_num_hidden_layers": 27,
    "vt_hidden_size": 1024,
    "vt_intermediate_size": 4096,
    "merge_kernel_size": [2, 2],
    "mm_projector_type": "patchmergerv2",
    "qkv_hidden_size": 1536,
    "norm_type": "rmsnorm",
    "attn_bias": False,
    "patch_embed_proj_bias": False,
    "linear_bias": False,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Encoder:
    """What the kinds of MoonViT have in common.

    Attributes:
        attention_width: elements of all heads together.
        norm: vectors of a norm, two with bias.
        quantizable: whether it receives the quantisation config.
    """

    width: int
    heads: int
    layers: int
    inner: int
    attention_width: int
    norm: int = 2
    attention_bias: bool = True
    mlp_bias: bool = True
    quantizable: bool = False

    def parts(self) -> tuple[Part, ...]:
        """Blocks and the last norm."""
        own = attention(
            self.width,
            self.heads,
            head_size=max(1, self.attention_width // self.heads),
            name="attn",
            qkv="wqkv",
            out="wo",
            bias=self.attention_bias,
            quantizable=self.quantizable,
        )
        feed = mlp(
            self.width,
            self.inner,
            up="fc0",
            down="fc1",
            bias=self.mlp_bias,
            quantizable=self.quantizable,
        )
        norms = Vectors(name="norms", elements=2 * self.norm * self.width)
        return (
            Group(name="encoder.blocks", parts=(own, feed, norms), count=self.layers),
            Vectors(name="encoder.final_layernorm", elements=self.norm * self.width),
        )


def _patches(sizes: Sizes, width: int, *, bias: bool) -> Part:
    high, wide = sizes.pair("patch_size")
    return convolution("patch_embed.proj", 3, width, high * wide, bias=bias)


def _merged(sizes: Sizes, width: int) -> int:
    high, wide = sizes.pair("merge_kernel_size")
    return width * high * wide


def kimi_vl(config: Fields, text: Fields) -> Iterator[Outside]:
    """Kimi-VL's: pictures only, never quantised."""
    sizes = Sizes(config, "vision_config", _MOONVIT, required=False)
    width = sizes["hidden_size"]
    encoder = _Encoder(
        width=width,
        heads=sizes["num_attention_heads"],
        layers=sizes.layers(),
        inner=sizes["intermediate_size"],
        attention_width=width,
    )
    positions = sizes["init_pos_emb_height"] * sizes["init_pos_emb_width"]
    parts = (
        _patches(sizes, width, bias=True),
        Vectors(name="patch_embed.pos_emb", elements=positions * width),
        *encoder.parts(),
    )
    merged = _merged(sizes, width)
    projector = (
        Vectors(name="pre_norm", elements=2 * width),
        plain_linear("linear_1", merged, merged),
        plain_linear("linear_2", merged, text_width(text)),
    )
    yield from towers(
        IMAGE,
        Tower(name="vision_tower", parts=parts, data_parallel=True),
        Tower(name="multi_modal_projector", parts=projector),
    )


def kimi_k25(config: Fields, text: Fields) -> Iterator[Outside]:
    """Kimi-K2.5's: pictures and clips. Older files' ``vt_*`` keys are not read by its class."""
    sizes = Sizes(config, "vision_config", _K25, required=False)
    yield from _clips(config, sizes, text_width(text), prefix="", modalities=_CLIPS)


def kimi_k3(config: Fields, text: Fields) -> Iterator[Outside]:
    """Kimi-K3's."""
    sizes = Sizes(config, "vision_config", _K3, required=False)
    yield from _clips(config, sizes, text_width(text), prefix="vt_", modalities=IMAGE)


def _clips(
    config: Fields, sizes: Sizes, outputs: int, *, prefix: str, modalities: frozenset[str]
) -> Iterator[Outside]:
    _check_kind(sizes.fields.values)
    width, heads = sizes[f"{prefix}hidden_size"], sizes[f"{prefix}num_attention_heads"]
    method = _quantization(config)
    quantizable = method not in {None, "compressed-tensors"}
    encoder = _Encoder(
        width=width,
        heads=heads,
        layers=sizes.layers(f"{prefix}num_hidden_layers"),
        inner=sizes[f"{prefix}intermediate_size"],
        attention_width=sizes.fields.integer("qkv_hidden_size", maximum=MAX_WIDTH) or width,
        norm=1 if sizes.fields.text("norm_type") == "rmsnorm" else 2,
        attention_bias=sizes.fields.boolean("attn_bias") is not False,
        mlp_bias=sizes.fields.boolean("linear_bias") is not False,
        quantizable=quantizable,
    )
    places = _position(sizes, "height") * _position(sizes, "width")
    times = Vectors(
        name="patch_embed.pos_emb.time_weight",
        elements=_position(sizes, "time") * width,
        # Moved to the model's dtype only where the encoder is left unquantised.
        element_bytes=FLOAT32 if quantizable else None,
    )
    bias = sizes.fields.boolean("patch_embed_proj_bias") is not False
    parts = (
        _patches(sizes, width, bias=bias),
        Vectors(name="patch_embed.pos_emb", elements=places * width),
        times,
        *encoder.parts(),
    )
    yield from towers(
        modalities,
        Tower(name="vision_tower", parts=parts, data_parallel=True, heads=heads),
        Tower(name="mm_projector", parts=_projector(sizes, width, outputs, quantizable)),
    )


def _projector(
    sizes: Sizes,
    width: int,
    outputs: int,
    quantizable: bool,  # noqa: FBT001
) -> tuple[Part, ...]:
    merged = _merged(sizes, width)
    newer = sizes.fields.text("mm_projector_type") == "patchmergerv2"
    linears = tuple(
        Projection(
            name=name,
            input_size=merged,
            output_sizes=(rows,),
            bias=not newer,
            quantizable=quantizable,
        )
        for name, rows in (("linear_1", merged), ("linear_2", outputs))
    )
    norm = Vectors(name="norm", elements=outputs if newer else 2 * width)
    return (*linears, norm)


def _position(sizes: Sizes, side: str) -> int:
    legacy = f"init_pos_emb_{side}"
    return sizes[legacy if sizes.fields.has(legacy) else f"pos_emb_{side}"]


def _check_kind(values: Mapping[str, Any]) -> None:
    """Kinds that vLLM builds.

    Raises:
        Refusal: another one is asked for.
    """
    kinds = {
        "pos_emb_type": {"divided_fixed"},
        "mlp_type": {"mlp2"},
        "norm_type": {"layernorm", "rmsnorm"},
        "video_attn_type": {"spatial_temporal"},
    }
    for key, known in kinds.items():
        value = values.get(key)
        if value is not None and value not in known:
            raise Refusal(f"vLLM refuses to start: vision_config.{key} {value} is not known")


def _quantization(config: Fields) -> str | None:
    for reader in (config, config.mapping("text_config") or config):
        quantization = reader.mapping("quantization_config")
        if quantization is not None:
            name = (quantization.text("quant_method") or "modelopt").replace("_", "-")
            # Kimi-K3 loads this format by a class of its own.
            packed = quantization.text("format") == "mxfp4-pack-quantized"
            return "mxfp4" if packed and config.text("model_type") == "kimi_k3" else name
    return None
