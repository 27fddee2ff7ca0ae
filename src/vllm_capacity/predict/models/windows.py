"""Dense decoders some of whose layers have a window: Cohere 2, EXAONE 4, Granite, RNJ-1."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Part
from vllm_capacity.predict.models.assembly import (
    FULL,
    MAX_LAYERS,
    MAX_TOKENS,
    SLIDING,
    Ends,
    assemble,
    count,
    every,
    flag,
    layer_types,
    max_positions,
    num_layers,
    refuse_unless,
    self_attention,
    width,
    window,
    with_defaults,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.parts import Mlp, SparseMoe, Vectors
from vllm_capacity.predict.rope import Rope, read_rope

#: Source: transformers 5 ``cohere2/configuration_cohere2.py``.
_COHERE2: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
}
#: Source: transformers 5 ``exaone4/configuration_exaone4.py``.
_EXAONE4: dict[str, Any] = {
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
}
#: Source: transformers 5 ``granite_swa/configuration_granite_swa.py``.
_GRANITE_SWA: dict[str, Any] = {
    "vocab_size": 100352,
    "hidden_size": 2560,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "sliding_window": 128,
}
#: Source: transformers 5 ``granitemoeshared/configuration_granitemoeshared.py``.
_GRANITE_MOE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
#: Source: transformers 5 ``granitemoe_swa/configuration_granitemoe_swa.py``.
_GRANITE_MOE_SWA = {**_GRANITE_MOE, "sliding_window": 128}


def build_cohere2(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """One norm a layer, and windows that are one token wider than the file says.

    Source: vLLM 0.32 ``model_executor/models/commandr.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _COHERE2)
    period = config.integer("sliding_window_pattern", maximum=MAX_LAYERS) or 4
    kinds = layer_types(config, every(period, num_layers(config)), known=(FULL, SLIDING))
    rope = read_rope(config, max_positions=cohere_positions(config))
    hidden = width(config, "hidden_size")
    rest = (
        Mlp(hidden_size=hidden, intermediate_size=width(config, "intermediate_size")),
        Vectors(name="input_layernorm", elements=hidden),
    )
    norm = "sharded" if flag(config, "use_qk_norm") else "none"
    like = {
        kind: (
            self_attention(
                config, rope, qk_norm=norm, sliding_window=cohere_window(config, kind, kinds)
            ),
            *rest,
        )
        for kind in (FULL, SLIDING)
    }
    return assemble(
        source="commandr.py",
        layers=[like[kind] for kind in kinds],
        ends=Ends.read(config, path=path, head_path=head_path, tied=True, everywhere=True),
        ropes=(rope,),
        max_positions=max_positions(config),
    )


def cohere_positions(config: Fields) -> int:
    """Rows of the rotary table: ``model_max_length`` where the file has it."""
    length = config.integer("model_max_length", minimum=0, maximum=MAX_TOKENS)
    return length or max_positions(config)


def cohere_window(config: Fields, kind: str, kinds: tuple[str, ...]) -> int | None:
    """The window of one kind of layer.

    Source: vLLM 0.32 ``commandr.py``, ``CohereAttention``.
    """
    size = window(config)
    refuse_unless(
        SLIDING not in kinds or size is not None,
        "vLLM refuses to start: sliding layers without a sliding_window",
    )
    return None if kind == FULL or size is None else size + 1


def exaone_kinds(config: Fields) -> tuple[str, ...]:
    """The kind of every layer of EXAONE 4.

    Source: transformers 5 ``exaone4/configuration_exaone4.py``, ``__post_init__``: without
    ``layer_types`` there must be a window and a number as its pattern.
    """
    if config.has("layer_types"):
        return layer_types(config, (), known=(FULL, SLIDING))
    period = config.values.get("sliding_window_pattern")
    refuse_unless(
        isinstance(period, int) and period > 0 and config.has("sliding_window"),
        "vLLM refuses to start: without layer_types, sliding_window and sliding_window_pattern "
        "must be numbers",
    )
    period = config.required_integer("sliding_window_pattern", maximum=MAX_LAYERS)
    return every(period, num_layers(config))


def build_exaone4(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Norms after attention and MLP; full layers do not rotate where others have a window.

    Source: vLLM 0.32 ``model_executor/models/exaone4.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _EXAONE4)
    check_silu(config, "exaone4.py")
    kinds = exaone_kinds(config)
    rope = read_rope(config, max_positions=max_positions(config))
    hidden = width(config, "hidden_size")
    mlp = Mlp(
        hidden_size=hidden,
        intermediate_size=width(config, "intermediate_size"),
        bias=flag(config, "mlp_bias"),
    )
    norms = Vectors(name="layernorms", elements=2 * hidden)
    bias = flag(config, "attention_bias", "bias")
    like = {
        kind: (
            self_attention(
                config,
                rope,
                qkv_bias=bias,
                o_bias=bias,
                qk_norm="head",
                sliding_window=None if kind == FULL else window(config),
            ),
            mlp,
            norms,
        )
        for kind in (FULL, SLIDING)
    }
    return assemble(
        source="exaone4.py",
        layers=[like[kind] for kind in kinds],
        ends=Ends.read(config, path=path, head_path=head_path),
        ropes=(rope,),
        max_positions=max_positions(config),
    )


