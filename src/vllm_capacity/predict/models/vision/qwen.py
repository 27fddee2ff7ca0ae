"""The vision encoders of Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

Source: vLLM 0.32 ``models/qwen2_vl.py``, ``qwen2_5_vl.py`` and ``qwen3_vl.py``, the
``*VisionTransformer`` classes; defaults of transformers 5 ``configuration_*.py``.
"""

from collections.abc import Iterator
from dataclasses import replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part
from vllm_capacity.predict.models.vision.common import (
    IMAGE,
    IMAGE_AND_VIDEO,
    MAX_WIDTH,
    Sizes,
    attention,
    convolution,
    half_rotary,
    mlp,
    plain_linear,
    towers,
    two_projections,
)
from vllm_capacity.predict.parts import Mlp, Vectors
from vllm_capacity.predict.parts.vision import Group, RotaryTower, Tower

_QWEN2 = {
    "depth": 32,
    "embed_dim": 1280,
    "hidden_size": 3584,
    "mlp_ratio": 4,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_QWEN2_5 = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
}
_QWEN3 = {
    **_QWEN2_5,
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 16,
    "num_position_embeddings": 2304,
}
#: Layers whose output Qwen3-VL adds to the text model's; Qwen3.5 has no such key.
_DEEPSTACK = (8, 16, 24)


