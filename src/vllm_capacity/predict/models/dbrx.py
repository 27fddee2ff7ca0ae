"""DBRX: sizes of attention and experts in objects of their own."""

from collections.abc import Mapping
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model
from vllm_capacity.predict.models.assembly import (
    Ends,
    assemble,
    flag,
    max_positions,
    self_attention,
    width,
    window,
    with_defaults,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.naming import alike, layers_at, renamed
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.uncounted_experts import UncountedMoe
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.rope import read_rope

_DBRX = {
    "n_heads": 16,
    "d_model": 2048,
    "n_layers": 24,
    "vocab_size": 32000,
    "max_seq_len": 2048,
}


def build_dbrx(config: Fields, *, path: str = "transformer", head_path: str = "") -> Model:
    """DBRX: norms around attention, experts in every layer.

    Raises:
        Refusal: the embedding is tied, which vLLM refuses.

    Source: vLLM 0.32 ``model_executor/models/dbrx.py``; transformers 5
    ``configuration_dbrx.py``.
    """
    config = renamed(
        with_defaults(config, _DBRX),
        {
            "num_attention_heads": "n_heads",
            "hidden_size": "d_model",
            "num_hidden_layers": "n_layers",
            "max_position_embeddings": "max_seq_len",
        },
    )
    if flag(config, "tie_word_embeddings"):
        raise Refusal("vLLM refuses to start: tie_word_embeddings is not supported for this class")
    hidden, heads = width(config, "hidden_size"), width(config, "num_attention_heads")
    rope = read_rope(_unscaled(config), max_positions=max_positions(config))
    attention = self_attention(
        config,
        rope,
        num_kv_heads=_inner(config, "attn_config", {"kv_n_heads": 1}, "kv_n_heads"),
        head_size=max(1, hidden // heads),
        name="norm_attn_norm.attn",
        sliding_window=window(config),
        qkv_name="Wqkv",
        qkv_shards=("Wqkv",),
        o_name="out_proj",
    )
    sizes = {"moe_num_experts": 4, "moe_top_k": 1, "ffn_hidden_size": 3584}
    experts = UncountedMoe(
        hidden_size=hidden,
        num_experts=_inner(config, "ffn_config", sizes, "moe_num_experts"),
        experts_per_token=_inner(config, "ffn_config", sizes, "moe_top_k"),
        intermediate_size=_inner(config, "ffn_config", sizes, "ffn_hidden_size"),
        name="ffn",
        router_name="router.layer",
    )
    norms = Vectors(name="norm_attn_norm.norms", elements=2 * hidden)
    ends = Ends.read(
        config,
        path=path,
        head_path=head_path,
        everywhere=True,
        embedding_name="wte",
    )
    model = assemble(
        source="dbrx.py",
        layers=alike(config, (attention, experts, norms)),
        ends=ends,
        ropes=(rope,),
        max_positions=max_positions(config),
        quantized=False,
    )
    return layers_at(model, f"{path}.blocks")


def _unscaled(config: Fields) -> Fields:
    """The class reads the base alone, and from ``attn_config``; its table is never scaled."""
    kept = {k: v for k, v in config.values.items() if k not in {"rope_scaling", "rope_parameters"}}
    return Fields(kept, path=config.path, faults=config.faults)


def _inner(config: Fields, key: str, defaults: Mapping[str, Any], name: str) -> int:
    inner = config.mapping(key) or Fields({}, path=f"{key}.", faults=config.faults)
    return width(with_defaults(inner, defaults), name)


BUILDERS: dict[str, Builder] = {
    "DbrxForCausalLM": build_dbrx,
}
