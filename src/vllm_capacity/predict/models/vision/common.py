"""What the encoders have in common."""

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part, Stages
from vllm_capacity.predict.parts import Mlp, SelfAttention, Vectors
from vllm_capacity.predict.parts.vision import Projection
from vllm_capacity.predict.rope import Rope, RopeTable

MAX_WIDTH = 1 << 24
MAX_LAYERS = 4096
IMAGE = frozenset({"image"})
IMAGE_AND_VIDEO = frozenset({"image", "video"})
VIDEO = frozenset({"video"})
AUDIO = frozenset({"audio"})
INT64 = 8
FLOAT32 = 4
THREE = ("q_proj", "k_proj", "v_proj")


class Sizes:
    """Reads the sizes of one encoder; what the file leaves out has its class's default."""

    def __init__(
        self, config: Fields, key: str, defaults: Mapping[str, Any], *, required: bool = True
    ) -> None:
        inner = config.mapping(key)
        if inner is None:
            if required:
                config.fault(key, "is missing; add the encoder's configuration")
            inner = Fields({}, path=f"{key}.", faults=config.faults)
        values = {**defaults, **inner.values}
        if "num_heads" in defaults and "num_attention_heads" in inner.values:
            # Another name for the same attribute, which wins where a file has both.
            values["num_heads"] = inner.values["num_attention_heads"]
        self.fields = Fields(values, path=inner.path, faults=config.faults)

    def __getitem__(self, key: str) -> int:
        """A size that must be there."""
        return self.fields.required_integer(key, maximum=MAX_WIDTH)

    def pair(self, key: str) -> tuple[int, int]:
        """One size for both sides, or two."""
        if isinstance(self.fields.values.get(key), list | tuple):
            both = self.fields.integers(key) or ()
            if len(both) != 2 or min(both) < 1:
                self.fields.fault(key, "must be two sizes")
                return (1, 1)
            return (both[0], both[1])
        return (self[key], self[key])

    def layers(self, key: str = "num_hidden_layers") -> int:
        """A number of layers."""
        return self.fields.required_integer(key, maximum=MAX_LAYERS)

    def flag(self, key: str) -> bool:
        """A switch; false where it is absent."""
        return bool(self.fields.boolean(key))


def towers(modalities: frozenset[str], *parts: Part) -> Iterator[Outside]:
    """Parts that every stage holds unless none of the modalities is allowed."""
    for part in parts:
        yield Outside(part=part, stages=Stages.EVERY, modalities=modalities)


def attention(
    hidden_size: int,
    num_heads: int,
    *,
    head_size: int | None = None,
    name: str = "attn",
    qkv: str = "qkv",
    shards: tuple[str, ...] = (),
    out: str = "proj",
    bias: bool = True,
    out_bias: bool | None = None,
    extra_elements: int = 0,
    quantizable: bool = True,
    rope: RopeTable | None = None,
) -> SelfAttention:
    """Self-attention that keeps nothing."""
    return SelfAttention(
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_size=head_size or max(1, hidden_size // num_heads),
        qkv_bias=bias,
        o_bias=bias if out_bias is None else out_bias,
        cached=False,
        name=name,
        qkv_name=qkv,
        qkv_shards=shards or (qkv,),
        o_name=out,
        extra_elements=extra_elements,
        quantizable=quantizable,
        rope=rope,
    )


def mlp(
    hidden_size: int,
    width: int,
    *,
    name: str = "mlp",
    up: str = "fc1",
    down: str = "fc2",
    bias: bool = True,
    quantizable: bool = True,
) -> Mlp:
    """Two projections without a gate."""
    return Mlp(
        hidden_size=hidden_size,
        intermediate_size=width,
        gated=False,
        bias=bias,
        quantizable=quantizable,
        name=name,
        up_shards=(up,),
        down_name=down,
    )


def gated_mlp(
    hidden_size: int, width: int, *, name: str = "mlp", bias: bool = False, quantizable: bool = True
) -> Mlp:
    """Gate and up fused, then down."""
    return Mlp(
        hidden_size=hidden_size,
        intermediate_size=width,
        bias=bias,
        quantizable=quantizable,
        name=name,
    )


def convolution(
    name: str, channels: int, hidden_size: int, kernel: int, *, bias: bool = False
) -> Vectors:
    """A convolution with ``kernel`` elements per channel; never quantised, never divided."""
    return Vectors(name=name, elements=hidden_size * (channels * kernel + bias))


def plain_linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Vectors:
    """PyTorch's own linear layer: never quantised, never divided."""
    return Vectors(name=name, elements=outputs * (inputs + bias))


def two_projections(
    inputs: int,
    width: int,
    outputs: int,
    *,
    names: tuple[str, str] = ("linear_1", "linear_2"),
    bias: bool = True,
    quantizable: bool = True,
) -> tuple[Part, Part]:
    """A column-divided projection, then a row-divided one."""
    first, second = names
    return (
        Projection(
            name=first,
            input_size=inputs,
            output_sizes=(width,),
            split="column",
            bias=bias,
            quantizable=quantizable,
        ),
        Projection(
            name=second,
            input_size=width,
            output_sizes=(outputs,),
            split="row",
            bias=bias,
            quantizable=quantizable,
        ),
    )


def half_rotary(head_size: int, positions: int = 8192) -> RopeTable:
    """The table of an encoder that rotates half of a head by rows and half by columns.

    Source: vLLM 0.32 ``models/qwen2_vl.py``, ``Qwen2VisionTransformer.__init__``.
    """
    rope = Rope(
        rope_type="default",
        factor=1.0,
        original_max_positions=positions,
        max_positions=positions,
        rotary_ratio=0.5,
    )
    return rope.table(head_size)
