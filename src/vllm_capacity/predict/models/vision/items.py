"""The largest item that vLLM profiles for a class: its tokens, its pixels, its passage.

``config.json`` does not hold what a processor allows; where it decides, its default stands.
"""

import math
from collections.abc import Callable, Iterator
from typing import TypeGuard

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.memory.encoder import EncoderItem

_COLOURS = 3
#: Largest images of Qwen's processors, in merged patches.
#: Source: transformers 5 ``qwen2_vl/image_processing_qwen2_vl.py``, ``max_pixels``.
_QWEN_TOKENS = 16384
_LLAMA4_TILES = 16
#: Source: transformers' remote code of Kimi-VL, ``image_processing_kimi_vl.py``.
_KIMI_PATCHES = 4096
#: Source: vLLM 0.19 ``models/kimi_vl.py``, ``MaxImageTokenMeta``.
_KIMI_SIDE = 1024
#: Source: vLLM 0.19 ``models/moonvit.py``, ``Rope2DPosEmb``: rows, columns, complex64.
_KIMI_POSITIONS = 512
_COMPLEX64 = 8
_INTERN_TILES = 12


def encoder_item(source: str, config: Fields) -> EncoderItem | None:
    """The largest item of the class in this file, None where it is not described.

    Args:
        source: vLLM's file under ``model_executor/models/``.
        config: the configuration that holds the encoder's.
    """
    vision, read = config.mapping("vision_config"), _ITEMS.get(source)
    if vision is None or read is None:
        return None
    item = read(config, vision)
    return item if item.tokens > 0 else None


def _size(vision: Fields, key: str, default: int) -> int:
    value = vision.values.get(key)
    if isinstance(value, list) and value:
        value = value[0]
    return value if _is_size(value) else default


def _tower(vision: Fields, *, gated: bool = False, hidden: int = 1152, inner: int = 4304) -> int:
    """Elements a patch: the widths of the MLP, run layer by layer, and three hidden states.

    Towers are not compiled, and custom operations are off where the text model is compiled: the
    activation has a tensor of its own.
    """
    width = _size(vision, "intermediate_size", inner)
    return (4 if gated else 2) * width + 3 * _size(vision, "hidden_size", hidden)


