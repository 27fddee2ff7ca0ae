"""MiniMax-M3: attention to picked blocks, a few dense layers, experts in the others."""

from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Part
from vllm_capacity.predict.models.assembly import (
    Ends,
    assemble,
    flag,
    max_positions,
    num_layers,
    per_layer,
    refuse_unless,
    width,
    with_defaults,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.parts import Mlp, SelfAttention, SparseMoe, Vectors
from vllm_capacity.predict.parts.block_sparse_attention import BlockSparseAttention
from vllm_capacity.predict.rope import Rope

_DENSE_FIRST = [0] * 3 + [1] * 57
#: Source: vLLM 0.32 ``transformers_utils/configs/minimax_m3.py``, ``MiniMaxM3TextConfig``.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 200064,
    "hidden_size": 6144,
    "intermediate_size": 3072,
    "dense_intermediate_size": 12288,
    "num_hidden_layers": 60,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 524288,
    "partial_rotary_factor": 0.5,
    "rope_theta": 5000000,
    "hidden_act": "swigluoai",
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "use_routing_bias": True,
    "moe_layer_freq": _DENSE_FIRST,
    "sparse_attention_config": {
        "sparse_index_dim": 128,
        "sparse_num_index_heads": 4,
        "sparse_attention_freq": _DENSE_FIRST,
    },
}


def build_minimax_m3(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """The text model of MiniMax-M3.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``models/minimax_m3/nvidia/model.py``.
    """
    config = with_defaults(config, _DEFAULTS)
    activation = config.text("hidden_act")
    refuse_unless(
        activation == "swigluoai",
        f"vLLM refuses to start: minimax_m3 takes swigluoai as hidden_act, not {activation}",
    )
    rope = _rope(config)
    dense_attention, sparse_attention = _attentions(config, rope)
    hidden = width(config, "hidden_size")
    norms = Vectors(name="layernorms", elements=2 * hidden)
    dense = Mlp(hidden_size=hidden, intermediate_size=width(config, "dense_intermediate_size"))
    experts = _experts(config)
    layers: list[tuple[Part, ...]] = [
        (
            sparse_attention if picks else dense_attention,
            experts if routed else dense,
            norms,
        )
        for picks, routed in _kinds(config)
    ]
    return assemble(
        source="minimax_m3.py",
        layers=layers,
        ends=Ends.read(config, path=path, head_path=head_path),
        ropes=(rope,),
        max_positions=_DEFAULTS["max_position_embeddings"],
    )


def _rope(config: Fields) -> Rope:
    """Never scaled: the class passes the base and the share of a head alone."""
    ratio = config.number("partial_rotary_factor", minimum=0.01, maximum=1.0)
    positions = max_positions(config)
    return Rope(
        rope_type="default",
        factor=1.0,
        original_max_positions=positions,
        max_positions=positions,
        rotary_ratio=ratio or 1.0,
        base=config.number("rope_theta", minimum=1e-6, maximum=1e15) or 10000.0,
    )


def _attentions(config: Fields, rope: Rope) -> tuple[SelfAttention, BlockSparseAttention]:
    sizes: dict[str, Any] = {
        "hidden_size": width(config, "hidden_size"),
        "num_heads": width(config, "num_attention_heads"),
        "num_kv_heads": width(config, "num_key_value_heads"),
        "head_size": width(config, "head_dim"),
    }
    table = rope.table(sizes["head_size"])
    sparse = _sparse(config)
    picks = any(each for each in sparse.integers("sparse_attention_freq") or ())
    index_heads = sparse.integer("sparse_num_index_heads") if picks else sizes["num_kv_heads"]
    refuse_unless(
        index_heads == sizes["num_kv_heads"],
        "vLLM refuses to start: sparse_num_index_heads is not num_key_value_heads",
    )
    return (
        SelfAttention(**sizes, qk_norm="head", rope=table),
        BlockSparseAttention(
            **sizes,
            rope=table,
            index_head_size=width(sparse, "sparse_index_dim") if picks else 1,
        ),
    )


def _sparse(config: Fields) -> Fields:
    empty = Fields({}, path="sparse_attention_config.", faults=config.faults)
    return config.mapping("sparse_attention_config") or empty


def _kinds(config: Fields) -> list[tuple[bool, bool]]:
    """Whether each layer picks blocks, and whether it has routed experts."""
    layers = num_layers(config)
    picks = _sparse(config).integers("sparse_attention_freq") or ()
    routed = per_layer(config, "moe_layer_freq", layers)
    return [
        (layer < len(picks) and picks[layer] != 0, routed[layer] != 0) for layer in range(layers)
    ]


def _experts(config: Fields) -> SparseMoe:
    hidden, inner = width(config, "hidden_size"), width(config, "intermediate_size")
    shared = config.integer("n_shared_experts", minimum=0) or 0
    expert = None
    if shared:
        expert = Mlp(
            hidden_size=hidden,
            intermediate_size=inner * shared,
            name="shared_experts",
            token_parallel=False,
        )
    return SparseMoe(
        hidden_size=hidden,
        num_experts=width(config, "num_local_experts"),
        experts_per_token=width(config, "num_experts_per_tok"),
        intermediate_size=inner,
        shared=expert,
        correction_bias=flag(config, "use_routing_bias"),
        float32_router=True,
        name="block_sparse_moe",
        projections=("w1", "w3", "w2"),
    )


BUILDERS: dict[str, Builder] = {"MiniMaxM3SparseForCausalLM": build_minimax_m3}
