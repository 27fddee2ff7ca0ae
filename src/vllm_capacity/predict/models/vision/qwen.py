"""The vision encoders of Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

Source: vLLM 0.32 ``models/qwen2_vl.py``, ``qwen2_5_vl.py`` and ``qwen3_vl.py``, the
``*VisionTransformer`` classes; defaults of transformers 5 ``configuration_*.py``.
"""

from collections.abc import Iterator

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part
from vllm_capacity.predict.models.vision.common import (
    IMAGE_AND_VIDEO,
    Sizes,
    attention,
    convolution,
    half_rotary,
    mlp,
    towers,
    two_projections,
)
from vllm_capacity.predict.parts import Mlp, Vectors
from vllm_capacity.predict.parts.vision import Group, RotaryTower

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
    sizes: Sizes, width: int, parts: tuple[Part, ...], *, data_parallel: bool = True
) -> Iterator[Outside]:
    table = half_rotary(max(1, width // sizes["num_heads"]))
    tower = RotaryTower(name="visual", parts=parts, data_parallel=data_parallel, table=table)
    yield from towers(IMAGE_AND_VIDEO, tower)


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


def qwen2_5_parts(config: Fields, text: Fields, *, data_parallel: bool) -> Iterator[Outside]:
    """The same, for a class that may not know ``--mm-encoder-tp-mode data``."""
    del text
    sizes = Sizes(config, "vision_config", _QWEN2_5, required=False)
    width = sizes["hidden_size"]
    gated = Mlp(hidden_size=width, intermediate_size=sizes["intermediate_size"], bias=True)
    block: tuple[Part, ...] = (
        attention(width, sizes["num_heads"]),
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
    yield from _tower(sizes, width, parts, data_parallel=data_parallel)


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
