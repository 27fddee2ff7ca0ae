"""DeepSeek's text models with latent attention, and those built of their parts."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Part
from vllm_capacity.predict.models.assembly import MAX_LAYERS, MAX_TOKENS, MAX_WIDTH
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.latent_reading import (
    assemble,
    check_silu,
    keeps_latent,
    latent_table,
    norms,
    read_experts,
    read_latent_attention,
    read_latent_rope,
    required,
    shared_experts_width,
    with_defaults,
)
from vllm_capacity.predict.parts import Mlp, SelfAttention, SparseMoe
from vllm_capacity.predict.parts.latent_attention import Indexer, LatentAttention
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.rope import Rope, read_rope

_SOURCE = "deepseek_v2.py"
_DEEPSEEK_V3 = {
    "first_k_dense_replace": 3,
    "kv_lora_rank": 512,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
#: What transformers 5's configuration classes say where ``config.json`` does not.
#: Source: transformers 5 ``configuration_*.py``; ``deepseek_v32`` and ``kimi_k2`` are read by
#: DeepSeek-V3's class (vLLM 0.32 ``transformers_utils/config.py``, ``_CONFIG_REGISTRY``).
_DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek_v2": _DEEPSEEK_V3 | {"first_k_dense_replace": 0, "n_shared_experts": 2},
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "glm_moe_dsa": _DEEPSEEK_V3
    | {
        "index_head_dim": 128,
        "index_n_heads": 32,
        "index_topk": 2048,
        "q_lora_rank": 2048,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
    },
    "axk1": _DEEPSEEK_V3 | {"first_k_dense_replace": 1},
}


def _defaulted(config: Fields) -> Fields:
    return with_defaults(config, _DEFAULTS.get(config.text("model_type") or "", {}))


class _Kinds:
    """Parts of layers; those that are alike share one tuple."""

    def __init__(self, make: Callable[..., tuple[Part, ...]]) -> None:
        self._make = make
        self._made: dict[tuple[bool, ...], tuple[Part, ...]] = {}

    def __call__(self, *kind: bool) -> tuple[Part, ...]:
        if kind not in self._made:
            self._made[kind] = self._make(*kind)
        return self._made[kind]


def build_deepseek(
    config: Fields,
    *,
    path: str = "model",
    head_path: str = "",
    source: str = _SOURCE,
    sparse_class: bool = False,
    norm_count: int = 2,
    correction_default: str | None = None,
) -> Model:
    """DeepSeek-V2, V3, V3.2 and what is built of their parts.

    Args:
        config: the text model's configuration.
        path: vLLM's module path of the decoder.
        head_path: the same of what the logits head stands in.
        source: vLLM's file.
        sparse_class: whether the class always attends sparsely (V3.2 and GLM's).
        norm_count: vectors of ``hidden_size`` in the norms of a layer.
        correction_default: ``topk_method`` where the file has none.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``model_executor/models/deepseek_v2.py`` and
    ``models/deepseek_v32/nvidia/model.py``.
    """
    config = _defaulted(config)
    check_silu(config, source)
    hidden_size = required(config, "hidden_size")
    dense = Mlp(
        hidden_size=hidden_size,
        intermediate_size=required(config, "intermediate_size"),
        token_parallel=sparse_class,
        token_parallel_stages=False,
    )
    experts = _deepseek_experts(config, correction_default)
    attention, rope = _deepseek_attention(config, sparse_class=sparse_class)
    norm = norms(config, norm_count)

    def make(sparse_layer: bool, skips_index: bool) -> tuple[Part, ...]:  # noqa: FBT001
        own = attention
        if skips_index and isinstance(own, LatentAttention):
            own = replace(own, indexer=None)
        feed_forward = experts if sparse_layer and experts is not None else dense
        return (own, feed_forward, norm)

    kinds = _Kinds(make)
    first = config.required_integer("first_k_dense_replace", minimum=0, maximum=MAX_LAYERS)
    step = config.integer("moe_layer_freq", maximum=MAX_LAYERS) or 1
    skips = _skips_index(config)
    return assemble(
        config,
        source=source,
        path=path,
        head_path=head_path,
        parts_of=lambda layer: kinds(layer >= first and layer % step == 0, skips(layer)),
        rope=rope,
        compiled=not sparse_class,
        oldest_release=None if source == _SOURCE and not config.has("index_topk") else (0, 32),
    )


def _deepseek_experts(config: Fields, correction_default: str | None) -> SparseMoe | None:
    if not config.has("n_routed_experts"):
        return None
    method = config.text("topk_method") if "topk_method" in config.values else correction_default
    biased = method == "noaux_tc"
    return read_experts(
        config,
        correction_bias=biased,
        shared_width=shared_experts_width(config),
        fits_tensorrt=_fits_tensorrt(config, biased=biased),
    )


def _fits_tensorrt(config: Fields, *, biased: bool) -> bool:
    """Whether FlashInfer's TensorRT-LLM kernels know the router.

    Source: vLLM 0.32 ``layers/fused_moe/config.py``, ``get_routing_method_type``, and
    ``experts/trtllm_bf16_moe.py``.
    """
    scoring, normed = config.text("scoring_func") or "softmax", config.boolean("norm_topk_prob")
    if scoring == "softmax":
        return bool(normed) and not biased
    return scoring == "sigmoid" and (not biased or normed is not False)


def _deepseek_attention(
    config: Fields, *, sparse_class: bool
) -> tuple[SelfAttention | LatentAttention, Rope]:
    widths = [config.values.get(key) or 0 for key in ("qk_nope_head_dim", "qk_rope_head_dim")]
    if config.text("model_type") == "deepseek" or not any(widths):
        return _plain_attention(config)
    rope = read_latent_rope(config)
    head_size = required(config, "qk_rope_head_dim")
    main = latent_table(rope, head_size)
    absorbed = sparse_class or keeps_latent(config)
    if not (sparse_class or config.has("index_topk")):
        return read_latent_attention(config, ropes=(main,), absorbed=absorbed), rope
    if not absorbed:
        raise Refusal("sparse attention without a latent cache is not covered")
    interleaved = bool(config.boolean("indexer_rope_interleave"))
    indexing = latent_table(rope, head_size, interleaved=interleaved)
    attention = read_latent_attention(config, ropes=(main, indexing))
    required(config, "index_topk")
    indexer = Indexer(
        hidden_size=attention.hidden_size,
        q_lora_rank=required(config, "q_lora_rank"),
        num_heads=required(config, "index_n_heads"),
        head_size=required(config, "index_head_dim"),
    )
    return replace(attention, sparse=True, indexer=indexer), rope


def _plain_attention(config: Fields) -> tuple[SelfAttention, Rope]:
    """DeepSeek-V1's.

    Source: vLLM 0.32 ``model_executor/models/deepseek_v2.py``, ``DeepseekAttention``.
    """
    if config.values.get("rswa_window"):
        raise Refusal("config key rswa_window changes memory in a way that is not covered yet")
    hidden_size, heads = required(config, "hidden_size"), required(config, "num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", maximum=MAX_WIDTH) or heads
    positions = config.required_integer("max_position_embeddings", maximum=MAX_TOKENS)
    rope = read_rope(config, max_positions=positions)
    head_size = max(1, hidden_size // heads)
    attention = SelfAttention(
        hidden_size=hidden_size,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        rope=rope.table(head_size),
    )
    return attention, rope


def _skips_index(config: Fields) -> Callable[[int], bool]:
    """Whether a layer reuses an earlier layer's choice of tokens and has no indexer.

    Source: vLLM 0.32 ``models/deepseek_v32/attention.py``, ``DeepseekV32Attention``.
    """
    if not config.has("index_topk"):
        return lambda _: False
    freq = config.integer("index_topk_freq", maximum=MAX_LAYERS) or 1
    offset = config.integer("index_skip_topk_offset", minimum=0, maximum=MAX_LAYERS)
    offset = 2 if offset is None else offset
    pattern = config.values.get("index_topk_pattern")
    if pattern is None:
        return lambda layer: max(layer - offset + 1, 0) % freq != 0
    if not isinstance(pattern, str | list):
        config.fault("index_topk_pattern", "must be a string or a list of F and S")
        return lambda _: False
    return lambda layer: layer < len(pattern) and pattern[layer] == "S"


_SPARSE = partial(build_deepseek, source="deepseek_v32/nvidia/model.py", sparse_class=True)


def build_glm_moe_dsa(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """GLM-5: as DeepSeek-V3.2, with defaults of its own.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``model_executor/models/config.py``, ``GlmMoeDsaForCausalLM``.
    """
    built = _SPARSE(config, path=path, head_path=head_path)
    return replace(built, blackwell_cache_dtype="fp8_e4m3", replicates_queries=True)


BUILDERS: dict[str, Builder] = {
    "AXK1ForCausalLM": partial(
        build_deepseek, source="AXK1.py", norm_count=3, correction_default="noaux_tc"
    ),
    "DeepseekForCausalLM": build_deepseek,
    "DeepseekV2ForCausalLM": build_deepseek,
    "DeepseekV3ForCausalLM": build_deepseek,
    "DeepseekV32ForCausalLM": _SPARSE,
    "GlmMoeDsaForCausalLM": build_glm_moe_dsa,
    "MistralLarge3ForCausalLM": build_deepseek,
}
