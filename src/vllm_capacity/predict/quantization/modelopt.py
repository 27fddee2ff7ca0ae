"""NVIDIA ModelOpt's checkpoints: 8-bit and 4-bit floats, one for all layers or one for each.

Source: vLLM 0.32 ``layers/quantization/modelopt.py``.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice, takewhile
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.modules import Linear, RoutedExperts
from vllm_capacity.predict.quantization.float_schemes import Float8, Microscaled, NvFloat4
from vllm_capacity.predict.quantization.module_names import (
    MixedShardsError,
    Renaming,
    like_shell,
    mixed,
    shards_of,
    skipped,
)
from vllm_capacity.predict.quantization.scheme import (
    FullWidth,
    KvScales,
    Quantization,
    Refused,
    Scheme,
)

_Read = tuple[Quantization | None, str | None]
_VISION = ("vision_tower", "vision_model", "vit_large_projector")
#: Source: vLLM 0.32 ``utils/torch_utils.py``, ``MODELOPT_TO_VLLM_KV_CACHE_DTYPE_MAP``.
_CACHE_DTYPES = {"fp8": "fp8_e4m3", "nvfp4": "nvfp4"}
_NVFP4 = frozenset({"NVFP4", "W4A16_NVFP4"})
_MIXED = "MIXED_PRECISION"
#: What vLLM calls each algorithm. Source: ``ModelOpt…Config.override_quantization_method``.
_NAMES = {
    "FP8": "modelopt",
    "FP8_PER_CHANNEL_PER_TOKEN": "modelopt",
    "FP8_PB_WO": "modelopt",
    "NVFP4": "modelopt_fp4",
    "W4A16_NVFP4": "modelopt_fp4",
    "MXFP8": "modelopt_mxfp8",
    _MIXED: "modelopt_mixed",
}
#: What ModelOpt's own file may say. Source: vLLM 0.32
#: ``transformers_utils/model_arch_config_convertor.py``, ``_normalize_quantization_config``.
_KNOWN_BY_FILE = frozenset({"FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", ""})


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """The schemes of one ModelOpt algorithm.

    Source: vLLM 0.32 ``modelopt.py``, ``resolve`` and ``FusedMoEMethodCls``.
    """

    linear: Scheme
    experts: Scheme


def algorithm(name: str, *, group_size: int = 16, all_expert_scales: bool = False) -> Algorithm:
    """What an algorithm makes of linear layers and of experts."""
    experts8 = Float8(scale="tensor", static_input=True, expert_bias=False)
    if name == "FP8":
        return Algorithm(linear=Float8(scale="tensor", static_input=True), experts=experts8)
    if name == "FP8_PER_CHANNEL_PER_TOKEN":
        return Algorithm(linear=Float8(scale="channel"), experts=experts8)
    if name == "FP8_PB_WO":
        return Algorithm(linear=_WholeBlocks(scale="block"), experts=experts8)
    if name == "MXFP8":
        return Algorithm(linear=Microscaled(bits=8), experts=Microscaled(bits=8))
    fp4 = NvFloat4(group_size=group_size, all_expert_scales=all_expert_scales)
    if name == "W4A16_NVFP4":
        # An activation scale is created all the same, in the model's dtype.
        linear = NvFloat4(group_size=group_size, input_scale_bytes=None)
        # Kernels that read all ranks' scales quantise activations too.
        return Algorithm(linear=linear, experts=NvFloat4(group_size=group_size))
    return Algorithm(linear=fp4, experts=fp4)


@dataclass(frozen=True, kw_only=True, slots=True)
class _WholeBlocks(Float8):
    """Blocks that may end within the outputs, but not within the inputs.

    Source: vLLM 0.32 ``modelopt.py``, ``KFp8Block128.create_weights``.
    """

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """Inputs must be whole blocks."""
        del tensor_parallel
        if isinstance(module, RoutedExperts) or module.input_size % self.block[1] == 0:
            return None
        return f"vLLM refuses to start: blocks of 128 do not divide the inputs of {module.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptQuantization(Quantization):
    """ModelOpt's layers.

    Attributes:
        common: schemes of all layers, None where every layer has an algorithm of its own.
        own: algorithm of each layer by name, in mixed precision.
        schemes: schemes of each algorithm that ``own`` names.
        ordered: the names of ``own`` in order, each with its place in the file.
        excluded: names, parts of names or shell patterns of layers at full width.
    """

    common: Algorithm | None
    own: Mapping[str, str] = field(default_factory=dict, hash=False)
    schemes: Mapping[str, Algorithm] = field(default_factory=dict, hash=False)
    ordered: tuple[tuple[str, int], ...] = field(default=(), hash=False)
    excluded: frozenset[str] = frozenset()

    def scheme(self, module: Linear | RoutedExperts) -> Scheme:
        """The layer's algorithm, full width where it is excluded or has none."""
        try:
            if self._is_excluded(module):
                return FullWidth()
        except MixedShardsError:
            return mixed(module)
        if self.common is None:
            return self._own_scheme(module)
        if any(part in module.name for part in _VISION):
            return FullWidth()
        return _of_kind(self.common, module)

    def _is_excluded(self, module: Linear | RoutedExperts) -> bool:
        """Source: vLLM 0.32 ``modelopt.py``, ``ModelOptQuantConfigBase.is_layer_excluded``."""
        if not self.excluded:
            return False
        name = module.name
        if name in self.excluded or skipped(module, self.excluded):
            return True
        names = (name, name.removeprefix("language_model."))
        part = any(entry != name and entry in text for entry in self.excluded for text in names)
        return part or any(like_shell(entry, name) for entry in _shell_patterns(self.excluded))

    def _own_scheme(self, module: Linear | RoutedExperts) -> Scheme:
        found = set(self._own_algorithms(module))
        if not found:
            return FullWidth()
        if len(found) > 1:
            return mixed(module)
        known = self.schemes.get(name := found.pop())
        if known is None:
            return Refused(f"ModelOpt algorithm {name} in mixed precision is not described exactly")
        return _of_kind(known, module)

    def _own_algorithms(self, module: Linear | RoutedExperts) -> Iterable[str]:
        """Source: vLLM 0.32 ``ModelOptMixedPrecisionConfig._resolve_quant_algo``."""
        names = _candidates(module.name)
        direct = [self.own[name] for name in names if name in self.own]
        if direct:
            return direct[:1]
        shards = [name for shard in shards_of(module) for name in _candidates(shard)]
        if fused := [self.own[name] for name in shards if name in self.own]:
            return fused
        parents = [f"{name}." for name in names]
        if module.name.endswith(".experts"):
            parents.append(module.name.removesuffix("experts"))
        for parent in parents:
            if first := self._first_under(parent):
                return (self.own[first],)
        return ()

    def _first_under(self, parent: str) -> str | None:
        """The first name in the file that begins with ``parent``."""
        start = bisect_left(self.ordered, (parent, 0))
        under = takewhile(
            lambda entry: entry[0].startswith(parent), islice(self.ordered, start, None)
        )
        return min(((place, name) for name, place in under), default=(0, None))[1]

    @property
    def entries(self) -> frozenset[str]:
        """Names and patterns that it speaks of."""
        return frozenset((*self.excluded, *(f"{name}.={own}" for name, own in self.own.items())))


