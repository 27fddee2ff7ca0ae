"""GPTQ and AutoRound: packed integers whose layers can differ by rule."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.modules import Linear, RoutedExperts
from vllm_capacity.predict.quantization.module_names import (
    MixedShardsError,
    Renaming,
    found_anywhere,
    found_at_start,
    is_pattern,
    matches,
    mixed,
    shards_of,
)
from vllm_capacity.predict.quantization.packed import PackedIntegers, fits_marlin_experts
from vllm_capacity.predict.quantization.scheme import FullWidth, Quantization, Refused, Scheme

_Read = tuple[Quantization | None, str | None]
_BITS = frozenset({4, 8})
_TILE = 64
_KINDS: Mapping[str, type[int]] = {"bits": int, "group_size": int, "sym": bool}


@dataclass(frozen=True, kw_only=True, slots=True)
class GptqQuantization(Quantization):
    """GPTQ; ``dynamic`` rules change or leave out layers.

    Where config.json does not name the quantised modules, vLLM looks into the checkpoint's
    tensors too; what is known here is config.json alone, so that every layer counts.

    Attributes:
        base: scheme of layers that no rule names.
        head: whether the logits head is quantised.
        modules: parts of the names of quantised layers, none for all.
        rules: pattern of the beginning of a name, and its scheme.

    Source: vLLM 0.32 ``layers/quantization/auto_gptq.py``, ``AutoGPTQConfig.get_quant_method``,
    and ``utils/gptq_utils.py``.
    """

    base: PackedIntegers
    head: bool = False
    modules: frozenset[str] = frozenset()
    rules: tuple[tuple[str, Scheme], ...] = ()

    def scheme(self, module: Linear | RoutedExperts) -> Scheme:
        """By the first rule that matches; experts that fall back to other kernels have none."""
        if isinstance(module, RoutedExperts):
            fits = fits_marlin_experts(module, self.base.group_size)
            return self._by_rule(module.name) if fits else self.base
        if module.is_head and not self.head:
            return FullWidth()
        try:
            listed = not self.modules or matches(module, self._is_listed)
        except MixedShardsError:
            return mixed(module)
        return self._by_rule(module.name) if listed else FullWidth()

    def _is_listed(self, name: str) -> bool:
        return any(part in name for part in self.modules)

    def _by_rule(self, name: str) -> Scheme:
        return next((s for pattern, s in self.rules if found_at_start(pattern, name)), self.base)

    @property
    def entries(self) -> frozenset[str]:
        """Names and patterns that it speaks of."""
        return self.modules | {pattern for pattern, _ in self.rules}


def read_gptq(config: Fields, renaming: Renaming) -> _Read:
    """GPTQ as a checkpoint declares it, or one sentence why not."""
    base = _gptq_scheme(config.values)
    if isinstance(base, Refused):
        return None, base.reason
    dynamic = config.mapping("dynamic")
    rules = []
    for pattern, changes in (dynamic.values if dynamic is not None else {}).items():
        text = pattern.removeprefix("+:").removeprefix("-:")
        if not is_pattern(text) or not isinstance(changes, Mapping):
            return None, f"the GPTQ rule {pattern!r} is not understood"
        changed: Scheme = FullWidth()
        if not pattern.startswith("-:"):
            changed = _gptq_scheme({**config.values, **changes})
        rules.append((text, changed))
    modules = _flat(config.values.get("modules_in_block_to_quantize"))
    if modules is None:
        return None, "modules_in_block_to_quantize is not a list of names"
    return GptqQuantization(
        name="auto_gptq",
        base=base,
        head=config.boolean("lm_head") is True,
        modules=frozenset(renaming.apply_all(modules)),
        rules=tuple(rules),
    ), None


def _gptq_scheme(values: Mapping[str, Any]) -> "PackedIntegers | Refused":
    config = Fields(values, path="quantization_config.", faults=[])
    bits, group = config.integer("bits"), config.integer("group_size", minimum=-1)
    symmetric, ordered = config.boolean("sym"), config.boolean("desc_act")
    if bits is None or group is None or group == 0 or symmetric is None or ordered is None:
        return Refused("GPTQ needs bits, group_size, sym and desc_act in config.json")
    if bits not in _BITS or not symmetric:
        kind = "symmetric" if symmetric else "asymmetric"
        return Refused(f"vLLM refuses to start: GPTQ of {bits} bits, {kind}, has no kernel")
    if ordered and group != -1:
        return Refused("vLLM refuses to start: GPTQ by activation order is no longer supported")
    return _gptq_layout(bits, group)


def _gptq_layout(bits: int, group: int) -> PackedIntegers:
    return PackedIntegers(
        bits=bits,
        group_size=None if group == -1 else group,
        along_outputs=False,
        expert_bias=True,
        zero_points=False,
    )


def awq_layout(bits: int, group: int, *, zero_points: bool = True) -> PackedIntegers:
    """AWQ's layout."""
    return PackedIntegers(
        bits=bits,
        group_size=group,
        along_outputs=True,
        expert_bias=False,
        zero_points=zero_points,
    )


