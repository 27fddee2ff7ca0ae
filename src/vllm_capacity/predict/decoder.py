"""The decoder that ``config.json`` describes, before any parallelism."""

from dataclasses import dataclass

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.rope import Rope, read_rope
from vllm_capacity.predict.traits import Flag, MoeTraits, Traits
from vllm_capacity.units import Tokens

_MAX_LAYERS = 4096
_MAX_WIDTH = 1 << 24
MAX_TOKENS = 1 << 32


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionShape:
    """One attention layer of the whole model, before tensor parallelism.

    Attributes:
        head_dim: elements of one head.
        qk_norm: ``none``, ``head``, ``sharded`` or ``whole``.
        sliding_window: tokens that a layer looks back on; None for full attention.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool
    o_bias: bool
    qk_norm: str
    sliding_window: Tokens | None


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeShape:
    """The sparse layers of the whole model.

    Attributes:
        traits: how the class builds them.
        experts_per_token: experts that each token visits.
        intermediate_size: width of one routed expert.
        shared_intermediate_size: width of the shared expert, 0 without one.
        layers: indices of the sparse layers.
    """

    traits: MoeTraits
    num_experts: int
    experts_per_token: int
    intermediate_size: int
    shared_intermediate_size: int
    correction_bias: bool
    layers: frozenset[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """The decoder of the whole model, before any parallelism.

    Attributes:
        rope: None where positions are learned.
        max_positions: ``max_position_embeddings``, as the rotary or learned table has it.
        complete_stages: whether every pipeline stage builds embedding, final norm and head.
        traits: how the class builds its layers.
    """

    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    tie_word_embeddings: bool
    intermediate_size: int
    mlp_bias: bool
    attention: AttentionShape
    moe: MoeShape | None
    rope: Rope | None
    max_positions: int
    complete_stages: bool
    traits: Traits


def read_decoder(config: Fields, traits: Traits) -> tuple[Decoder, str | None]:
    """The decoder, and one sentence why it is not described exactly, if so."""
    fields = _aliased(config, traits)
    hidden_size = fields.required_integer("hidden_size", maximum=_MAX_WIDTH)
    num_layers = fields.required_integer("num_hidden_layers", maximum=_MAX_LAYERS)
    max_positions = _max_positions(fields, traits)
    attention, reason = _attention(fields, traits, hidden_size)
    rope, rope_reason = _rope(fields, traits, max_positions, attention.head_dim)
    decoder = Decoder(
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        vocab_size=fields.required_integer("vocab_size", maximum=_MAX_WIDTH),
        tie_word_embeddings=_tied(fields, traits),
        intermediate_size=_dense_width(fields, traits, hidden_size),
        mlp_bias=_flag(fields, traits.mlp_bias),
        attention=attention,
        moe=None if traits.moe is None else _moe(fields, traits.moe, num_layers),
        rope=rope,
        max_positions=max_positions,
        complete_stages=traits.complete_stages,
        traits=traits,
    )
    surprise = _wrong_activation(fields, traits) or _unexpected(fields, traits)
    return decoder, reason or rope_reason or surprise


def _aliased(config: Fields, traits: Traits) -> Fields:
    renamed = {
        usual: config.values[own]
        for usual, own in traits.aliases.items()
        if own in config.values and usual not in config.values
    }
    return Fields({**config.values, **renamed}, path=config.path, faults=config.faults)


def _max_positions(config: Fields, traits: Traits) -> int:
    keys = (traits.positions_key,) if traits.positions_key is not None else ()
    return config.required_integer(*keys, "max_position_embeddings", maximum=MAX_TOKENS)


def _tied(config: Fields, traits: Traits) -> bool:
    tied = config.boolean("tie_word_embeddings")
    if tied is None and traits.tied_default is None:
        config.fault("tie_word_embeddings", "is missing; add the model's value")
    return bool(traits.tied_default if tied is None else tied)


def _unexpected(config: Fields, traits: Traits) -> str | None:
    for key, expected in traits.expects.items():
        wanted = config.values.get(expected) if isinstance(expected, str) else expected
        if config.has(key) and config.values[key] != wanted:
            return f"{traits.source} with this {key} is not described exactly yet"
    return None


def _flag(config: Fields, flag: Flag) -> bool:
    if flag.override is not None and flag.override in config.values:
        return bool(config.boolean(flag.override))
    values = [config.boolean(key) for key in flag.keys]
    return any(values) if flag.keys else flag.default


def _attention(
    config: Fields, traits: Traits, hidden_size: int
) -> tuple[AttentionShape, str | None]:
    num_heads = config.required_integer("num_attention_heads", maximum=_MAX_WIDTH)
    num_kv_heads = _num_kv_heads(config, traits, num_heads)
    if num_heads % num_kv_heads:
        config.fault("num_key_value_heads", f"must divide num_attention_heads ({num_heads})")
    head_dim = _head_dim(config, traits, hidden_size // num_heads)
    window, reason = _sliding_window(config, traits)
    shape = AttentionShape(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        qkv_bias=_flag(config, traits.qkv_bias),
        o_bias=_flag(config, traits.o_bias),
        qk_norm=traits.qk_norm if _flag(config, traits.qk_norm_flag) else "none",
        sliding_window=window,
    )
    if traits.family == "gpt_bigcode" and num_kv_heads != 1:
        reason = "GPTBigCode without multi_query is not covered"
    return shape, reason


def _num_kv_heads(config: Fields, traits: Traits, num_heads: int) -> int:
    if traits.family == "gpt_bigcode":
        return num_heads if config.boolean("multi_query") is False else 1
    if config.has("num_key_value_heads"):
        return config.required_integer("num_key_value_heads", maximum=_MAX_WIDTH)
    # An explicit null means "as many as heads" in every config class; an absent key means the
    # class's own default, which is a number of some other model.
    if not (traits.kv_heads_default or "num_key_value_heads" in config.values):
        config.fault("num_key_value_heads", "is missing; add the model's value")
    return num_heads


def _head_dim(config: Fields, traits: Traits, quotient: int) -> int:
    head_dim = None
    if traits.head_dim_from_config:
        head_dim = config.integer("head_dim", maximum=_MAX_WIDTH)
        if head_dim is None and "head_dim" not in config.values:
            head_dim = traits.head_dim_default
    if head_dim is None and quotient < 1:
        config.fault("num_attention_heads", "is larger than hidden_size")
    return head_dim or max(1, quotient)


def _sliding_window(config: Fields, traits: Traits) -> tuple[Tokens | None, str | None]:
    """The window that every layer has.

    Source: vLLM 0.32 ``engine/arg_utils.py``, ``create_engine_config``: a model whose layers
    are all alike takes ``sliding_window`` for each of them.
    """
    kinds = set(config.texts("layer_types") or ())
    switch = traits.sliding_window_switch
    window = config.integer("sliding_window", minimum=0, maximum=MAX_TOKENS)
    if switch is not None and config.boolean(switch):
        return None, f"{switch} true mixes sliding and full layers, which is not covered yet"
    if kinds - {"full_attention"} or (kinds and window and switch is None):
        return None, "layers of different attention kinds are not covered yet"
    if traits.sliding_window_default and "sliding_window" not in config.values:
        config.fault("sliding_window", "is missing; add null for full attention or the window")
    return (None if switch is not None or not window else Tokens(window)), None


def _dense_width(config: Fields, traits: Traits, hidden_size: int) -> int:
    if traits.default_width_ratio is not None and not config.has("intermediate_size"):
        return traits.default_width_ratio * hidden_size
    return config.required_integer("intermediate_size", maximum=_MAX_WIDTH)


def _moe(config: Fields, traits: MoeTraits, num_layers: int) -> MoeShape:
    width = config.required_integer(traits.width_key, maximum=_MAX_WIDTH)
    shared = 0
    if traits.shared_width_key is not None:
        if traits.shared_required and not config.values.get(traits.shared_width_key):
            config.fault(traits.shared_width_key, "is missing or 0; add the model's value")
        shared = config.integer(traits.shared_width_key, minimum=0, maximum=_MAX_WIDTH) or 0
    if traits.shared_count_key is not None:
        shared = width * config.required_integer(
            traits.shared_count_key, minimum=0, maximum=_MAX_WIDTH
        )
    return MoeShape(
        traits=traits,
        num_experts=config.required_integer(traits.experts_key, maximum=_MAX_WIDTH),
        experts_per_token=config.required_integer("num_experts_per_tok", maximum=_MAX_WIDTH),
        intermediate_size=width,
        shared_intermediate_size=shared,
        correction_bias=_flag(config, traits.correction_bias),
        layers=_sparse_layers(config, traits, num_layers),
    )


def _sparse_layers(config: Fields, traits: MoeTraits, num_layers: int) -> frozenset[int]:
    first = step = None
    if traits.dense_first_key is not None:
        first = config.required_integer(traits.dense_first_key, minimum=0, maximum=_MAX_LAYERS)
    if traits.dense_step_key is not None:
        step = config.integer(traits.dense_step_key, maximum=_MAX_LAYERS)
    dense = config.integers(traits.dense_list_key) if traits.dense_list_key else ()
    return frozenset(
        layer
        for layer in range(min(_end_of_sparse(config, traits, num_layers), _MAX_LAYERS))
        if layer >= (first or 0) and (layer + 1) % (step or 1) == 0 and layer not in (dense or ())
    )


def _end_of_sparse(config: Fields, traits: MoeTraits, num_layers: int) -> int:
    if traits.dense_last_key is None:
        return num_layers
    last = config.integer(traits.dense_last_key, minimum=-1, maximum=_MAX_LAYERS)
    return num_layers if last in {None, -1} else min(num_layers, (last or 0) + 1)


def _rope(
    config: Fields, traits: Traits, max_positions: int, head_dim: int
) -> tuple[Rope | None, str | None]:
    if traits.learned_positions is not None:
        return None, None
    ratio = traits.rotary_ratio
    if traits.rotary_dim_key is not None:
        ratio = config.required_integer(traits.rotary_dim_key, maximum=_MAX_WIDTH) / head_dim
        if ratio > 1:
            return None, f"vLLM refuses to start: {traits.rotary_dim_key} exceeds the head size"
    rope, reason = read_rope(config, max_positions=max_positions, default_ratio=ratio)
    if rope is not None and not traits.partial_rotary and rope.rotary_ratio != ratio:
        return None, f"{traits.source} with partial_rotary_factor is not described exactly yet"
    return rope, reason


def _wrong_activation(config: Fields, traits: Traits) -> str | None:
    activation = config.text("hidden_act")
    if not traits.silu_only or activation in {None, "silu"}:
        return None
    return f"vLLM refuses to start: {traits.source} supports only silu, not {activation}"
