"""Decoders that a row of traits describes: ``config.json`` → parts."""

from collections.abc import Iterator
from dataclasses import replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Outside, Stages
from vllm_capacity.predict.models.assembly import (
    FULL,
    MAX_LAYERS,
    MAX_TOKENS,
    MAX_WIDTH,
    SLIDING,
    layer_types,
    stack,
)
from vllm_capacity.predict.models.traits import Flag, MoeTraits, Traits
from vllm_capacity.predict.parts import (
    CausalMask,
    LearnedPositions,
    LogitsHead,
    Mlp,
    SelfAttention,
    SparseMoe,
    TokenEmbedding,
    Vectors,
)
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.rope import Rope, read_rope

_FLOAT32 = 4
#: Source: transformers 5 ``qwen2/configuration_qwen2.py``, ``max_window_layers``.
_MAX_WINDOW_LAYERS = 28
#: Keys by which vLLM 0.32 changes memory in ways that no row of traits covers.
#: Source: vLLM 0.32 ``config/model.py``, ``transformers_utils/model_arch_config_convertor.py``.
_UNCOVERED_KEYS = (
    *("text_config", "vision_config", "audio_config", "thinker_config", "per_layer_config"),
    *("dual_chunk_attention_config", "attention_chunk_size", "rswa_window", "kv_lora_rank"),
    *("block_configs", "target_layer_count", "compression_config", "index_topk"),
    *("num_kv_shared_layers", "head_dtype"),
)


def build_decoder(
    config: Fields, traits: Traits, *, path: str = "model", head_path: str = ""
) -> Model:
    """The decoder of one text model.

    Args:
        config: the text model's configuration.
        traits: what its class builds.
        path: vLLM's module path of the decoder.
        head_path: the same of what the logits head stands in.

    Raises:
        Refusal: it is not described exactly.
    """
    path = traits.decoder_path if path == "model" else path
    fields = _aliased(config, traits)
    _check_covered(fields, traits)
    hidden_size = fields.required_integer("hidden_size", maximum=MAX_WIDTH)
    num_layers = fields.required_integer("num_hidden_layers", maximum=MAX_LAYERS)
    max_positions = _max_positions(fields, traits)
    attention, rope = _attention(fields, traits, hidden_size, max_positions)
    tied = _tied(fields, traits)
    return Model(
        source=traits.source,
        hidden_size=hidden_size,
        vocab_size=fields.required_integer("vocab_size", maximum=MAX_WIDTH),
        layers=_layers(fields, traits, hidden_size, num_layers, attention, path=path),
        outside=tuple(
            _outside(fields, traits, path=path, head_path=head_path, tied=tied, rope=rope)
        ),
        length_factor=1.0 if rope is None else rope.length_factor,
        rope_type=None if rope is None else rope.rope_type,
        quantized=traits.quantized,
        oldest_release=None if _is_vllms_own(traits) else (0, 32),
        stages_refusal=_stages_refusal(traits, tied=tied),
        dense_stages=traits.moe is None or traits.moe.dense_stages,
    )


def _is_vllms_own(traits: Traits) -> bool:
    """Classes that vLLM takes from Transformers were classes of its own in older releases."""
    return traits.rotary_table and traits.family != "gpt_bigcode"


def _stages_refusal(traits: Traits, *, tied: bool) -> str | None:
    if tied and not traits.tied_stages:
        return f"vLLM refuses to start: {traits.source} cannot pipeline tied embeddings"
    return None


def _check_covered(config: Fields, traits: Traits) -> None:
    for key in _UNCOVERED_KEYS:
        if config.values.get(key):
            raise Refusal(f"config key {key} changes memory in a way that is not covered yet")
    if config.values.get("is_causal") is False:
        raise Refusal("bidirectional attention (is_causal false) keeps no KV cache")
    activation = config.text("hidden_act")
    if traits.silu_only and activation not in {None, "silu"}:
        raise Refusal(
            f"vLLM refuses to start: {traits.source} supports only silu, not {activation}"
        )
    for key, expected in traits.expects.items():
        wanted = config.values.get(expected) if isinstance(expected, str) else expected
        if config.has(key) and config.values[key] != wanted:
            raise Refusal(f"{traits.source} with this {key} is not described exactly yet")


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


