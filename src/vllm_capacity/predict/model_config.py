"""What ``config.json`` says about a model, as far as memory is concerned."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm_capacity.errors import Fault, ModelConfigError
from vllm_capacity.predict.architectures import TRAITS, Flag, MoeTraits, Traits
from vllm_capacity.predict.dtypes import MODEL_DTYPES
from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.rope import Rope, read_rope
from vllm_capacity.units import Tokens

_MAX_LAYERS = 4096
_MAX_WIDTH = 1 << 24
_MAX_TOKENS = 1 << 32

#: Keys by which vLLM 0.32 changes memory in ways that no row of the architecture table covers.
#: Source: vLLM 0.32 ``config/model.py``, ``transformers_utils/model_arch_config_convertor.py``.
_UNCOVERED_KEYS = (
    "text_config",
    "vision_config",
    "audio_config",
    "thinker_config",
    "per_layer_config",
    "dual_chunk_attention_config",
    "attention_chunk_size",
    "rswa_window",
    "kv_lora_rank",
    "block_configs",
    "target_layer_count",
    "compression_config",
    "index_topk",
    "num_kv_shared_layers",
    "head_dtype",
)
_POSITION_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionShape:
    """One attention layer of the whole model, before tensor parallelism.

    Attributes:
        head_dim: elements of one head.
        qk_norm: ``none``, ``head`` or ``sharded``.
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
        embedding_on_every_stage: whether pipeline stages all build the input embedding.
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
    embedding_on_every_stage: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A model as its ``config.json`` describes it.

    Attributes:
        architecture: first entry of ``architectures``.
        dtype: element type of the weights as published; None where the file does not say.
        quantization_config: as published, hf_quant_config.json folded in; None without one.
        default_max_model_len: longest request without ``--max-model-len``.
        longest_max_model_len: what ``--max-model-len`` may ask for at most.
        decoder: None where ``unsupported`` says why.
        unsupported: one sentence, None where the model is described exactly.
    """

    architecture: str
    model_type: str
    dtype: str | None
    quantization_config: Mapping[str, Any] | None
    default_max_model_len: Tokens | None
    longest_max_model_len: Tokens | None
    decoder: Decoder | None
    unsupported: str | None

    @classmethod
    def from_dict(
        cls,
        config: Mapping[str, Any],
        *,
        hf_quant_config: Mapping[str, Any] | None = None,
        source: str = "config.json",
    ) -> "ModelConfig":
        """Read a published ``config.json``.

        Args:
            config: the parsed file.
            hf_quant_config: the parsed ``hf_quant_config.json`` where the checkpoint has one.
            source: where it came from, for messages.

        Raises:
            ModelConfigError: with every fault found.
        """
        faults: list[Fault] = []
        if not isinstance(config, Mapping):
            raise ModelConfigError(source, [Fault("", config, "must be a JSON object")])
        model = _read(Fields(config, faults=faults), hf_quant_config)
        if faults:
            raise ModelConfigError(source, faults)
        return model


def _read(config: Fields, hf_quant_config: Mapping[str, Any] | None) -> ModelConfig:
    names = config.texts("architectures")
    if not names:
        if names is not None or not config.has("architectures"):
            config.fault("architectures", "must list the model's class; vLLM needs it")
        names = ("",)
    model = ModelConfig(
        architecture=names[0],
        model_type=config.text("model_type") or "",
        dtype=_dtype(config),
        quantization_config=_quantization_config(config, hf_quant_config),
        default_max_model_len=None,
        longest_max_model_len=None,
        decoder=None,
        unsupported=_uncovered(config, names),
    )
    if model.unsupported is not None or names[0] not in TRAITS:
        return model
    return _with_decoder(model, config, TRAITS[names[0]])


def _uncovered(config: Fields, names: tuple[str, ...]) -> str | None:
    if len(set(names)) > 1:
        return f"more than one architecture is listed: {', '.join(names)}"
    if names[0] and names[0] not in TRAITS:
        return f"architecture {names[0]} is not described exactly yet"
    for key in _UNCOVERED_KEYS:
        if config.values.get(key):
            return f"config key {key} changes memory in a way that is not covered yet"
    if config.values.get("is_causal") is False:
        return "bidirectional attention (is_causal false) keeps no KV cache"
    return None


def _dtype(config: Fields) -> str | None:
    key = "dtype" if config.has("dtype") else "torch_dtype"
    text = config.text(key)
    if text is None:
        return None
    dtype = MODEL_DTYPES.get(text.removeprefix("torch."))
    if dtype is None:
        config.fault(key, f"must be one of {', '.join(sorted(MODEL_DTYPES))}")
    return dtype


def _quantization_config(
    config: Fields, hf_quant_config: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    published = config.mapping("quantization_config")
    if published is not None:
        return published.values
    if hf_quant_config is None:
        return None
    quantization = Fields({"hf_quant_config": hf_quant_config}, faults=config.faults)
    reader = quantization.mapping("hf_quant_config")
    return None if reader is None else {"quant_method": "modelopt", **reader.values}


def _with_decoder(model: ModelConfig, config: Fields, traits: Traits) -> ModelConfig:
    fields = _aliased(config, traits)
    hidden_size = fields.required_integer("hidden_size", maximum=_MAX_WIDTH)
    num_layers = fields.required_integer("num_hidden_layers", maximum=_MAX_LAYERS)
    max_positions = fields.required_integer("max_position_embeddings", maximum=_MAX_TOKENS)
    attention, reason = _attention(fields, traits, hidden_size)
    rope, rope_reason = _rope(fields, traits, max_positions, attention.head_dim)
    tied = fields.boolean("tie_word_embeddings")
    decoder = Decoder(
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        vocab_size=fields.required_integer("vocab_size", maximum=_MAX_WIDTH),
        tie_word_embeddings=traits.tied_default if tied is None else tied,
        intermediate_size=_dense_width(fields, traits, hidden_size),
        mlp_bias=_flag(fields, traits.mlp_bias),
        attention=attention,
        moe=None if traits.moe is None else _moe(fields, traits.moe, num_layers),
        rope=rope,
        max_positions=max_positions,
        embedding_on_every_stage=traits.embedding_on_every_stage,
    )
    reason = reason or rope_reason or _wrong_activation(fields, traits)
    if reason is not None:
        return replace(model, unsupported=reason)
    default, longest = _max_model_len(fields, rope)
    return replace(
        model, decoder=decoder, default_max_model_len=default, longest_max_model_len=longest
    )


def _aliased(config: Fields, traits: Traits) -> Fields:
    renamed = {
        usual: config.values[own]
        for usual, own in traits.aliases.items()
        if own in config.values and usual not in config.values
    }
    return Fields({**config.values, **renamed}, path=config.path, faults=config.faults)


def _flag(config: Fields, flag: Flag) -> bool:
    for key in flag.keys:
        value = config.boolean(key)
        if value is not None:
            return value
    return flag.default


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
    window = config.integer("sliding_window", minimum=0, maximum=_MAX_TOKENS)
    if switch is not None and config.boolean(switch):
        return None, f"{switch} true mixes sliding and full layers, which is not covered yet"
    if kinds - {"full_attention"} or (kinds and window and switch is None):
        return None, "layers of different attention kinds are not covered yet"
    if traits.sliding_window_default and "sliding_window" not in config.values:
        config.fault("sliding_window", "is missing; add null for full attention or the window")
    return (None if switch is not None or not window else Tokens(window)), None


def _dense_width(config: Fields, traits: Traits, hidden_size: int) -> int:
    if traits.family == "gpt_bigcode" and not config.has("intermediate_size"):
        return 4 * hidden_size
    return config.required_integer("intermediate_size", maximum=_MAX_WIDTH)


def _moe(config: Fields, traits: MoeTraits, num_layers: int) -> MoeShape:
    width = config.required_integer(traits.width_key, maximum=_MAX_WIDTH)
    shared = 0
    if traits.shared_width_key is not None:
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
        for layer in range(min(num_layers, _MAX_LAYERS))
        if layer >= (first or 0) and (layer + 1) % (step or 1) == 0 and layer not in (dense or ())
    )


def _rope(
    config: Fields, traits: Traits, max_positions: int, head_dim: int
) -> tuple[Rope | None, str | None]:
    if traits.family == "gpt_bigcode":
        return None, None
    ratio = traits.rotary_ratio
    if traits.rotary_dim_key is not None:
        ratio = config.required_integer(traits.rotary_dim_key, maximum=_MAX_WIDTH) / head_dim
    return read_rope(config, max_positions=max_positions, default_ratio=ratio)


def _wrong_activation(config: Fields, traits: Traits) -> str | None:
    activation = config.text("hidden_act")
    if traits.family != "llama" or activation in {None, "silu"}:
        return None
    return f"vLLM refuses to start: {traits.source} supports only silu, not {activation}"


def _max_model_len(config: Fields, rope: Rope | None) -> tuple[Tokens, Tokens]:
    """The longest request by default, and the longest that the operator may ask for.

    Source: vLLM 0.32 ``config/model.py``, ``_get_and_verify_max_len``, and
    ``transformers_utils/model_arch_config_convertor.py``, ``derive_max_model_len_and_key``.
    """
    lengths = [config.integer(key, maximum=_MAX_TOKENS) for key in _POSITION_KEYS]
    explicit = config.integer("model_max_length", maximum=_MAX_TOKENS)
    derived = explicit or min((length for length in lengths if length), default=1)
    if rope is not None:
        derived = int(derived * rope.length_factor)
    default = derived
    if rope is not None and rope.rope_type == "longrope":
        original = config.integer("original_max_position_embeddings", maximum=_MAX_TOKENS)
        default = original or derived
    return Tokens(default), Tokens(max(derived, explicit or 0))