@lru_cache(maxsize=8)
def _shell_patterns(entries: frozenset[str]) -> tuple[str, ...]:
    return tuple(entry for entry in entries if any(letter in entry for letter in "*?["))


def _of_kind(known: Algorithm, module: Linear | RoutedExperts) -> Scheme:
    return known.experts if isinstance(module, RoutedExperts) else known.linear


def _candidates(name: str) -> tuple[str, ...]:
    """Names that a layer may have in the checkpoint.

    Source: vLLM 0.32 ``_quantized_layer_prefix_candidates``.
    """
    candidates = [name]
    if name.endswith(".lm_head"):
        candidates.append("lm_head")
    here, there = "language_model.model.", "model.language_model."
    for old, new in ((here, there), (there, here)):
        if name.startswith(old):
            candidates.append(new + name.removeprefix(old))
    return tuple(candidates)


def read_modelopt(
    config: Fields, renaming: Renaming, *, all_expert_scales: bool, called: str | None = None
) -> _Read:
    """ModelOpt as a checkpoint declares it, or one sentence why not.

    Args:
        config: the config as published.
        renaming: how the model class renames modules.
        all_expert_scales: whether a rank holds the activation scales of all ranks' experts.
        called: vLLM's name of the quantisation where it is not the algorithm's own.
    """
    nested = config.mapping("quantization")
    inner = nested or config
    name = (inner.text("quant_algo") or "").upper()
    reason = _fault(name, inner, nested)
    if nested is not None and _is_signed(config, nested) and name not in _KNOWN_BY_FILE:
        reason = f"vLLM refuses to start: hf_quant_config.json has an unknown quant_algo {name}"
    if reason is not None:
        return None, reason
    excluded = frozenset(renaming.apply_all(_with_wildcards(_listed(inner, nested) or ())))
    cache = _cache_dtype(config, inner)
    if name == _MIXED:
        return _mixed_precision(inner, renaming, excluded, cache, all_scales=all_expert_scales)
    group = inner.integer("group_size") or 16
    if name == "NVFP4" and _weights_only(config):
        name = "W4A16_NVFP4"
    return ModelOptQuantization(
        name=called or _NAMES[name],
        common=algorithm(name, group_size=group, all_expert_scales=all_expert_scales),
        excluded=excluded,
        kv_cache_dtype=cache,
        kv_scales=KvScales(elements=4, on_latent=True),
    ), None


