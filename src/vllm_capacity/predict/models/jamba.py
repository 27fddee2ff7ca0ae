"""Jamba: Mamba and attention layers, dense and sparse feed-forwards."""

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Part
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.hybrid import HybridFields, Shell, norms
from vllm_capacity.predict.models.mamba import time_step_rank
from vllm_capacity.predict.parts import Mlp, SparseMoe
from vllm_capacity.predict.parts.mamba import MambaMixer
from vllm_capacity.predict.refusal import Refusal

_POSITIONS = 262144


def build_jamba(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Jamba, whose head is never tied.

    Source: vLLM 0.32 ``model_executor/models/jamba.py``; transformers 5 ``JambaConfig``.

    Raises:
        Refusal: vLLM would not build it.
    """
    read = HybridFields(config, "jamba.py")
    read.silu_only()
    hidden, vocab = read.size("hidden_size"), read.size("vocab_size")
    attention = read.attention(hidden_size=hidden, kv_heads_default=False, name="", scaled=False)
    attends = _every(read, "attn_layer", period=8, offset=4)
    is_sparse = _every(read, "expert_layer", period=2, offset=1)
    mixer, dense, sparse = _mixer(read, hidden), _dense(read, hidden), _sparse(read, hidden)
    kinds: dict[tuple[bool, bool], tuple[Part, ...]] = {
        (attending, routed): (
            attention if attending else mixer,
            sparse if routed and sparse is not None else dense,
            norms(2, hidden),
        )
        for attending in (False, True)
        for routed in (False, True)
    }
    shell = Shell(vocab_size=vocab, hidden_size=hidden, tied=False, norm_name="final_layernorm")
    return Model(
        source=read.source,
        hidden_size=hidden,
        vocab_size=vocab,
        layers=tuple(
            Layer(path=f"{path}.layers.{index}", parts=kinds[index in attends, index in is_sparse])
            for index in range(read.num_layers())
        ),
        outside=tuple(shell.parts(path, head_path)),
        max_positions=_POSITIONS,
    )


def _every(read: HybridFields, key: str, *, period: int, offset: int) -> frozenset[int]:
    step = read.size(f"{key}_period", period)
    first = read.size(f"{key}_offset", offset, minimum=0)
    if first >= step:
        raise Refusal(f"vLLM refuses to start: {key}_offset must be smaller than {key}_period")
    return frozenset(range(first, read.num_layers(), step))


def _mixer(read: HybridFields, hidden_size: int) -> MambaMixer:
    return MambaMixer(
        hidden_size=hidden_size,
        intermediate_size=read.size("mamba_expand", 2) * hidden_size,
        state_size=read.size("mamba_d_state", 16),
        conv_kernel=read.size("mamba_d_conv", 4),
        time_step_rank=time_step_rank(read.config, "mamba_dt_rank", hidden_size),
        conv_bias=read.flag("mamba_conv_bias", default=True),
        bias=read.flag("mamba_proj_bias", default=False),
        norm_weights=True,
    )


def _dense(read: HybridFields, hidden_size: int) -> Mlp:
    return Mlp(
        hidden_size=hidden_size,
        intermediate_size=read.size("intermediate_size"),
        name="feed_forward",
    )


def _sparse(read: HybridFields, hidden_size: int) -> SparseMoe | None:
    key = "num_local_experts" if read.config.has("num_local_experts") else "num_experts"
    experts = read.size(key, 16)
    if experts == 1:
        return None
    return SparseMoe(
        hidden_size=hidden_size,
        num_experts=experts,
        experts_per_token=read.size("num_experts_per_tok", 2),
        intermediate_size=read.size("intermediate_size"),
        name="feed_forward",
        router_name="router",
        fits_tensorrt=False,
    )


BUILDERS: dict[str, Builder] = {"JambaForCausalLM": build_jamba}
