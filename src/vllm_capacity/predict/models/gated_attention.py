"""Mixtures of experts whose attention has an output gate: AFMoE and Laguna."""

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Part
from vllm_capacity.predict.models.assembly import (
    DENSE,
    FULL,
    MAX_LAYERS,
    SLIDING,
    SPARSE,
    Ends,
    assemble,
    count,
    every,
    feed_forwards,
    flag,
    layer_types,
    max_positions,
    num_layers,
    per_layer,
    self_attention,
    width,
    window,
    with_defaults,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.sparse_windows import first_dense, shared_moe
from vllm_capacity.predict.models.windows import check_silu
from vllm_capacity.predict.parts import Mlp, SparseMoe, Vectors
from vllm_capacity.predict.parts.projection import Projection
from vllm_capacity.predict.parts.split_mlp import SplitMlp
from vllm_capacity.predict.rope import Rope, read_rope

#: Source: transformers 5 ``afmoe/configuration_afmoe.py``.
_AFMOE: dict[str, Any] = {
    "vocab_size": 200192,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 32,
    "num_dense_layers": 1,
    "num_attention_heads": 16,
    "head_dim": 128,
    "max_position_embeddings": 16384,
    "num_experts": 64,
    "num_experts_per_tok": 6,
    "num_shared_experts": 2,
    "sliding_window": 1024,
}
#: Source: transformers 5 ``laguna/configuration_laguna.py``.
_LAGUNA: dict[str, Any] = {
    "vocab_size": 100352,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 40,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "sliding_window": 512,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 8,
    "num_experts": 256,
    "gating": True,
}
_LAGUNA_ROPE = {
    FULL: {"rope_theta": 500000.0, "partial_rotary_factor": 0.5},
    SLIDING: {"rope_theta": 10000.0},
}


def build_afmoe(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """A gate as wide as the attention's output; only layers with a window rotate.

    Source: vLLM 0.32 ``model_executor/models/afmoe.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _AFMOE)
    check_silu(config, "afmoe.py")
    hidden, layers = width(config, "hidden_size"), num_layers(config)
    period = config.integer("global_attn_every_n_layers", maximum=MAX_LAYERS) or 4
    kinds = layer_types(config, every(period, layers), known=(FULL, SLIDING))
    rope = read_rope(config, max_positions=max_positions(config))
    first = count(config, "num_dense_layers")
    moe = shared_moe(
        config, hidden, "num_shared_experts", correction_bias=True, float32_router=True
    )
    mlp = Mlp(hidden_size=hidden, intermediate_size=width(config, "intermediate_size"))
    norms = Vectors(name="layernorms", elements=4 * hidden)
    like = {kind: tuple(_afmoe_attention(config, kind, rope)) for kind in (FULL, SLIDING)}
    return assemble(
        source="afmoe.py",
        layers=[(*like[kinds[i]], mlp if i < first else moe, norms) for i in range(layers)],
        ends=Ends.read(config, path=path, head_path=head_path, tied=False),
        ropes=(rope,),
        max_positions=max_positions(config),
        dense_stages=False,
    )


def _afmoe_attention(config: Fields, kind: str, rope: Rope) -> Iterator[Part]:
    sliding = kind == SLIDING
    attention = self_attention(
        config,
        rope if sliding else None,
        qk_norm="head",
        sliding_window=window(config) if sliding else None,
    )
    yield attention
    yield Projection(
        name="self_attn.gate_proj",
        input_size=attention.hidden_size,
        output_size=attention.num_heads * attention.head_size,
        split="column",
    )


def build_laguna(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Heads, rotary embeddings and sinks that differ between layers; a gate on the output.

    Source: vLLM 0.32 ``model_executor/models/laguna.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _LAGUNA)
    check_silu(config, "laguna.py")
    hidden, layers = width(config, "hidden_size"), num_layers(config)
    kinds = layer_types(config, (FULL,) * layers, known=(FULL, SLIDING))
    feeds = feed_forwards(config, first_dense(1, layers))
    heads = (width(config, "num_attention_heads"),) * layers
    if config.has("num_attention_heads_per_layer"):
        heads = per_layer(config, "num_attention_heads_per_layer", layers, exactly=True)
    ropes = {kind: _laguna_rope(config, kind) for kind in (FULL, SLIDING)}
    parts = {
        SPARSE: _laguna_moe(config, hidden),
        DENSE: SplitMlp(hidden_size=hidden, intermediate_size=width(config, "intermediate_size")),
    }
    norms = Vectors(name="layernorms", elements=2 * hidden)
    like = {
        (kind, number): tuple(_laguna_attention(config, kind, number, ropes[kind]))
        for kind, number in zip(kinds, heads, strict=True)
    }
    return assemble(
        source="laguna.py",
        layers=[(*like[kinds[i], heads[i]], parts[feeds[i]], norms) for i in range(layers)],
        ends=Ends.read(config, path=path, head_path=head_path),
        ropes=ropes.values(),
        max_positions=max_positions(config),
    )


def _laguna_rope(config: Fields, kind: str) -> Rope:
    """Those of sliding layers may have a key of their own.

    Source: vLLM 0.32 ``laguna.py``, ``LagunaAttention``.
    """
    values: Mapping[str, Any] = {"rope_parameters": _LAGUNA_ROPE, **config.values}
    own = config.values.get("swa_rope_parameters")
    if kind == SLIDING and own is not None:
        values = {**values, "rope_parameters": own}
    reader = Fields(values, path=config.path, faults=config.faults)
    return read_rope(reader, max_positions=max_positions(config), layer_type=kind)


def _laguna_moe(config: Fields, hidden: int) -> SparseMoe:
    inner = count(config, "shared_expert_intermediate_size")
    shared = SplitMlp(
        hidden_size=hidden, intermediate_size=inner, name="shared_expert", token_parallel=False
    )
    return SparseMoe(
        hidden_size=hidden,
        num_experts=width(config, "num_experts"),
        experts_per_token=width(config, "num_experts_per_tok"),
        intermediate_size=width(config, "moe_intermediate_size"),
        shared=shared if inner else None,
        correction_bias=True,
    )


def _laguna_attention(config: Fields, kind: str, heads: int, rope: Rope) -> Iterator[Part]:
    sliding, bias = kind == SLIDING, flag(config, "attention_bias")
    attention = self_attention(
        config,
        rope,
        num_heads=heads,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="head",
        sliding_window=window(config) if sliding else None,
        sinks=sliding and flag(config, "swa_attention_sink_enabled"),
    )
    yield attention
    gating = config.values.get("gating")
    if gating:
        wide = 1 if gating is True or gating == "per-head" else attention.head_size
        yield Projection(
            name="self_attn.g_proj",
            input_size=attention.hidden_size,
            output_size=heads * wide,
            split="column",
        )


BUILDERS: dict[str, Builder] = {
    "AfmoeForCausalLM": build_afmoe,
    "LagunaForCausalLM": build_laguna,
}