def read_flag(config: Fields, flag: Flag) -> bool:
    """Whether a trait that ``config.json`` may switch is on."""
    if flag.override is not None and flag.override in config.values:
        return bool(config.boolean(flag.override))
    values = [config.boolean(key) for key in flag.keys]
    return any(values) if flag.keys else flag.default


def _outside(
    config: Fields, traits: Traits, *, path: str, head_path: str, tied: bool, rope: Rope | None
) -> Iterator[Outside]:
    vocab = config.required_integer("vocab_size", maximum=MAX_WIDTH)
    hidden = config.required_integer("hidden_size", maximum=MAX_WIDTH)
    whole = traits.complete_stages
    first = Stages.FIRST_AND_LAST if tied else Stages.FIRST
    embedding = TokenEmbedding(vocab_size=vocab, hidden_size=hidden)
    yield Outside(part=embedding, stages=Stages.EVERY if whole else first, path=path)
    if traits.embedding_scale:
        yield Outside(part=Vectors(name="normalizer", elements=1), stages=Stages.EVERY, path=path)
    if traits.learned_positions is not None:
        positions = _max_positions(config, traits)
        table = LearnedPositions(rows=positions + traits.learned_positions, hidden_size=hidden)
        yield Outside(part=table, stages=Stages.EVERY if whole else first, path=path)
        if traits.family == "gpt_bigcode":
            yield Outside(part=CausalMask(rows=positions), stages=Stages.EVERY, path=path)
    last = Stages.EVERY if whole else Stages.LAST
    norm = Vectors(name="norm", elements=traits.final_norms * hidden)
    yield Outside(part=norm, stages=last, path=path)
    head = LogitsHead(vocab_size=vocab, hidden_size=hidden, tied=tied, bias=traits.lm_head_bias)
    yield Outside(part=head, stages=last, path=head_path)
    if rope is not None and not traits.rotary_table:
        # Source: transformers 5 modeling_*.py, inv_freq and original_inv_freq.
        head_size = _head_dim(config, traits, hidden)
        elements = 2 * (rope.rotary_elements(head_size) // 2)
        frequencies = Vectors(name="rotary_emb.inv_freq", elements=elements, element_bytes=_FLOAT32)
        yield Outside(part=frequencies, stages=Stages.EVERY, path=path)


def _layers(
    config: Fields,
    traits: Traits,
    hidden_size: int,
    num_layers: int,
    attention: SelfAttention,
    *,
    path: str,
) -> tuple[Layer, ...]:
    norms = Vectors(
        name="layernorms", elements=traits.norms * hidden_size + traits.activation_elements
    )
    sparse, moe = frozenset[int](), None
    if traits.moe is not None:
        moe = _moe(config, traits.moe, hidden_size)
        sparse = _sparse_layers(config, traits.moe, num_layers)
    dense = Mlp(
        hidden_size=hidden_size,
        intermediate_size=_dense_width(config, traits, hidden_size),
        gated=traits.gated_mlp,
        bias=read_flag(config, traits.mlp_bias),
        divided=traits.family != "gpt_bigcode",
        fused=traits.fused_gate_up,
    )
    windows = _windows(config, traits, num_layers)
    like = {size: replace(attention, sliding_window=size) for size in set(windows)}
    parts = (
        (like[size], dense if moe is None or index not in sparse else moe, norms)
        for index, size in enumerate(windows)
    )
    return stack(path, parts, layers_name=traits.layers_name)


def _attention(
    config: Fields, traits: Traits, hidden_size: int, max_positions: int
) -> tuple[SelfAttention, Rope | None]:
    num_heads = config.required_integer("num_attention_heads", maximum=MAX_WIDTH)
    num_kv_heads = _num_kv_heads(config, traits, num_heads)
    if num_heads % num_kv_heads:
        config.fault("num_key_value_heads", f"must divide num_attention_heads ({num_heads})")
    head_size = _head_dim(config, traits, hidden_size)
    rope = _rope(config, traits, max_positions, head_size)
    if traits.family == "gpt_bigcode" and num_kv_heads != 1:
        raise Refusal("GPTBigCode without multi_query is not covered")
    attention = SelfAttention(
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        qkv_bias=read_flag(config, traits.qkv_bias),
        o_bias=read_flag(config, traits.o_bias),
        qk_norm=traits.qk_norm if read_flag(config, traits.qk_norm_flag) else "none",
        fused=traits.fused_qkv,
        name=traits.attention_name,
        rope=None if rope is None or not traits.rotary_table else rope.table(head_size),
    )
    return attention, rope


def _num_kv_heads(config: Fields, traits: Traits, num_heads: int) -> int:
    if traits.family == "gpt_bigcode":
        return num_heads if config.boolean("multi_query") is False else 1
    if config.has("num_key_value_heads"):
        return config.required_integer("num_key_value_heads", maximum=MAX_WIDTH)
    # An explicit null means "as many as heads" in every config class; an absent key means the
    # class's own default, which is a number of some other model.
    if not (traits.kv_heads_default or "num_key_value_heads" in config.values):
        config.fault("num_key_value_heads", "is missing; add the model's value")
    return num_heads


def _head_dim(config: Fields, traits: Traits, hidden_size: int) -> int:
    head_dim = None
    if traits.head_dim_from_config:
        head_dim = config.integer("head_dim", maximum=MAX_WIDTH)
        if head_dim is None and "head_dim" not in config.values:
            head_dim = traits.head_dim_default
    quotient = hidden_size // config.required_integer("num_attention_heads", maximum=MAX_WIDTH)
    if head_dim is None and quotient < 1:
        config.fault("num_attention_heads", "is larger than hidden_size")
    return head_dim or max(1, quotient)


def _windows(config: Fields, traits: Traits, num_layers: int) -> tuple[int | None, ...]:
    """The window of every layer.

    Source: vLLM 0.32 ``engine/arg_utils.py``, ``create_engine_config``: a model whose layers
    are all alike takes ``sliding_window`` for each of them.
    """
    window = config.integer("sliding_window", minimum=0, maximum=MAX_TOKENS) or None
    switch = traits.sliding_window_switch
    if switch is not None:
        given = window if "sliding_window" in config.values else traits.switched_window
        window = given if config.boolean(switch) else None
    elif traits.sliding_window_default and "sliding_window" not in config.values:
        config.fault("sliding_window", "is missing; add null for full attention or the window")
    kinds = layer_types(config, (), known=(FULL, SLIDING)) if config.has("layer_types") else ()
    kinds = kinds or _window_pattern(config, traits, num_layers, window)
    if len(set(kinds)) > 1 and not traits.mixed_layers:
        last = config.integer("max_window_layers", minimum=0) or _MAX_WINDOW_LAYERS
        if last != num_layers:
            raise Refusal(
                f"vLLM refuses to start: {traits.source} has no window for some layers only"
            )
    if traits.layer_windows:
        return tuple(window if kind == SLIDING else None for kind in kinds)
    return (None if FULL in kinds else window,) * num_layers


def _window_pattern(
    config: Fields, traits: Traits, num_layers: int, window: int | None
) -> tuple[str, ...]:
    """The kinds of layers that the config class makes up.

    Source: transformers 5 ``qwen2/configuration_qwen2.py`` and
    ``qwen2_moe/configuration_qwen2_moe.py``, ``__post_init__``.
    """
    if window is None:
        return (FULL,) * num_layers
    last = config.integer("max_window_layers", minimum=0, maximum=MAX_LAYERS)
    last = _MAX_WINDOW_LAYERS if last is None else last
    sliding = {
        "all": range(num_layers),
        "last": range(last, num_layers),
        "odd": range(0, min(last, num_layers), 2),
    }[traits.window_pattern]
    return tuple(SLIDING if index in sliding else FULL for index in range(num_layers))


def _dense_width(config: Fields, traits: Traits, hidden_size: int) -> int:
    if traits.default_width_ratio is not None and not config.has("intermediate_size"):
        return traits.default_width_ratio * hidden_size
    return config.required_integer("intermediate_size", maximum=MAX_WIDTH)


def _moe(config: Fields, traits: MoeTraits, hidden_size: int) -> SparseMoe:
    width = config.required_integer(traits.width_key, maximum=MAX_WIDTH)
    gated = traits.shared_width_key is not None
    shared = _shared_width(config, traits, width)
    expert = None
    if shared:
        expert = Mlp(
            hidden_size=hidden_size,
            intermediate_size=shared,
            name="shared_expert" if gated else "shared_experts",
            token_parallel=False,
        )
    return SparseMoe(
        hidden_size=hidden_size,
        num_experts=config.required_integer(traits.experts_key, maximum=MAX_WIDTH),
        experts_per_token=config.required_integer("num_experts_per_tok", maximum=MAX_WIDTH),
        intermediate_size=width,
        shared=expert,
        shared_gate=gated,
        correction_bias=read_flag(config, traits.correction_bias),
        float32_router=traits.float32_router,
        quantized_router=traits.quantized_router,
        name=traits.block,
        fits_tensorrt=read_flag(config, traits.fits_tensorrt),
    )


def _shared_width(config: Fields, traits: MoeTraits, width: int) -> int:
    if traits.shared_width_key is not None:
        if traits.shared_required and not config.values.get(traits.shared_width_key):
            config.fault(traits.shared_width_key, "is missing or 0; add the model's value")
        return config.integer(traits.shared_width_key, minimum=0, maximum=MAX_WIDTH) or 0
    if traits.shared_count_key is not None:
        return width * config.required_integer(
            traits.shared_count_key, minimum=0, maximum=MAX_WIDTH
        )
    return 0


def _sparse_layers(config: Fields, traits: MoeTraits, num_layers: int) -> frozenset[int]:
    first = step = None
    if traits.dense_first_key is not None:
        first = config.required_integer(traits.dense_first_key, minimum=0, maximum=MAX_LAYERS)
    if traits.dense_step_key is not None:
        step = config.integer(traits.dense_step_key, maximum=MAX_LAYERS)
    dense = config.integers(traits.dense_list_key) if traits.dense_list_key else ()
    return frozenset(
        layer
        for layer in range(min(_end_of_sparse(config, traits, num_layers), MAX_LAYERS))
        if layer >= (first or 0) and (layer + 1) % (step or 1) == 0 and layer not in (dense or ())
    )


def _end_of_sparse(config: Fields, traits: MoeTraits, num_layers: int) -> int:
    if traits.dense_last_key is None:
        return num_layers
    last = config.integer(traits.dense_last_key, minimum=-1, maximum=MAX_LAYERS)
    return num_layers if last in {None, -1} else min(num_layers, (last or 0) + 1)


def _rope(config: Fields, traits: Traits, max_positions: int, head_dim: int) -> Rope | None:
    if traits.learned_positions is not None:
        return None
    ratio = traits.rotary_ratio
    if traits.rotary_dim_key is not None:
        ratio = config.required_integer(traits.rotary_dim_key, maximum=MAX_WIDTH) / head_dim
        if ratio > 1:
            raise Refusal(f"vLLM refuses to start: {traits.rotary_dim_key} exceeds the head size")
    rope = read_rope(config, max_positions=max_positions, default_ratio=ratio)
    if not traits.partial_rotary and rope.rotary_ratio != ratio:
        raise Refusal(f"{traits.source} with partial_rotary_factor is not described exactly yet")
    return rope
