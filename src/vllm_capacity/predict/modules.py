"""The parameter-holding parts of a model on one rank, as vLLM builds them.

Sizes are those of the rank, after tensor parallelism has split them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """One (possibly fused) linear layer.

    Attributes:
        name: vLLM's module path, as in ``model.layers.0.self_attn.qkv_proj``.
        shards: checkpoint paths fused into it; quantisation ignore-lists speak of these.
        input_size: columns on this rank.
        output_sizes: rows on this rank of every fused matrix.
        split: which side tensor parallelism divides: ``column``, ``row`` or ``none``.
        bias: whether it adds a bias of ``sum(output_sizes)`` elements.
        quantizable: whether vLLM hands it the quantisation config.
        element_bytes: width of an unquantised element where it is not the model's dtype.
        is_head: whether it makes the logits; few quantisations reach it.
        is_tied: whether its weights are the embedding's, and not its own.
        fast_router: whether it is float32 on GPUs without vLLM's router kernels.
        packed_output_sizes: rows of every fused matrix where 4-bit kernels are too wide for the
            rank's own, so that vLLM holds them whole under AWQ, GPTQ and AutoRound; None where
            they are the same.
        kept_from: quantisations that vLLM keeps from this layer.
    """

    name: str
    shards: tuple[str, ...]
    input_size: int
    output_sizes: tuple[int, ...]
    split: str = "none"
    bias: bool = False
    quantizable: bool = True
    element_bytes: int | None = None
    is_head: bool = False
    is_tied: bool = False
    fast_router: bool = False
    packed_output_sizes: tuple[int, ...] | None = None
    kept_from: frozenset[str] = frozenset()

    @property
    def elements(self) -> int:
        """Weight elements, bias left out."""
        return self.input_size * sum(self.output_sizes)

    @property
    def bias_elements(self) -> int:
        """Bias elements; a row-split layer keeps its whole bias on every rank."""
        return sum(self.output_sizes) if self.bias else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutedExperts:
    """The routed experts of one layer that live on this rank.

    Attributes:
        name: vLLM's module path.
        num_experts: experts on this rank.
        hidden_size: width of the model.
        intermediate_size: width of one expert on this rank.
        is_split: whether ranks share each expert.
        expert_map_entries: entries of the int32 map from global to local expert, 0 without EP.
        gated: whether an expert has a gate besides up and down.
        bias: whether its projections have biases.
        projections: the checkpoint's names of an expert's projections.
        fits_tensorrt: whether FlashInfer's TensorRT-LLM kernels know how its router scores and
            what it activates with; they do not know a softmax that is not renormalised.
    """

    name: str
    num_experts: int
    hidden_size: int
    intermediate_size: int
    is_split: bool = False
    expert_map_entries: int = 0
    gated: bool = True
    bias: bool = False
    projections: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    fits_tensorrt: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Plain:
    """Parameters or buffers that no quantisation touches: norms, embeddings, biases.

    Attributes:
        elements: number of elements on this rank.
        element_bytes: width where it is not the model's dtype.
    """

    name: str
    elements: int
    element_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """One attention layer's own buffers and, under quantisation, its KV scale parameters.

    Attributes:
        latent: whether it is multi-head latent attention (MLA).
        num_kv_heads: heads on this rank.
        scaled: whether vLLM hands it the quantisation config.
    """

    name: str
    latent: bool = False
    num_kv_heads: int = 1
    scaled: bool = True


Module = Linear | RoutedExperts | Plain | Attention