def _is_signed(config: Fields, nested: Fields) -> bool:
    """Whether vLLM takes the file for ModelOpt's own hf_quant_config.json."""
    producer = config.values.get("producer")
    by_name = isinstance(producer, Mapping) and producer.get("name") == "modelopt"
    return by_name or "modelopt_quant_config" in nested.values


def _fault(name: str, inner: Fields, nested: Fields | None) -> str | None:
    """Why a config cannot be read, None if it can."""
    if not name:
        return "vLLM refuses to start: a ModelOpt checkpoint must say quant_algo"
    if name not in _NAMES:
        return f"vLLM refuses to start: it does not know ModelOpt's algorithm {name}"
    if _listed(inner, nested) is None:
        return "the excluded modules of ModelOpt must be a list of names"
    if inner.has("group_size") and inner.integer("group_size", maximum=1 << 16) is None:
        return "ModelOpt's group_size must be a whole number"
    missing = ", ".join(_missing(name, nested))
    return f"vLLM refuses to start: {name} needs {missing}" if missing else None


def _listed(inner: Fields, nested: Fields | None) -> tuple[str, ...] | None:
    key = "exclude_modules" if nested is not None else "ignore"
    return inner.texts(key) if key in inner.values else ()


def _missing(name: str, nested: Fields | None) -> list[str]:
    """Keys that vLLM wants in hf_quant_config.json."""
    if nested is None:
        return []
    needed = {"MXFP8": ["kv_cache_quant_algo", "exclude_modules"]}.get(name, [])
    if name in _NVFP4:
        needed = ["group_size", "kv_cache_quant_algo", "exclude_modules"]
    return [key for key in needed if key not in nested.values]


def _with_wildcards(listed: Iterable[str]) -> Iterable[str]:
    """An entry that ends in a star without a dot names the module and what is in it.

    Source: vLLM 0.32 ``ModelOptQuantConfigBase.apply_vllm_mapper``.
    """
    for entry in listed:
        if len(entry) > 1 and entry.endswith("*") and entry[-2] != ".":
            yield from (entry[:-1], f"{entry[:-1]}.*")
        else:
            yield entry


