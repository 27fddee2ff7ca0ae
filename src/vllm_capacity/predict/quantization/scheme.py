"""What a quantisation is: a rule that gives every layer a scheme, and schemes that know bytes.

What counts are the parameters as vLLM creates them, before any repacking after load. A scheme
that quantises while it loads creates full-width parameters; ``loaded_…`` then tells what is left.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

from vllm_capacity.predict.modules import Attention, Linear, RoutedExperts
from vllm_capacity.units import round_up

FLOAT32 = 4


class Scheme(ABC):
    """How the parameters of one linear layer, or of one layer's experts, are laid out."""

    @abstractmethod
    def linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """Bytes of a linear layer without its bias; ``element_bytes`` is the model dtype's."""

    @abstractmethod
    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Bytes of a layer's routed experts, biases included."""

    def loaded_linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """Bytes of the linear layer once it is loaded, without its bias."""
        return self.linear_bytes(linear, element_bytes)

    def loaded_experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Bytes of the experts once they are loaded."""
        return self.experts_bytes(experts, element_bytes)

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """Why vLLM would not build this layer, None if it would."""
        del module, tensor_parallel
        return None


@dataclass(frozen=True, slots=True)
class FullWidth(Scheme):
    """Every element in the model's dtype, or in the layer's own."""

    def linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """Weights alone."""
        return (linear.element_bytes or element_bytes) * linear.elements

    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Projections and biases of every expert."""
        return element_bytes * (expert_elements(experts) + expert_bias_elements(experts))


@dataclass(frozen=True, slots=True)
class FullWidthPadded(FullWidth):
    """Full width, for kernels that pad the width of experts.

    Attributes:
        expert_multiple: what they pad it to.

    Source: vLLM 0.32 ``layers/fused_moe/oracle/unquantized.py``,
    ``unquantized_round_up_hidden_size_and_intermediate_size``.
    """

    expert_multiple: int

    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Padded where the kernels know the router; others take other kernels."""
        if experts.fits_tensorrt and not experts.bias:
            width = round_up(experts.intermediate_size, self.expert_multiple)
            experts = replace(experts, intermediate_size=width)
        return FullWidth().experts_bytes(experts, element_bytes)


@dataclass(frozen=True, slots=True)
class Refused(FullWidth):
    """Stands where vLLM would stop, or where its layout is not described exactly."""

    reason: str

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """Always the same sentence."""
        del module, tensor_parallel
        return self.reason


@dataclass(frozen=True, slots=True)
class KvScales:
    """Parameters that a quantisation gives every attention layer for its cache's scales.

    Attributes:
        elements: in the model's dtype.
        float32s: in float32.
        on_latent: whether latent attention (MLA) gets them too.
        per_kv_head: whether there is one of each for every KV head.
    """

    elements: int = 0
    float32s: int = 0
    on_latent: bool = False
    per_kv_head: bool = False


#: Source: vLLM 0.32 ``quantization/kv_cache.py``, ``BaseKVCacheMethod.create_weights``: key,
#: value, query and probability scale.
FOUR_SCALES = KvScales(elements=4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization(ABC):
    """A rule that gives every layer its scheme.

    Attributes:
        name: what vLLM calls it, None for unquantised weights.
        kv_cache_dtype: KV cache type that the checkpoint asks for where the operator does not.
        kv_scales: scale parameters of attention layers.
    """

    name: str | None
    kv_cache_dtype: str | None = None
    kv_scales: KvScales = KvScales()
    _schemes: dict[Linear | RoutedExperts, Scheme] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @abstractmethod
    def scheme(self, module: Linear | RoutedExperts) -> Scheme:
        """How one layer is laid out; asked only of layers that receive the quantisation."""

    @property
    @abstractmethod
    def entries(self) -> frozenset[str]:
        """Names and patterns that it speaks of, by which it may tell layers apart."""

    def linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """Bytes of a linear layer's parameters, bias included."""
        size = 0 if linear.is_tied else self._scheme(linear).linear_bytes(linear, element_bytes)
        return size + _bias_bytes(linear, element_bytes)

    def experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Bytes of a layer's routed experts."""
        return self._known(experts).experts_bytes(experts, element_bytes)

    def loaded_linear_bytes(self, linear: Linear, element_bytes: int) -> int:
        """Bytes of a linear layer after quantising at load, bias included."""
        scheme = self._scheme(linear)
        size = 0 if linear.is_tied else scheme.loaded_linear_bytes(linear, element_bytes)
        return size + _bias_bytes(linear, element_bytes)

    def loaded_experts_bytes(self, experts: RoutedExperts, element_bytes: int) -> int:
        """Bytes of a layer's routed experts after quantising at load."""
        return self._known(experts).loaded_experts_bytes(experts, element_bytes)

    def attention_bytes(self, element_bytes: int, attention: Attention | None = None) -> int:
        """Bytes of the scale parameters of one attention layer, None for any."""
        scales, layer = self.kv_scales, attention or Attention(name="")
        if layer.latent and not scales.on_latent:
            return 0
        size = element_bytes * scales.elements + FLOAT32 * scales.float32s
        return size * (layer.num_kv_heads if scales.per_kv_head else 1)

    def refusal(self, module: Linear | RoutedExperts, *, tensor_parallel: int) -> str | None:
        """Why vLLM would not build this layer, None if it would."""
        scheme = self._scheme(module) if isinstance(module, Linear) else self._known(module)
        if isinstance(module, Linear) and module.is_tied and not isinstance(scheme, FullWidth):
            return "a quantised logits head that is tied to the embedding is not described exactly"
        return scheme.refusal(module, tensor_parallel=tensor_parallel)

    def _scheme(self, linear: Linear) -> Scheme:
        return self._known(linear) if linear.quantizable else FullWidth()

    def _known(self, module: Linear | RoutedExperts) -> Scheme:
        """The scheme, looked for once: long lists of names are slow to search."""
        known = self._schemes.get(module)
        if known is None:
            known = self._schemes[module] = self.scheme(module)
        return known


def _bias_bytes(linear: Linear, element_bytes: int) -> int:
    return (linear.element_bytes or element_bytes) * linear.bias_elements


@dataclass(frozen=True, kw_only=True, slots=True)
class Unquantized(Quantization):
    """Every parameter in the model's dtype.

    Attributes:
        expert_multiple: what the experts' kernels pad the width of experts to.
    """

    name: None = None
    expert_multiple: int = 1
    entries: ClassVar[frozenset[str]] = frozenset()

    def scheme(self, module: Linear | RoutedExperts) -> Scheme:
        """Full width, whatever it is."""
        del module
        return FullWidthPadded(self.expert_multiple)


def gate_up_size(experts: RoutedExperts) -> int:
    """Rows of the fused gate and up projection of one expert on this rank."""
    return (2 if experts.gated else 1) * experts.intermediate_size


def expert_elements(experts: RoutedExperts) -> int:
    """Projections of the experts on this rank."""
    rows = gate_up_size(experts) + experts.intermediate_size
    return experts.num_experts * experts.hidden_size * rows


def expert_bias_elements(experts: RoutedExperts) -> int:
    """Biases of the experts on this rank."""
    if not experts.bias:
        return 0
    return experts.num_experts * (gate_up_size(experts) + experts.hidden_size)
