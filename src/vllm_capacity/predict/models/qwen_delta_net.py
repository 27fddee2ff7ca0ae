"""Qwen3-Next and Qwen3.5: gated delta networks and gated attention."""

from dataclasses import replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Part, Stages
from vllm_capacity.predict.models.assembly import MAX_LAYERS
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.hybrid import FULL, LINEAR, HybridFields, Shell, norms
from vllm_capacity.predict.parts import Mlp, SelfAttention, SparseMoe, Vectors
from vllm_capacity.predict.parts.delta_net import GatedDeltaNet
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.rope import Rope

_POSITIONS = 32768
_ROTARY_RATIO = 0.25
_NEXT, _QWEN3_5 = "qwen3_next.py", "qwen3_5.py"


def build_qwen3_next(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Qwen3-Next, whose head is never tied.

    Source: vLLM 0.32 ``model_executor/models/qwen3_next.py``; transformers 5
    ``Qwen3NextConfig``.

    Raises:
        Refusal: vLLM would not build it.
    """
    read = HybridFields(config, _NEXT)
    sparse = sparse_layers(read)
    model = _build(
        read,
        rope=qwen_rope(read),
        layout="interleaved",
        sparse=sparse,
        shell=_shell(read, tied=False, quantized_head=False, head_stages=Stages.EVERY),
        path=path,
        head_path=head_path,
    )
    if not sparse:
        raise Refusal("vLLM refuses to start: qwen3_next.py without a sparse layer")
    return replace(model, dense_stages=False)


def build_qwen3_5_text(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """The text model of Qwen3.5, alone or inside a wrapper that does not prune video.

    Source: vLLM 0.32 ``model_executor/models/qwen3_5.py``; transformers 5
    ``Qwen3_5TextConfig``.

    Raises:
        Refusal: vLLM would not build it.
    """
    config = _nested(config)
    _check_model_type(config, "qwen3_5_text")
    return _build_qwen3_5(config, sparse=False, path=path, head_path=head_path)


def build_qwen3_5_moe_text(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """The same with experts in every layer.

    Source: vLLM 0.32 ``model_executor/models/qwen3_5.py``; transformers 5
    ``Qwen3_5MoeTextConfig``.

    Raises:
        Refusal: vLLM would not build it.
    """
    config = _nested(config)
    _check_model_type(config, "qwen3_5_moe_text")
    return _build_qwen3_5(config, sparse=True, path=path, head_path=head_path)


def _nested(config: Fields) -> Fields:
    """The text configuration of a file that has one: the class reads no other.

    Source: vLLM 0.32 ``model_executor/models/qwen3_5.py``, ``hf_text_config``.
    """
    return config.mapping("text_config") or config


def _check_model_type(config: Fields, expected: str) -> None:
    given = config.text("model_type")
    if given not in {None, expected}:
        raise Refusal(f"{_QWEN3_5} with text model_type {given!r} is not described exactly yet")


def _build_qwen3_5(config: Fields, *, sparse: bool, path: str, head_path: str) -> Model:
    read = HybridFields(config, _QWEN3_5)
    tied = read.flag("tie_word_embeddings", default=False)
    model = _build(
        read,
        rope=qwen3_5_rope(read),
        layout="flat",
        sparse=frozenset(range(MAX_LAYERS)) if sparse else frozenset(),
        shell=_shell(read, tied=tied, quantized_head=True, head_stages=Stages.LAST),
        path=path,
        head_path=head_path,
    )
    # Source: vLLM 0.32 models/config.py, Qwen3_5ForConditionalGenerationConfig.
    return replace(model, state_dtype=read.state_dtype("mamba_ssm_dtype"))


def _shell(read: HybridFields, *, tied: bool, quantized_head: bool, head_stages: Stages) -> Shell:
    return Shell(
        vocab_size=read.size("vocab_size"),
        hidden_size=read.size("hidden_size"),
        tied=tied,
        quantized_head=quantized_head,
        norm_stages=Stages.LAST,
        head_stages=head_stages,
    )


def _build(
    read: HybridFields,
    *,
    rope: Rope,
    layout: str,
    sparse: frozenset[int],
    shell: Shell,
    path: str,
    head_path: str,
) -> Model:
    attention, delta = qwen_attention(read, rope), _delta_net(read, layout)
    norm = qwen_norms(read)
    mixers = {FULL: attention, LINEAR: delta}
    layers = [(kind, index in sparse) for index, kind in enumerate(_kinds(read))]
    parts: dict[tuple[str, bool], tuple[Part, ...]] = {
        (kind, routed): (mixers[kind], *qwen_feed_forward(read, sparse=routed), norm)
        for kind, routed in dict.fromkeys(layers)
    }
    return Model(
        source=read.source,
        hidden_size=shell.hidden_size,
        vocab_size=shell.vocab_size,
        layers=tuple(
            Layer(path=f"{path}.layers.{index}", parts=parts[layer])
            for index, layer in enumerate(layers)
        ),
        outside=tuple(shell.parts(path, head_path)),
        length_factor=rope.length_factor,
        rope_type=rope.rope_type,
        max_positions=_POSITIONS,
    )


def sparse_layers(read: HybridFields) -> frozenset[int]:
    """The layers of Qwen3-Next that have experts."""
    if not read.size("num_experts", 512, minimum=0):
        return frozenset()
    step = read.size("decoder_sparse_step", 1)
    dense = read.config.integers("mlp_only_layers") or ()
    return frozenset(
        index
        for index in range(read.num_layers())
        if (index + 1) % step == 0 and index not in dense
    )


def _kinds(read: HybridFields) -> list[str]:
    count = read.num_layers()
    kinds = read.kinds("layer_types", num_layers=count, known=(FULL, LINEAR))
    if kinds is not None:
        return kinds
    interval = read.size("full_attention_interval", 4)
    return [LINEAR if (index + 1) % interval else FULL for index in range(count)]


def qwen_rope(read: HybridFields) -> Rope:
    """The rotary embedding of a quarter of every head."""
    read.expect(dual_chunk_attention_config=None, is_causal=True)
    return read.rope(read.positions(_POSITIONS), default_ratio=_ROTARY_RATIO)


def qwen3_5_rope(read: HybridFields) -> Rope:
    """The same without rows for positions that video pruning keeps.

    Source: vLLM 0.32 ``models/qwen3_vl.py``, ``mrope_positions_factor``.
    """
    return replace(qwen_rope(read), positions_factor=1)


def qwen_attention(read: HybridFields, rope: Rope) -> SelfAttention:
    """Attention whose query projection makes a gate of its output too."""
    head_size = read.size("head_dim", 256)
    return read.attention(
        hidden_size=read.size("hidden_size"),
        kv_heads_default=False,
        head_size=head_size,
        rope=rope.table(head_size),
        qkv_bias=read.flag("qkv_bias", default=False),
        qk_norm="head",
        query_gate=read.flag("attn_output_gate", default=True),
    )


def _delta_net(read: HybridFields, layout: str) -> GatedDeltaNet:
    return GatedDeltaNet(
        hidden_size=read.size("hidden_size"),
        num_key_heads=read.size("linear_num_key_heads", 16),
        num_value_heads=read.size("linear_num_value_heads", 32),
        key_head_size=read.size("linear_key_head_dim", 128),
        value_head_size=read.size("linear_value_head_dim", 128),
        conv_kernel=read.size("linear_conv_kernel_dim", 4),
        layout=layout,
    )


def qwen_feed_forward(read: HybridFields, *, sparse: bool) -> tuple[Part, ...]:
    """An MLP, or experts and the shared expert."""
    read.silu_only()
    hidden = read.size("hidden_size")
    if not sparse:
        return (Mlp(hidden_size=hidden, intermediate_size=read.size("intermediate_size")),)
    width = read.size("shared_expert_intermediate_size", 512, minimum=0)
    shared = Mlp(
        hidden_size=hidden,
        intermediate_size=width,
        token_parallel=True,
        name="shared_expert",
    )
    moe = SparseMoe(
        hidden_size=hidden,
        num_experts=read.size("num_experts"),
        experts_per_token=read.size("num_experts_per_tok"),
        intermediate_size=read.size("moe_intermediate_size", 512),
        shared=shared if width else None,
        shared_gate=True,
        fits_tensorrt=read.flag("norm_topk_prob", default=True),
    )
    # Its gate is built even where there is no shared expert.
    return (moe,) if width else (moe, Vectors(name="mlp.shared_expert_gate", elements=hidden))


def qwen_norms(read: HybridFields) -> Vectors:
    """The norms of a layer, and the scales of its outputs where it has them."""
    scaled = read.flag("layer_scale", default=False)
    return norms(4 if scaled else 2, read.size("hidden_size"))


BUILDERS: dict[str, Builder] = {
    "Qwen3NextForCausalLM": build_qwen3_next,
    "Qwen3_5ForCausalLM": build_qwen3_5_text,
    "Qwen3_5MoeForCausalLM": build_qwen3_5_moe_text,
}
