"""Multi-token predictors that come with models of latent attention.

Each predicting layer is one more layer of the target, between norms, a projection of embedding and
hidden state, and a head of its own. Embedding and heads are described as vLLM constructs them;
after loading they are shared with the target.
"""

from collections.abc import Callable
from dataclasses import replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Outside, Part, Stages
from vllm_capacity.predict.models.assembly import MAX_LAYERS
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.deepseek_v4 import build_deepseek_v4, head_elements
from vllm_capacity.predict.models.latent import BUILDERS
from vllm_capacity.predict.models.latent_others import (
    build_glm4_moe_lite,
    build_longcat,
    build_pangu_ultra,
)
from vllm_capacity.predict.models.latent_reading import norms, required
from vllm_capacity.predict.parts import LogitsHead, Mlp, TokenEmbedding, Vectors
from vllm_capacity.predict.parts.latent_attention import LatentAttention
from vllm_capacity.predict.parts.projection import Projection
from vllm_capacity.predict.refusal import Refusal

_FLOAT32 = 4
#: Model types whose checkpoints vLLM reads such a predictor from, and what builds its block.
#: Source: vLLM 0.32 ``config/speculative.py``, ``hf_config_override``.
_PREDICTING: dict[str, Builder] = {
    "deepseek_v3": BUILDERS["DeepseekV3ForCausalLM"],
    "deepseek_v32": BUILDERS["DeepseekV32ForCausalLM"],
    "glm_moe_dsa": BUILDERS["GlmMoeDsaForCausalLM"],
    "glm4_moe_lite": build_glm4_moe_lite,
    "pangu_ultra_moe": build_pangu_ultra,
}
#: Types whose configuration class says that there is one.
_ONE_BY_DEFAULT = frozenset({"deepseek_v3", "deepseek_v32"})


def build_deepseek_mtp(target: Fields) -> Model:
    """The predictor of DeepSeek-V3, R1 and V3.2, of GLM's models with latent attention, of Pangu.

    Args:
        target: the target's configuration.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``model_executor/models/deepseek_mtp.py``, ``glm4_moe_lite_mtp.py``,
    ``openpangu_mtp.py`` and ``models/deepseek_v32/nvidia/mtp.py``.
    """
    kind = target.text("model_type") or ""
    builder = _PREDICTING.get(kind)
    if builder is None:
        raise Refusal(f"a multi-token predictor for model type {kind!r} is not covered")
    first, count = _numbers(target, default=1 if kind in _ONE_BY_DEFAULT else None)
    # Every predicting layer has an indexer, whatever the pattern of the target's.
    block = _last_layer(builder, target, first + count, index_topk_freq=1, index_topk_pattern=None)
    hidden_size = required(target, "hidden_size")
    join = Projection(
        name="eh_proj", input_size=2 * hidden_size, output_size=hidden_size, quantizable=False
    )
    return _predictor(target, block, (join,), source="deepseek_mtp.py")


def build_deepseek_v4_mtp(target: Fields) -> Model:
    """DeepSeek-V4's predictor: a layer that attends to a window only.

    Args:
        target: the target's configuration.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``models/deepseek_v4/nvidia/mtp.py``.
    """
    first, count = _numbers(target, default=None)
    ratios = (target.integers("compress_ratios") or ())[:first]
    windows = [*ratios, *(0,) * count]
    block = _last_layer(build_deepseek_v4, target, first + count, compress_ratios=windows)
    hidden_size = required(target, "hidden_size")
    joins = tuple(
        Projection(name=name, input_size=hidden_size, output_size=hidden_size)
        for name in ("e_proj", "h_proj")
    )
    streams = Vectors(name="hc_head", elements=head_elements(target), element_bytes=_FLOAT32)
    return _predictor(target, block, (*joins, streams), source="deepseek_v4/nvidia/mtp.py")


