"""Further text models with multi-head latent attention, by the class that vLLM registers."""

from dataclasses import replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model
from vllm_capacity.predict.models.assembly import MAX_LAYERS, MAX_TOKENS, MAX_WIDTH
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.latent_reading import (
    assemble,
    check_silu,
    keeps_latent,
    latent_table,
    norms,
    read_experts,
    read_latent_attention,
    read_latent_rope,
    required,
    shared_experts_width,
    with_defaults,
)
from vllm_capacity.predict.parts import Mlp
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.rope import read_rope

#: Source: transformers 5 ``glm4_moe_lite/configuration_glm4_moe_lite.py``.
_GLM4_MOE_LITE = {
    "kv_lora_rank": 512,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
}


def _dense(config: Fields, *, bias: bool = False) -> Mlp:
    return Mlp(
        hidden_size=required(config, "hidden_size"),
        intermediate_size=required(config, "intermediate_size"),
        bias=bias,
    )


def build_glm4_moe_lite(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """GLM-4.7-Flash: DeepSeek's attention, GLM-4.5's experts.

    Source: vLLM 0.32 ``model_executor/models/glm4_moe_lite.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    source = "glm4_moe_lite.py"
    config = with_defaults(config, _GLM4_MOE_LITE)
    check_silu(config, source)
    if config.has("head_dim") and config.values["head_dim"] != config.values["qk_rope_head_dim"]:
        raise Refusal("head_dim of this class stands for qk_rope_head_dim; the two differ")
    if config.has("index_topk"):
        raise Refusal("config key index_topk of this class is not covered yet")
    rope = read_latent_rope(config)
    tables = (latent_table(rope, required(config, "qk_rope_head_dim")),)
    attention = read_latent_attention(config, ropes=tables, absorbed=keeps_latent(config))
    experts = read_experts(
        config,
        correction_bias=True,
        float32_router=True,
        shared_width=shared_experts_width(config),
        token_parallel=False,
    )
    first = config.required_integer("first_k_dense_replace", minimum=0, maximum=MAX_LAYERS)
    step = config.integer("moe_layer_freq", maximum=MAX_LAYERS) or 1
    dense = _dense(config)
    norm = norms(config)
    sparse_parts, dense_parts = (attention, experts, norm), (attention, dense, norm)
    return assemble(
        config,
        source=source,
        path=path,
        head_path=head_path,
        parts_of=lambda layer: (
            sparse_parts if layer >= first and layer % step == 0 else dense_parts
        ),
        rope=rope,
        dense_stages=False,
    )


def build_pangu_ultra(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Pangu Ultra: latent attention, sandwich norms, experts that may have a bias.

    Source: vLLM 0.32 ``model_executor/models/openpangu.py``, ``PanguUltraMoEForCausalLM``.

    Raises:
        Refusal: it is not described exactly.
    """
    source = "openpangu.py"
    check_silu(config, source)
    if not keeps_latent(config):
        raise Refusal("this class without latent attention is not described exactly yet")
    positions = config.required_integer("max_position_embeddings", maximum=MAX_TOKENS)
    given = read_rope(config, max_positions=positions)
    rope = replace(given, rope_type="deepseek_yarn", factor=1.0, original_max_positions=positions)
    tables = (latent_table(rope, required(config, "qk_rope_head_dim")),)
    attention = read_latent_attention(config, ropes=tables)
    experts = read_experts(
        config,
        correction_bias=bool(config.boolean("router_enable_expert_bias")),
        shared_width=shared_experts_width(config),
    )
    dense = _dense(config, bias=bool(config.boolean("mlp_bias")))
    norm = norms(config, 4 if config.boolean("sandwich_norm") else 2)
    first = config.required_integer("first_k_dense_replace", minimum=0, maximum=MAX_LAYERS)
    sparse_parts, dense_parts = (attention, experts, norm), (attention, dense, norm)
    return assemble(
        config,
        source=source,
        path=path,
        head_path=head_path,
        parts_of=lambda layer: sparse_parts if layer >= first else dense_parts,
        rope=given,
        tied=bool(config.boolean("tie_word_embeddings")),
        dense_stages=False,
    )


def build_sarvam(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Sarvam's model with latent attention.

    Source: vLLM 0.32 ``model_executor/models/sarvam.py``, ``SarvamMLAForCausalLM``.

    Raises:
        Refusal: it is not described exactly.
    """
    source = "sarvam.py"
    positions = config.required_integer("max_position_embeddings", maximum=MAX_TOKENS)
    rope = read_rope(config, max_positions=positions)
    head_size = required(config, "qk_rope_head_dim")
    if rope.rope_type not in {"default", "deepseek_yarn"}:
        raise Refusal(f"rope type {rope.rope_type!r} of this class is not covered")
    attention = read_latent_attention(config, ropes=(latent_table(rope, head_size),), fused_a=False)
    bias = config.boolean("moe_router_enable_expert_bias")
    experts = read_experts(
        config,
        correction_bias=True if bias is None else bias,
        shared_width=_sarvam_shared_width(config),
        experts_key="num_experts",
        token_parallel=False,
    )
    dense = _dense(config)
    first = config.integer("first_k_dense_replace", minimum=0, maximum=MAX_LAYERS)
    first = 1 if first is None else first
    step = config.integer("moe_layer_freq", maximum=MAX_LAYERS) or 1
    norm = norms(config)
    sparse_parts, dense_parts = (attention, experts, norm), (attention, dense, norm)
    return assemble(
        config,
        source=source,
        path=path,
        head_path=head_path,
        parts_of=lambda layer: (
            sparse_parts if layer >= first and (layer - first) % step == 0 else dense_parts
        ),
        rope=rope,
        tied=bool(config.boolean("tie_word_embeddings")),
        dense_stages=False,
    )


def _sarvam_shared_width(config: Fields) -> int:
    count = config.integer("num_shared_experts", minimum=0, maximum=MAX_WIDTH)
    own = config.integer("moe_shared_expert_intermediate_size", maximum=MAX_WIDTH)
    return (1 if count is None else count) * (own or required(config, "moe_intermediate_size"))


def build_minicpm3(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """MiniCPM3: latent projections, and a cache of every head.

    Source: vLLM 0.32 ``model_executor/models/minicpm3.py`` and ``minicpm.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    if config.values.get("num_experts"):
        raise Refusal("minicpm3.py with num_experts is not described exactly yet")
    positions = config.required_integer("max_position_embeddings", maximum=MAX_TOKENS)
    rope = read_rope(config, max_positions=positions)
    required(config, "q_lora_rank")
    table = rope.table(required(config, "qk_rope_head_dim"))
    attention = read_latent_attention(config, ropes=(table,), absorbed=False)
    tied = config.boolean("tie_word_embeddings")
    if tied is None:
        config.fault("tie_word_embeddings", "is missing; add the model's value")
    dense = _dense(config)
    parts = (attention, dense, norms(config))
    return assemble(
        config,
        source="minicpm3.py",
        path=path,
        head_path=head_path,
        parts_of=lambda _: parts,
        rope=rope,
        tied=bool(tied),
        complete_stages=True,
        oldest_release=None,
    )


_LONGCAT_ALIASES = {
    "intermediate_size": "ffn_hidden_size",
    "moe_intermediate_size": "expert_ffn_hidden_size",
    "num_experts_per_tok": "moe_topk",
}


def build_longcat(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """LongCat-Flash: two attentions, two dense layers and one mixture of experts in a layer.

    Source: vLLM 0.32 ``model_executor/models/longcat_flash.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    source = "longcat_flash.py"
    own = {name: config.values[key] for name, key in _LONGCAT_ALIASES.items() if config.has(key)}
    config = Fields({**config.values, **own}, path=config.path, faults=config.faults)
    check_silu(config, source)
    rope = read_latent_rope(config)
    plain = set(config.texts("disable_quant_module") or ())
    attention = read_latent_attention(
        config,
        ropes=(latent_table(rope, required(config, "qk_rope_head_dim")),),
        quantizable="self_attn" not in plain,
    )
    dense = replace(_dense(config), quantizable="mlps" not in plain)
    identity = config.required_integer("zero_expert_num", minimum=0, maximum=MAX_WIDTH)
    experts = replace(
        read_experts(config, correction_bias=True, float32_router=True, shared_width=None),
        identity_experts=identity,
        router_name="router.classifier",
    )
    parts = (
        replace(attention, name="self_attn.0"),
        replace(attention, name="self_attn.1"),
        replace(dense, name="mlps.0"),
        replace(dense, name="mlps.1"),
        experts,
        norms(config, 4),
    )
    return assemble(
        config,
        source=source,
        path=path,
        head_path=head_path,
        parts_of=lambda _: parts,
        rope=rope,
        layers_key="num_layers",
    )


BUILDERS: dict[str, Builder] = {
    "Glm4MoeLiteForCausalLM": build_glm4_moe_lite,
    "LongcatFlashForCausalLM": build_longcat,
    "MiniCPM3ForCausalLM": build_minicpm3,
    "PanguUltraMoEForCausalLM": build_pangu_ultra,
    "SarvamMLAForCausalLM": build_sarvam,
}
