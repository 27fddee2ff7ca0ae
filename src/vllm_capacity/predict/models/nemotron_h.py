"""Nemotron-H and Nemotron 3: layers of one module each, Mamba-2, attention, MLP or experts."""

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Part
from vllm_capacity.predict.models.assembly import MAX_LAYERS, MAX_TOKENS, MAX_WIDTH
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.hybrid import FULL, LINEAR, MLP, MOE, HybridFields, Shell, norms
from vllm_capacity.predict.parts import Mlp, SelfAttention, SparseMoe
from vllm_capacity.predict.parts.mamba import Mamba2Mixer
from vllm_capacity.predict.parts.projections import Replicated
from vllm_capacity.predict.refusal import Refusal

_SOURCE = "nemotron_h.py"
_POSITIONS = 4096
_LETTERS = {"M": LINEAR, "E": MOE, "*": FULL, "-": MLP}
#: Older names of keys. Source: transformers 5 ``NemotronHConfig.__post_init__``.
_OLD_KEYS = {
    "n_groups": "mamba_n_groups",
    "conv_kernel": "mamba_d_conv",
    "use_conv_bias": "mamba_conv_bias",
}


def build_nemotron_h(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Nemotron-H, whose head is never tied.

    Source: vLLM 0.32 ``model_executor/models/nemotron_h.py``; transformers 5
    ``NemotronHConfig``.

    Raises:
        Refusal: vLLM would not build it, or layers of one kind differ.
    """
    read = nemotron_fields(config)
    hidden, vocab = read.size("hidden_size"), read.size("vocab_size")
    kinds = _kinds(read)
    parts = {kind: nemotron_parts(read, kind) for kind in dict.fromkeys(kinds)}
    shell = Shell(
        vocab_size=vocab, hidden_size=hidden, tied=False, quantized_head=True, norm_name="norm_f"
    )
    return Model(
        source=_SOURCE,
        hidden_size=hidden,
        vocab_size=vocab,
        layers=tuple(
            Layer(path=f"{path}.layers.{index}", parts=parts[kind])
            for index, kind in enumerate(kinds)
        ),
        outside=tuple(shell.parts(path, head_path)),
        max_positions=_POSITIONS,
        state_dtype=read.state_dtype("mamba_ssm_cache_dtype") or "float32",
    )


def nemotron_fields(config: Fields) -> HybridFields:
    """The configuration by today's names of its keys.

    Raises:
        Refusal: layers of one kind differ.
    """
    renamed = {new: config.values[old] for new, old in _OLD_KEYS.items() if config.has(old)}
    fields = Fields({**config.values, **renamed}, path=config.path, faults=config.faults)
    read = HybridFields(fields, _SOURCE)
    read.expect(block_configs=None)
    return read


def nemotron_parts(read: HybridFields, kind: str) -> tuple[Part, ...]:
    """What a layer of this kind is made of."""
    norm = norms(1, read.size("hidden_size"))
    if kind == LINEAR:
        return (_mixer(read), norm)
    if kind == FULL:
        return (_attention(read), norm)
    return (*(_sparse(read) if kind == MOE else _dense(read)), norm)


def pattern_kinds(config: Fields, key: str) -> list[str] | None:
    """The kinds of layers that a pattern of letters at ``key`` describes.

    Raises:
        Refusal: a letter is unknown.
    """
    pattern = config.text(key)
    if pattern is None:
        return None
    unknown = sorted(set(pattern) - set(_LETTERS))
    if unknown:
        raise Refusal(f"vLLM refuses to start: {key} names layers of kind {unknown[0]!r}")
    return [_LETTERS[letter] for letter in pattern]


def _kinds(read: HybridFields) -> list[str]:
    known = tuple(_LETTERS.values())
    kinds = read.kinds("layers_block_type", "layer_types", num_layers=None, known=known)
    kinds = kinds or pattern_kinds(read.config, "hybrid_override_pattern")
    if not kinds:
        read.config.fault("hybrid_override_pattern", "is missing; add the model's value")
    return (kinds or [])[:MAX_LAYERS]


def _mixer(read: HybridFields) -> Mamba2Mixer:
    heads, head_size = read.size("mamba_num_heads", 128), read.size("mamba_head_dim", 64)
    return Mamba2Mixer(
        hidden_size=read.size("hidden_size"),
        intermediate_size=heads * head_size,
        state_size=read.size("ssm_state_size", 128),
        num_groups=read.size("n_groups", 8),
        num_heads=heads,
        head_size=head_size,
        conv_kernel=read.size("conv_kernel", 4),
        conv_bias=read.flag("use_conv_bias", default=True),
        bias=read.flag("use_bias", default=False),
    )


def _attention(read: HybridFields) -> SelfAttention:
    return read.attention(
        hidden_size=read.size("hidden_size"),
        kv_heads_default=False,
        head_size=read.size("head_dim", 128),
        sliding_window=read.config.integer("sliding_window", maximum=MAX_TOKENS),
        name="mixer",
    )


def _dense(read: HybridFields) -> tuple[Part, ...]:
    width = read.config.values.get("intermediate_size")
    if isinstance(width, list | tuple):
        raise Refusal(f"{_SOURCE} with several values of intermediate_size is not described yet")
    mlp = Mlp(
        hidden_size=read.size("hidden_size"),
        intermediate_size=read.size("intermediate_size"),
        gated=False,
        bias=read.flag("mlp_bias", default=False),
        name="mixer",
    )
    return (mlp,)


def _sparse(read: HybridFields) -> tuple[Part, ...]:
    hidden, bias = read.size("hidden_size"), read.flag("mlp_bias", default=False)
    latent = read.config.integer("moe_latent_size", maximum=MAX_WIDTH)
    moe = SparseMoe(
        hidden_size=hidden,
        num_experts=read.size("n_routed_experts", 8),
        experts_per_token=read.size("num_experts_per_tok", 2),
        intermediate_size=read.size("moe_intermediate_size", 7688),
        shared=_shared(read, hidden),
        correction_bias=True,
        fast_router=True,
        gated=False,
        routed_hidden_size=latent,
        name="mixer",
        projections=("up_proj", "down_proj"),
    )
    if latent is None:
        return (moe,)
    down = Replicated(
        name="mixer.fc1_latent_proj", input_size=hidden, output_size=latent, bias=bias
    )
    up = Replicated(name="mixer.fc2_latent_proj", input_size=latent, output_size=hidden, bias=bias)
    return (moe, down, up)


def _shared(read: HybridFields, hidden_size: int) -> Mlp | None:
    count = read.size("n_shared_experts", 1, minimum=0)
    width = read.size("moe_shared_expert_intermediate_size", 7688)
    if not count:
        return None
    return Mlp(
        hidden_size=hidden_size,
        intermediate_size=count * width,
        gated=False,
        token_parallel=True,
        name="shared_experts",
    )


BUILDERS: dict[str, Builder] = {"NemotronHForCausalLM": build_nemotron_h}
