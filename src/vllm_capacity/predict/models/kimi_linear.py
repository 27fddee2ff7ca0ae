"""Kimi-Linear, and the text model of Kimi-K3: recurrent layers among latent attention."""

from dataclasses import replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Outside, Part, Stages
from vllm_capacity.predict.models.assembly import MAX_LAYERS, MAX_TOKENS, MAX_WIDTH
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.latent_reading import (
    assemble,
    norms,
    read_latent_attention,
    required,
)
from vllm_capacity.predict.parts import Mlp, SparseMoe, Vectors
from vllm_capacity.predict.parts.delta_attention import DeltaAttention
from vllm_capacity.predict.parts.latent_attention import LatentAttention
from vllm_capacity.predict.parts.latent_experts import NarrowedMoe
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.rope import read_rope

_SOURCE = "kimi_k3/nvidia/model.py"
#: Where ``config.json`` does not say.
#: Source: vLLM 0.32 ``models/kimi_k3/nvidia/model.py``, ``KimiMoE``.
_MINIMUM_SHARE = 256


def build_kimi_linear(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Kimi-Linear's text model.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``models/kimi_k3/nvidia/model.py``, ``KimiLinearModel``.
    """
    activation = config.text("hidden_act")
    if activation not in {None, "silu", "situ"}:
        raise Refusal(f"vLLM refuses to start: {_SOURCE} supports only silu and situ")
    recurrent, linear = _recurrent_layers(config)
    attention = _attention(config)
    experts = _experts(config)
    first = config.integer("first_k_dense_replace", minimum=0, maximum=MAX_LAYERS) or 0
    step = config.integer("moe_layer_freq", maximum=MAX_LAYERS) or 1
    dense = Mlp(
        hidden_size=required(config, "hidden_size"),
        intermediate_size=required(config, "intermediate_size"),
        token_parallel=True,
        token_parallel_stages=False,
    )
    norm = _norms(config)
    kinds: dict[tuple[bool, bool], tuple[Part, ...]] = {}

    def parts_of(layer: int) -> tuple[Part, ...]:
        sparse = experts is not None and layer >= first and layer % step == 0
        kind = (layer in recurrent, sparse)
        if kind not in kinds:
            mixer = linear if kind[0] else attention
            kinds[kind] = (mixer, experts if sparse and experts else dense, norm)
        return kinds[kind]

    positions = config.required_integer(
        "max_position_embeddings", "model_max_length", maximum=MAX_TOKENS
    )
    model = assemble(
        config,
        source=_SOURCE,
        path=path,
        head_path=head_path,
        parts_of=parts_of,
        # No table: attention is without positions. The type still tells the longest request.
        rope=read_rope(config, max_positions=positions),
        compiled=False,
    )
    outside = model.outside
    if config.has("attn_res_block_size"):
        mixing = Vectors(name="output_attn_res", elements=2 * model.hidden_size)
        outside = (*outside, Outside(part=mixing, stages=Stages.LAST, path=path))
    return replace(model, outside=outside)


def _norms(config: Fields) -> Vectors:
    """Norms of a layer; attention over earlier residuals has two more, and two projections."""
    return norms(config, 6 if config.has("attn_res_block_size") else 2)


def _recurrent_layers(config: Fields) -> tuple[frozenset[int], DeltaAttention]:
    linear = config.mapping("linear_attn_config")
    if linear is None:
        raise Refusal("config key linear_attn_config is missing; vLLM's class is built around it")
    # Layers are counted from 1.
    layers = linear.integers("kda_layers")
    if layers is None:
        linear.fault("kda_layers", "is missing; list the recurrent layers, counted from 1")
    attention = DeltaAttention(
        hidden_size=required(config, "hidden_size"),
        num_heads=linear.required_integer("num_heads", maximum=MAX_WIDTH),
        head_size=linear.required_integer("head_dim", maximum=MAX_WIDTH),
        conv_size=linear.required_integer("short_conv_kernel_size", maximum=MAX_WIDTH),
        full_rank_gate=bool(linear.boolean("use_full_rank_gate")),
        gate_is_bounded=linear.has("gate_lower_bound"),
    )
    return frozenset(layer - 1 for layer in layers or ()), attention


def _attention(config: Fields) -> LatentAttention:
    if config.boolean("mla_use_nope") is not True:
        raise Refusal("vLLM refuses to start: latent attention of this class has no positions")
    attention = read_latent_attention(config, ropes=())
    return replace(
        attention,
        output_gate=bool(config.boolean("mla_use_output_gate")),
        gate_with_latents=True,
        attn_name="",
        extra_buffer_elements=1,
    )


def _experts(config: Fields) -> NarrowedMoe | None:
    if not config.has("num_experts"):
        return None
    hidden_size, width = required(config, "hidden_size"), required(config, "moe_intermediate_size")
    count = config.integer("num_shared_experts", minimum=0, maximum=MAX_WIDTH)
    shared = None
    if count or "num_shared_experts" not in config.values:
        shared = Mlp(
            hidden_size=hidden_size,
            intermediate_size=(count or 0) * width,
            name="shared_experts",
            token_parallel=True,
            token_parallel_stages=False,
        )
    mixture = SparseMoe(
        hidden_size=hidden_size,
        num_experts=required(config, "num_experts"),
        experts_per_token=required(config, "num_experts_per_token"),
        intermediate_size=width,
        shared=shared,
        correction_bias=True,
        routed_hidden_size=config.integer("routed_expert_hidden_size", maximum=MAX_WIDTH),
        name="block_sparse_moe",
    )
    share = config.integer("min_moe_intermediate_per_partition", minimum=0, maximum=MAX_WIDTH)
    return NarrowedMoe(
        experts=mixture,
        normed=bool(config.boolean("latent_moe_use_norm")),
        minimum_share=_MINIMUM_SHARE if share is None else share,
    )


BUILDERS: dict[str, Builder] = {"KimiLinearForCausalLM": build_kimi_linear}
