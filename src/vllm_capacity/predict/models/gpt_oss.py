"""gpt-oss: a window in every even layer, and experts with biases."""

from dataclasses import replace
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model
from vllm_capacity.predict.models.assembly import (
    CHUNKED,
    FULL,
    SLIDING,
    Ends,
    assemble,
    layer_types,
    max_positions,
    num_layers,
    self_attention,
    width,
    window,
    with_defaults,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.parts import SelfAttention, SparseMoe, Vectors
from vllm_capacity.predict.parts.unreplicated import UnreplicatedAttention
from vllm_capacity.predict.rope import Rope, read_rope, rope_values

_FLOAT32 = 4
#: Source: transformers 5 ``gpt_oss/configuration_gpt_oss.py``.
_GPT_OSS: dict[str, Any] = {
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 131072,
    "sliding_window": 128,
}
_GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
}


def build_gpt_oss(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """A window in every even layer, a sink for every head, biases everywhere.

    Source: vLLM 0.32 ``model_executor/models/gpt_oss.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _GPT_OSS)
    hidden, layers = width(config, "hidden_size"), num_layers(config)
    # The class looks at the layer's number only, but transformers checks the list.
    layer_types(config, (FULL,) * layers, known=(FULL, SLIDING, CHUNKED))
    rope = _gpt_oss_rope(config)
    rest = (
        SparseMoe(
            hidden_size=hidden,
            num_experts=width(config, "num_local_experts", "num_experts"),
            experts_per_token=width(config, "num_experts_per_tok"),
            intermediate_size=width(config, "intermediate_size"),
            router_bias=True,
            expert_bias=True,
            router_name="router",
        ),
        Vectors(name="layernorms", elements=2 * hidden),
    )
    like = tuple(
        (_gpt_oss_attention(config, rope, sliding=sliding), *rest) for sliding in (True, False)
    )
    return assemble(
        source="gpt_oss.py",
        layers=[like[index % 2] for index in range(layers)],
        ends=Ends.read(
            config,
            path=path,
            head_path=head_path,
            tied=False,
            everywhere=True,
            embedding_name="embedding",
        ),
        ropes=(rope,),
        max_positions=max_positions(config),
    )


def _gpt_oss_rope(config: Fields) -> Rope:
    """YaRN, whatever the file calls it.

    Source: vLLM 0.32 ``gpt_oss.py``, ``OAIAttention``.
    """
    scaling = rope_values(config)
    if not scaling.values:
        config = with_defaults(config, {"rope_parameters": _GPT_OSS_ROPE})
        scaling = rope_values(config)
    needed = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
    for key in needed:
        if not scaling.has(key):
            scaling.fault(key, "is missing; add the model's value")
    return replace(read_rope(config, max_positions=max_positions(config)), rope_type="yarn")


def _gpt_oss_attention(config: Fields, rope: Rope, *, sliding: bool) -> SelfAttention:
    attention = self_attention(
        config,
        rope,
        kind=UnreplicatedAttention,
        name="attn",
        qkv_bias=True,
        o_bias=True,
        sinks=True,
        sliding_window=window(config) if sliding else None,
    )
    table = replace(rope.table(attention.head_size), element_bytes=_FLOAT32)
    return replace(attention, rope=table)


BUILDERS: dict[str, Builder] = {
    "GptOssForCausalLM": build_gpt_oss,
}