def _gemma3(config: Fields, vision: Fields) -> EncoderItem:
    """One size for all images.

    Source: vLLM 0.19 ``models/gemma3_mm.py``.
    """
    side, tokens = _size(vision, "image_size", 896), _size(config, "mm_tokens_per_image", 256)
    return EncoderItem(
        tokens=tokens,
        embeddings=tokens,
        input_elements=_COLOURS * side * side,
        patches=(side // _size(vision, "patch_size", 14)) ** 2,
        tower_elements=_tower(vision),
    )


def _pixtral(config: Fields, vision: Fields) -> EncoderItem:
    """A square of the largest side; every row of tokens ends with a token of its own.

    Source: vLLM 0.19 ``models/mistral3.py`` and ``models/pixtral.py``.
    """
    side, patch = _size(vision, "image_size", 1540), _size(vision, "patch_size", 14)
    merged = _size(config, "spatial_merge_size", _size(vision, "spatial_merge_size", 2))
    rows = math.ceil(side / (patch * merged))
    return EncoderItem(
        tokens=rows * (rows + 1),
        embeddings=rows * rows,
        input_elements=_COLOURS * side * side,
        patches=(rows * merged) ** 2,
        tower_elements=_tower(vision, gated=True, hidden=1024, inner=4096),
    )


def _llava_next(config: Fields, vision: Fields) -> EncoderItem:
    """The grid of most tiles, a new line after every row, and the whole image once more.

    Source: vLLM 0.19 ``models/llava_next.py``, ``_get_num_unpadded_features``.
    """
    side, patch = _size(vision, "image_size", 336), _size(vision, "patch_size", 14)
    rows = side // patch
    tokens, tiles = max(
        (rows * high * (rows * wide + 1) + rows * rows, 1 + high * wide)
        for high, wide in ((1, 1), *_grids(config, side))
    )
    return EncoderItem(
        tokens=tokens,
        embeddings=tokens,
        input_elements=_COLOURS * tiles * side * side,
        patches=tiles * rows * rows,
        tower_elements=_tower(vision),
    )


def _grids(config: Fields, side: int) -> Iterator[tuple[int, int]]:
    """Rows and columns of tiles that an image may be cut into."""
    points = config.values.get("image_grid_pinpoints")
    for point in points if isinstance(points, list) else ():
        match point:
            case [int(high), int(wide)] if high > 0 and wide > 0:
                yield math.ceil(high / side), math.ceil(wide / side)


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _llama4(config: Fields, vision: Fields) -> EncoderItem:
    """Sixteen tiles and the whole image.

    Source: vLLM 0.19 ``models/mllama4.py``, ``Mllama4ProcessingInfo``.
    """
    del config
    side, patch = _size(vision, "image_size", 336), _size(vision, "patch_size", 14)
    ratio = vision.number("pixel_shuffle_ratio", minimum=0.01, maximum=1) or 0.5
    tiles, patches = _LLAMA4_TILES + 1, (side // patch) ** 2
    embeddings = tiles * round(patches * ratio * ratio)
    return EncoderItem(
        tokens=embeddings + tiles,
        embeddings=embeddings,
        input_elements=_COLOURS * tiles * side * side,
        patches=tiles * (patches + 1),
        tower_elements=_tower(vision, hidden=1408, inner=5632),
    )


def _kimi_vl(config: Fields, vision: Fields) -> EncoderItem:
    """A square image, scaled to the processor's patches and padded to whole merged ones.

    Source: vLLM 0.19 ``models/kimi_vl.py``, ``KimiVLProcessingInfo.get_num_image_tokens``.
    """
    del config
    patch = _size(vision, "patch_size", 14)
    across = max(1, _KIMI_SIDE // patch)
    side = int(_KIMI_SIDE * min(1.0, math.sqrt(_KIMI_PATCHES) / across))
    rows = math.ceil(side / (2 * patch))
    head = _size(vision, "hidden_size", 1152) // _size(vision, "num_attention_heads", 16)
    return EncoderItem(
        tokens=rows * rows,
        embeddings=rows * rows,
        input_elements=_COLOURS * (2 * rows * patch) ** 2,
        patches=4 * rows * rows,
        tower_elements=_tower(vision),
        buffer_bytes=_KIMI_POSITIONS**2 * (head // 2) * _COMPLEX64,
    )


def _qwen(config: Fields, vision: Fields) -> EncoderItem:
    """The processor's most pixels.

    Source: vLLM 0.19 ``models/qwen2_vl.py``, ``Qwen2VLProcessingInfo.get_max_image_tokens``.
    """
    gated = config.text("model_type") == "qwen2_5_vl"
    patch = _size(vision, "patch_size", 14)
    merged, frames = _size(vision, "spatial_merge_size", 2), _size(vision, "temporal_patch_size", 2)
    patches = _QWEN_TOKENS * merged * merged
    hidden = _size(vision, "embed_dim", _size(vision, "hidden_size", 1280))
    inner = _size(vision, "intermediate_size", 4 * hidden)
    return EncoderItem(
        tokens=_QWEN_TOKENS,
        embeddings=_QWEN_TOKENS,
        input_elements=patches * _COLOURS * frames * patch * patch,
        patches=patches,
        tower_elements=(4 if gated else 2) * inner + 3 * hidden,
    )


def _internvl(config: Fields, vision: Fields) -> EncoderItem:
    """The most tiles and the whole image.

    Source: vLLM 0.19 ``models/internvl.py``, ``BaseInternVLProcessingInfo``.
    """
    side, patch = _size(vision, "image_size", 448), _size(vision, "patch_size", 14)
    ratio = config.number("downsample_ratio", minimum=0.01, maximum=1) or 0.5
    tiles = 1 + _size(config, "max_dynamic_patch", _INTERN_TILES)
    patches = (side // patch) ** 2
    embeddings = tiles * round(patches * ratio * ratio)
    return EncoderItem(
        tokens=embeddings + 2,
        embeddings=embeddings,
        input_elements=_COLOURS * tiles * side * side,
        patches=tiles * (patches + 1),
        tower_elements=_tower(vision, hidden=1024, inner=4096),
    )


_ITEMS: dict[str, Callable[[Fields, Fields], EncoderItem]] = {
    "gemma3_mm.py": _gemma3,
    "mistral3.py": _pixtral,
    "pixtral.py": _pixtral,
    "llava_next.py": _llava_next,
    "mllama4.py": _llama4,
    "kimi_vl.py": _kimi_vl,
    "qwen2_vl.py": _qwen,
    "qwen2_5_vl.py": _qwen,
    "qwen3_vl.py": _qwen,
    "qwen3_vl_moe.py": _qwen,
    "internvl.py": _internvl,
}
