"""A model as vLLM builds it: layers of parts, and what stands outside the layers.

A *part* is one module of vLLM's model class: self-attention, an MLP, a Mamba mixer, an embedding.
It tells what one rank holds of it (``modules``), what it keeps in the KV cache (``caches``), what
it needs while it runs (``transient``), and which parallelism vLLM refuses for it (``refusal``).
Builders in ``models/`` put parts together from ``config.json``; nothing here knows an architecture.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

from vllm_capacity.predict.kv_cache.layer_cache import LayerCache
from vllm_capacity.predict.memory.encoder import EncoderItem
from vllm_capacity.predict.modules import Module
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.predict.rope import RopeTable


class Transient(NamedTuple):
    """What a part needs while it runs, per token of the batch.

    Attributes:
        phase: name of the phase: ``mlp``, ``experts``, ``attention`` …
        elements: elements of the model's dtype for every token.
        stays: whether the workspace outlives the layer, as the fused experts' does.
        workspace_elements: the share of ``elements`` that then stays.
        context_elements: elements for every token of the context that latent attention (MLA)
            expands at a time in a chunked prefill, which profiling allocates besides.
    """

    phase: str
    elements: int
    workspace_elements: int = 0
    context_elements: int = 0


class Renames(NamedTuple):
    """How a class renames the checkpoint's modules; quantisation configs are renamed too.

    Old and new text of each, applied in this order; None drops the name.

    Source: vLLM 0.32 ``models/utils.py``, ``WeightsMapper``; ``model_loader/utils.py``,
    ``configure_quant_config``.
    """

    substrings: tuple[tuple[str, str | None], ...] = ()
    prefixes: tuple[tuple[str, str | None], ...] = ()
    suffixes: tuple[tuple[str, str | None], ...] = ()


NO_RENAMES = Renames()


class NamedCache(NamedTuple):
    """What one attention-like layer keeps, under vLLM's name for it."""

    name: str
    cache: LayerCache


class Part(ABC):
    """One module of a model class, before any parallelism."""

    @abstractmethod
    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Parameters and buffers on ``rank``; ``path`` is the module path of what it stands in."""

    def caches(self, rank: Rank, path: str) -> Iterator[NamedCache]:
        """What it keeps in the KV cache on ``rank``."""
        del rank, path
        return iter(())

    def ropes(self) -> tuple[RopeTable, ...]:
        """The rotary tables that it uses; equal tables are built once on a rank."""
        return ()

    def transient(self, rank: Rank) -> Transient | None:
        """What it needs while it runs; None where that is small."""
        del rank
        return None

    def after_load_elements(self, rank: Rank) -> int:
        """Elements of copies in the model's dtype that vLLM makes after loading."""
        del rank
        return 0

    def refusal(self, rank: Rank) -> str | None:
        """Why vLLM would not split it so, or why that is not described exactly; else None."""
        del rank
        return None


class Stages(StrEnum):
    """On which pipeline stages something outside the layers is built."""

    FIRST = "first"
    LAST = "last"
    #: The embedding of a model whose head is tied to it.
    FIRST_AND_LAST = "first and last"
    EVERY = "every"

    def include(self, rank: Rank) -> bool:
        """Whether ``rank`` is on such a stage."""
        first = self in {Stages.FIRST, Stages.FIRST_AND_LAST} and rank.is_first_stage
        last = self in {Stages.LAST, Stages.FIRST_AND_LAST} and rank.is_last_stage
        return self is Stages.EVERY or first or last


