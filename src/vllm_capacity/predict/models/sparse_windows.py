"""Mixtures of experts beside a shared one: EXAONE, Cohere 2, Hunyuan 3."""

from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model
from vllm_capacity.predict.models.assembly import (
    DENSE,
    FULL,
    MAX_LAYERS,
    MAX_WIDTH,
    SLIDING,
    SPARSE,
    Ends,
    assemble,
    count,
    every,
    feed_forwards,
    flag,
    layer_types,
    max_positions,
    num_layers,
    per_layer,
    self_attention,
    width,
    window,
    with_defaults,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.windows import (
    check_silu,
    cohere_positions,
    cohere_window,
    exaone_kinds,
)
from vllm_capacity.predict.parts import Mlp, SparseMoe, Vectors
from vllm_capacity.predict.rope import read_rope

#: Source: transformers 5 ``exaone_moe/configuration_exaone_moe.py``.
_EXAONE_MOE: dict[str, Any] = {
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 1024,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
}
#: Source: transformers 5 ``cohere2_moe/configuration_cohere2_moe.py``.
_COHERE2_MOE: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}
#: Source: transformers 5 ``hy_v3/configuration_hy_v3.py``.
_HY_V3: dict[str, Any] = {
    "vocab_size": 120832,
    "hidden_size": 4096,
    "intermediate_size": 13312,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "num_experts": 192,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
}


def build_exaone_moe(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """EXAONE 4 with experts, whose windows may differ from layer to layer.

    Source: vLLM 0.32 ``model_executor/models/exaone_moe.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _EXAONE_MOE)
    check_silu(config, "exaone_moe.py")
    hidden, layers = width(config, "hidden_size"), num_layers(config)
    kinds = exaone_kinds(config)
    first = count(config, "first_k_dense_replace")
    feeds = feed_forwards(config, first_dense(first, layers))
    parts = {
        SPARSE: shared_moe(config, hidden, "num_shared_experts", correction_bias=True),
        DENSE: Mlp(
            hidden_size=hidden,
            intermediate_size=width(config, "intermediate_size"),
            bias=flag(config, "mlp_bias"),
        ),
    }
    rope = read_rope(config, max_positions=max_positions(config))
    windows = _exaone_windows(config, kinds)
    norms = Vectors(name="layernorms", elements=2 * hidden)
    bias = flag(config, "attention_bias", "bias")
    like = {
        size: self_attention(
            config, rope, qkv_bias=bias, o_bias=bias, qk_norm="head", sliding_window=size
        )
        for size in set(windows)
    }
    return assemble(
        source="exaone_moe.py",
        layers=[(like[windows[i]], parts[feeds[i]], norms) for i in range(layers)],
        ends=Ends.read(config, path=path, head_path=head_path),
        ropes=(rope,),
        max_positions=max_positions(config),
    )


def _exaone_windows(config: Fields, kinds: tuple[str, ...]) -> tuple[int | None, ...]:
    sizes = (window(config),) * len(kinds)
    given = config.values.get("sliding_windows")
    if given is not None:
        # Layers that attend to all tokens may have null there.
        numbers = [each or 0 for each in given] if isinstance(given, list | tuple) else given
        reader = Fields({"sliding_windows": numbers}, path=config.path, faults=config.faults)
        sizes = tuple(each or None for each in per_layer(reader, "sliding_windows", len(kinds)))
    return tuple(None if kind == FULL else size for kind, size in zip(kinds, sizes, strict=True))


def first_dense(first: int, layers: int) -> tuple[str, ...]:
    """Dense layers in front of sparse ones."""
    return tuple(DENSE if index < first else SPARSE for index in range(layers))


def shared_moe(config: Fields, hidden: int, shared_key: str, **more: Any) -> SparseMoe:
    """Experts beside a shared one that is several of them wide."""
    inner = width(config, more.pop("width_key", "moe_intermediate_size"))
    shared = inner * count(config, shared_key)
    name = more.pop("shared_name", "shared_experts")
    expert = Mlp(hidden_size=hidden, intermediate_size=shared, name=name, token_parallel=False)
    return SparseMoe(
        hidden_size=hidden,
        num_experts=width(config, "num_experts"),
        experts_per_token=width(config, "num_experts_per_tok"),
        intermediate_size=inner,
        shared=expert if shared else None,
        **more,
    )


def build_cohere2_moe(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Cohere 2 with experts after some dense layers.

    Source: vLLM 0.32 ``model_executor/models/cohere2_moe.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _COHERE2_MOE)
    hidden, layers = width(config, "hidden_size"), num_layers(config)
    first = count(config, "first_k_dense_replace")
    kinds = layer_types(config, _cohere_kinds(config, first, layers), known=(FULL, SLIDING))
    feeds = feed_forwards(config, first_dense(first, layers))
    rope = read_rope(config, max_positions=cohere_positions(config))
    own = config.integer("prefix_dense_intermediate_size", maximum=MAX_WIDTH)
    parts = {
        SPARSE: shared_moe(config, hidden, "num_shared_experts", width_key="intermediate_size"),
        DENSE: Mlp(hidden_size=hidden, intermediate_size=own or width(config, "intermediate_size")),
    }
    norm = Vectors(name="input_layernorm", elements=hidden)
    like = {
        kind: self_attention(config, rope, sliding_window=cohere_window(config, kind, kinds))
        for kind in (FULL, SLIDING)
    }
    return assemble(
        source="cohere2_moe.py",
        layers=[(like[kinds[i]], parts[feeds[i]], norm) for i in range(layers)],
        ends=Ends.read(config, path=path, head_path=head_path, tied=True, everywhere=True),
        ropes=(rope,),
        max_positions=max_positions(config),
    )


def _cohere_kinds(config: Fields, first: int, layers: int) -> tuple[str, ...]:
    """The dense layers in front have a pattern of their own."""
    period = config.integer("sliding_window_pattern", maximum=MAX_LAYERS) or 4
    before = config.integer("prefix_dense_sliding_window_pattern", maximum=MAX_LAYERS) or 1
    first = min(first, layers)
    return (*every(before, first), *every(period, layers - first))


def build_hy_v3(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Full attention, experts after some dense layers; every stage builds embedding and head.

    Source: vLLM 0.32 ``model_executor/models/hy_v3.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _HY_V3)
    check_silu(config, "hy_v3.py")
    hidden, layers = width(config, "hidden_size"), num_layers(config)
    first = config.required_integer("first_k_dense_replace", minimum=0, maximum=MAX_LAYERS)
    rope = read_rope(config, max_positions=max_positions(config))
    attention = self_attention(config, rope, qk_norm="head" if flag(config, "qk_norm") else "none")
    moe = shared_moe(
        config,
        hidden,
        "num_shared_experts",
        width_key="expert_hidden_dim",
        shared_name="shared_mlp",
        correction_bias=True,
        float32_router=True,
    )
    mlp = Mlp(hidden_size=hidden, intermediate_size=width(config, "intermediate_size"))
    norms = Vectors(name="layernorms", elements=2 * hidden)
    return assemble(
        source="hy_v3.py",
        layers=[(attention, mlp if i < first else moe, norms) for i in range(layers)],
        ends=Ends.read(config, path=path, head_path=head_path, everywhere=True),
        ropes=(rope,),
        max_positions=max_positions(config),
        dense_stages=False,
    )


BUILDERS: dict[str, Builder] = {
    "ExaoneMoeForCausalLM": build_exaone_moe,
    "ExaoneMoEForCausalLM": build_exaone_moe,
    "Cohere2MoeForCausalLM": build_cohere2_moe,
    "HYV3ForCausalLM": build_hy_v3,
}
