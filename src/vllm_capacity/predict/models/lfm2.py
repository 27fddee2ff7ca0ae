"""LFM2: short convolutions and attention, with dense or sparse feed-forwards."""

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Part, Stages
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.hybrid import CONV, FULL, HybridFields, Shell, norms
from vllm_capacity.predict.parts import Mlp, SparseMoe
from vllm_capacity.predict.parts.short_conv import ShortConv
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.rope import Rope
from vllm_capacity.units import round_up

_POSITIONS = 128_000
_KINDS = (FULL, CONV)


def build_lfm2(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """LFM2, always tied.

    Source: vLLM 0.32 ``model_executor/models/lfm2.py``; transformers 5 ``Lfm2Config``.

    Raises:
        Refusal: vLLM would not build it.
    """
    read = HybridFields(config, "lfm2.py")
    count = read.num_layers()
    kinds = read.kinds("layer_types", num_layers=count, known=_KINDS)
    if kinds is None:
        attends = config.integers("full_attn_idxs")
        kinds = [FULL if attends is None or index in attends else CONV for index in range(count)]
    mlp = Mlp(
        hidden_size=read.size("block_dim"),
        intermediate_size=_width(read),
        name="feed_forward",
        up_name="w13",
        down_name="w2",
        up_shards=("w1", "w3"),
    )
    conv = ShortConv(
        size=read.size("conv_dim"),
        conv_kernel=read.size("conv_L_cache", 3),
        bias=read.flag("conv_bias", default=False),
    )
    return _model(read, kinds, conv, [mlp] * count, path=path, head_path=head_path)


def build_lfm2_moe(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """LFM2 with experts in all but the first layers, always tied.

    Source: vLLM 0.32 ``model_executor/models/lfm2_moe.py``; transformers 5 ``Lfm2MoeConfig``.

    Raises:
        Refusal: vLLM would not build it.
    """
    read = HybridFields(config, "lfm2_moe.py")
    count, hidden = read.num_layers(), read.size("hidden_size")
    kinds = read.kinds("layer_types", num_layers=count, known=_KINDS)
    if kinds is None:
        config.fault("layer_types", "is missing; add the model's value")
    dense = Mlp(
        hidden_size=hidden,
        intermediate_size=read.size("intermediate_size"),
        name="feed_forward",
        up_name="w13",
        down_name="w2",
        up_shards=("w1", "w3"),
    )
    sparse = SparseMoe(
        hidden_size=hidden,
        num_experts=read.size("num_experts", 32),
        experts_per_token=read.size("num_experts_per_tok", 4),
        intermediate_size=read.size("moe_intermediate_size"),
        correction_bias=read.flag("use_expert_bias", default=True),
        quantized_router=True,
        name="feed_forward",
        projections=("w1", "w3", "w2"),
        fits_tensorrt=read.flag("norm_topk_prob", default=True)
        or not read.flag("use_expert_bias", default=True),
    )
    first = read.size("num_dense_layers", 2, minimum=0)
    conv = ShortConv(
        size=hidden,
        conv_kernel=read.size("conv_L_cache", 3),
        bias=read.flag("conv_bias", default=False),
    )
    feeds: list[Part] = [dense if index < first else sparse for index in range(count)]
    return _model(read, kinds or [], conv, feeds, path=path, head_path=head_path)


def _width(read: HybridFields) -> int:
    """Source: vLLM 0.32 ``models/lfm2.py``, ``Lfm2MLP``."""
    key = "block_ff_dim" if read.config.has("block_ff_dim") else "intermediate_size"
    width = read.size(key)
    if not read.flag("block_auto_adjust_ff_dim", default=True):
        return width
    if read.config.values.get("block_ffn_dim_multiplier", 1.0) is None:
        raise Refusal("vLLM refuses to start: block_ffn_dim_multiplier must not be null")
    factor = read.config.number("block_ffn_dim_multiplier", minimum=1e-3, maximum=1e3)
    width = int((1.0 if factor is None else factor) * int(2 * width / 3))
    return round_up(max(1, width), read.size("block_multiple_of", 256))


def _model(
    read: HybridFields,
    kinds: list[str],
    conv: Part,
    feeds: list[Part],
    *,
    path: str,
    head_path: str,
) -> Model:
    hidden, vocab = read.size("hidden_size"), read.size("vocab_size")
    rope = read.rope(read.positions(_POSITIONS))
    mixers = {FULL: _attention(read, hidden, rope), CONV: conv}
    norm = norms(2, hidden)
    shared: dict[tuple[str, int], tuple[Part, ...]] = {}
    for kind, feed in zip(kinds, feeds, strict=False):
        shared.setdefault((kind, id(feed)), (mixers[kind], feed, norm))
    layers = tuple(
        Layer(path=f"{path}.layers.{index}", parts=shared[kind, id(feed)])
        for index, (kind, feed) in enumerate(zip(kinds, feeds, strict=False))
    )
    shell = Shell(
        vocab_size=vocab,
        hidden_size=hidden,
        tied=True,
        quantized_head=True,
        norm_stages=Stages.LAST,
        head_stages=Stages.LAST,
        norm_name="embedding_norm",
    )
    return Model(
        source=read.source,
        hidden_size=hidden,
        vocab_size=vocab,
        layers=layers,
        outside=tuple(shell.parts(path, head_path)),
        length_factor=rope.length_factor,
        rope_type=rope.rope_type,
        dense_stages=False,
        max_positions=_POSITIONS,
    )


def _attention(read: HybridFields, hidden_size: int, rope: Rope) -> Part:
    heads, _ = read.heads(kv_heads_default=False)
    return read.attention(
        hidden_size=hidden_size,
        kv_heads_default=False,
        rope=rope.table(max(1, hidden_size // heads)),
        qk_norm="head",
        o_name="out_proj",
        scaled=False,
    )


BUILDERS: dict[str, Builder] = {
    "Lfm2ForCausalLM": build_lfm2,
    "Lfm2MoeForCausalLM": build_lfm2_moe,
}