def check_silu(config: Fields, source: str) -> None:
    """Refuse an activation that the class does not know.

    Raises:
        Refusal: ``hidden_act`` is not silu.
    """
    activation = config.text("hidden_act")
    refuse_unless(
        activation in {None, "silu"},
        f"vLLM refuses to start: {source} supports only silu, not {activation}",
    )


def build_granite_swa(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Granite with windows, attention sinks, and a rotary base for every layer.

    Source: vLLM 0.32 ``model_executor/models/granite.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _GRANITE_SWA)
    check_silu(config, "granite.py")
    hidden = width(config, "hidden_size")
    bias = flag(config, "attention_bias", "bias")
    rest = (
        Mlp(
            hidden_size=hidden,
            intermediate_size=width(config, "intermediate_size"),
            bias=flag(config, "mlp_bias"),
        ),
        Vectors(name="layernorms", elements=2 * hidden),
    )
    rope = read_rope(config, max_positions=max_positions(config))
    return assemble(
        source="granite.py",
        layers=[
            (self_attention(config, own, qkv_bias=bias, o_bias=bias, **more), *rest)
            for own, more in _granite_layers(config, rope, _granite_kinds(config))
        ],
        ends=Ends.read(config, path=path, head_path=head_path),
        ropes=(rope,),
        max_positions=max_positions(config),
    )


def _granite_kinds(config: Fields) -> tuple[str, ...]:
    """Source: transformers 5 ``granite_swa/configuration_granite_swa.py``."""
    default = tuple(SLIDING if index % 4 else FULL for index in range(num_layers(config)))
    return layer_types(config, default, known=(FULL, SLIDING))


def _granite_layers(
    config: Fields, rope: Rope, kinds: tuple[str, ...] | None
) -> Iterator[tuple[Rope | None, dict[str, Any]]]:
    """Rotary embedding, window and sinks of every layer; a base of 0 means no rotation.

    Source: vLLM 0.32 ``granite.py``, ``granite_layer_attn_params``.
    """
    layers = num_layers(config)
    bases = _bases(config, layers)
    sinks = config.boolean("attention_sinks")
    for index in range(layers):
        base = rope.base if bases is None else bases[index]
        sliding = kinds is not None and kinds[index] == SLIDING
        more = {
            "sinks": kinds is not None if sinks is None else sinks,
            "sliding_window": window(config) if sliding else None,
        }
        yield (replace(rope, base=base) if base else None), more


def _bases(config: Fields, layers: int) -> tuple[float, ...] | None:
    values = config.values.get("layer_rope_theta")
    if values is None:
        return None
    numbers = isinstance(values, list | tuple) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )
    if not numbers or len(values) < layers:
        config.fault("layer_rope_theta", f"must list {layers} numbers, as num_hidden_layers")
        return None
    return tuple(float(value) for value in values)


def build_granite_moe(
    config: Fields,
    defaults: Mapping[str, Any] = _GRANITE_MOE,
    *,
    path: str = "model",
    head_path: str = "",
) -> Model:
    """Granite's experts with a shared MLP beside them, where there is one.

    Source: vLLM 0.32 ``model_executor/models/granitemoeshared.py`` and ``granitemoe.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, defaults)
    hidden = width(config, "hidden_size")
    heads = width(config, "num_attention_heads")
    rope = read_rope(config, max_positions=max_positions(config))
    with_windows = "sliding_window" in defaults or config.has("layer_types")
    kinds = _granite_kinds(config) if with_windows else None
    rest = tuple(_granite_moe_parts(config, hidden))
    size = max(1, hidden // heads)
    return assemble(
        source="granitemoeshared.py",
        layers=[
            (self_attention(config, own, head_size=size, **more), *rest)
            for own, more in _granite_layers(config, rope, kinds)
        ],
        ends=Ends.read(config, path=path, head_path=head_path, everywhere=True),
        ropes=(rope,),
        max_positions=max_positions(config),
    )


def _granite_moe_parts(config: Fields, hidden: int) -> Iterator[Part]:
    yield SparseMoe(
        hidden_size=hidden,
        num_experts=width(config, "num_local_experts"),
        experts_per_token=width(config, "num_experts_per_tok"),
        intermediate_size=width(config, "intermediate_size"),
        name="block_sparse_moe",
    )
    shared = count(config, "shared_intermediate_size")
    if shared:
        check_silu(config, "granitemoeshared.py")
        yield Mlp(
            hidden_size=hidden,
            intermediate_size=shared,
            name="shared_mlp",
            up_name="input_linear",
            down_name="output_linear",
            up_shards=("input_linear",),
        )
    yield Vectors(name="layernorms", elements=2 * hidden)


def _build_granite_moe_swa(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    return build_granite_moe(config, _GRANITE_MOE_SWA, path=path, head_path=head_path)


BUILDERS: dict[str, Builder] = {
    "Cohere2ForCausalLM": build_cohere2,
    "Exaone4ForCausalLM": build_exaone4,
    "GraniteSWAForCausalLM": build_granite_swa,
    "GraniteMoeSWAForCausalLM": _build_granite_moe_swa,
}
