"""The tables of cosines and sines that rotary embeddings keep on every rank."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.units import ceil_div

_UNSCALED = frozenset({"default", "llama3", "proportional", "mllama4"})
_SCALED = frozenset(
    {"linear", "dynamic", "ntk", "yarn", "longrope", "deepseek_yarn", "deepseek_llama_scaling"}
)
#: Types whose table is that of the positions first trained with, times the factor.
_FROM_ORIGINAL = frozenset({"yarn", "deepseek_yarn", "deepseek_llama_scaling"})
#: Types whose ``factor`` does not lengthen ``max_model_len``.
#: Source: vLLM 0.32 ``config/model.py``, ``_get_and_verify_max_len``.
_KEEPS_LENGTH = frozenset(
    {"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}
)
#: Source: vLLM 0.32 ``rotary_embedding/mrope.py``, ``MRotaryEmbedding``.
MROPE_POSITIONS_FACTOR = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """One rotary embedding as ``config.json`` describes it.

    Attributes:
        rope_type: ``default``, ``llama3``, ``linear``, ``yarn``, ``longrope``, ``deepseek_yarn`` …
        factor: scaling factor, 1.0 where there is none; types that do not scale the table may
            still have one, by which vLLM then lengthens ``max_model_len``.
        original_max_positions: positions that the model was first trained with.
        rotary_ratio: share of a head that is rotated.
        base: ``rope_theta``; embeddings that differ in it only have tables of their own.
        positions_factor: how many times the positions a multimodal embedding reserves rows for.
    """

    rope_type: str
    factor: float
    original_max_positions: int
    max_positions: int
    rotary_ratio: float
    base: float = 10000.0
    positions_factor: int = 1

    @property
    def length_factor(self) -> float:
        """By how much ``max_model_len`` exceeds the configured positions."""
        return 1.0 if self.rope_type in _KEEPS_LENGTH else self.factor

    def rows(self) -> int:
        """Rows of the table.

        Source: vLLM 0.32 ``model_executor/layers/rotary_embedding/*.py``,
        ``_compute_cos_sin_cache`` of each class.
        """
        if self.rope_type == "linear":
            return math.ceil(self.max_positions * self.factor)
        if self.rope_type in _FROM_ORIGINAL:
            return math.ceil(self.original_max_positions * self.positions_factor * self.factor)
        if self.rope_type == "longrope":
            return self.original_max_positions + self.max_positions
        return self.max_positions * self.positions_factor

    def rotary_elements(self, head_dim: int) -> int:
        """Elements of a head that have a column.

        Source: vLLM 0.32 ``rotary_embedding/gemma4_rope.py``: a proportional one has columns for
        all of them, and rotates the rest by nothing.
        """
        return head_dim if self.rope_type == "proportional" else int(head_dim * self.rotary_ratio)

    def table(self, head_dim: int) -> "RopeTable":
        """The table for heads of ``head_dim`` elements.

        Source: vLLM 0.32 ``rotary_embedding/base.py``, ``_compute_inv_freq``: a cosine and a sine
        for every second element, the last of an odd number too.
        """
        columns = 2 * ceil_div(self.rotary_elements(head_dim), 2)
        return RopeTable(rope=self, head_size=head_dim, columns=columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeTable:
    """A table that all layers with an equal one share on a rank.

    Attributes:
        rope: what fills it.
        head_size: vLLM keeps one table for each size of head.
        columns: rotated elements of a head.
        element_bytes: width where it is not the model's dtype.
        wide_with_flashinfer: whether it is float32 where FlashInfer rotates, as it does for
            models that are not compiled.
        interleaved: whether neighbouring elements are rotated together; a table of its own.
    """

    rope: Rope
    head_size: int
    columns: int
    element_bytes: int | None = None
    wide_with_flashinfer: bool = False
    interleaved: bool = False

    @property
    def elements(self) -> int:
        """Cosines and sines."""
        return self.rope.rows() * self.columns


def rope_values(config: Fields, layer_type: str | None = None) -> Fields:
    """``rope_parameters`` or ``rope_scaling``; of one layer type where they differ between types.

    Source: transformers 5 ``modeling_rope_utils.py``, ``standardize_rope_params``.

    Raises:
        Refusal: they differ between layer types, and none is asked for.
    """
    scaling = config.mapping("rope_parameters") or config.mapping("rope_scaling")
    if scaling is None:
        return Fields({}, path="", faults=config.faults)
    if layer_type is not None and isinstance(scaling.values.get(layer_type), Mapping):
        return scaling.mapping(layer_type) or scaling
    if any(isinstance(value, Mapping) for value in scaling.values.values()):
        raise Refusal("rope parameters that differ between layer types are not covered here")
    return scaling


def read_rope(
    config: Fields,
    *,
    max_positions: int,
    default_ratio: float = 1.0,
    layer_type: str | None = None,
) -> Rope:
    """The rotary embedding that ``config.json`` describes.

    Args:
        config: the text model's configuration.
        max_positions: rows without scaling.
        default_ratio: share of a head that is rotated where the file does not say.
        layer_type: whose parameters to take where they differ between layer types.

    Raises:
        Refusal: it is not described exactly.
    """
    scaling = rope_values(config, layer_type)
    values: Mapping[str, Any] = scaling.values
    rope_type = scaling.text("rope_type") or scaling.text("type") or "default"
    rope_type = {"su": "longrope", "mrope": "default"}.get(rope_type, rope_type)
    factor = scaling.number("factor", minimum=1e-6, maximum=1e6) or 1.0
    _check(rope_type, values)
    return Rope(
        rope_type=rope_type,
        factor=1.0 if rope_type == "longrope" else factor,
        original_max_positions=_original_positions(config, scaling, max_positions),
        max_positions=max_positions,
        rotary_ratio=_rotary_ratio(config, scaling, default_ratio),
        base=_base(config, scaling),
        positions_factor=MROPE_POSITIONS_FACTOR if "mrope_section" in values else 1,
    )


def _check(rope_type: str, values: Mapping[str, Any]) -> None:
    if rope_type not in _UNSCALED | _SCALED:
        raise Refusal(f"rope type {rope_type!r} is not covered")
    if rope_type == "linear" and not isinstance(values.get("factor"), float):
        raise Refusal("linear rope scaling needs its factor written as a float")
    if rope_type == "dynamic" and "factor" not in values and "alpha" not in values:
        raise Refusal("dynamic rope scaling without a factor is not covered")
    if "mrope_section" in values and rope_type not in {"default", "yarn"}:
        raise Refusal(f"multimodal rotary embedding of type {rope_type!r} is not covered")


def _base(config: Fields, scaling: Fields) -> float:
    for reader, key in (
        (scaling, "rope_theta"),
        (config, "rope_theta"),
        (config, "rotary_emb_base"),
    ):
        base = reader.number(key, minimum=1e-6, maximum=1e15)
        if base is not None:
            return base
    return 10000.0


def _original_positions(config: Fields, scaling: Fields, max_positions: int) -> int:
    # The top-level key wins, as Phi-3 keeps it there.
    key = "original_max_position_embeddings"
    return config.integer(key) or scaling.integer(key) or max_positions


def _rotary_ratio(config: Fields, scaling: Fields, default: float) -> float:
    for reader, key in (
        (scaling, "partial_rotary_factor"),
        (config, "partial_rotary_factor"),
        (config, "rotary_pct"),
        (config, "rotary_emb_fraction"),
    ):
        ratio = reader.number(key, minimum=0.01, maximum=1.0)
        if ratio is not None:
            return ratio
    return default
