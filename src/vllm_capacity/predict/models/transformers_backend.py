"""Decoders that vLLM builds from transformers' own code and that no row of traits covers.

Source: vLLM 0.32 ``models/registry.py``, ``_TRANSFORMERS_SUPPORTED_MODELS``;
``model_executor/models/transformers/base.py`` and ``moe.py``.
"""

from collections.abc import Iterator
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Outside, Part, Stages
from vllm_capacity.predict.models.assembly import (
    FULL,
    MAX_WIDTH,
    SLIDING,
    Ends,
    assemble,
    flag,
    layer_types,
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
from vllm_capacity.predict.rope import Rope, read_rope

_FLOAT32 = 4
#: Since when vLLM builds them so; older releases had classes of their own.
_SINCE = (0, 32)
#: Source: transformers 5 ``configuration_cwm.py``.
_CWM: dict[str, Any] = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "sliding_window": 8192,
    "max_position_embeddings": 131072,
}
_CWM_PERIOD = 4


def _frequencies(rope: Rope, head_size: int, path: str) -> Iterator[Outside]:
    """The frequencies and their unscaled copy, in place of a table."""
    elements = 2 * (rope.rotary_elements(head_size) // 2)
    part = Vectors(name="rotary_emb.inv_freq", elements=elements, element_bytes=_FLOAT32)
    yield Outside(part=part, stages=Stages.EVERY, path=path)


def build_hunyuan_moe(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Hunyuan's mixture of experts: all layers sparse, one shared expert of the dense width.

    Raises:
        Refusal: it is not described exactly.

    Source: transformers 5 ``modeling_hunyuan_v1_moe.py``.
    """
    config = with_defaults(config, {"max_position_embeddings": 2048})
    rope = read_rope(config, max_positions=max_positions(config))
    bias = flag(config, "attention_bias")
    attention = self_attention(config, None, qkv_bias=bias, o_bias=bias, qk_norm="head")
    norms = Vectors(name="layernorms", elements=2 * width(config, "hidden_size"))
    experts = _hunyuan_experts(config)
    layers: list[tuple[Part, ...]] = [
        (attention, experts, norms) for _ in range(num_layers(config))
    ]
    return assemble(
        source="transformers/ (modeling_hunyuan_v1_moe.py)",
        layers=layers,
        ends=Ends.read(config, path=path, head_path=head_path),
        ropes=(rope,),
        more=_frequencies(rope, attention.head_size, path),
        oldest_release=_SINCE,
        max_positions=2048,
    )


def _hunyuan_experts(config: Fields) -> SparseMoe:
    hidden = width(config, "hidden_size")
    inner = _one_for_all(config, "moe_intermediate_size") or width(config, "intermediate_size")
    topk = _one_for_all(config, "moe_topk") or _one_for_all(config, "num_experts_per_tok")
    return SparseMoe(
        hidden_size=hidden,
        num_experts=width(config, "num_experts", "num_local_experts"),
        experts_per_token=topk or 1,
        intermediate_size=inner,
        shared=Mlp(
            hidden_size=hidden,
            intermediate_size=width(config, "intermediate_size"),
            name="shared_mlp",
        ),
        router_name="gate.wg",
        quantized_router=True,
    )


def _one_for_all(config: Fields, key: str) -> int | None:
    """A number, or a list that has the same for every layer."""
    if not isinstance(config.values.get(key), list):
        return config.integer(key, maximum=MAX_WIDTH)
    distinct = set(config.integers(key) or ())
    refuse_unless(len(distinct) == 1, f"{key} that differs between layers is not described exactly")
    return distinct.pop()


def build_cwm(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """The code world model: a Llama in which every fourth layer attends to all tokens.

    Raises:
        Refusal: it is not described exactly.

    Source: transformers 5 ``modeling_cwm.py``, ``configuration_cwm.py``.
    """
    config = with_defaults(config, _CWM)
    rope = read_rope(config, max_positions=max_positions(config))
    layers = num_layers(config)
    default = [SLIDING if at % _CWM_PERIOD else FULL for at in range(layers)]
    mlp = Mlp(
        hidden_size=width(config, "hidden_size"),
        intermediate_size=width(config, "intermediate_size"),
        bias=flag(config, "mlp_bias"),
    )
    norms = Vectors(name="layernorms", elements=2 * width(config, "hidden_size"))
    kinds: dict[str, SelfAttention] = {
        FULL: self_attention(config, None),
        SLIDING: self_attention(config, None, sliding_window=window(config)),
    }
    return assemble(
        source="transformers/ (modeling_cwm.py)",
        layers=[
            (kinds[kind], mlp, norms)
            for kind in layer_types(config, default, known=(FULL, SLIDING))
        ],
        ends=Ends.read(config, path=path, head_path=head_path),
        ropes=(rope,),
        more=_frequencies(rope, kinds[FULL].head_size, path),
        oldest_release=_SINCE,
        max_positions=_CWM["max_position_embeddings"],
    )


BUILDERS: dict[str, Builder] = {
    "HunYuanMoEV1ForCausalLM": build_hunyuan_moe,
    "CwmForCausalLM": build_cwm,
}
