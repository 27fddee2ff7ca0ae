"""Falcon and BLOOM: fused projections, rotary positions or ALiBi."""

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
from vllm_capacity.predict.models.naming import alike, layers_at, renamed
from vllm_capacity.predict.parts import Mlp, Vectors
from vllm_capacity.predict.rope import read_rope

_FALCON = {
    "multi_query": True,
    "parallel_attn": True,
    "new_decoder_architecture": False,
    "alibi": False,
    "bias": False,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def build_falcon(config: Fields, *, path: str = "transformer", head_path: str = "") -> Model:
    """Falcon: multi-query or grouped attention, rotary or ALiBi, biases or none.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``model_executor/models/falcon.py``; transformers 5
    ``configuration_falcon.py``.
    """
    config = with_defaults(config, _FALCON)
    config = renamed(config, {"hidden_size": "n_embed"})
    hidden, heads = width(config, "hidden_size"), width(config, "num_attention_heads")
    refuse_unless(hidden % heads == 0, "vLLM refuses to start: heads do not divide hidden_size")
    rope = None if flag(config, "alibi") else read_rope(config, max_positions=max_positions(config))
    bias = flag(config, "bias")
    attention = self_attention(
        config,
        rope,
        num_kv_heads=_falcon_kv_heads(config, heads),
        head_size=hidden // heads,
        qkv_bias=bias,
        o_bias=bias,
        name="self_attention",
        qkv_name="query_key_value",
        qkv_shards=("query_key_value",),
        o_name="dense",
    )
    norms = Vectors(name="layernorms", elements=2 * _falcon_norms(config) * hidden)
    tied = config.boolean("tie_word_embeddings") is not False
    ends = Ends.read(
        config,
        path=path,
        head_path=head_path,
        tied=tied,
        everywhere=True,
        norm_vectors=2,
        embedding_name="word_embeddings",
    )
    model = assemble(
        source="falcon.py",
        layers=alike(config, (attention, _four_fold(hidden, bias=bias), norms)),
        ends=ends,
        ropes=() if rope is None else (rope,),
        max_positions=2048,
    )
    return layers_at(model, f"{path}.h")


def _falcon_kv_heads(config: Fields, heads: int) -> int:
    if flag(config, "new_decoder_architecture"):
        return config.integer("num_kv_heads") or heads
    return 1 if flag(config, "multi_query") else heads


def _falcon_norms(config: Fields) -> int:
    """Norms of a layer; two unless one serves both attention and MLP."""
    if not flag(config, "parallel_attn"):
        return 2
    norms = config.integer("num_ln_in_parallel_attn", minimum=0, maximum=2)
    if norms is None:
        norms = 2 if flag(config, "new_decoder_architecture") else 1
    return 2 if norms == 2 else 1


def build_bloom(config: Fields, *, path: str = "transformer", head_path: str = "") -> Model:
    """BLOOM: ALiBi, and a norm after the embedding.

    Source: vLLM 0.32 ``model_executor/models/bloom.py``; transformers 5
    ``configuration_bloom.py``.
    """
    config = renamed(
        config,
        {"hidden_size": "n_embed", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    )
    hidden, heads = width(config, "hidden_size"), width(config, "num_attention_heads")
    refuse_unless(hidden % heads == 0, "vLLM refuses to start: heads do not divide hidden_size")
    attention = self_attention(
        config,
        None,
        num_kv_heads=heads,
        head_size=hidden // heads,
        qkv_bias=True,
        o_bias=True,
        name="self_attention",
        sliding_window=window(config),
        qkv_name="query_key_value",
        qkv_shards=("query_key_value",),
        o_name="dense",
    )
    tied = config.boolean("tie_word_embeddings") is not False
    ends = Ends.read(
        config,
        path=path,
        head_path=head_path,
        tied=tied,
        everywhere=True,
        norm_vectors=4,
        embedding_name="word_embeddings",
    )
    norms = Vectors(name="layernorms", elements=4 * hidden)
    model = assemble(
        source="bloom.py",
        layers=alike(config, (attention, _four_fold(hidden, bias=True), norms)),
        ends=ends,
    )
    return layers_at(model, f"{path}.h")


def _four_fold(hidden: int, *, bias: bool) -> Mlp:
    return Mlp(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        gated=False,
        bias=bias,
        up_shards=("dense_h_to_4h",),
        down_name="dense_4h_to_h",
    )


BUILDERS: dict[str, Builder] = {
    "BloomForCausalLM": build_bloom,
    "FalconForCausalLM": build_falcon,
}
