"""openPangu with grouped attention: dense, or with experts from some layer on."""

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Part
from vllm_capacity.predict.models.assembly import (
    Ends,
    assemble,
    count,
    flag,
    max_positions,
    num_layers,
    refuse_unless,
    self_attention,
    width,
    window,
    with_defaults,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.naming import said_tied
from vllm_capacity.predict.parts import Mlp, SparseMoe, Vectors
from vllm_capacity.predict.rope import read_rope

_LATENT = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")


def build_pangu(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Pangu without latent attention.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``model_executor/models/openpangu.py``, ``OpenPanguDecoderLayer``.
    """
    _check(config)
    config = with_defaults(config, {"max_position_embeddings": 8192})
    hidden = width(config, "hidden_size")
    rope = read_rope(config, max_positions=max_positions(config))
    bias = flag(config, "attention_bias", "bias")
    attention = self_attention(
        config,
        rope,
        qkv_bias=flag(config, "qkv_bias") if "qkv_bias" in config.values else bias,
        o_bias=bias,
        sliding_window=window(config),
    )
    dense = Mlp(
        hidden_size=hidden,
        intermediate_size=width(config, "intermediate_size"),
        bias=flag(config, "mlp_bias"),
    )
    layers, first = num_layers(config), num_layers(config)
    sparse: Part = dense
    if config.has("n_routed_experts"):
        sparse = _experts(config)
        first = config.required_integer("first_k_dense_replace", minimum=0)
    norms = Vectors(name="norms", elements=(4 if flag(config, "sandwich_norm") else 2) * hidden)
    return assemble(
        source="openpangu.py",
        layers=[(attention, sparse if at >= first else dense, norms) for at in range(layers)],
        ends=Ends.read(config, path=path, head_path=head_path, tied=said_tied(config)),
        ropes=(rope,),
        dense_stages=False,
    )


def _check(config: Fields) -> None:
    refuse_unless(
        not all(key in config.values for key in _LATENT),
        "latent attention of openpangu.py is described for PanguUltraMoEForCausalLM only",
    )
    refuse_unless(
        not count(config, "param_sink_number"),
        "param_sink_number (attention sinks with parameters) is not described exactly yet",
    )
    refuse_unless(
        not config.has("interleaved_sliding_window"),
        "openpangu.py with interleaved_sliding_window is not described exactly yet",
    )
    refuse_unless(
        config.boolean("is_causal") is not False,
        "bidirectional attention (is_causal false) keeps no KV cache",
    )


def _experts(config: Fields) -> SparseMoe:
    hidden, inner = width(config, "hidden_size"), width(config, "moe_intermediate_size")
    shared = count(config, "n_shared_experts")
    expert = None
    if shared:
        expert = Mlp(
            hidden_size=hidden,
            intermediate_size=inner * shared,
            name="shared_experts",
            token_parallel=True,
        )
    return SparseMoe(
        hidden_size=hidden,
        num_experts=width(config, "n_routed_experts"),
        experts_per_token=width(config, "num_experts_per_tok"),
        intermediate_size=inner,
        shared=expert,
        correction_bias=flag(config, "router_enable_expert_bias"),
    )


BUILDERS: dict[str, Builder] = {
    "PanguEmbeddedForCausalLM": build_pangu,
    "PanguProMoEV2ForCausalLM": build_pangu,
}
