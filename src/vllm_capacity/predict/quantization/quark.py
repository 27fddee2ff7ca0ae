"""AMD Quark's checkpoints: one scheme for all layers, others by name.

Source: vLLM 0.32 ``layers/quantization/quark/quark.py``, ``QuarkConfig``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.modules import Attention, Linear, RoutedExperts
from vllm_capacity.predict.quantization.float_schemes import Float8, Microscaled
from vllm_capacity.predict.quantization.listed import ignored_by_pattern
from vllm_capacity.predict.quantization.module_names import (
    MixedShardsError,
    Renaming,
    equal_or_pattern,
    is_pattern,
    like_shell,
    mixed,
    shards_of,
)
from vllm_capacity.predict.quantization.packed import Integer8
from vllm_capacity.predict.quantization.scheme import (
    FOUR_SCALES,
    FullWidth,
    Quantization,
    Refused,
    Scheme,
)

_Read = tuple[Quantization | None, str | None]
_UNKNOWN = "this Quark scheme is not described exactly"
_SCALES = {"per_tensor": "tensor", "per_channel": "channel"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The schemes of one Quark layer config."""

    linear: Scheme
    experts: Scheme


@dataclass(frozen=True, kw_only=True, slots=True)
class QuarkQuantization(Quantization):
    """Quark's layers.

    Attributes:
        common: of layers that ``own`` does not name.
        own: shell pattern or text with names in it, and what it makes of them.
        excluded: names or ``re:`` patterns of layers at full width.
    """

    common: Layout
    own: tuple[tuple[str, Layout], ...]
    excluded: frozenset[str]

    def scheme(self, module: Linear | RoutedExperts) -> Scheme:
        """By name, else the common one; the logits head is left alone."""
        try:
            if self._is_excluded(module):
                return FullWidth()
        except MixedShardsError:
            return mixed(module)
        if isinstance(module, Linear) and module.is_head:
            return FullWidth()
        layouts = [self._layout(name) for name in shards_of(module) or (module.name,)]
        if any(layout != layouts[0] for layout in layouts):
            return mixed(module)
        return layouts[0].experts if isinstance(module, RoutedExperts) else layouts[0].linear

    def _is_excluded(self, module: Linear | RoutedExperts) -> bool:
        """Source: vLLM 0.32 ``quark/utils.py``, ``should_ignore_layer``."""
        if isinstance(module, RoutedExperts):
            inside = (module.name, f"{module.name}.")
            if any(entry == inside[0] or entry.startswith(inside[1]) for entry in self.excluded):
                return True
        return ignored_by_pattern(module, self.excluded)

    def _layout(self, name: str) -> Layout:
        """Source: vLLM 0.32 ``QuarkConfig.get_layer_quant_config_from_name``."""
        for pattern, layout in self.own:
            if like_shell(pattern, name) if "*" in pattern else name in pattern:
                return layout
        return self.common

    def attention_bytes(self, element_bytes: int, attention: Attention | None = None) -> int:
        """Excluded attention has no scales."""
        if attention is not None and any(
            equal_or_pattern(entry, attention.name) for entry in self.excluded
        ):
            return 0
        return Quantization.attention_bytes(self, element_bytes, attention)

    @property
    def entries(self) -> frozenset[str]:
        """Names and patterns that it speaks of."""
        return self.excluded | {pattern for pattern, _ in self.own}


def read_quark(config: Fields, renaming: Renaming) -> _Read:
    """Quark as a checkpoint declares it, or one sentence why not."""
    export = config.mapping("export")
    common = config.mapping("global_quant_config")
    if export is None or common is None:
        return None, "vLLM refuses to start: Quark needs export and global_quant_config"
    if config.values.get("layer_type_quant_config"):
        return None, "Quark with schemes by type of layer is not described exactly"
    excluded = config.texts("exclude")
    if excluded is None and config.has("exclude"):
        return None, "the excluded layers of Quark must be a list of names"
    entries = frozenset(renaming.apply_all(excluded or ()))
    if not all(is_pattern(entry[3:]) for entry in entries if entry.startswith("re:")):
        return None, "Quark excludes layers by a pattern that is no regular expression"
    cached = set(export.texts("kv_cache_group") or ())
    own = config.mapping("layer_quant_config")
    layouts = []
    for pattern, values in (own.values if own is not None else {}).items():
        name = renaming.apply(pattern)
        if name is not None and isinstance(values, Mapping):
            emptied = {"output_tensors": None} if _in(pattern, cached) else {}
            layouts.append((name, _layout({**values, **emptied})))
    return QuarkQuantization(
        name="quark",
        common=_layout(common.values),
        own=tuple(layouts),
        excluded=entries,
        kv_scales=FOUR_SCALES,
    ), None


def _in(pattern: str, cached: set[str]) -> bool:
    return pattern == "*q_proj" or any(like_shell(group, pattern) for group in cached)


def _layout(values: Mapping[str, Any]) -> Layout:
    weight, inputs = _single(values.get("weight")), _single(values.get("input_tensors"))
    refused = Layout(linear=Refused(_UNKNOWN), experts=Refused(_UNKNOWN))
    if values.get("output_tensors") or values.get("bias") or weight is None:
        return refused
    if weight.get("is_dynamic"):
        return refused
    kind = weight.get("dtype")
    if kind == "fp8_e4m3" and inputs is not None and inputs.get("dtype") == "fp8_e4m3":
        return _float8(weight, inputs) or refused
    if kind == "int8" and inputs is not None and inputs.get("dtype") == "int8":
        return _integer8(weight, inputs) or refused
    grouped = weight.get("qscheme") == "per_group" and weight.get("group_size") == 32
    if kind == "fp4" and grouped and weight.get("scale_format") == "e8m0":
        return Layout(linear=Microscaled(bits=4), experts=Refused(_UNKNOWN))
    return refused


def _single(value: object) -> Mapping[str, Any] | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, Mapping) else None


def _float8(weight: Mapping[str, Any], inputs: Mapping[str, Any]) -> Layout | None:
    """Source: vLLM 0.32 ``QuarkConfig._is_fp8_w8a8`` and ``QuarkW8A8Fp8MoEMethod``."""
    scale = _SCALES.get(str(weight.get("qscheme")))
    dynamic = bool(inputs.get("is_dynamic"))
    if scale is None or not (dynamic or inputs.get("qscheme") == "per_tensor"):
        return None
    scheme = Float8(scale=scale, static_input=not dynamic, expert_bias=False)
    by_token = dynamic and inputs.get("qscheme") == "per_channel"
    fits = by_token == (scale == "channel")
    return Layout(linear=scheme, experts=scheme if fits else Refused(_UNKNOWN))


def _integer8(weight: Mapping[str, Any], inputs: Mapping[str, Any]) -> Layout | None:
    """Source: vLLM 0.32 ``quark/schemes/quark_w8a8_int8.py``, ``create_weights``."""
    scale = _SCALES.get(str(weight.get("qscheme")))
    if scale is None:
        return None
    scheme = Integer8(
        per_channel=scale == "channel",
        static_input=not inputs.get("is_dynamic"),
        input_zero_point=True,
        weight_zero_points=True,
    )
    return Layout(linear=scheme, experts=Refused(_UNKNOWN))