def build_longcat_mtp(target: Fields) -> Model:
    """LongCat-Flash's predictor: one layer with a dense feed-forward layer, and one head.

    Args:
        target: the target's configuration.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``model_executor/models/longcat_flash_mtp.py``.
    """
    model = build_longcat(target)
    attention, _, dense, *_ = model.layers[0].parts
    if not isinstance(attention, LatentAttention) or not isinstance(dense, Mlp):
        raise Refusal("LongCat's layer does not begin with attention and a dense layer")
    hidden = model.hidden_size
    quantizable = "mtp" not in (target.texts("disable_quant_module") or ())
    join = Projection(
        name="eh_proj", input_size=2 * hidden, output_size=hidden, quantizable=quantizable
    )
    parts: tuple[Part, ...] = (
        replace(attention, name="self_attn", quantizable=True),
        replace(dense, name="mlp", quantizable=True),
        norms(target),
        # Of embedding, hidden state and output.
        Vectors(name="predictor_norms", elements=3 * hidden),
        join,
    )
    embedding = TokenEmbedding(vocab_size=model.vocab_size, hidden_size=hidden)
    head = LogitsHead(vocab_size=model.vocab_size, hidden_size=hidden)
    return replace(
        model,
        source="longcat_flash_mtp.py",
        layers=(Layer(path=f"model.layers.{2 * len(model.layers)}", parts=parts),),
        outside=(
            Outside(part=embedding, stages=Stages.EVERY, path="model"),
            Outside(part=head, stages=Stages.EVERY),
        ),
    )


def _numbers(target: Fields, *, default: int | None) -> tuple[int, int]:
    """The number of the first predicting layer, and how many there are."""
    first = target.required_integer("num_hidden_layers", maximum=MAX_LAYERS)
    count = target.integer("num_nextn_predict_layers", minimum=0, maximum=MAX_LAYERS)
    if count is None and "num_nextn_predict_layers" not in target.values:
        count = default
    if not count:
        raise Refusal("vLLM refuses to start: config key num_nextn_predict_layers names none")
    return first, count


def _last_layer(builder: Builder, target: Fields, layers: int, **changes: object) -> Model:
    """The target with as many layers as it has with its predictor."""
    values = {**target.values, "num_hidden_layers": layers, **changes}
    return builder(Fields(values, path=target.path, faults=target.faults))


def _predictor(target: Fields, longer: Model, joins: tuple[Part, ...], *, source: str) -> Model:
    first = target.required_integer("num_hidden_layers", maximum=MAX_LAYERS)
    hidden, vocab = longer.hidden_size, longer.vocab_size
    own: tuple[Part, ...] = (
        # Of embedding, hidden state and head.
        Vectors(name="predictor_norms", elements=3 * hidden),
        *joins,
        LogitsHead(vocab_size=vocab, hidden_size=hidden, name="shared_head.head"),
    )
    blocks = longer.layers[first:]
    parts: dict[int, tuple[Part, ...]] = {id(block.parts): (*block.parts, *own) for block in blocks}
    embedding = TokenEmbedding(vocab_size=vocab, hidden_size=hidden)
    return Model(
        source=source,
        hidden_size=hidden,
        vocab_size=vocab,
        layers=tuple(Layer(path=block.path, parts=parts[id(block.parts)]) for block in blocks),
        outside=(Outside(part=embedding, stages=Stages.EVERY, path="model"),),
        length_factor=longer.length_factor,
        rope_type=longer.rope_type,
        oldest_release=longer.oldest_release,
        compiled=longer.compiled,
    )


#: By the target's class.
PREDICTORS: dict[str, Callable[[Fields], Model]] = {
    "DeepseekV3ForCausalLM": build_deepseek_mtp,
    "DeepseekV32ForCausalLM": build_deepseek_mtp,
    "DeepseekV4ForCausalLM": build_deepseek_v4_mtp,
    "Glm4MoeLiteForCausalLM": build_deepseek_mtp,
    "GlmMoeDsaForCausalLM": build_deepseek_mtp,
    "LongcatFlashForCausalLM": build_longcat_mtp,
    "PanguUltraMoEForCausalLM": build_deepseek_mtp,
}
