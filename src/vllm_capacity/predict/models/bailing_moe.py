"""Ling and Ring (Bailing), Sarvam and Param-2: grouped attention and experts from some layer on."""

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
from vllm_capacity.predict.parts import Mlp, SelfAttention, SparseMoe, Vectors
from vllm_capacity.predict.parts.unreplicated import UnreplicatedAttention
from vllm_capacity.predict.rope import Rope, read_rope


def build_bailing(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Bailing of the first and second generation, and Sarvam's mixture of experts.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``model_executor/models/bailing_moe.py``.
    """
    hidden = width(config, "hidden_size")
    rope = _bailing_rope(config)
    bias = flag(config, "use_bias")
    attention = self_attention(
        config,
        rope,
        qkv_bias=flag(config, "use_bias", "use_qkv_bias"),
        o_bias=bias,
        extra_elements=_bailing_norms(config),
        sliding_window=window(config),
        scaled=False,
        name="attention",
        qkv_name="query_key_value",
        qkv_shards=("query_key_value",),
        o_name="dense",
    )
    dense = Mlp(hidden_size=hidden, intermediate_size=width(config, "intermediate_size"), bias=bias)
    first = config.required_integer("first_k_dense_replace", minimum=0)
    return assemble(
        source="bailing_moe.py",
        layers=_from(first, config, attention, dense, _bailing_experts(config, bias=bias)),
        ends=Ends.read(config, path=path, head_path=head_path, embedding_name="word_embeddings"),
        ropes=(rope,),
    )


def _from(
    first: int, config: Fields, attention: SelfAttention, dense: Mlp, sparse: SparseMoe
) -> list[tuple[Part, ...]]:
    norms = Vectors(name="layernorms", elements=2 * width(config, "hidden_size"))
    return [
        (attention, sparse if layer >= first else dense, norms)
        for layer in range(num_layers(config))
    ]


def _bailing_rope(config: Fields) -> Rope:
    """``rotary_dim`` alone decides where it is set, then ``partial_rotary_factor``."""
    head_size = config.integer("head_dim") or max(
        1, width(config, "hidden_size") // width(config, "num_attention_heads")
    )
    rotary = config.integer("rotary_dim")
    if rotary is not None:
        config = with_ratio(config, rotary / head_size)
    return read_rope(config, max_positions=max_positions(config))


def with_ratio(config: Fields, ratio: float) -> Fields:
    """The configuration with this share of every head rotated."""
    values = dict(config.values)
    for key in ("rope_parameters", "rope_scaling"):
        inner = config.mapping(key)
        if inner is not None:
            values[key] = {**inner.values, "partial_rotary_factor": ratio}
    values["partial_rotary_factor"] = ratio
    return Fields(values, path=config.path, faults=config.faults)


def _bailing_norms(config: Fields) -> int:
    if not flag(config, "use_qk_norm"):
        return 0
    head_size = config.integer("head_dim") or max(
        1, width(config, "hidden_size") // width(config, "num_attention_heads")
    )
    return head_size * (2 if flag(config, "use_rmsnorm") else 4)


def _bailing_experts(config: Fields, *, bias: bool) -> SparseMoe:
    hidden, inner = width(config, "hidden_size"), width(config, "moe_intermediate_size")
    shared = config.required_integer("num_shared_experts", minimum=0)
    if config.has("moe_shared_expert_intermediate_size"):
        shared *= width(config, "moe_shared_expert_intermediate_size")
    else:
        shared *= inner
    return SparseMoe(
        hidden_size=hidden,
        num_experts=width(config, "num_experts"),
        experts_per_token=width(config, "num_experts_per_tok"),
        intermediate_size=inner,
        shared=_shared(hidden, shared, bias=bias),
        correction_bias=flag(config, "moe_router_enable_expert_bias"),
        float32_router=config.text("router_dtype") == "fp32",
    )


def _shared(hidden: int, inner: int, *, bias: bool = False) -> Mlp | None:
    if not inner:
        return None
    return Mlp(
        hidden_size=hidden,
        intermediate_size=inner,
        bias=bias,
        name="shared_experts",
        token_parallel=False,
    )


def build_param2(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Param-2: as Bailing, but KV heads are not replicated and the table has heads of its own.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``model_executor/models/param2moe.py``.
    """
    hidden = width(config, "hidden_size")
    refuse_unless(
        config.number("partial_rotary_factor", minimum=0.0, maximum=1.0) in {None, 1.0},
        "param2moe.py with this partial_rotary_factor is not described exactly",
    )
    rope = read_rope(config, max_positions=max_positions(config))
    attention = self_attention(
        config,
        rope,
        kind=UnreplicatedAttention,
        sliding_window=window(config),
        qkv_bias=flag(config, "use_qkv_bias"),
        o_bias=flag(config, "use_bias"),
        qk_norm="head" if flag(config, "use_qk_norm") else "none",
    )
    config = with_defaults(
        config,
        {
            "first_k_dense_replace": 1,
            "num_shared_experts": 1,
            "moe_router_enable_expert_bias": True,
        },
    )
    inner = width(config, "moe_intermediate_size")
    shared = count(config, "num_shared_experts")
    width_of_shared = config.integer("moe_shared_expert_intermediate_size") or inner * shared
    sparse = SparseMoe(
        hidden_size=hidden,
        num_experts=width(config, "num_experts"),
        experts_per_token=width(config, "num_experts_per_tok"),
        intermediate_size=inner,
        shared=_shared(hidden, width_of_shared if shared else 0),
        correction_bias=flag(config, "moe_router_enable_expert_bias"),
        float32_router=True,
    )
    dense = Mlp(hidden_size=hidden, intermediate_size=width(config, "intermediate_size"))
    return assemble(
        source="param2moe.py",
        layers=_from(count(config, "first_k_dense_replace"), config, attention, dense, sparse),
        ends=Ends.read(config, path=path, head_path=head_path),
        ropes=(rope,),
        dense_stages=False,
    )


BUILDERS: dict[str, Builder] = {
    "BailingMoeForCausalLM": build_bailing,
    "BailingMoeV2ForCausalLM": build_bailing,
    "SarvamMoEForCausalLM": build_bailing,
    "Param2MoEForCausalLM": build_param2,
}
