"""Models of state-space layers alone: Mamba, Falcon-Mamba and Mamba-2."""

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Part
from vllm_capacity.predict.models.assembly import MAX_WIDTH
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.hybrid import HybridFields, Shell, norms
from vllm_capacity.predict.parts.mamba import Mamba2Mixer, MambaMixer
from vllm_capacity.units import ceil_div


def build_mamba(config: Fields, *, path: str = "backbone", head_path: str = "") -> Model:
    """Mamba and Falcon-Mamba, whose norms inside the mixer have no weights.

    Source: vLLM 0.32 ``model_executor/models/mamba.py``; transformers 5 ``MambaConfig``.
    """
    read = HybridFields(config, "mamba.py")
    hidden = read.size("hidden_size")
    mixer = MambaMixer(
        hidden_size=hidden,
        intermediate_size=_channels(config, hidden),
        state_size=read.size("state_size", 16),
        conv_kernel=read.size("conv_kernel", 4),
        time_step_rank=time_step_rank(config, "time_step_rank", hidden),
        conv_bias=read.flag("use_conv_bias", default=True),
        bias=read.flag("use_bias", default=False),
    )
    return _alone(read, mixer, tied_default=True, path=path, head_path=head_path)


def build_mamba2(config: Fields, *, path: str = "backbone", head_path: str = "") -> Model:
    """Mamba-2.

    Source: vLLM 0.32 ``model_executor/models/mamba2.py``; transformers 5 ``Mamba2Config``.
    """
    read = HybridFields(config, "mamba2.py")
    hidden = read.size("hidden_size")
    mixer = Mamba2Mixer(
        hidden_size=hidden,
        intermediate_size=_channels(config, hidden),
        state_size=read.size("state_size", 128),
        num_groups=read.size("n_groups", 8),
        num_heads=read.size("num_heads", 128),
        head_size=read.size("head_dim", 64),
        conv_kernel=read.size("conv_kernel", 4),
        conv_bias=read.flag("use_conv_bias", default=True),
        bias=read.flag("use_bias", default=False),
    )
    return _alone(
        read,
        mixer,
        tied_default=False,
        path=path,
        head_path=head_path,
        stages_refusal="vLLM refuses to start: mamba2.py cannot be pipelined",
    )


def time_step_rank(config: Fields, key: str, hidden_size: int) -> int:
    """The width of the time step's projections, of a sixteenth of the model unless given."""
    if config.values.get(key) in (None, "auto"):
        return ceil_div(hidden_size, 16)
    return config.required_integer(key, maximum=MAX_WIDTH)


def _channels(config: Fields, hidden_size: int) -> int:
    given = config.integer("intermediate_size", maximum=MAX_WIDTH)
    expand = config.number("expand", minimum=0.01, maximum=1000)
    return given or max(1, int((2 if expand is None else expand) * hidden_size))


def _alone(
    read: HybridFields,
    mixer: Part,
    *,
    tied_default: bool,
    path: str,
    head_path: str,
    stages_refusal: str | None = None,
) -> Model:
    hidden, vocab = read.size("hidden_size"), read.size("vocab_size")
    parts: tuple[Part, ...] = (mixer, norms(1, hidden))
    shell = Shell(
        vocab_size=vocab,
        hidden_size=hidden,
        tied=read.flag("tie_word_embeddings", default=tied_default),
        embedding_name="embeddings",
        norm_name="norm_f",
    )
    return Model(
        source=read.source,
        hidden_size=hidden,
        vocab_size=vocab,
        layers=tuple(
            Layer(path=f"{path}.layers.{index}", parts=parts) for index in range(read.num_layers())
        ),
        outside=tuple(shell.parts(path, head_path)),
        stages_refusal=stages_refusal,
    )


BUILDERS: dict[str, Builder] = {
    "FalconMambaForCausalLM": build_mamba,
    "Mamba2ForCausalLM": build_mamba2,
    "MambaForCausalLM": build_mamba,
}
