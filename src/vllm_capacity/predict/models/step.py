"""Step 3.5: layers with a window have heads of their own; a gate for every head."""

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Part
from vllm_capacity.predict.models.assembly import (
    FULL,
    MAX_TOKENS,
    SLIDING,
    Ends,
    assemble,
    flag,
    max_positions,
    num_layers,
    refuse_unless,
    width,
    window,
    with_defaults,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.parts import Mlp, SelfAttention, SparseMoe, Vectors
from vllm_capacity.predict.parts.projection import Projection
from vllm_capacity.predict.rope import Rope, read_rope

#: Source: vLLM 0.32 ``transformers_utils/configs/step3p5.py``.
_STEP3P5: dict[str, Any] = {
    "hidden_size": 5120,
    "intermediate_size": 13312,
    "num_attention_heads": 40,
    "num_attention_groups": 8,
    "num_hidden_layers": 48,
    "vocab_size": 65536,
    "moe_intermediate_size": 10240,
    "moe_num_experts": 16,
    "moe_top_k": 4,
    "rope_theta": 500000.0,
}
_FULL_OR_SLIDING = (FULL, SLIDING)


def build_step3p5(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Every layer's attention, rotation and feed-forward are listed in the file.

    Source: vLLM 0.32 ``model_executor/models/step3p5.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _STEP3P5)
    refuse_unless(
        config.values.get("use_moe_router_bias") is not False
        and config.values.get("need_fp32_gate") is not False
        and config.values.get("att_impl_type", "GQA") == "GQA",
        "vLLM refuses to start: step3p5.py needs use_moe_router_bias, need_fp32_gate and GQA",
    )
    # Where it is absent the config class limits requests to 4,096 tokens, which no model means.
    config.required_integer("max_seq_len", maximum=MAX_TOKENS)
    hidden, layers = width(config, "hidden_size"), num_layers(config)
    kinds = _kinds(config, layers)
    ropes = [_rope(config, kinds, index) for index in range(layers)]
    moe, mlp = _moe(config, hidden), _mlp(config, hidden)
    sparse = _sparse(config, layers)
    norms = Vectors(name="layernorms", elements=2 * hidden)
    return assemble(
        source="step3p5.py",
        layers=[
            (
                *_attention(config, kinds[i], ropes[i], hidden),
                moe if i in sparse else mlp,
                norms,
            )
            for i in range(layers)
        ],
        ends=Ends.read(config, path=path, head_path=head_path, own_head=True),
        ropes=ropes[:1],
    )


def _kinds(config: Fields, layers: int) -> tuple[str, ...]:
    """The file may list more layers than there are; without a list, every other has a window."""
    kinds = config.texts("layer_types")
    if not kinds:
        return tuple(_FULL_OR_SLIDING[(index + 1) % 2] for index in range(layers))
    if len(kinds) < layers:
        config.fault("layer_types", f"must list {layers} layers, as num_hidden_layers")
        return (FULL,) * layers
    return kinds[:layers]


def _listed(config: Fields, key: str, index: int) -> Any:
    """A value that the file gives once, or once for every layer."""
    value = config.values.get(key)
    if not isinstance(value, list | tuple):
        return value
    if index >= len(value):
        config.fault(key, "must list a value for every layer")
        return None
    return value[index]


def _rope(config: Fields, kinds: tuple[str, ...], index: int) -> Rope:
    """The rotary embedding of one layer; scaling may be that of some kinds only."""
    scaling = config.values.get("rope_scaling") or config.values.get("rope_parameters") or {}
    refuse_unless(isinstance(scaling, Mapping), "rope_scaling must be an object")
    only = config.texts("yarn_only_types")
    if only and kinds[index] not in only:
        scaling = {}
    ratio = _listed(config, "partial_rotary_factors", index) or 1.0
    refuse_unless(
        isinstance(ratio, int | float) and ratio in {0.5, 1.0},
        "vLLM refuses to start: partial_rotary_factors must be 0.5 or 1.0",
    )
    values = {
        **scaling,
        "rope_theta": _listed(config, "rope_theta", index),
        "partial_rotary_factor": ratio,
    }
    reader = Fields({"rope_parameters": values}, path=config.path, faults=config.faults)
    return read_rope(reader, max_positions=max_positions(config))


def _attention(config: Fields, kind: str, rope: Rope, hidden: int) -> Iterator[Part]:
    other = config.mapping("attention_other_setting")
    own = config
    if other is not None and other.text("attention_type") == kind:
        own = with_defaults(other, {"head_dim": config.values.get("head_dim")})
    heads = width(own, "num_attention_heads")
    size = own.integer("head_dim") or max(1, hidden // heads)
    yield SelfAttention(
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=width(own, "num_attention_groups"),
        head_size=size,
        qkv_bias=flag(config, "attention_bias"),
        qk_norm="head",
        sliding_window=window(config) if kind == SLIDING else None,
        rope=rope.table(size),
    )
    if flag(config, "use_head_wise_attn_gate"):
        yield Projection(
            name="self_attn.g_proj", input_size=hidden, output_size=heads, split="column"
        )


def _sparse(config: Fields, layers: int) -> frozenset[int]:
    text = config.text("moe_layers_enum")
    if text is None:
        return frozenset(range(1, layers))
    words = text.strip().split(",")
    if not all(word.strip().isdecimal() for word in words):
        config.fault("moe_layers_enum", "must list layer numbers, divided by commas")
        return frozenset()
    return frozenset(int(word) for word in words)


def _mlp(config: Fields, hidden: int) -> Mlp:
    return Mlp(hidden_size=hidden, intermediate_size=width(config, "intermediate_size"))


def _moe(config: Fields, hidden: int) -> SparseMoe:
    inner, top = width(config, "moe_intermediate_size"), width(config, "moe_top_k")
    shared = config.integer("share_expert_dim") or inner * top
    return SparseMoe(
        hidden_size=hidden,
        num_experts=width(config, "moe_num_experts"),
        experts_per_token=top,
        intermediate_size=inner,
        shared=Mlp(
            hidden_size=hidden, intermediate_size=shared, name="share_expert", token_parallel=False
        ),
        correction_bias=True,
        float32_router=True,
        name="moe",
    )


BUILDERS: dict[str, Builder] = {"Step3p5ForCausalLM": build_step3p5}
