"""Llamas with other biases or norms: TeleChat2, HyperCLOVA X."""

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model
from vllm_capacity.predict.models.assembly import (
    Ends,
    assemble,
    flag,
    max_positions,
    refuse_unless,
    self_attention,
    width,
    window,
    with_defaults,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.naming import alike, renamed, said_tied
from vllm_capacity.predict.parts import Mlp, Vectors
from vllm_capacity.predict.rope import read_rope


def build_telechat2(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """TeleChat2: a Llama whose output and down projection alone have biases.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``model_executor/models/telechat2.py``.
    """
    names = {
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "ffn_hidden_size",
    }
    config = with_defaults(renamed(config, names), {"max_position_embeddings": 8192})
    hidden = width(config, "hidden_size")
    rope = read_rope(config, max_positions=max_positions(config))
    shards = ("query", "key_value", "key_value")
    attention = self_attention(
        config, rope, o_bias=True, qkv_shards=shards, sliding_window=window(config)
    )
    mlp = Mlp(hidden_size=hidden, intermediate_size=width(config, "intermediate_size"))
    vectors = Vectors(name="layernorms_and_down_bias", elements=3 * hidden)
    return assemble(
        source="telechat2.py",
        layers=alike(config, (attention, mlp, vectors)),
        ends=Ends.read(config, path=path, head_path=head_path, tied=said_tied(config)),
        ropes=(rope,),
    )


def build_hyperclovax(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """HyperCLOVA X: a Llama with norms after attention and MLP too.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``model_executor/models/hyperclovax.py``; transformers 5
    ``configuration_hyperclovax.py``.
    """
    refuse_unless(
        not config.has("dual_chunk_attention_config"),
        "dual_chunk_attention_config is not described exactly here",
    )
    refuse_unless(
        config.text("hidden_act") in {None, "silu"},
        "vLLM refuses to start: hyperclovax.py supports only silu as hidden_act",
    )
    hidden = width(config, "hidden_size")
    rope = read_rope(config, max_positions=max_positions(config))
    bias = flag(config, "attention_bias")
    attention = self_attention(
        config, rope, qkv_bias=bias, o_bias=bias, sliding_window=window(config)
    )
    mlp = Mlp(
        hidden_size=hidden,
        intermediate_size=width(config, "intermediate_size"),
        bias=flag(config, "mlp_bias"),
    )
    norms = 2 if config.boolean("use_post_norm") is False else 4
    return assemble(
        source="hyperclovax.py",
        layers=alike(config, (attention, mlp, Vectors(name="norms", elements=norms * hidden))),
        ends=Ends.read(config, path=path, head_path=head_path),
        ropes=(rope,),
    )


BUILDERS: dict[str, Builder] = {
    "HyperCLOVAXForCausalLM": build_hyperclovax,
    "TeleChat2ForCausalLM": build_telechat2,
}
