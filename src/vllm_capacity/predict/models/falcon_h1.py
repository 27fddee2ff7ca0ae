"""Falcon-H1: attention and Mamba-2 side by side in every layer."""

from dataclasses import replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Part, Stages
from vllm_capacity.predict.models.assembly import MAX_WIDTH
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.hybrid import HybridFields, Shell, norms
from vllm_capacity.predict.parts import Mlp
from vllm_capacity.predict.parts.mamba import Mamba2Mixer
from vllm_capacity.predict.rope import Rope

_POSITIONS = 8192


def build_falcon_h1(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Falcon-H1, whose mixers vLLM numbers after all attention layers.

    Source: vLLM 0.32 ``model_executor/models/falcon_h1.py``; transformers 5 ``FalconH1Config``.

    Raises:
        Refusal: vLLM would not build it.
    """
    read = HybridFields(config, "falcon_h1.py")
    read.silu_only()
    hidden, vocab, layers = read.size("hidden_size"), read.size("vocab_size"), read.num_layers()
    head_size = config.integer("head_dim", maximum=MAX_WIDTH)
    heads, _ = read.heads(kv_heads_default=False)
    head_size = head_size or max(1, hidden // heads)
    rope = _rope(read, head_size)
    attention = read.attention(
        hidden_size=hidden,
        kv_heads_default=False,
        head_size=head_size,
        rope=rope.table(head_size),
        name="",
    )
    mixer = replace(_mixer(read, hidden), path_root=path.partition(".")[0], first_index=layers)
    mlp = Mlp(
        hidden_size=hidden, intermediate_size=read.size("intermediate_size"), name="feed_forward"
    )
    parts: tuple[Part, ...] = (attention, mixer, mlp, norms(2, hidden))
    tied = read.flag("tie_word_embeddings", default=False)
    shell = Shell(
        vocab_size=vocab,
        hidden_size=hidden,
        tied=tied,
        embedding_stages=Stages.FIRST,
        norm_stages=Stages.LAST,
        head_stages=Stages.LAST,
        norm_name="final_layernorm",
    )
    refusal = "vLLM refuses to start: falcon_h1.py cannot pipeline tied embeddings"
    return Model(
        source=read.source,
        hidden_size=hidden,
        vocab_size=vocab,
        layers=tuple(Layer(path=f"{path}.layers.{index}", parts=parts) for index in range(layers)),
        outside=tuple(shell.parts(path, head_path)),
        length_factor=rope.length_factor,
        rope_type=rope.rope_type,
        stages_refusal=refusal if tied else None,
        max_positions=_POSITIONS,
    )


def _rope(read: HybridFields, head_size: int) -> Rope:
    """The share that is rotated follows ``attn_rotary_emb`` alone."""
    rotated = read.size("attn_rotary_emb", head_size)
    ratio = min(1.0, rotated / head_size)
    return replace(read.rope(read.positions(_POSITIONS)), rotary_ratio=ratio)


def _mixer(read: HybridFields, hidden_size: int) -> Mamba2Mixer:
    config = read.config
    channels = read.size("mamba_d_ssm", 1024)
    if "mamba_d_ssm" in config.values and not config.has("mamba_d_ssm"):
        channels = read.size("mamba_expand", 2) * hidden_size
    heads = read.size("mamba_n_heads", 128)
    return Mamba2Mixer(
        hidden_size=hidden_size,
        intermediate_size=channels,
        state_size=read.size("mamba_d_state", 256),
        num_groups=read.size("mamba_n_groups", 1),
        num_heads=heads,
        head_size=mamba2_head_size(read, "mamba_d_head", channels=channels, heads=heads),
        conv_kernel=read.size("mamba_d_conv", 4),
        conv_bias=read.flag("mamba_conv_bias", default=True),
        bias=read.flag("mamba_proj_bias", default=False),
        norm=read.flag("mamba_rms_norm", default=False),
        scale_vector=True,
    )


def mamba2_head_size(read: HybridFields, key: str, *, channels: int, heads: int) -> int:
    """Channels of a head, which must fill all channels."""
    size = max(1, channels // heads)
    if read.config.values.get(key) not in (None, "auto"):
        size = read.size(key)
    if size * heads != channels:
        read.config.fault(key, f"times {heads} heads must be the {channels} channels")
    return size


BUILDERS: dict[str, Builder] = {"FalconH1ForCausalLM": build_falcon_h1}
