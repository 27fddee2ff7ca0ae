"""What models with latent attention have in common in ``config.json``."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Outside, Part, Stages
from vllm_capacity.predict.models.assembly import MAX_LAYERS, MAX_TOKENS, MAX_WIDTH
from vllm_capacity.predict.parts import LogitsHead, Mlp, SparseMoe, TokenEmbedding, Vectors
from vllm_capacity.predict.parts.latent_attention import LatentAttention
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.rope import Rope, RopeTable, read_rope

#: Head sizes that FlashInfer rotates.
#: Source: vLLM 0.32 ``layers/rotary_embedding/deepseek_scaling_rope.py``.
_FLASHINFER_HEAD_SIZES = frozenset({64, 128, 256, 512})
_YARN = frozenset({"yarn", "deepseek_yarn", "deepseek_llama_scaling"})
#: Model types that keep the latent vector; others keep every head's key and value.
#: Source: vLLM 0.32 ``transformers_utils/model_arch_config_convertor.py``, ``is_deepseek_mla``.
_LATENT_TYPES = frozenset(
    {
        *("axk1", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "glm4_moe_lite"),
        *("kimi_k2", "kimi_linear", "longcat_flash", "pangu_ultra_moe", "bailing_hybrid"),
    }
)


def with_defaults(config: Fields, defaults: Mapping[str, Any]) -> Fields:
    """``config`` with a configuration class's values where keys are absent (not where null)."""
    return Fields({**defaults, **config.values}, path=config.path, faults=config.faults)


def required(config: Fields, key: str, *, minimum: int = 1) -> int:
    """A width or a count that the class cannot do without."""
    return config.required_integer(key, minimum=minimum, maximum=MAX_WIDTH)


def check_silu(config: Fields, source: str) -> None:
    """Refuse what the class's MLP refuses."""
    activation = config.text("hidden_act")
    if activation not in {None, "silu"}:
        raise Refusal(f"vLLM refuses to start: {source} supports only silu, not {activation}")


def keeps_latent(config: Fields) -> bool:
    """Whether vLLM's cache holds latent vectors for this file.

    Source: vLLM 0.32 ``config/model.py``, ``use_mla``.
    """
    if config.boolean("is_causal") is False:
        raise Refusal("bidirectional attention (is_causal false) keeps no KV cache")
    return config.text("model_type") in _LATENT_TYPES and config.has("kv_lora_rank")


def read_latent_rope(config: Fields) -> Rope:
    """The rotary embedding, before vLLM turns YaRN into DeepSeek's own.

    Raises:
        Refusal: vLLM would make DeepSeek's YaRN of another type, whose parameters it lacks.
    """
    positions = config.required_integer("max_position_embeddings", maximum=MAX_TOKENS)
    rope = read_rope(config, max_positions=positions)
    if rope.rope_type != "default" and rope.rope_type not in _YARN:
        raise Refusal(f"rope type {rope.rope_type!r} of latent attention is not covered")
    return rope


def latent_table(rope: Rope, head_size: int, *, interleaved: bool = True) -> RopeTable:
    """The table of a latent attention's rotary elements.

    Source: vLLM 0.32 ``model_executor/models/deepseek_v2.py``, ``DeepseekV2MLAAttention``: any
    scaled type becomes ``deepseek_yarn``.
    """
    if rope.rope_type == "default":
        return replace(rope.table(head_size), interleaved=interleaved)
    scaled = replace(rope, rope_type="deepseek_yarn")
    return replace(
        scaled.table(head_size),
        interleaved=interleaved,
        wide_with_flashinfer=head_size in _FLASHINFER_HEAD_SIZES,
    )


def read_latent_attention(
    config: Fields,
    *,
    ropes: tuple[RopeTable, ...],
    absorbed: bool = True,
    fused_a: bool = True,
    quantizable: bool = True,
) -> LatentAttention:
    """The attention's widths."""
    return LatentAttention(
        hidden_size=required(config, "hidden_size"),
        num_heads=required(config, "num_attention_heads"),
        q_lora_rank=config.integer("q_lora_rank", maximum=MAX_WIDTH),
        kv_lora_rank=required(config, "kv_lora_rank"),
        qk_nope_head_dim=required(config, "qk_nope_head_dim"),
        qk_rope_head_dim=required(config, "qk_rope_head_dim"),
        v_head_dim=required(config, "v_head_dim"),
        ropes_used=ropes,
        absorbed=absorbed,
        fused_a=fused_a,
        quantizable=quantizable,
    )


