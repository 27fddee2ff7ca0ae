"""What builders of models with several kinds of layers have in common."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Outside, Part, Stages
from vllm_capacity.predict.parts import LogitsHead, SelfAttention, TokenEmbedding, Vectors
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.rope import Rope, read_rope

MAX_LAYERS = 4096
MAX_WIDTH = 1 << 24
MAX_TOKENS = 1 << 32
FULL = "full_attention"
SLIDING = "sliding_attention"
CHUNKED = "chunked_attention"
SPARSE, DENSE = "sparse", "dense"
#: Older names of kinds of layers.
#: Source: transformers 5 ``configuration_utils.py``, ``remap_legacy_layer_types``.
_OLDER_NAMES = {"attention": FULL}


def with_defaults(config: Fields, defaults: Mapping[str, Any]) -> Fields:
    """The configuration with what its config class fills in where a key is absent."""
    return Fields({**defaults, **config.values}, path=config.path, faults=config.faults)


def width(config: Fields, *keys: str, minimum: int = 1) -> int:
    """The size at the first of ``keys`` that is present; a fault where none is."""
    return config.required_integer(*keys, minimum=minimum, maximum=MAX_WIDTH)


def count(config: Fields, key: str) -> int:
    """The number at ``key``, 0 where it is absent or null."""
    return config.integer(key, minimum=0, maximum=MAX_WIDTH) or 0


def flag(config: Fields, *keys: str) -> bool:
    """Whether any of ``keys`` is true."""
    return any(bool(config.boolean(key)) for key in keys)


def num_layers(config: Fields) -> int:
    """Decoder layers."""
    return config.required_integer("num_hidden_layers", maximum=MAX_LAYERS)


def max_positions(config: Fields) -> int:
    """Rows of a rotary table without scaling."""
    return config.required_integer("max_position_embeddings", maximum=MAX_TOKENS)


def window(config: Fields, key: str = "sliding_window") -> int | None:
    """The window in tokens; None where there is none, which some files write as 0.

    Source: vLLM 0.32 ``config/model.py``, ``ModelConfig.__post_init__``.
    """
    return config.integer(key, minimum=0, maximum=MAX_TOKENS) or None


def layer_types(config: Fields, default: Sequence[str], *, known: Iterable[str]) -> tuple[str, ...]:
    """The kind of every layer.

    Args:
        config: the text model's configuration.
        default: what the config class takes where ``layer_types`` is absent.
        known: kinds that are described.

    Raises:
        Refusal: there is another kind.

    Source: transformers 5 ``configuration_utils.py``, ``validate_layer_type``.
    """
    layers = num_layers(config)
    given = config.texts("layer_types")
    kinds = tuple(default) if given is None else tuple(_OLDER_NAMES.get(k, k) for k in given)
    unknown = sorted(set(kinds) - set(known))
    if unknown:
        raise Refusal(f"layer_types with {unknown[0]} is not described exactly here")
    if len(kinds) != layers:
        config.fault("layer_types", f"must list {layers} layers, as num_hidden_layers")
        return (FULL,) * layers
    return kinds


def every(period: int, layers: int) -> tuple[str, ...]:
    """Sliding layers of which each ``period``-th attends to all tokens instead."""
    return tuple(SLIDING if (index + 1) % period else FULL for index in range(layers))


def feed_forwards(config: Fields, default: tuple[str, ...]) -> tuple[str, ...]:
    """Whether the feed-forward of every layer is ``sparse`` or ``dense``."""
    feeds = config.texts("mlp_layer_types")
    if feeds is None:
        return default
    if len(feeds) != len(default) or set(feeds) - {SPARSE, DENSE}:
        config.fault("mlp_layer_types", f"must list {len(default)} times sparse or dense")
        return default
    return feeds


def ropes_by_kind(
    config: Fields, *, full_base: float = 1000000.0, sliding_base: float = 10000.0
) -> dict[str, Rope]:
    """The rotary embedding of full and of sliding layers.

    Source: transformers 5 ``gemma3/configuration_gemma3.py``, ``convert_rope_params_to_dict``:
    scaling is that of the full layers, each kind has a base of its own.

    Args:
        config: the text model's configuration.
        full_base: what the config class takes where the file has no base for full layers.
        sliding_base: the same for those with a window.

    Raises:
        Refusal: it is not described exactly.
    """
    published = config.mapping("rope_parameters") or Fields({}, faults=config.faults)
    full, local = (dict(_object(published, kind)) for kind in (FULL, SLIDING))
    full.update(_object(config, "rope_scaling"))
    full.setdefault("rope_theta", config.values.get("rope_theta", full_base))
    local.setdefault("rope_theta", config.values.get("rope_local_base_freq", sliding_base))
    reader = Fields({"rope_parameters": {FULL: full, SLIDING: local}}, faults=config.faults)
    positions = max_positions(config)
    return {
        kind: read_rope(reader, max_positions=positions, layer_type=kind)
        for kind in (FULL, SLIDING)
    }


def _object(config: Fields, key: str) -> Mapping[str, Any]:
    inner = config.mapping(key)
    return {} if inner is None else inner.values


def per_layer(config: Fields, key: str, layers: int, *, exactly: bool = False) -> tuple[int, ...]:
    """One whole number for every layer; ``exactly`` as many, or the first of more."""
    values = config.integers(key) or ()
    if len(values) < layers or (exactly and len(values) > layers):
        config.fault(key, f"must list {layers} values, as num_hidden_layers")
        return (0,) * layers
    return values[:layers]


def self_attention(
    config: Fields,
    rope: Rope | None,
    *,
    kind: type[SelfAttention] = SelfAttention,
    **more: Any,
) -> SelfAttention:
    """The attention of a configuration that calls its sizes as most do.

    Args:
        config: the text model's configuration.
        rope: its rotary embedding, None where the layer has none.
        kind: the class of part.
        more: attributes of :class:`SelfAttention` that differ.
    """
    hidden, heads = width(config, "hidden_size"), width(config, "num_attention_heads")
    size = config.integer("head_dim", maximum=MAX_WIDTH) or max(1, hidden // heads)
    # An explicit null means as many as heads, in every config class.
    kv_heads = config.integer("num_key_value_heads", maximum=MAX_WIDTH) or heads
    values = {"num_heads": heads, "num_kv_heads": kv_heads, "head_size": size, **more}
    if values["num_heads"] % values["num_kv_heads"]:
        config.fault("num_key_value_heads", f"must divide the {values['num_heads']} query heads")
    table = None if rope is None else rope.table(values["head_size"])
    return kind(hidden_size=hidden, rope=table, **values)


def stack(
    path: str, parts: Iterable[tuple[Part, ...]], *, layers_name: str = "layers"
) -> tuple[Layer, ...]:
    """Layers of these parts; those that are alike share one tuple."""
    shared: dict[tuple[Part, ...], tuple[Part, ...]] = {}
    return tuple(
        Layer(path=f"{path}.{layers_name}.{index}", parts=shared.setdefault(each, each))
        for index, each in enumerate(parts)
    )


def refuse_unless(condition: bool, sentence: str) -> None:  # noqa: FBT001 (reads as a sentence)
    """Refuse where ``condition`` does not hold.

    Raises:
        Refusal: with ``sentence``.
    """
    if not condition:
        raise Refusal(sentence)


def length_factor(ropes: Iterable[Rope]) -> float:
    """By how much rope scaling lengthens the configured positions.

    Where layers differ, the last that scales decides.

    Source: vLLM 0.32 ``config/model.py``, ``_get_and_verify_max_len``.
    """
    factor = 1.0
    for rope in ropes:
        factor = factor if rope.length_factor == 1.0 else rope.length_factor
    return factor


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """What stands before and after the layers of most decoders.

    Attributes:
        everywhere: whether every pipeline stage builds all of it.
        scaled: whether a scalar of the model's dtype scales the embedding.
        norm_vectors: vectors of ``hidden_size`` in the norm after the last layer.
        own_head: whether the class has a head of its own even where it is called tied.
    """

    vocab_size: int
    hidden_size: int
    tied: bool
    path: str
    head_path: str
    everywhere: bool = False
    scaled: bool = False
    norm_vectors: int = 1
    head_bias: bool = False
    own_head: bool = False
    embedding_name: str = "embed_tokens"

    @classmethod
    def read(cls, config: Fields, *, path: str, head_path: str, **more: Any) -> "Ends":
        """Those of a configuration that calls its sizes as most do."""
        return cls(
            vocab_size=width(config, "vocab_size"),
            hidden_size=width(config, "hidden_size"),
            tied=more.pop("tied", flag(config, "tie_word_embeddings")),
            path=path,
            head_path=head_path,
            **more,
        )

    def outside(self) -> Iterator[Outside]:
        """Embedding, scale, final norm and logits head, on the stages that build them."""
        first = Stages.FIRST_AND_LAST if self.tied else Stages.FIRST
        embedding = TokenEmbedding(
            vocab_size=self.vocab_size, hidden_size=self.hidden_size, name=self.embedding_name
        )
        yield self._outside(embedding, Stages.EVERY if self.everywhere else first)
        if self.scaled:
            yield self._outside(Vectors(name="normalizer", elements=1), Stages.EVERY)
        last = Stages.EVERY if self.everywhere else Stages.LAST
        norm = Vectors(name="norm", elements=self.norm_vectors * self.hidden_size)
        yield self._outside(norm, last)
        head = LogitsHead(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            tied=self.tied and not self.own_head,
            bias=self.head_bias,
        )
        yield Outside(part=head, stages=last, path=self.head_path)

    def _outside(self, part: Part, stages: Stages) -> Outside:
        return Outside(part=part, stages=stages, path=self.path)


def assemble(
    *,
    source: str,
    layers: Iterable[tuple[Part, ...]],
    ends: Ends,
    ropes: Iterable[Rope] = (),
    more: Iterable[Outside] = (),
    layers_path: str | None = None,
    **rest: Any,
) -> Model:
    """The whole model.

    Args:
        source: vLLM's file, for messages.
        layers: the parts of every layer.
        ends: what stands before and after them.
        ropes: the distinct rotary embeddings of the layers.
        more: what else stands outside the layers.
        layers_path: module path of what the layers stand in where it is not the embedding's.
        rest: further attributes of :class:`Model`.
    """
    ropes = tuple(ropes)
    kinds = {rope.rope_type for rope in ropes}
    # One long rope among several decides the default length; YaRN ranks next.
    ranked = [kind for kind in ("longrope", "yarn", *sorted(kinds)) if kind in kinds]
    return Model(
        source=source,
        hidden_size=ends.hidden_size,
        vocab_size=ends.vocab_size,
        layers=stack(layers_path or ends.path, layers),
        outside=(*ends.outside(), *more),
        rope_type=ranked[0] if ranked else None,
        **{"length_factor": length_factor(ropes), **rest},
    )
