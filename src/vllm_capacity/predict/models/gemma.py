"""Gemma 2, 3, 3n and 4, and classes built like them: layers with a window among full ones."""

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Outside, Part, Stages
from vllm_capacity.predict.models.assembly import (
    FULL,
    MAX_LAYERS,
    SLIDING,
    Ends,
    assemble,
    count,
    every,
    flag,
    layer_types,
    max_positions,
    num_layers,
    refuse_unless,
    ropes_by_kind,
    self_attention,
    width,
    window,
    with_defaults,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.parts import Mlp, SelfAttention, TokenEmbedding, Vectors
from vllm_capacity.predict.parts.gemma import BorrowingAttention, ParallelMoe
from vllm_capacity.predict.parts.projection import Projection
from vllm_capacity.predict.rope import Rope, read_rope

_FLOAT32 = 4
_NO_SHARED_STAGES = "pipeline stages are not described for layers that share keys and values"
#: Source: transformers 5 ``gemma2/configuration_gemma2.py``.
_GEMMA2: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
#: Source: transformers 5 ``gemma3/configuration_gemma3.py``, ``Gemma3TextConfig``.
_GEMMA3 = {**_GEMMA2, "vocab_size": 262208, "max_position_embeddings": 131072}
#: Source: transformers 5 ``gemma3n/configuration_gemma3n.py``, ``Gemma3nTextConfig``.
_GEMMA3N = {
    **_GEMMA3,
    "vocab_size": 262400,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 35,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 256,
    "altup_num_inputs": 4,
    "num_kv_shared_layers": 15,
    "laurel_rank": 64,
}
#: Source: transformers 5 ``gemma4/configuration_gemma4.py``, ``Gemma4TextConfig``.
_GEMMA4 = {
    **_GEMMA3,
    "vocab_size": 262144,
    "num_hidden_layers": 30,
    "sliding_window": 512,
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 256,
    "global_head_dim": 512,
}


def build_gemma2(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Every other layer has a window; logits come from the embedding's own table.

    Source: vLLM 0.32 ``model_executor/models/gemma2.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _GEMMA2)
    _check(config, only_tanh=True)
    rope = read_rope(config, max_positions=max_positions(config))
    kinds = layer_types(config, every(2, num_layers(config)), known=(FULL, SLIDING))
    like = {kind: _layer(config, kind, rope, qk_norm="none") for kind in (FULL, SLIDING)}
    return assemble(
        source="gemma2.py",
        layers=[like[kind] for kind in kinds],
        ends=Ends.read(
            config, path=path, head_path=head_path, tied=True, everywhere=True, scaled=True
        ),
        ropes=(rope,),
        max_positions=max_positions(config),
    )


def build_gemma3(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Five layers of six have a window and a rotary table of their own.

    Source: vLLM 0.32 ``model_executor/models/gemma3.py``; rope scaling does not lengthen
    (``config/model.py``, ``_get_and_verify_max_len``).

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _GEMMA3)
    _check(config)
    period = config.integer("sliding_window_pattern", maximum=MAX_LAYERS) or 6
    kinds = layer_types(config, every(period, num_layers(config)), known=(FULL, SLIDING))
    ropes = ropes_by_kind(config)
    like = {kind: _layer(config, kind, rope) for kind, rope in ropes.items()}
    return assemble(
        source="gemma3.py",
        layers=[like[kind] for kind in kinds],
        ends=Ends.read(config, path=path, head_path=head_path, everywhere=True, scaled=True),
        ropes=ropes.values(),
        length_factor=1.0,
        max_positions=max_positions(config),
    )


def build_gemma3n(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """The last layers borrow keys and values; alternating updates surround every layer.

    Source: vLLM 0.32 ``model_executor/models/gemma3n.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _GEMMA3N)
    _check(config, only_tanh=True)
    layers = num_layers(config)
    kinds = layer_types(config, every(5, layers), known=(FULL, SLIDING))
    shared = count(config, "num_kv_shared_layers")
    refuse_unless(shared <= max(layers - 2, 0), "Gemma3n needs two layers with keys and values")
    ropes = ropes_by_kind(config)
    hidden = width(config, "hidden_size")
    more = tuple(_gemma3n_parts(config, hidden))
    widths = _widths(config, layers)
    parts = []
    for index, kind in enumerate(kinds):
        attention = _attention(config, kind, ropes[kind])
        own = index < layers - shared
        parts.append(
            (
                attention if own else BorrowingAttention(like=attention),
                Mlp(hidden_size=hidden, intermediate_size=widths[index]),
                *more,
            )
        )
    return assemble(
        source="gemma3n.py",
        layers=parts,
        ends=Ends.read(
            config,
            path=f"{path}.self_decoder",
            head_path=head_path,
            tied=True,
            everywhere=True,
            scaled=True,
        ),
        ropes=ropes.values(),
        length_factor=1.0,
        max_positions=max_positions(config),
        layers_path=path,
        more=tuple(_gemma3n_outside(config, path, hidden, layers)),
        stages_refusal="vLLM refuses to start: gemma3n.py has no pipeline stages",
    )


def _widths(config: Fields, layers: int) -> tuple[int, ...]:
    if isinstance(config.values.get("intermediate_size"), list | tuple):
        widths = config.integers("intermediate_size") or ()
        if len(widths) == layers and all(each > 0 for each in widths):
            return widths
        config.fault("intermediate_size", f"must list {layers} widths, as num_hidden_layers")
        return (1,) * layers
    return (width(config, "intermediate_size"),) * layers


def _gemma3n_parts(config: Fields, hidden: int) -> Iterator[Part]:
    """Source: vLLM 0.32 ``gemma3n.py``, ``Gemma3nAltUp`` and ``Gemma3nLaurelBlock``."""
    inputs = width(config, "altup_num_inputs")
    rank = width(config, "laurel_rank")
    yield Projection(name="altup.correction_coefs", input_size=inputs, output_size=inputs)
    yield Projection(name="altup.prediction_coefs", input_size=inputs, output_size=inputs**2)
    yield Projection(name="altup.modality_router", input_size=hidden, output_size=inputs)
    yield Vectors(name="altup.router_norm", elements=hidden + 1)
    yield Vectors(name="altup.correct_output_scale", elements=hidden, element_bytes=_FLOAT32)
    yield Projection(name="laurel.linear_left", input_size=hidden, output_size=rank, split="column")
    yield Projection(name="laurel.linear_right", input_size=rank, output_size=hidden, split="row")
    yield from _per_layer_parts(width(config, "hidden_size_per_layer_input"), hidden)
    yield Vectors(name="layernorms", elements=5 * hidden)


def _gemma3n_outside(config: Fields, path: str, hidden: int, layers: int) -> Iterator[Outside]:
    inner = f"{path}.self_decoder"
    for index in range(min(width(config, "altup_num_inputs"), MAX_LAYERS) - 1):
        for base, name in ((inner, "altup_projections"), (path, "altup_unembed_projections")):
            projection = Projection(
                name=f"{name}.{index}", input_size=hidden, output_size=hidden, split="column"
            )
            yield Outside(part=projection, stages=Stages.EVERY, path=base)
    yield from _per_layer_outside(config, inner, hidden, layers)


def _per_layer_parts(size: int, hidden: int) -> Iterator[Part]:
    """What every layer has to take in its own embedding of the token."""
    yield Projection(name="per_layer_input_gate", input_size=hidden, output_size=size)
    yield Projection(name="per_layer_projection", input_size=size, output_size=hidden)
    yield Vectors(name="post_per_layer_input_norm", elements=hidden)


def _per_layer_outside(config: Fields, path: str, hidden: int, layers: int) -> Iterator[Outside]:
    """Embeddings for every layer, and three scalars that scale them."""
    size = width(config, "hidden_size_per_layer_input")
    parts: tuple[Part, ...] = (
        TokenEmbedding(
            vocab_size=width(config, "vocab_size_per_layer_input"),
            hidden_size=size * layers,
            name="embed_tokens_per_layer",
        ),
        Projection(
            name="per_layer_model_projection",
            input_size=hidden,
            output_size=size * layers,
            split="column",
        ),
        Vectors(name="per_layer_projection_norm", elements=size + 3),
    )
    for part in parts:
        yield Outside(part=part, stages=Stages.EVERY, path=path)


def build_gemma4(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Full layers have wider heads; experts may stand beside the MLP; layers may borrow keys.

    Source: vLLM 0.32 ``model_executor/models/gemma4.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _GEMMA4)
    _check(config)
    refuse_unless(not config.has("per_layer_config"), "per_layer_config is not covered here")
    layers = num_layers(config)
    kinds = layer_types(config, every(6, layers), known=(FULL, SLIDING))
    kinds = (*kinds[:-1], FULL)
    shared = count(config, "num_kv_shared_layers")
    own = layers - shared
    borrowed = set(kinds[own:]) if shared else set()
    refuse_unless(own > 0 and borrowed <= set(kinds[:own]), "a layer has no keys to borrow")
    ropes = _gemma4_ropes(config, kinds)
    ends = Ends.read(config, path=path, head_path=head_path, everywhere=True, scaled=True)
    per_layer = count(config, "hidden_size_per_layer_input")
    return assemble(
        source="gemma4.py",
        layers=list(_gemma4_layers(config, kinds, ropes, own=own)),
        ends=ends,
        ropes=ropes.values(),
        max_positions=max_positions(config),
        more=tuple(_per_layer_outside(config, path, ends.hidden_size, layers)) if per_layer else (),
        stages_refusal=_NO_SHARED_STAGES if shared else None,
        **_gemma4_heads(config, kinds),
    )


def _gemma4_heads(config: Fields, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Heads of the model as a whole: the largest of any layer's.

    Source: vLLM 0.32 ``config/model_arch.py``, ``ModelArchitectureConfig.from_layers``.
    """
    size, heads = width(config, "head_dim"), width(config, "num_key_value_heads")
    full = _gemma4_full(config)
    layers = [(full["head_size"], full.get("num_kv_heads", heads))] if FULL in kinds else []
    layers += [(size, heads)] if SLIDING in kinds else []
    sizes = {each for each, _ in layers}
    return {
        "head_size": max(sizes),
        "num_kv_heads": max(each for _, each in layers),
        "mixed_heads": len(sizes) > 1,
    }


def _gemma4_full(config: Fields) -> dict[str, int]:
    """What differs in layers of full attention."""
    heads = {"head_size": width(config, "global_head_dim")}
    if flag(config, "attention_k_eq_v") and config.has("num_global_key_value_heads"):
        heads["num_kv_heads"] = width(config, "num_global_key_value_heads")
    return heads


def _gemma4_ropes(config: Fields, kinds: tuple[str, ...]) -> dict[str, Rope]:
    """One rotary embedding for each kind of layer.

    ``proportional`` ones have columns for the whole head (``rotary_embedding/gemma4_rope.py``).
    """
    published = config.values.get("rope_parameters")
    if published is None:
        published = {
            SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
            FULL: {"rope_type": "proportional", "rope_theta": 1000000.0},
        }
    nested = isinstance(published, Mapping) and all(
        isinstance(published.get(kind), Mapping) for kind in kinds
    )
    refuse_unless(nested, "Gemma 4 needs rope_parameters for each of its layer_types")
    reader = Fields({"rope_parameters": published}, path=config.path, faults=config.faults)
    positions = max_positions(config)
    return {
        kind: read_rope(reader, max_positions=positions, layer_type=kind) for kind in set(kinds)
    }


def _gemma4_layers(
    config: Fields, kinds: tuple[str, ...], ropes: Mapping[str, Rope], *, own: int
) -> Iterator[tuple[Part, ...]]:
    hidden, full = width(config, "hidden_size"), _gemma4_full(config)
    double = 2 if flag(config, "use_double_wide_mlp") else 1
    norms = Vectors(name="layernorms", elements=4 * hidden + 1)
    moe = _gemma4_moe(config, hidden)
    per_layer = count(config, "hidden_size_per_layer_input")
    inputs = tuple(_per_layer_parts(per_layer, hidden)) if per_layer else ()
    for index, kind in enumerate(kinds):
        attention = _attention(config, kind, ropes[kind], **(full if kind == FULL else {}))
        lends = index < own
        factor = 1 if lends else double
        mlp = Mlp(hidden_size=hidden, intermediate_size=factor * width(config, "intermediate_size"))
        chosen = attention if lends else BorrowingAttention(like=attention)
        yield (chosen, mlp, norms, *moe, *inputs)


def _gemma4_moe(config: Fields, hidden: int) -> tuple[Part, ...]:
    if not config.has("num_experts"):
        return ()
    return (
        ParallelMoe(
            hidden_size=hidden,
            num_experts=width(config, "num_experts"),
            experts_per_token=width(config, "top_k_experts"),
            intermediate_size=width(config, "moe_intermediate_size", "expert_intermediate_size"),
        ),
    )


def _check(config: Fields, *, only_tanh: bool = False) -> None:
    activation = config.text("hidden_activation")
    refuse_unless(
        not only_tanh or activation == "gelu_pytorch_tanh",
        f"vLLM refuses to start: hidden_activation {activation} is not gelu_pytorch_tanh",
    )
    both_ways = config.values.get("use_bidirectional_attention")
    refuse_unless(
        both_ways in {None, False, "vision"} and config.values.get("is_causal") is not False,
        "use_bidirectional_attention keeps no KV cache, which is not described here",
    )


def _attention(config: Fields, kind: str, rope: Rope, **more: Any) -> SelfAttention:
    bias = flag(config, "attention_bias")
    return self_attention(
        config,
        rope,
        qkv_bias=bias,
        o_bias=bias,
        sliding_window=None if kind == FULL else window(config),
        **{"qk_norm": "head", **more},
    )


def _layer(config: Fields, kind: str, rope: Rope, **more: Any) -> tuple[Part, ...]:
    hidden = width(config, "hidden_size")
    mlp = Mlp(hidden_size=hidden, intermediate_size=width(config, "intermediate_size"))
    norms = Vectors(name="layernorms", elements=4 * hidden)
    return (_attention(config, kind, rope, **more), mlp, norms)


BUILDERS: dict[str, Builder] = {
    "Gemma2ForCausalLM": build_gemma2,
    "Gemma3ForCausalLM": build_gemma3,
    "Gemma3nForCausalLM": build_gemma3n,
    "Gemma4ForCausalLM": build_gemma4,
}
