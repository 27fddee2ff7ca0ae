"""Granite with Mamba-2 layers, and its relatives whose MLP is shared beside the experts."""

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Part
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.falcon_h1 import mamba2_head_size
from vllm_capacity.predict.models.hybrid import FULL, LINEAR, HybridFields, Shell, norms
from vllm_capacity.predict.parts import Mlp, SelfAttention, SparseMoe
from vllm_capacity.predict.parts.mamba import Mamba2Mixer
from vllm_capacity.predict.rope import Rope

_POSITIONS = 2048


def build_granite_hybrid(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Granite 4: Mamba-2 and attention layers, each with experts, a shared MLP or both.

    Source: vLLM 0.32 ``model_executor/models/granitemoehybrid.py``; transformers 5
    ``GraniteMoeHybridConfig``.

    Raises:
        Refusal: vLLM would not build it.
    """
    read = HybridFields(config, "granitemoehybrid.py")
    count = read.num_layers()
    kinds = read.kinds("layer_types", "layers_block_type", num_layers=count, known=(FULL, LINEAR))
    rope = None
    if config.text("position_embedding_type") == "rope":
        rope = read.rope(read.positions(_POSITIONS))
    bias = read.flag("attention_bias", default=False)
    attention = _attention(read, rope, qkv_bias=bias, o_bias=bias)
    mixer = _mixer(read)
    rest = _feed_forward(read, shared_default=1024)
    return _model(
        read,
        [(attention if kind == FULL else mixer, *rest) for kind in (FULL, LINEAR)],
        [0 if kind == FULL else 1 for kind in kinds or [LINEAR] * count],
        rope=rope,
        path=path,
        head_path=head_path,
    )


def build_granite_shared(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Granite with experts and a shared MLP, all layers attending to all tokens.

    Source: vLLM 0.32 ``model_executor/models/granitemoeshared.py``; transformers 5
    ``GraniteMoeSharedConfig``.

    Raises:
        Refusal: layers differ in ways that are not covered.
    """
    read = HybridFields(config, "granitemoeshared.py")
    read.expect(layer_types=None, attention_sinks=False, layer_rope_theta=None)
    rope = read.rope(read.positions(_POSITIONS))
    parts = (_attention(read, rope), *_feed_forward(read, shared_default=0))
    return _model(read, [parts], [0] * read.num_layers(), rope=rope, path=path, head_path=head_path)


def _model(
    read: HybridFields,
    kinds: list[tuple[Part, ...]],
    layers: list[int],
    *,
    rope: Rope | None,
    path: str,
    head_path: str,
) -> Model:
    hidden, vocab = read.size("hidden_size"), read.size("vocab_size")
    tied = read.flag("tie_word_embeddings", default=False)
    return Model(
        source=read.source,
        hidden_size=hidden,
        vocab_size=vocab,
        layers=tuple(
            Layer(path=f"{path}.layers.{index}", parts=kinds[kind])
            for index, kind in enumerate(layers)
        ),
        outside=tuple(
            Shell(vocab_size=vocab, hidden_size=hidden, tied=tied, quantized_head=True).parts(
                path, head_path
            )
        ),
        length_factor=1.0 if rope is None else rope.length_factor,
        rope_type=None if rope is None else rope.rope_type,
        max_positions=_POSITIONS,
    )


def _attention(
    read: HybridFields, rope: Rope | None, *, qkv_bias: bool = False, o_bias: bool = False
) -> SelfAttention:
    hidden = read.size("hidden_size")
    heads, _ = read.heads(kv_heads_default=True)
    return read.attention(
        hidden_size=hidden,
        kv_heads_default=True,
        rope=None if rope is None else rope.table(max(1, hidden // heads)),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
    )


def _feed_forward(read: HybridFields, *, shared_default: int) -> tuple[Part, ...]:
    hidden = read.size("hidden_size")
    experts = read.size("num_local_experts", 8, minimum=0)
    shared = read.size("shared_intermediate_size", shared_default, minimum=0)
    parts: list[Part] = []
    if experts:
        moe = SparseMoe(
            hidden_size=hidden,
            num_experts=experts,
            experts_per_token=read.size("num_experts_per_tok", 2),
            intermediate_size=read.size("intermediate_size"),
            name="block_sparse_moe",
        )
        parts.append(moe)
    if shared:
        read.silu_only()
        mlp = Mlp(
            hidden_size=hidden,
            intermediate_size=shared,
            name="shared_mlp",
            up_name="input_linear",
            down_name="output_linear",
            up_shards=("input_linear",),
        )
        parts.append(mlp)
    return (*parts, norms(2, hidden))


def _mixer(read: HybridFields) -> Mamba2Mixer:
    hidden = read.size("hidden_size")
    channels, heads = read.size("mamba_expand", 2) * hidden, read.size("mamba_n_heads", 128)
    return Mamba2Mixer(
        hidden_size=hidden,
        intermediate_size=channels,
        state_size=read.size("mamba_d_state", 256),
        num_groups=read.size("mamba_n_groups", 1),
        num_heads=heads,
        head_size=mamba2_head_size(read, "mamba_d_head", channels=channels, heads=heads),
        conv_kernel=read.size("mamba_d_conv", 4),
        conv_bias=read.flag("mamba_conv_bias", default=True),
        bias=read.flag("mamba_proj_bias", default=False),
    )


BUILDERS: dict[str, Builder] = {
    "GraniteMoeHybridForCausalLM": build_granite_hybrid,
    "GraniteMoeSharedForCausalLM": build_granite_shared,
}
