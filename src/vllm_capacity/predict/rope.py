"""The table of cosines and sines that rotary embedding keeps on every rank."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_capacity.predict.fields import Fields

_UNSCALED = frozenset({"default", "llama3"})
#: Types whose ``factor`` does not lengthen ``max_model_len``.
#: Source: vLLM 0.32 ``config/model.py``, ``_get_and_verify_max_len``.
_KEEPS_LENGTH = frozenset(
    {"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """One distinct rotary embedding; all layers that use it share one table.

    Attributes:
        rope_type: ``default``, ``llama3``, ``linear``, ``dynamic``, ``yarn`` or ``longrope``.
        factor: scaling factor, 1.0 where the type has none.
        original_max_positions: positions that the model was first trained with.
        rotary_ratio: share of a head that is rotated.
    """

    rope_type: str
    factor: float
    original_max_positions: int
    max_positions: int
    rotary_ratio: float

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
        if self.rope_type == "yarn":
            return math.ceil(self.original_max_positions * self.factor)
        if self.rope_type == "longrope":
            return self.original_max_positions + self.max_positions
        return self.max_positions

    def cache_elements(self, head_dim: int) -> int:
        """Elements of the table, which has the model's dtype."""
        return self.rows() * self.rotary_elements(head_dim)

    def rotary_elements(self, head_dim: int) -> int:
        """Elements of a head that are rotated."""
        return int(head_dim * self.rotary_ratio)


def read_rope(
    config: Fields, *, max_positions: int, default_ratio: float
) -> tuple[Rope | None, str | None]:
    """The rotary embedding that ``config.json`` describes, or why it cannot be told.

    Source: transformers 5 ``modeling_rope_utils.py``, ``standardize_rope_params``.
    """
    scaling = config.mapping("rope_parameters") or config.mapping("rope_scaling")
    values: Mapping[str, Any] = scaling.values if scaling is not None else {}
    if any(isinstance(value, Mapping) for value in values.values()):
        return None, "rope parameters that differ between layer types are not covered"
    reader = scaling if scaling is not None else Fields({}, path="", faults=config.faults)
    rope_type = reader.text("rope_type") or reader.text("type") or "default"
    if "mrope_section" in values:
        return None, "multimodal rotary embedding (mrope_section) is not covered"
    factor = reader.number("factor", minimum=1e-6, maximum=1e6) or 1.0
    if rope_type not in _UNSCALED | {"linear", "dynamic", "yarn", "longrope"}:
        return None, f"rope type {rope_type!r} is not covered"
    if rope_type == "linear" and not isinstance(values.get("factor"), float):
        return None, "linear rope scaling needs its factor written as a float"
    if rope_type == "dynamic" and "factor" not in values:
        return None, "dynamic rope scaling without a factor is not covered"
    return Rope(
        rope_type=rope_type,
        factor=1.0 if rope_type in _UNSCALED or rope_type == "longrope" else factor,
        original_max_positions=_original_positions(config, reader, max_positions),
        max_positions=max_positions,
        rotary_ratio=_rotary_ratio(config, reader, default_ratio),
    ), None


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