def _flat(value: object) -> tuple[str, ...] | None:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple):
        return None
    parts = [_flat(item) for item in value]
    if any(part is None for part in parts):
        return None
    return tuple(name for part in parts for name in part or ())


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoRoundQuantization(Quantization):
    """AutoRound's packed integers, by name of layer.

    Attributes:
        values: what holds for a layer that ``extra`` does not name.
        blocks: beginnings of the names of quantised layers, none for all.
        extra: values by name or pattern of a layer.
        awq: whether the layout is AWQ's, else GPTQ's.

    Source: vLLM 0.32 ``layers/quantization/inc/config_parser.py``, ``INCConfigParser``.
    """

    values: Mapping[str, Any] = field(hash=False)
    blocks: tuple[str, ...]
    extra: Mapping[str, Mapping[str, Any]] = field(hash=False)
    awq: bool

    def scheme(self, module: Linear | RoutedExperts) -> Scheme:
        """By the layer's entry, else by those of what is fused into it, else the common one."""
        name = module.name
        for entry in (name, f"model.{name}"):
            if entry in self.extra and _bits(self.extra[entry]) in {None, 16, 32}:
                return FullWidth()
        nearest = next((key for key in self.extra if f".{name}".endswith(f".{key}")), None)
        if nearest is not None:
            return self._layout({**self.values, **self.extra[nearest]})
        quantized = not (isinstance(module, Linear) and module.is_head)
        if self.blocks:
            quantized = name.startswith(self.blocks)
        found = {self._values(shard, quantized=quantized) for shard in shards_of(module) or (name,)}
        if len(found) > 1:
            return mixed(module)
        layout = self._layout(dict(found.pop()))
        if isinstance(module, RoutedExperts) and isinstance(layout, PackedIntegers):
            return _unpadded(layout, module)
        return layout

    def _values(self, name: str, *, quantized: bool) -> tuple[tuple[str, Any], ...]:
        common = self.values if quantized else {"bits": 16, "group_size": -1, "sym": True}
        own = self.extra.get(name)
        if own is None:
            patterns = (key for key in self.extra if _is_regular_expression(key))
            found = next((key for key in patterns if found_anywhere(key, name)), None)
            own = {} if found is None else self.extra[found]
        return tuple((key, own.get(key, common.get(key))) for key in ("bits", "group_size", "sym"))

    def _layout(self, values: Mapping[str, Any]) -> Scheme:
        bits, group = values.get("bits"), values.get("group_size")
        if isinstance(bits, int) and bits >= 16:
            return FullWidth()
        if bits not in _BITS or not isinstance(group, int) or (self.awq and bits != 4):
            return Refused(f"AutoRound weights of {bits} bits are not described exactly")
        if group < 1 and (group != -1 or self.awq):
            return Refused(f"AutoRound groups of {group} are not described exactly")
        if self.awq:
            return awq_layout(bits, group)
        if values.get("sym") is not True:
            return Refused("vLLM refuses to start: asymmetric GPTQ weights have no kernel")
        return _gptq_layout(bits, group)

    @property
    def entries(self) -> frozenset[str]:
        """Names and patterns that it speaks of."""
        return frozenset((*self.blocks, *self.extra))


def _unpadded(layout: PackedIntegers, experts: RoutedExperts) -> Scheme:
    """AutoRound's experts are not padded to the kernels' tiles.

    Source: vLLM 0.32 ``inc/schemes/inc_wna16_scheme.py``, ``_resolve_gptq_moe``.
    """
    if experts.intermediate_size % max(_TILE, layout.group_size or 1):
        return Refused(f"AutoRound's experts of {experts.name} fit no tile of the packed kernels")
    return layout


def _bits(values: Mapping[str, Any]) -> int | None:
    bits = values.get("bits")
    return bits if isinstance(bits, int) else None


def _is_plain(entry: object) -> bool:
    if not isinstance(entry, Mapping):
        return False
    return all(isinstance(entry.get(key, kind()), kind) for key, kind in _KINDS.items())


def _is_regular_expression(text: str) -> bool:
    return any(character in "*+?^$()[]{}|\\" for character in text) and is_pattern(text)


def read_auto_round(config: Fields, renaming: Renaming) -> _Read:
    """AutoRound's integers as a checkpoint declares them, or one sentence why not."""
    packing = config.text("packing_format") or "auto_round:auto_gptq"
    kind = config.text("data_type") or "int"
    if "int" not in kind or not packing.endswith(("gptq", "awq")):
        return None, f"AutoRound with {packing} of {kind} is not described exactly"
    common = {"sym": True, **{key: config.values[key] for key in _KINDS if config.has(key)}}
    if not _is_plain(common) or not {"bits", "group_size"} <= common.keys():
        return None, "AutoRound needs bits, group_size and sym in config.json"
    extra = config.mapping("extra_config")
    entries = dict(extra.values) if extra is not None else {}
    if not all(map(_is_plain, entries.values())):
        return None, "extra_config of AutoRound must hold bits, group_size and sym of layers"
    blocks = config.values.get("block_name_to_quantize", config.values.get("to_quant_block_names"))
    names = blocks.split(",") if isinstance(blocks, str) else blocks
    flat = _flat(names)
    if flat is None:
        return None, "block_name_to_quantize is not a list of names"
    renamed = {new: value for old, value in entries.items() if (new := renaming.apply(old))}
    return AutoRoundQuantization(
        name="inc",
        values=common,
        blocks=renaming.apply_all(flat),
        extra=renamed,
        awq=packing.endswith("awq"),
    ), None
