"""compressed-tensors' checkpoints: groups of layers, each with its scheme.

Source: vLLM 0.32 ``compressed_tensors/compressed_tensors.py`` and
``compressed_tensors_moe/compressed_tensors_moe.py``.
"""

from dataclasses import dataclass, replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.modules import Linear, RoutedExperts
from vllm_capacity.predict.quantization.compressed_tensors_schemes import (
    Group,
    TensorFormat,
    experts_scheme,
    linear_scheme,
)
from vllm_capacity.predict.quantization.listed import ignored_by_pattern
from vllm_capacity.predict.quantization.module_names import (
    MixedShardsError,
    Renaming,
    equal_or_pattern,
    is_pattern,
    mixed,
    shards_of,
)
from vllm_capacity.predict.quantization.scheme import FullWidth, KvScales, Quantization, Scheme

_Read = tuple[Quantization | None, str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedTensors(Quantization):
    """compressed-tensors: the first group whose target matches decides.

    Attributes:
        groups: in the order of the config.
        ignored: names or ``re:`` patterns of layers at full width.
        capability: compute capability of the GPU.
    """

    groups: tuple[Group, ...]
    ignored: frozenset[str]
    capability: tuple[int, int] | None

    def scheme(self, module: Linear | RoutedExperts) -> Scheme:
        """The scheme of the layer's group, full width where none matches."""
        try:
            if isinstance(module, RoutedExperts):
                return self._experts_scheme(module)
            if ignored_by_pattern(module, self.ignored):
                return FullWidth()
        except MixedShardsError:
            return mixed(module)
        group = self._group(module)
        return FullWidth() if group is None else linear_scheme(group, self.capability)

    def _group(self, linear: Linear) -> Group | None:
        """By name, then by what is fused, then by class.

        Source: vLLM 0.32 ``compressed_tensors/utils.py``, ``find_matched_target``.
        """
        by_name = self._named(linear.name)
        if by_name is not None:
            return by_name
        fused = [self._named(shard) for shard in shards_of(linear)]
        if fused and all(group is not None for group in fused):
            return fused[0]
        # The class of the logits head is no linear layer's.
        return self._of_class("parallellmhead" if linear.is_head else "parallellinear")

    def _experts_scheme(self, experts: RoutedExperts) -> Scheme:
        """All projections of an expert must be quantised alike.

        Source: vLLM 0.32 ``CompressedTensorsMoEMethod.get_moe_method``.
        """
        names = [f"{experts.name}.0.{projection}" for projection in experts.projections]
        groups = [None if self._ignores(name) else self._expert_group(name) for name in names]
        if any(group != groups[0] for group in groups):
            return mixed(experts)
        first = groups[0]
        return FullWidth() if first is None else experts_scheme(first, self.capability)

    def _ignores(self, name: str) -> bool:
        return any(equal_or_pattern(entry, name) for entry in self.ignored)

    def _expert_group(self, name: str) -> Group | None:
        group = self._named(name) or self._of_class("routedexperts")
        return group or next((group for group in self.groups if group.target == "Linear"), None)

    def _named(self, name: str) -> Group | None:
        return next((group for group in self.groups if equal_or_pattern(group.target, name)), None)

    def _of_class(self, name: str) -> Group | None:
        targets = (group for group in self.groups if not group.target.startswith("re:"))
        return next((group for group in targets if group.target.lower() in name), None)

    @property
    def entries(self) -> frozenset[str]:
        """Names and patterns that it speaks of."""
        return self.ignored | {group.target for group in self.groups}


def read_compressed_tensors(
    config: Fields, renaming: Renaming, *, capability: tuple[int, int] | None
) -> _Read:
    """compressed-tensors as a checkpoint declares it, or one sentence why not."""
    if config.values.get("transform_config"):
        return None, "compressed-tensors with transforms is not described exactly"
    groups = _groups(config, renaming)
    if isinstance(groups, str):
        return None, groups
    ignored = config.texts("ignore")
    if ignored is None and config.has("ignore"):
        return None, "ignore of compressed-tensors must be a list of names"
    named = [_renamed(entry, renaming) for entry in ignored or ()]
    entries = frozenset(entry for entry in named if entry is not None)
    patterns = entries | {group.target for group in groups}
    if not all(is_pattern(text[3:]) for text in patterns if text.startswith("re:")):
        return None, "compressed-tensors names layers by a pattern that is no regular expression"
    scales, dtype, reason = _kv_scheme(config)
    if reason is not None:
        return None, reason
    return CompressedTensors(
        name="compressed-tensors",
        groups=groups,
        ignored=entries,
        capability=capability,
        kv_cache_dtype=dtype,
        kv_scales=scales,
    ), None


def _renamed(entry: str, renaming: Renaming) -> str | None:
    """Only paths are renamed. Source: ``CompressedTensorsConfig.apply_vllm_mapper``."""
    return renaming.apply(entry) if "." in entry and not entry.startswith("re:") else entry


def _groups(config: Fields, renaming: Renaming) -> "tuple[Group, ...] | str":
    declared = config.mapping("config_groups")
    found: dict[str, Group] = {}
    for name in declared.values if declared is not None else ():
        fields = declared.mapping(name) if declared is not None else None
        targets = fields.texts("targets") if fields is not None else None
        if fields is None or targets is None:
            return f"group {name} of compressed-tensors names no targets"
        if len(targets) == 1 and targets[0].endswith("Attention"):
            continue
        for target in targets:
            group = _group(fields, target, config.text("format"))
            if group is None:
                return f"group {name} of compressed-tensors is not understood"
            found[target] = group
    renamed = ((_renamed(target, renaming), group) for target, group in found.items())
    return tuple(replace(group, target=new) for new, group in renamed if new is not None)


def _group(fields: Fields, target: str, layout: str | None) -> Group | None:
    formats: list[TensorFormat | None] = []
    for key in ("weights", "input_activations", "output_activations"):
        inner = fields.mapping(key)
        read = None if inner is None or not inner.values else TensorFormat.read(inner)
        if read is None and (key == "weights" or fields.values.get(key)):
            return None
        formats.append(read)
    weights, inputs, outputs = formats
    if weights is None:
        return None
    layout = fields.text("format") or layout
    return Group(target=target, weights=weights, inputs=inputs, outputs=outputs, layout=layout)


def _kv_scheme(config: Fields) -> tuple[KvScales, str | None, str | None]:
    """Scale parameters, cache dtype, or why not.

    Source: vLLM 0.32 ``CompressedTensorsKVCacheMethod``: keys, values and queries have a scale
    in float32 and a zero point in the model's dtype.
    """
    if not config.has("kv_cache_scheme"):
        return KvScales(elements=3, float32s=3), None, None
    scheme = config.mapping("kv_cache_scheme")
    values = scheme.values if scheme is not None else {}
    strategy = str(values.get("strategy"))
    fits = (values.get("type"), values.get("num_bits")) == ("float", 8)
    if not fits or strategy not in {"tensor", "attn_head"} or not values.get("symmetric"):
        return KvScales(), None, "vLLM refuses to start: it does not know this kv_cache_scheme"
    by_head = strategy == "attn_head"
    return KvScales(elements=3, float32s=3, per_kv_head=by_head), "fp8", None
