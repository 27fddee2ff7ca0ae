"""Llama-Nemotron found by architecture search: layers of several widths, some without attention."""

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Part
from vllm_capacity.predict.models.assembly import (
    Ends,
    assemble,
    flag,
    max_positions,
    num_layers,
    refuse_unless,
    self_attention,
    width,
    window,
    with_defaults,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.parts import Mlp, SelfAttention, Vectors
from vllm_capacity.predict.rope import Rope, read_rope
from vllm_capacity.units import round_up

#: To a multiple of it the width is rounded. Source: vLLM 0.32 ``nemotron_nas.py``.
_WIDTH_MULTIPLE = 256


def build_nemotron_nas(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """One entry of ``block_configs`` describes each layer.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``model_executor/models/nemotron_nas.py``.
    """
    config = with_defaults(config, {"max_position_embeddings": 8192})
    rope = read_rope(config, max_positions=max_positions(config))
    refuse_unless(
        config.text("position_embedding_type") in {None, "rope"},
        "position_embedding_type other than rope is not described exactly here",
    )
    return assemble(
        source="nemotron_nas.py",
        layers=[_block(config, block, rope) for block in _blocks(config)],
        ends=Ends.read(config, path=path, head_path=head_path),
        ropes=(rope,),
    )


def _blocks(config: Fields) -> list[Fields]:
    values = config.values.get("block_configs")
    layers = num_layers(config)
    if not isinstance(values, list) or len(values) != layers:
        config.fault("block_configs", f"must list {layers} layers, as num_hidden_layers")
        return []
    inside = Fields(
        {str(i): block for i, block in enumerate(values)},
        path="block_configs.",
        faults=config.faults,
    )
    return [
        inside.mapping(str(i)) or Fields({}, path=f"block_configs.{i}.", faults=config.faults)
        for i in range(layers)
    ]


def _block(config: Fields, block: Fields, rope: Rope) -> tuple[Part, ...]:
    empty = Fields({}, path=block.path, faults=config.faults)
    attention, ffn = block.mapping("attention") or empty, block.mapping("ffn") or empty
    parts: list[Part] = []
    if not flag(attention, "no_op"):
        parts.append(_attention(config, attention, rope))
    if not flag(ffn, "no_op"):
        parts.append(_mlp(config, ffn))
    norms = Vectors(name="layernorms", elements=len(parts) * width(config, "hidden_size"))
    return (*parts, norms)


def _attention(config: Fields, block: Fields, rope: Rope) -> SelfAttention:
    bias = flag(config, "attention_bias", "bias")
    heads = width(config, "num_attention_heads")
    return self_attention(
        config,
        rope,
        num_kv_heads=max(1, heads // width(block, "n_heads_in_group")),
        qkv_bias=flag(config, "qkv_bias") if "qkv_bias" in config.values else bias,
        o_bias=bias,
        sliding_window=window(config),
    )


def _mlp(config: Fields, block: Fields) -> Mlp:
    hidden = width(config, "hidden_size")
    ratio = block.number("ffn_mult", minimum=0.0, maximum=1e3)
    if ratio is None:
        inner = width(block, "intermediate_size")
    else:
        inner = round_up(int(2 * ratio * hidden / 3), _WIDTH_MULTIPLE)
    return Mlp(hidden_size=hidden, intermediate_size=inner, bias=flag(config, "mlp_bias"))


BUILDERS: dict[str, Builder] = {"DeciLMForCausalLM": build_nemotron_nas}
