"""Ling and Ring 2.5: linear attention, and latent attention every few layers."""

from dataclasses import replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Part
from vllm_capacity.predict.models.assembly import MAX_LAYERS, MAX_TOKENS, MAX_WIDTH
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.latent_reading import (
    assemble,
    keeps_latent,
    norms,
    read_experts,
    read_latent_attention,
    required,
    with_defaults,
)
from vllm_capacity.predict.parts import Mlp, SparseMoe
from vllm_capacity.predict.parts.linear_attention import GatedLinearAttention
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.rope import Rope, read_rope

_SOURCE = "bailing_moe_linear.py"
#: Source: vLLM 0.32 ``model_executor/models/bailing_moe_linear.py``, ``BailingMoeV25MLAAttention``.
_DEFAULTS = {
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}


def build_bailing_v25(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Ling and Ring 2.5.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``model_executor/models/bailing_moe_linear.py``.
    """
    config = with_defaults(config, _DEFAULTS)
    if not keeps_latent(config):
        raise Refusal("this class without latent attention is not described exactly yet")
    positions = config.required_integer("max_position_embeddings", maximum=MAX_TOKENS)
    rope = read_rope(config, max_positions=positions)
    if rope.rope_type not in {"default", "yarn"}:
        raise Refusal(f"rope type {rope.rope_type!r} of this class is not covered")
    # Latent attention rotates all of its rotary elements, linear attention a share of a head.
    whole = replace(rope, rotary_ratio=1.0)
    table = replace(whole.table(required(config, "qk_rope_head_dim")), interleaved=True)
    attention = read_latent_attention(config, ropes=(table,))
    linear = _linear_attention(config, rope)
    experts, dense, norm = _experts(config), _dense(config), norms(config)
    group = config.integer("layer_group_size", minimum=0, maximum=MAX_LAYERS)
    group = 1 if group is None else group
    first = config.integer("first_k_dense_replace", minimum=0, maximum=MAX_LAYERS) or 0
    kinds: dict[tuple[bool, bool], tuple[Part, ...]] = {}

    def parts_of(layer: int) -> tuple[Part, ...]:
        kind = (group > 0 and (layer + 1) % group != 0, layer >= first)
        if kind not in kinds:
            feed_forward = experts if kind[1] and experts is not None else dense
            kinds[kind] = (linear if kind[0] else attention, feed_forward, norm)
        return kinds[kind]

    return assemble(
        config,
        source=_SOURCE,
        path=path,
        head_path=head_path,
        parts_of=parts_of,
        rope=rope,
    )


def _linear_attention(config: Fields, rope: Rope) -> GatedLinearAttention:
    hidden_size, heads = required(config, "hidden_size"), required(config, "num_attention_heads")
    head_size = config.integer("head_dim", maximum=MAX_WIDTH) or max(1, hidden_size // heads)
    bias, groups = _biased(config), config.integer("group_norm_size", maximum=MAX_WIDTH)
    return GatedLinearAttention(
        hidden_size=hidden_size,
        num_heads=heads,
        head_size=head_size,
        norm_groups=groups or 1,
        rope=rope.table(head_size),
        qkv_bias=bias or bool(config.boolean("use_qkv_bias")),
        output_bias=bias,
        qk_norm=bool(config.boolean("use_qk_norm")),
    )


def _biased(config: Fields) -> bool:
    return bool(config.boolean("use_bias"))


def _dense(config: Fields) -> Mlp:
    return Mlp(
        hidden_size=required(config, "hidden_size"),
        intermediate_size=required(config, "intermediate_size"),
        bias=_biased(config),
    )


def _experts(config: Fields) -> SparseMoe | None:
    if required(config, "num_experts") == 1:
        return None
    count = config.required_integer("num_shared_experts", minimum=0, maximum=MAX_WIDTH)
    own = config.integer("moe_shared_expert_intermediate_size", maximum=MAX_WIDTH)
    experts = read_experts(
        config,
        correction_bias=bool(config.boolean("moe_router_enable_expert_bias")),
        float32_router=config.text("router_dtype") in {None, "fp32"},
        shared_width=count * (own or required(config, "moe_intermediate_size")),
        experts_key="num_experts",
        token_parallel=False,
    )
    if experts.shared is not None and _biased(config):
        raise Refusal("vLLM refuses to start: shared experts of this class cannot have use_bias")
    return experts


BUILDERS: dict[str, Builder] = {"BailingMoeV2_5ForCausalLM": build_bailing_v25}
