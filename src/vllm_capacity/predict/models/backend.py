"""Classes with windows or experts that vLLM builds from transformers' own code.

Source: vLLM 0.32 ``model_executor/models/registry.py``, ``_TRANSFORMERS_SUPPORTED_MODELS``, and
``models/transformers/base.py``: parameters are those of transformers 5's ``modeling_*.py``; linear
layers, embeddings, attention and experts are vLLM's.
"""

from collections.abc import Iterator
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Outside, Part, Stages
from vllm_capacity.predict.models.assembly import (
    FULL,
    SLIDING,
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
    refuse_unless,
    ropes_by_kind,
    self_attention,
    width,
    window,
    with_defaults,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.parts import Mlp, SelfAttention, SparseMoe, Vectors
from vllm_capacity.predict.rope import Rope, read_rope

_FLOAT32 = 4
#: First release that builds these classes from transformers' code.
_OLDEST = (0, 32)
#: Source: transformers 5 ``olmo3/configuration_olmo3.py``.
_OLMO3: dict[str, Any] = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "sliding_window": 4096,
}
#: Source: transformers 5 ``cwm/configuration_cwm.py``.
_CWM: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 6144,
    "intermediate_size": 21504,
    "num_hidden_layers": 64,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "sliding_window": 8192,
}
#: Source: transformers 5 ``vaultgemma/configuration_vaultgemma.py``.
_VAULT_GEMMA: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
#: Source: transformers 5 ``mellum/configuration_mellum.py``.
_MELLUM: dict[str, Any] = {
    "vocab_size": 98304,
    "hidden_size": 2304,
    "intermediate_size": 7168,
    "num_hidden_layers": 28,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "sliding_window": 1024,
    "moe_intermediate_size": 896,
    "num_experts_per_tok": 8,
    "num_experts": 64,
}
#: Source: transformers 5 ``flex_olmo/configuration_flex_olmo.py``.
_FLEX_OLMO: dict[str, Any] = {
    "vocab_size": 100352,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "num_experts_per_tok": 5,
    "num_experts": 7,
    "pad_token_id": 100277,
}
#: Source: transformers 5 ``hunyuan_v1_moe/configuration_hunyuan_v1_moe.py``.
_HUNYUAN: dict[str, Any] = {
    "vocab_size": 290943,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}


def build_olmo3(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Three layers of four have a window; each kind has rotary frequencies of its own.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _OLMO3)
    kinds = layer_types(config, every(4, num_layers(config)), known=(FULL, SLIDING))
    ropes = ropes_by_kind(config, full_base=500000.0, sliding_base=500000.0)
    bias = flag(config, "attention_bias")
    more = {"qk_norm": "whole", "qkv_bias": bias, "o_bias": bias}
    return _assembled(
        config,
        kinds,
        tuple(_dense(config)),
        more,
        ropes=tuple(ropes.values()),
        tables=len(set(kinds)),
        path=path,
        head_path=head_path,
    )


def build_cwm(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """A Llama three layers of four of which have a window.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _CWM)
    default = tuple(SLIDING if index % 4 else FULL for index in range(num_layers(config)))
    kinds = layer_types(config, default, known=(FULL, SLIDING))
    rest = tuple(_dense(config, bias=flag(config, "mlp_bias")))
    return _assembled(config, kinds, rest, {}, path=path, head_path=head_path)


def build_vault_gemma(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Gemma 2 with two norms in a layer.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _VAULT_GEMMA)
    kinds = layer_types(config, every(2, num_layers(config)), known=(FULL, SLIDING))
    bias = flag(config, "attention_bias")
    tied = flag(config, "tie_word_embeddings")
    scale = Outside(
        part=Vectors(name="embed_tokens.embed_scale", elements=1),
        stages=Stages.FIRST_AND_LAST if tied else Stages.FIRST,
        path=path,
    )
    return _assembled(
        config,
        kinds,
        tuple(_dense(config)),
        {"qkv_bias": bias, "o_bias": bias},
        outside=(scale,),
        path=path,
        head_path=head_path,
    )


def build_mellum(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Experts in most layers, and rotary frequencies for each kind of attention.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _MELLUM)
    layers = num_layers(config)
    kinds = layer_types(config, (FULL,) * layers, known=(FULL, SLIDING))
    feeds = feed_forwards(config, ("sparse",) * layers)
    norms = Vectors(name="layernorms", elements=2 * width(config, "hidden_size"))
    parts = {"dense": tuple(_dense(config)), "sparse": (_moe(config), norms)}
    bias = flag(config, "attention_bias")
    return _assembled(
        config,
        kinds,
        tuple(parts[feed] for feed in feeds),
        {"qk_norm": "head", "qkv_bias": bias, "o_bias": bias},
        ropes=tuple(ropes_by_kind(config, full_base=500000.0, sliding_base=500000.0).values()),
        tables=len(set(kinds)),
        path=path,
        head_path=head_path,
    )


def build_flex_olmo(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """OLMo 2 with experts.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _FLEX_OLMO)
    kinds = _uniform(config, num_layers(config))
    norms = Vectors(name="layernorms", elements=2 * width(config, "hidden_size"))
    rest = (_moe(config, width_key="intermediate_size"), norms)
    bias = flag(config, "attention_bias")
    more = {"qk_norm": "whole", "qkv_bias": bias, "o_bias": bias}
    refuse_unless(
        count(config, "pad_token_id") < width(config, "vocab_size"),
        "vLLM refuses to start: pad_token_id is beyond the vocabulary",
    )
    return _assembled(config, kinds, rest, more, path=path, head_path=head_path)


