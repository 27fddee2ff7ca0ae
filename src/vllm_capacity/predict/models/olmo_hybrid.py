"""OLMo-Hybrid: gated delta networks and attention with norms after it."""

from collections.abc import Mapping

from vllm_capacity.predict.dtypes import MODEL_DTYPES, element_bytes
from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Part
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.hybrid import FULL, LINEAR, HybridFields, Shell, norms
from vllm_capacity.predict.parts import Mlp
from vllm_capacity.predict.parts.delta_net import GatedDeltaNet
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.rope import Rope

_POSITIONS = 65536


def build_olmo_hybrid(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """OLMo-Hybrid, which need not have rotary embeddings.

    Source: vLLM 0.32 ``model_executor/models/olmo_hybrid.py``; transformers 5
    ``OlmoHybridConfig``.

    Raises:
        Refusal: vLLM would not build it.
    """
    read = HybridFields(config, "olmo_hybrid.py")
    read.expect(linear_use_gate=True)
    hidden, vocab = read.size("hidden_size"), read.size("vocab_size")
    heads, _ = read.heads(kv_heads_default=True)
    if hidden % heads:
        raise Refusal("vLLM refuses to start: hidden_size must be divisible by the heads")
    rope = _rope(read)
    attention = read.attention(
        hidden_size=hidden,
        kv_heads_default=True,
        rope=None if rope is None else rope.table(hidden // heads),
        qk_norm="whole",
    )
    mlp = Mlp(hidden_size=hidden, intermediate_size=read.size("intermediate_size"))
    norm = norms(2, hidden)
    parts: dict[str, tuple[Part, ...]] = {
        FULL: (attention, mlp, norm),
        LINEAR: (_delta_net(read, hidden, heads), mlp, norm),
    }
    shell = Shell(
        vocab_size=vocab,
        hidden_size=hidden,
        tied=read.flag("tie_word_embeddings", default=False),
        quantized_head=True,
    )
    return Model(
        source=read.source,
        hidden_size=hidden,
        vocab_size=vocab,
        layers=tuple(
            Layer(path=f"{path}.layers.{index}", parts=parts[kind])
            for index, kind in enumerate(_kinds(read))
        ),
        outside=tuple(shell.parts(path, head_path)),
        length_factor=1.0 if rope is None else rope.length_factor,
        rope_type=None if rope is None else rope.rope_type,
        max_positions=_POSITIONS,
    )


def _kinds(read: HybridFields) -> list[str]:
    count = read.num_layers()
    kinds = read.kinds("layer_types", num_layers=count, known=(FULL, LINEAR))
    if kinds is None:
        kinds = [FULL if index % 4 == 3 else LINEAR for index in range(count)]
        if FULL not in kinds:
            kinds[-1] = FULL
    if len(set(kinds)) == 1:
        raise Refusal("vLLM refuses to start: OLMo-Hybrid needs layers of both kinds")
    return kinds


def _rope(read: HybridFields) -> Rope | None:
    values = read.config.values.get("rope_parameters")
    if isinstance(values, Mapping) and "rope_theta" in values and values["rope_theta"] is None:
        # Such a file switches them off; one without any has the config class's own.
        read.expect(rope_theta=None)
        return None
    return read.rope(read.positions(_POSITIONS))


def _delta_net(read: HybridFields, hidden_size: int, heads: int) -> GatedDeltaNet:
    keys = read.size("linear_num_key_heads", heads)
    key_size = read.size("linear_key_head_dim", max(1, int(0.75 * hidden_size / keys)))
    given = read.config.text("dtype") or read.config.text("torch_dtype")
    dtype = None if given is None else MODEL_DTYPES.get(given.removeprefix("torch."))
    return GatedDeltaNet(
        hidden_size=hidden_size,
        num_key_heads=keys,
        num_value_heads=read.size("linear_num_value_heads", heads),
        key_head_size=key_size,
        value_head_size=read.size("linear_value_head_dim", 2 * key_size),
        conv_kernel=read.size("linear_conv_kernel_dim", 4),
        layout="separate",
        float32_decay=False,
        norm_element_bytes=None if dtype is None else element_bytes(dtype),
    )


BUILDERS: dict[str, Builder] = {"OlmoHybridForCausalLM": build_olmo_hybrid}