def read_experts(
    config: Fields,
    *,
    correction_bias: bool,
    float32_router: bool = False,
    shared_width: int | None,
    experts_key: str = "n_routed_experts",
    token_parallel: bool = True,
) -> SparseMoe:
    """A sparse layer with one shared expert of ``shared_width``, None or 0 without."""
    hidden_size = required(config, "hidden_size")
    shared = None
    if shared_width:
        shared = Mlp(
            hidden_size=hidden_size,
            intermediate_size=shared_width,
            name="shared_experts",
            token_parallel=token_parallel,
        )
    return SparseMoe(
        hidden_size=hidden_size,
        num_experts=required(config, experts_key),
        experts_per_token=required(config, "num_experts_per_tok"),
        intermediate_size=required(config, "moe_intermediate_size"),
        shared=shared,
        correction_bias=correction_bias,
        float32_router=float32_router,
        fits_tensorrt=config.boolean("norm_topk_prob") is not False,
    )


def shared_experts_width(config: Fields, key: str = "n_shared_experts") -> int | None:
    """Width of the shared expert: so many routed ones; None without."""
    count = config.integer(key, minimum=0, maximum=MAX_WIDTH)
    return None if count is None else count * required(config, "moe_intermediate_size")


def assemble(
    config: Fields,
    *,
    source: str,
    path: str,
    head_path: str,
    parts_of: Callable[[int], tuple[Part, ...]],
    rope: Rope | None,
    layers_key: str = "num_hidden_layers",
    tied: bool = False,
    compiled: bool = True,
    dense_stages: bool = True,
    complete_stages: bool = False,
    oldest_release: tuple[int, int] | None = (0, 32),
) -> Model:
    """Layers, and embedding, norm and head around them.

    Args:
        config: the text model's configuration.
        source: vLLM's file.
        path: vLLM's module path of the decoder.
        head_path: the same of what the logits head stands in.
        parts_of: the parts of a layer; layers that are alike must be given one tuple.
        rope: as ``config.json`` describes it.
        layers_key: config key with the number of layers.
        tied: whether the head is the embedding's own table.
        compiled: whether vLLM compiles the class by default.
        dense_stages: whether vLLM starts a pipeline stage without any sparse layer.
        complete_stages: whether every pipeline stage builds embedding, norm and head.
        oldest_release: first release that is known to build it so, None for all.
    """
    hidden, vocab = required(config, "hidden_size"), required(config, "vocab_size")
    num_layers = config.required_integer(layers_key, maximum=MAX_LAYERS)
    first = Stages.FIRST_AND_LAST if tied else Stages.FIRST
    last = Stages.EVERY if complete_stages else Stages.LAST
    embedding = TokenEmbedding(vocab_size=vocab, hidden_size=hidden)
    norm = Vectors(name="norm", elements=hidden)
    head = LogitsHead(vocab_size=vocab, hidden_size=hidden, tied=tied)
    return Model(
        source=source,
        hidden_size=hidden,
        vocab_size=vocab,
        layers=tuple(
            Layer(path=f"{path}.layers.{index}", parts=parts_of(index))
            for index in range(num_layers)
        ),
        outside=(
            Outside(part=embedding, stages=Stages.EVERY if complete_stages else first, path=path),
            Outside(part=norm, stages=last, path=path),
            Outside(part=head, stages=last, path=head_path),
        ),
        length_factor=1.0 if rope is None else rope.length_factor,
        rope_type=None if rope is None else rope.rope_type,
        compiled=compiled,
        dense_stages=dense_stages,
        oldest_release=oldest_release,
    )


def norms(config: Fields, count: int = 2) -> Vectors:
    """The vectors of ``hidden_size`` in a layer's norms."""
    return Vectors(name="layernorms", elements=count * required(config, "hidden_size"))