def _weights_only(config: Fields) -> bool:
    """Whether no group quantises activations. Source: ``ModelOptNvFp4Config._from_config``."""
    groups = config.values.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        return False
    values = [group for group in groups.values() if isinstance(group, Mapping)]
    plain = all(group.get("input_activations") is None for group in values)
    return plain and len(values) == len(groups)


def _cache_dtype(config: Fields, inner: Fields) -> str | None:
    """Source: vLLM 0.32 ``utils/torch_utils.py``, ``get_kv_cache_quant_algo_string``."""
    keys = ("kv_cache_scheme", "kv_cache_quant_algo")
    places = [place.values.get(key) for key in keys for place in (inner, config)]
    declared = next((value for value in places if value), None)
    if isinstance(declared, Mapping):
        kind = (declared.get("type"), declared.get("num_bits"))
        if kind == ("float", 8) and declared.get("dynamic") is False:
            declared = "fp8"
        elif kind == ("float", 4):
            declared = "nvfp4"
    return _CACHE_DTYPES.get(declared.lower()) if isinstance(declared, str) else None


def _mixed_precision(
    inner: Fields,
    renaming: Renaming,
    excluded: frozenset[str],
    cache: str | None,
    *,
    all_scales: bool,
) -> _Read:
    layers = inner.mapping("quantized_layers")
    if layers is None or not layers.values:
        return None, "vLLM refuses to start: mixed precision needs quantized_layers"
    own: dict[str, str] = {}
    groups: dict[str, Any] = {}
    for name, recipe in layers.values.items():
        said = recipe.get("quant_algo") if isinstance(recipe, Mapping) else None
        if not isinstance(recipe, Mapping) or not isinstance(said, str):
            return None, f"the recipe of {name} in quantized_layers has no quant_algo"
        if (new := renaming.apply(name)) is not None:
            own[new] = said.upper()
        groups.setdefault(said.upper(), recipe.get("group_size"))
    group = inner.integer("group_size") or next(
        (size for name, size in groups.items() if name in _NVFP4 and isinstance(size, int)), 16
    )
    schemes = {
        name: algorithm(name, group_size=group, all_expert_scales=all_scales)
        for name in set(own.values()) & (_NAMES.keys() - {_MIXED})
    }
    if blocks := set(own.values()) & {"FP8_PB_WO", "FP8_BLOCK_SCALES"}:
        schemes |= _block_schemes(blocks, groups)
    # hf_quant_config.json and config.json say by different keys that the cache has scales.
    nested = inner.path.endswith("quantization.")
    declared = inner.text("kv_cache_quant_algo") if nested else _is_float8(inner)
    return ModelOptQuantization(
        name=_NAMES[_MIXED],
        common=None,
        own=own,
        ordered=tuple(sorted((each, place) for place, each in enumerate(own))),
        schemes=schemes,
        excluded=excluded,
        kv_cache_dtype=cache,
        kv_scales=KvScales(elements=4 if declared else 0),
    ), None


def _is_float8(config: Fields) -> bool:
    scheme = config.values.get("kv_cache_scheme")
    if not isinstance(scheme, Mapping):
        return False
    return (scheme.get("type"), scheme.get("num_bits")) == ("float", 8)


def _block_schemes(names: Iterable[str], groups: Mapping[str, Any]) -> dict[str, Algorithm]:
    """Mixed precision loads blocks of experts as fp8 checkpoints do."""
    sizes = [groups.get(name) for name in names]
    size = next((size for size in sizes if isinstance(size, int) and size > 0), 128)
    experts = Float8(scale="block", block=(size, size))
    linear = {"FP8_PB_WO": algorithm("FP8_PB_WO").linear}
    return {
        name: Algorithm(linear=linear.get(name, FullWidth()), experts=experts) for name in names
    }