def build_hunyuan_moe(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """Experts beside an MLP that every token visits; sizes may be listed for every layer.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _HUNYUAN)
    layers, hidden = num_layers(config), width(config, "hidden_size")
    kinds = _uniform(config, layers)
    shared = Mlp(
        hidden_size=hidden,
        intermediate_size=width(config, "intermediate_size"),
        name="shared_mlp",
        token_parallel=False,
    )
    norms = Vectors(name="layernorms", elements=2 * hidden)
    top = _each(config, layers, "moe_topk", "num_experts_per_tok")
    inner = _each(config, layers, "moe_intermediate_size", "intermediate_size")
    rest = tuple(
        (
            SparseMoe(
                hidden_size=hidden,
                num_experts=width(config, "num_experts"),
                experts_per_token=top[index],
                intermediate_size=inner[index],
                shared=shared,
                quantized_router=True,
                router_name="gate.wg",
            ),
            norms,
        )
        for index in range(layers)
    )
    bias = flag(config, "attention_bias")
    more = {"qk_norm": "head", "qkv_bias": bias, "o_bias": bias}
    return _assembled(config, kinds, rest, more, path=path, head_path=head_path)


def _uniform(config: Fields, layers: int) -> tuple[str, ...]:
    """Without ``layer_types``, a window is that of all layers."""
    default = (SLIDING if window(config) else FULL,) * layers
    return layer_types(config, default, known=(FULL, SLIDING))


def _each(config: Fields, layers: int, *keys: str) -> tuple[int, ...]:
    """The size at the first of ``keys``, given once or for every layer."""
    key = next((key for key in keys if config.has(key)), keys[0])
    if isinstance(config.values.get(key), list | tuple):
        return per_layer(config, key, layers)
    return (width(config, key),) * layers


def _dense(config: Fields, *, bias: bool = False) -> Iterator[Part]:
    hidden = width(config, "hidden_size")
    inner = width(config, "intermediate_size")
    yield Mlp(hidden_size=hidden, intermediate_size=inner, bias=bias)
    yield Vectors(name="layernorms", elements=2 * hidden)


def _moe(config: Fields, *, width_key: str = "moe_intermediate_size") -> SparseMoe:
    return SparseMoe(
        hidden_size=width(config, "hidden_size"),
        num_experts=width(config, "num_experts"),
        experts_per_token=width(config, "num_experts_per_tok"),
        intermediate_size=width(config, width_key),
    )


def _assembled(
    config: Fields,
    kinds: tuple[str, ...],
    rest: tuple[Any, ...],
    more: dict[str, Any],
    *,
    path: str,
    head_path: str,
    ropes: tuple[Rope, ...] = (),
    tables: int = 1,
    outside: tuple[Outside, ...] = (),
) -> Model:
    """The whole model.

    Args:
        config: the text model's configuration.
        kinds: the kind of every layer's attention.
        rest: what every layer has besides attention, or a tuple of that for each layer.
        more: attributes of the attention.
        path: vLLM's module path of the decoder.
        head_path: the same of what the logits head stands in.
        ropes: rotary embeddings where they differ between kinds of layers.
        tables: how many kinds of rotary frequencies there are.
        outside: what else stands outside the layers.
    """
    ropes = ropes or (read_rope(config, max_positions=max_positions(config)),)
    refuse_unless(
        all(rope.rotary_ratio == 1.0 for rope in ropes),
        "transformers' code with partial_rotary_factor is not described exactly yet",
    )
    like: dict[str, SelfAttention] = {
        kind: self_attention(
            config, None, sliding_window=window(config) if kind == SLIDING else None, **more
        )
        for kind in set(kinds)
    }
    parts = rest if isinstance(rest[0], tuple) else (rest,) * len(kinds)
    # Two float32 vectors, inv_freq and original_inv_freq, on every stage.
    size = 2 * (next(iter(like.values())).head_size // 2) * tables
    frequencies = Vectors(name="rotary_emb.inv_freq", elements=size, element_bytes=_FLOAT32)
    return assemble(
        source="transformers/",
        layers=[(like[kind], *part) for kind, part in zip(kinds, parts, strict=True)],
        ends=Ends.read(config, path=path, head_path=head_path),
        ropes=ropes,
        more=(*outside, Outside(part=frequencies, stages=Stages.EVERY, path=path)),
        max_positions=max_positions(config),
        oldest_release=_OLDEST,
    )


BUILDERS: dict[str, Builder] = {
    "Olmo3ForCausalLM": build_olmo3,
    "CwmForCausalLM": build_cwm,
    "VaultGemmaForCausalLM": build_vault_gemma,
    "MellumForCausalLM": build_mellum,
    "FlexOlmoForCausalLM": build_flex_olmo,
    "HunYuanMoEV1ForCausalLM": build_hunyuan_moe,
}
