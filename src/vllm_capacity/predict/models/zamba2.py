"""Zamba2: Mamba-2 layers, some of which attend through shared transformer blocks."""

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Part
from vllm_capacity.predict.models.assembly import MAX_LAYERS
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.hybrid import HYBRID, LINEAR, HybridFields, Shell, norms
from vllm_capacity.predict.parts.mamba import Mamba2Mixer
from vllm_capacity.predict.parts.projections import Replicated
from vllm_capacity.predict.parts.shared_block import SharedBlock
from vllm_capacity.predict.refusal import Refusal

_POSITIONS, _LONG_POSITIONS = 4096, 16384


def build_zamba2(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Zamba2, always tied; vLLM builds the shared blocks before all layers.

    Source: vLLM 0.32 ``model_executor/models/zamba2.py``; transformers 5 ``Zamba2Config``.

    Raises:
        Refusal: vLLM would not build it.
    """
    read = HybridFields(config, "zamba2.py")
    hidden, vocab = read.size("hidden_size"), read.size("vocab_size")
    kinds = read.kinds("layers_block_type", "layer_types", num_layers=None, known=(LINEAR, HYBRID))
    if not kinds:
        config.fault("layers_block_type", "is missing; add the model's value")
    kinds = (kinds or [LINEAR])[:MAX_LAYERS]
    uses = kinds.count(HYBRID)
    mixer = _mixer(read, hidden, first_index=uses)
    linear = Replicated(name="linear", input_size=hidden, output_size=hidden)
    norm = norms(1, hidden)
    parts: dict[str, tuple[Part, ...]] = {LINEAR: (mixer, norm), HYBRID: (linear, mixer, norm)}
    blocks = _blocks(read, hidden, uses, path)
    layers = [parts[kind] for kind in kinds]
    layers[0] = (*blocks, *layers[0])
    shell = Shell(vocab_size=vocab, hidden_size=hidden, tied=True, norm_name="final_layernorm")
    return Model(
        source=read.source,
        hidden_size=hidden,
        vocab_size=vocab,
        layers=tuple(
            Layer(path=f"{path}.layers.{index}", parts=each) for index, each in enumerate(layers)
        ),
        outside=tuple(shell.parts(path, head_path)),
        stages_refusal="vLLM refuses to start: zamba2.py cannot be pipelined",
        max_positions=_positions(read),
    )


def _positions(read: HybridFields) -> int:
    if not read.flag("use_long_context", default=False):
        return read.positions(_POSITIONS)
    # The config class overrides what the file says.
    read.expect(max_position_embeddings=_LONG_POSITIONS)
    return _LONG_POSITIONS


def _mixer(read: HybridFields, hidden_size: int, *, first_index: int) -> Mamba2Mixer:
    channels, heads = read.size("mamba_expand", 2) * hidden_size, read.size("n_mamba_heads", 8)
    return Mamba2Mixer(
        hidden_size=hidden_size,
        intermediate_size=channels,
        state_size=read.size("mamba_d_state", 64),
        num_groups=read.size("mamba_ngroups", 1),
        num_heads=heads,
        head_size=max(1, channels // heads),
        conv_kernel=read.size("mamba_d_conv", 4),
        conv_bias=read.flag("use_conv_bias", default=True),
        bias=read.flag("add_bias_linear", default=False),
        path_root="",
        first_index=first_index,
    )


def _blocks(read: HybridFields, hidden_size: int, uses: int, path: str) -> tuple[SharedBlock, ...]:
    """The blocks take turns."""
    activation = read.config.text("hidden_act")
    if activation not in {None, "gelu"}:
        raise Refusal(f"vLLM refuses to start: zamba2.py supports only gelu, not {activation}")
    heads, _ = read.heads(kv_heads_default=True)
    if 2 * hidden_size % heads:
        raise Refusal("vLLM refuses to start: twice hidden_size must be divisible by the heads")
    rope = None
    if read.flag("use_mem_rope", default=False):
        rope = read.rope(_positions(read)).table(2 * hidden_size // heads)
    count = read.size("num_mem_blocks", 1)
    return tuple(
        SharedBlock(
            hidden_size=hidden_size,
            intermediate_size=read.size("intermediate_size", 4 * hidden_size),
            num_heads=heads,
            uses=len(range(block, uses, count)),
            first_cache=block * (uses + count - 1) // count,
            adapter_rank=read.size("adapter_rank", 128),
            attention_adapters=read.flag("use_shared_attention_adapter", default=False),
            mlp_bias=read.flag("add_bias_linear", default=False),
            path=path,
            rope=rope,
        )
        for block in range(min(count, uses))
    )


BUILDERS: dict[str, Builder] = {"Zamba2ForCausalLM": build_zamba2}