def _tower(
    sizes: Sizes,
    width: int,
    parts: tuple[Part, ...],
    *,
    data_parallel: bool = True,
    modalities: frozenset[str] = IMAGE_AND_VIDEO,
) -> Iterator[Outside]:
    table = half_rotary(max(1, width // sizes["num_heads"]))
    tower = RotaryTower(name="visual", parts=parts, data_parallel=data_parallel, table=table)
    yield from towers(modalities, tower)


def _patch_kernel(sizes: Sizes) -> int:
    return sizes["temporal_patch_size"] * sizes["patch_size"] ** 2


def _merged_width(sizes: Sizes, width: int) -> int:
    return width * sizes["spatial_merge_size"] ** 2


def qwen2_tower(config: Fields, text: Fields) -> Iterator[Outside]:
    """Qwen2-VL's."""
    del text
    sizes = Sizes(config, "vision_config", _QWEN2, required=False)
    width = sizes["embed_dim"]
    ratio = sizes.fields.number("mlp_ratio", minimum=0.01, maximum=1e3) or 1.0
    block: tuple[Part, ...] = (
        attention(width, sizes["num_heads"]),
        mlp(width, int(width * ratio)),
        Vectors(name="norms", elements=4 * width),
    )
    merged = _merged_width(sizes, width)
    merger = two_projections(merged, merged, sizes["hidden_size"], names=("mlp.0", "mlp.2"))
    parts = (
        convolution("patch_embed.proj", sizes["in_channels"], width, _patch_kernel(sizes)),
        Group(name="blocks", parts=block, count=sizes.layers("depth")),
        Group(name="merger", parts=(*merger, Vectors(name="ln_q", elements=2 * width))),
    )
    yield from _tower(sizes, width, parts)


def qwen2_5_tower(config: Fields, text: Fields) -> Iterator[Outside]:
    """Qwen2.5-VL's."""
    yield from qwen2_5_parts(config, text, data_parallel=True)


def qwen2_5_parts(
    config: Fields,
    text: Fields,
    *,
    data_parallel: bool,
    kv_heads: int | None = None,
    modalities: frozenset[str] = IMAGE_AND_VIDEO,
) -> Iterator[Outside]:
    """The same, for classes that differ in a little.

    Args:
        config: the wrapper's configuration.
        text: not asked.
        data_parallel: whether the class knows ``--mm-encoder-tp-mode data``.
        kv_heads: key and value heads where the file says nothing; None where they are as many
            as heads in any case.
        modalities: what the tower is built for.
    """
    del text
    sizes = Sizes(config, "vision_config", _QWEN2_5, required=False)
    width = sizes["hidden_size"]
    own = attention(width, sizes["num_heads"])
    if kv_heads is not None:
        grouped = sizes.fields.integer("num_key_value_heads", maximum=MAX_WIDTH) or kv_heads
        own = replace(own, num_kv_heads=grouped)
    gated = Mlp(hidden_size=width, intermediate_size=sizes["intermediate_size"], bias=True)
    block: tuple[Part, ...] = (
        own,
        gated,
        Vectors(name="norms", elements=2 * width),
    )
    merged = _merged_width(sizes, width)
    merger = two_projections(merged, merged, sizes["out_hidden_size"], names=("mlp.0", "mlp.2"))
    parts = (
        convolution("patch_embed.proj", sizes["in_channels"], width, _patch_kernel(sizes)),
        Group(name="blocks", parts=block, count=sizes.layers("depth")),
        Group(name="merger", parts=(*merger, Vectors(name="ln_q", elements=width))),
    )
    yield from _tower(sizes, width, parts, data_parallel=data_parallel, modalities=modalities)


def opencua(config: Fields, text: Fields) -> Iterator[Outside]:
    """OpenCUA's: Qwen2.5-VL's, for pictures alone.

    Source: vLLM 0.32 ``models/opencua.py``.
    """
    yield from qwen2_5_parts(config, text, data_parallel=True, modalities=IMAGE)


def exaone4_5(config: Fields, text: Fields) -> Iterator[Outside]:
    """EXAONE 4.5's: Qwen2.5-VL's with grouped attention.

    Source: vLLM 0.32 ``models/exaone4_5.py``; transformers 5 ``configuration_exaone4_5.py``.
    """
    yield from qwen2_5_parts(config, text, data_parallel=True, kv_heads=8)


def hyperclovax_v2(config: Fields, text: Fields) -> Iterator[Outside]:
    """HyperCLOVA X SEED Think's: Qwen2.5-VL's, and a linear layer.

    Source: vLLM 0.32 ``models/hyperclovax_vision_v2.py``.
    """
    yield from qwen2_5_parts(config, text, data_parallel=False)
    sizes = Sizes(config, "vision_config", _QWEN2_5, required=False)
    outputs = text.required_integer("hidden_size", maximum=MAX_WIDTH)
    linear = plain_linear("linear", sizes["out_hidden_size"], outputs)
    yield from towers(IMAGE_AND_VIDEO, Tower(name="mm_projector", parts=(linear,)))


def deepstack_levels(config: Fields) -> int:
    """How many layers of the text model take embeddings of pictures.

    Source: vLLM 0.32 ``models/qwen3_vl.py``, ``deepstack_input_embeds``.
    """
    inner = config.mapping("vision_config")
    named = None if inner is None else inner.integers("deepstack_visual_indexes")
    return len(_DEEPSTACK if named is None else named)


def qwen3_tower(config: Fields, text: Fields) -> Iterator[Outside]:
    """Qwen3-VL's, with a merger for every layer that feeds the text model too."""
    del text
    sizes = Sizes(config, "vision_config", _QWEN3, required=False)
    yield from _qwen3(sizes, deepstack_levels(config))


def qwen3_5_tower(config: Fields, text: Fields) -> Iterator[Outside]:
    """Qwen3.5's: as Qwen3-VL's where the file names no layers."""
    del text
    sizes = Sizes(config, "vision_config", _QWEN3, required=False)
    yield from _qwen3(sizes, len(sizes.fields.integers("deepstack_visual_indexes") or ()))


def _qwen3(sizes: Sizes, deep: int) -> Iterator[Outside]:
    width = sizes["hidden_size"]
    block: tuple[Part, ...] = (
        attention(width, sizes["num_heads"]),
        mlp(width, sizes["intermediate_size"], up="linear_fc1", down="linear_fc2"),
        Vectors(name="norms", elements=4 * width),
    )
    merged = _merged_width(sizes, width)
    merger = two_projections(
        merged, merged, sizes["out_hidden_size"], names=("linear_fc1", "linear_fc2")
    )
    late = (*merger, Vectors(name="norm", elements=2 * merged))
    parts = (
        convolution(
            "patch_embed.proj", sizes["in_channels"], width, _patch_kernel(sizes), bias=True
        ),
        Vectors(name="pos_embed", elements=sizes["num_position_embeddings"] * width),
        Group(name="merger", parts=(*merger, Vectors(name="norm", elements=2 * width))),
        Group(name="deepstack_merger_list", parts=late, count=deep),
        Group(name="blocks", parts=block, count=sizes.layers("depth")),
    )
    yield from _tower(sizes, width, parts)
