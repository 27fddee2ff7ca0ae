"""OPT: learned positions, and an embedding that may be narrower than the layers."""

from dataclasses import replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Outside, Part, Stages
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
from vllm_capacity.predict.models.naming import alike
from vllm_capacity.predict.parts import LearnedPositions, Mlp, Vectors
from vllm_capacity.predict.parts.projection import Projection

_OPT = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "num_attention_heads": 12,
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "layer_norm_elementwise_affine": True,
    "enable_bias": True,
    "tie_word_embeddings": True,
}


def build_opt(config: Fields, *, path: str = "model.decoder", head_path: str = "") -> Model:
    """OPT: learned positions, and in one size an embedding narrower than the layers.

    Source: vLLM 0.32 ``model_executor/models/opt.py``; transformers 5 ``configuration_opt.py``.
    """
    config = with_defaults(config, _OPT)
    hidden, heads = width(config, "hidden_size"), width(config, "num_attention_heads")
    bias = flag(config, "enable_bias")
    attention = self_attention(
        config,
        None,
        num_kv_heads=heads,
        head_size=max(1, hidden // heads),
        qkv_bias=bias,
        o_bias=bias,
        o_name="out_proj",
        sliding_window=window(config),
    )
    mlp = Mlp(
        hidden_size=hidden,
        intermediate_size=width(config, "ffn_dim"),
        gated=False,
        bias=bias,
        name="",
        up_shards=("fc1",),
        down_name="fc2",
    )
    vectors = 2 if flag(config, "layer_norm_elementwise_affine") else 0
    has_final = flag(config, "do_layer_norm_before") and not flag(
        config, "_remove_final_layer_norm"
    )
    embedded = config.integer("word_embed_proj_dim") or hidden
    ends = Ends(
        vocab_size=width(config, "vocab_size"),
        hidden_size=embedded,
        tied=flag(config, "tie_word_embeddings"),
        path=path,
        head_path=head_path,
        everywhere=True,
        norm_vectors=0,
    )
    model = assemble(
        source="opt.py",
        layers=alike(
            config, (attention, mlp, Vectors(name="norms", elements=2 * vectors * hidden))
        ),
        ends=ends,
        more=_opt_outside(config, path, vectors=vectors * has_final),
        max_positions=2048,
    )
    return replace(model, hidden_size=hidden)


def _opt_outside(config: Fields, path: str, *, vectors: int) -> list[Outside]:
    hidden = width(config, "hidden_size")
    embedded = config.integer("word_embed_proj_dim") or hidden
    # Source: OPTLearnedPositionalEmbedding, whose first two rows are padding.
    parts: list[Part] = [
        LearnedPositions(
            rows=max_positions(config) + 2, hidden_size=hidden, name="embed_positions"
        ),
        Vectors(name="final_layer_norm", elements=vectors * hidden),
    ]
    if embedded != hidden:
        parts += [
            Projection(name="project_out", input_size=hidden, output_size=embedded),
            Projection(name="project_in", input_size=embedded, output_size=hidden),
        ]
    return [Outside(part=part, stages=Stages.EVERY, path=path) for part in parts]


BUILDERS: dict[str, Builder] = {
    "OPTForCausalLM": build_opt,
}
