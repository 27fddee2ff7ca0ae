"""One scheme for all layers but those that a list names."""

from dataclasses import dataclass

from vllm_capacity.predict.modules import Linear, RoutedExperts
from vllm_capacity.predict.quantization.module_names import (
    MixedShardsError,
    equal_or_pattern,
    matches,
    mixed,
    skipped,
)
from vllm_capacity.predict.quantization.scheme import FullWidth, Quantization, Scheme


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedQuantization(Quantization):
    """One scheme for all layers but those that a list names.

    Attributes:
        linear, experts, head: schemes of the kinds of layers, None for full width.
        ignored: names of layers at full width.
        by_substring: whether a part of a name is enough.
    """

    linear: Scheme | None
    experts: Scheme | None
    head: Scheme | None = None
    ignored: frozenset[str] = frozenset()
    by_substring: bool = False

    def scheme(self, module: Linear | RoutedExperts) -> Scheme:
        """The kind's scheme, full width where the list says so."""
        try:
            if skipped(module, self.ignored, by_substring=self.by_substring):
                return FullWidth()
        except MixedShardsError:
            return mixed(module)
        if isinstance(module, RoutedExperts):
            return self.experts or FullWidth()
        return (self.head if module.is_head else self.linear) or FullWidth()

    @property
    def entries(self) -> frozenset[str]:
        """Names and patterns that it speaks of."""
        return self.ignored


def ignored_by_pattern(module: Linear | RoutedExperts, entries: frozenset[str]) -> bool:
    """Whether names or ``re:`` patterns leave a module at full width.

    Raises:
        MixedShardsError: parts of a fused layer differ.

    Source: vLLM 0.32 ``compressed_tensors/utils.py``, ``should_ignore_layer``.
    """
    return matches(module, lambda name: any(equal_or_pattern(entry, name) for entry in entries))
