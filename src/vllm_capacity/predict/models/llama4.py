"""Llama 4: chunks, layers without rotation, experts in some layers."""

from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model
from vllm_capacity.predict.models.assembly import (
    MAX_LAYERS,
    MAX_TOKENS,
    Ends,
    assemble,
    max_positions,
    num_layers,
    per_layer,
    self_attention,
    width,
    with_defaults,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.parts import Mlp, SparseMoe, Vectors
from vllm_capacity.predict.rope import read_rope

#: Source: transformers 5 ``llama4/configuration_llama4.py``, ``Llama4TextConfig``.
_LLAMA4: dict[str, Any] = {
    "vocab_size": 202048,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_local_experts": 16,
    "num_experts_per_tok": 1,
    "max_position_embeddings": 131072,
    "interleave_moe_layer_step": 1,
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 8192,
    "rope_theta": 500000.0,
}


def build_llama4(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Chunks where positions are rotated, whole attention where they are not.

    Source: vLLM 0.32 ``model_executor/models/llama4.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _LLAMA4)
    hidden, layers = width(config, "hidden_size"), num_layers(config)
    rope = read_rope(config, max_positions=max_positions(config))
    chunk = config.integer("attention_chunk_size", minimum=0, maximum=MAX_TOKENS) or None
    attentions = (
        self_attention(config, None),
        self_attention(config, rope, attention_chunk_size=chunk),
    )
    norms = Vectors(name="layernorms", elements=2 * hidden)
    sparse, dense = _llama4_moe(config, hidden), _llama4_mlp(config, hidden)
    step = config.required_integer("interleave_moe_layer_step", maximum=MAX_LAYERS)
    rotated = _llama4_rotated(config, layers)
    return assemble(
        source="llama4.py",
        layers=[
            (
                attentions[rotated[index]],
                dense if (index + 1) % step else sparse,
                norms,
            )
            for index in range(layers)
        ],
        ends=Ends.read(config, path=path, head_path=head_path),
        ropes=(rope,),
        max_positions=max_positions(config),
    )


def _llama4_rotated(config: Fields, layers: int) -> tuple[bool, ...]:
    if config.integers("no_rope_layers"):
        return tuple(
            bool(each) for each in per_layer(config, "no_rope_layers", layers, exactly=True)
        )
    interval = config.required_integer("no_rope_layer_interval", maximum=MAX_LAYERS)
    return tuple((index + 1) % interval != 0 for index in range(layers))


def _llama4_mlp(config: Fields, hidden: int) -> Mlp:
    inner = width(config, "intermediate_size_mlp")
    return Mlp(hidden_size=hidden, intermediate_size=inner, name="feed_forward")


def _llama4_moe(config: Fields, hidden: int) -> SparseMoe:
    inner = width(config, "intermediate_size")
    return SparseMoe(
        hidden_size=hidden,
        num_experts=width(config, "num_local_experts"),
        experts_per_token=width(config, "num_experts_per_tok"),
        intermediate_size=inner,
        shared=Mlp(
            hidden_size=hidden, intermediate_size=inner, name="shared_expert", token_parallel=True
        ),
        name="feed_forward",
        router_name="router",
    )


BUILDERS: dict[str, Builder] = {
    "Llama4ForCausalLM": build_llama4,
}