@dataclass(frozen=True, kw_only=True, slots=True)
class Outside:
    """A part outside the layers.

    Attributes:
        path: module path of what it stands in.
        modalities: what a tower encodes; vLLM leaves it out where ``--limit-mm-per-prompt``
            allows none of them. Empty for what is always built.
    """

    part: Part
    stages: Stages
    path: str = ""
    modalities: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One decoder layer.

    Attributes:
        path: vLLM's module path, ``model.layers.3``.
        parts: what it is made of; layers that are alike share one tuple, which is then measured
            once.
    """

    path: str
    parts: tuple[Part, ...]

    @property
    def is_sparse(self) -> bool:
        """Whether it has routed experts."""
        return any(getattr(part, "is_sparse", False) for part in self.parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A whole model before any parallelism.

    Attributes:
        source: vLLM's file under ``model_executor/models/``, for messages.
        hidden_size: width of the hidden states.
        vocab_size: width of the logits, before padding.
        layers: the layers that pipeline stages divide.
        outside: embeddings, final norm, logits head, vision towers.
        length_factor: by how much rope scaling lengthens the configured positions.
        rope_type: of the text model; None where positions are not rotary.
        max_positions: what the config class takes for ``max_position_embeddings`` where the file
            does not say; None where it has no default.
        quantized: whether quantised weights are described exactly too.
        oldest_release: ``(major, minor)`` of the first release that builds it so, None for all.
        stages_refusal: why vLLM would not pipeline it, None if it would.
        dense_stages: whether vLLM starts a stage without any sparse layer.
        state_dtype: type of recurrent states that the model asks for where the operator does not;
            None for that of convolution states.
        num_kv_heads: KV heads by the configuration as a whole, where layers differ in them.
        head_size: elements of a head by the configuration as a whole, likewise.
        mixed_heads: whether vLLM takes one attention kernel for heads of different sizes.
        blackwell_cache_dtype: type of the KV cache on GPUs of capability 10.x where neither the
            operator nor the checkpoint asks for one; None for the model's own.
        replicates_queries: whether context parallelism makes its query projections whole.
        mm_prefix: whether the tokens of an image attend to all of it.
        frame_tokens: tokens of one frame of a video that must fit a batch as a whole; 0 where it
            need not, or where vLLM does not ask.
        soft_cap: whether attention logits are capped.
        text_values: the text model's configuration with its class's defaults, where a wrapper
            fills them in; None where config.json alone says it.
        compiled: whether vLLM compiles it unless told otherwise; if not, its custom operations
            (FlashInfer's rotation among them) run.
        renames: how its class renames the checkpoint's modules.
        encoder_elements: elements that an encoder puts out for one token, 0 without encoders;
            the profiling run keeps them for as many tokens as a batch has.
        encoder_item: the largest item that its encoder takes; None where it is not described.
        batch_elements: elements that the model keeps for every token of a batch besides its
            parameters and buffers.
    """

    source: str
    hidden_size: int
    vocab_size: int
    layers: tuple[Layer, ...]
    outside: tuple[Outside, ...]
    length_factor: float = 1.0
    rope_type: str | None = None
    max_positions: int | None = None
    quantized: bool = True
    oldest_release: tuple[int, int] | None = None
    stages_refusal: str | None = None
    dense_stages: bool = True
    state_dtype: str | None = None
    num_kv_heads: int | None = None
    head_size: int | None = None
    mixed_heads: bool = False
    blackwell_cache_dtype: str | None = None
    replicates_queries: bool = False
    mm_prefix: bool = False
    frame_tokens: int = 0
    soft_cap: bool = False
    text_values: Mapping[str, Any] | None = None
    compiled: bool = True
    renames: Renames = NO_RENAMES
    encoder_elements: int = 0
    encoder_item: EncoderItem | None = None
    batch_elements: int = 0

    def without_towers(self, allows: Callable[[str], bool]) -> "Model":
        """The model without towers none of whose modalities is allowed.

        Source: vLLM 0.32 ``models/interfaces.py``, ``SupportsMultiModal._mark_tower_model``.
        """
        kept = tuple(
            each
            for each in self.outside
            if not each.modalities or any(map(allows, each.modalities))
        )
        if any(each.modalities for each in kept):
            return replace(self, outside=kept)
        return replace(
            self,
            outside=kept,
            encoder_elements=0,
            encoder_item=None,
            batch_elements=0,
            mm_prefix=False,
        )

    @property
    def is_moe(self) -> bool:
        """Whether any layer has routed experts."""
        return any(layer.is_sparse for layer in self.layers)

    def parts(self) -> Iterator[Part]:
        """Every part once where layers share it."""
        seen: set[int] = set()
        for parts in (*(layer.parts for layer in self.layers), self._outside_parts()):
            if id(parts) not in seen:
                seen.add(id(parts))
                yield from parts

    def _outside_parts(self) -> tuple[Part, ...]:
        return tuple(each.part for each in self.outside)
