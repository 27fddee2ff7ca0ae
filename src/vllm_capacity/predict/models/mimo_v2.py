"""MiMo-V2: heads, sinks and rotation that differ between kinds of layers."""

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model
from vllm_capacity.predict.models.assembly import (
    MAX_TOKENS,
    MAX_WIDTH,
    Ends,
    assemble,
    flag,
    max_positions,
    num_layers,
    per_layer,
    width,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.windows import check_silu
from vllm_capacity.predict.parts import Mlp, SelfAttention, SparseMoe, Vectors
from vllm_capacity.predict.rope import Rope


def build_mimo_v2(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Layers with a window have heads and sinks of their own; values are narrower than keys.

    Source: vLLM 0.32 ``model_executor/models/mimo_v2.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    check_silu(config, "mimo_v2.py")
    hidden, layers = width(config, "hidden_size"), num_layers(config)
    pattern = per_layer(config, "hybrid_layer_pattern", layers)
    attentions = {sliding: mimo_attention(config, sliding=sliding) for sliding in set(pattern)}
    frequency = config.values.get("moe_layer_freq")
    sparse = (0,) * layers
    if frequency is not None and not isinstance(frequency, int):
        sparse = per_layer(config, "moe_layer_freq", layers)
    moe = _mimo_moe(config, hidden) if any(sparse) else None
    mlp = Mlp(hidden_size=hidden, intermediate_size=width(config, "intermediate_size"))
    norms = Vectors(name="layernorms", elements=2 * hidden)
    rope = _mimo_rope(config, sliding=False)
    return assemble(
        source="mimo_v2.py",
        layers=[
            (attentions[pattern[index]], moe if moe and sparse[index] else mlp, norms)
            for index in range(layers)
        ],
        ends=Ends.read(config, path=path, head_path=head_path, own_head=True),
        ropes=(rope,),
    )


def _mimo_rope(config: Fields, *, sliding: bool) -> Rope:
    base = config.number("rope_theta", minimum=1e-6, maximum=1e15) or 1000000.0
    own = config.number("swa_rope_theta", minimum=1e-6, maximum=1e15)
    return Rope(
        rope_type="default",
        factor=1.0,
        original_max_positions=max_positions(config),
        max_positions=max_positions(config),
        rotary_ratio=config.number("partial_rotary_factor", minimum=0.01, maximum=1.0) or 1.0,
        base=(own or base) if sliding else base,
    )


def mimo_attention(config: Fields, *, sliding: int) -> SelfAttention:
    """Attention to a window where ``sliding`` is 1, else to all tokens."""
    prefix = "swa_" if sliding == 1 else ""
    size = width(config, f"{prefix}head_dim")
    rope = _mimo_rope(config, sliding=sliding == 1)
    return SelfAttention(
        hidden_size=width(config, "hidden_size"),
        num_heads=width(config, f"{prefix}num_attention_heads"),
        num_kv_heads=width(config, f"{prefix}num_key_value_heads"),
        head_size=size,
        head_size_v=config.integer(f"{prefix}v_head_dim", maximum=MAX_WIDTH) or size,
        qkv_bias=flag(config, "attention_bias"),
        sliding_window=_mimo_window(config) if sliding == 1 else None,
        sinks=sliding == 1 and flag(config, "add_swa_attention_sink_bias"),
        rope=rope.table(size),
    )


def _mimo_window(config: Fields) -> int | None:
    size = config.required_integer("sliding_window_size", minimum=-1, maximum=MAX_TOKENS)
    return size if size > -1 else None


def _mimo_moe(config: Fields, hidden: int) -> SparseMoe:
    router = config.text("moe_router_dtype", among=("float32", "bfloat16", "float16"))
    return SparseMoe(
        hidden_size=hidden,
        num_experts=width(config, "n_routed_experts"),
        experts_per_token=width(config, "num_experts_per_tok"),
        intermediate_size=width(config, "moe_intermediate_size"),
        correction_bias=True,
        float32_router=router in {None, "float32"},
    )


BUILDERS: dict[str, Builder] = {
    "MiMoV2FlashForCausalLM": build_mimo_v2,
    "MiMoV2ForCausalLM": build_mimo_v2,
}
