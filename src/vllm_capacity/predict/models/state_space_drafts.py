"""Draft models that predict further tokens of hybrid models (multi-token prediction).

vLLM builds a whole draft on every rank of the last pipeline stage, with an embedding and a head
of its own, which it replaces by the target's after loading.
"""

from collections.abc import Callable

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Outside, Part, Stages
from vllm_capacity.predict.models.assembly import MAX_LAYERS
from vllm_capacity.predict.models.hybrid import FULL, MOE, HybridFields, norms
from vllm_capacity.predict.models.nemotron_h import (
    nemotron_fields,
    nemotron_parts,
    pattern_kinds,
)
from vllm_capacity.predict.models.qwen_delta_net import (
    qwen3_5_rope,
    qwen_attention,
    qwen_feed_forward,
    qwen_norms,
    qwen_rope,
    sparse_layers,
)
from vllm_capacity.predict.parts import LogitsHead, TokenEmbedding, Vectors
from vllm_capacity.predict.parts.projections import Gathered
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.rope import Rope

_PATH = "mtp"
#: What vLLM keeps from the projection that joins hidden states and embeddings.
_NVFP4 = frozenset({"modelopt_fp4"})


def build_qwen3_next_mtp(target: Fields) -> Model:
    """Qwen3-Next's draft: attention layers with experts.

    Args:
        target: the target's text configuration.

    Source: vLLM 0.32 ``model_executor/models/qwen3_next_mtp.py``.

    Raises:
        Refusal: vLLM would not build it.
    """
    read = HybridFields(target, "qwen3_next_mtp.py")
    count = min(read.size("num_nextn_predict_layers", 1), MAX_LAYERS)
    sparse = sparse_layers(read)
    if not sparse & frozenset(range(count)):
        raise Refusal("vLLM refuses to start: qwen3_next_mtp.py without a sparse layer")
    return _qwen(
        read,
        qwen_rope(read),
        [index in sparse for index in range(count)],
        tied=False,
        quantized_head=False,
    )


def build_qwen3_5_mtp(target: Fields) -> Model:
    """The draft of Qwen3.5 without experts.

    Source: vLLM 0.32 ``model_executor/models/qwen3_5_mtp.py``.
    """
    return _qwen3_5(target, sparse=False)


def build_qwen3_5_moe_mtp(target: Fields) -> Model:
    """The draft of Qwen3.5 with experts.

    Source: vLLM 0.32 ``model_executor/models/qwen3_5_mtp.py``.
    """
    return _qwen3_5(target, sparse=True)


def _qwen3_5(target: Fields, *, sparse: bool) -> Model:
    read = HybridFields(target, "qwen3_5_mtp.py")
    count = min(read.size("mtp_num_hidden_layers", 1), MAX_LAYERS)
    return _qwen(
        read,
        qwen3_5_rope(read),
        [sparse] * count,
        tied=read.flag("tie_word_embeddings", default=False),
        quantized_head=True,
    )


def _qwen(
    read: HybridFields,
    rope: Rope,
    sparse: list[bool],
    *,
    tied: bool,
    quantized_head: bool,
) -> Model:
    hidden = read.size("hidden_size")
    attention, norm = qwen_attention(read, rope), qwen_norms(read)
    parts: dict[bool, tuple[Part, ...]] = {
        routed: (attention, *qwen_feed_forward(read, sparse=routed), norm)
        for routed in dict.fromkeys(sparse)
    }
    join = Gathered(name="fc", input_size=2 * hidden, output_size=hidden, kept_from=_NVFP4)
    return _draft(
        read,
        [parts[routed] for routed in sparse],
        (join, norms(3, hidden)),
        tied=tied,
        quantized_head=quantized_head,
    )


def build_nemotron_h_mtp(target: Fields) -> Model:
    """Nemotron 3's draft: one attention layer and one of experts, by its own pattern.

    Source: vLLM 0.32 ``model_executor/models/nemotron_h_mtp.py``.

    Raises:
        Refusal: vLLM would not build it.
    """
    read = nemotron_fields(target)
    hidden = read.size("hidden_size")
    if read.size("num_nextn_predict_layers", 0, minimum=0) != 1:
        raise Refusal("vLLM refuses to start: nemotron_h_mtp.py needs num_nextn_predict_layers 1")
    kinds = read.kinds("mtp_layers_block_type", num_layers=None, known=(FULL, MOE))
    if kinds is None or kinds == [FULL, MOE]:
        kinds = pattern_kinds(target, "mtp_hybrid_override_pattern") or [FULL, MOE]
    layers = [nemotron_parts(read, kind) for kind in kinds[:MAX_LAYERS]]
    if set(kinds) - {FULL, MOE}:
        raise Refusal("vLLM refuses to start: drafts have only attention and expert layers")
    # Source: the same, NemotronHMTPAttentionDecoderLayer, has_start_projections.
    join = Gathered(name="eh_proj", input_size=2 * hidden, output_size=hidden)
    layers[0] = (*layers[0], join, norms(2, hidden))
    layers[-1] = (*layers[-1], Vectors(name="final_layernorm", elements=hidden))
    return _draft(read, layers, (), tied=False)


def _draft(
    read: HybridFields,
    layers: list[tuple[Part, ...]],
    beside: tuple[Part, ...],
    *,
    tied: bool,
    quantized_head: bool = True,
) -> Model:
    hidden, vocab = read.size("hidden_size"), read.size("vocab_size")
    embedding = TokenEmbedding(vocab_size=vocab, hidden_size=hidden)
    head = LogitsHead(vocab_size=vocab, hidden_size=hidden, tied=tied, quantizable=quantized_head)
    outside = [Outside(part=part, stages=Stages.EVERY, path=_PATH) for part in (embedding, *beside)]
    outside.append(Outside(part=head, stages=Stages.EVERY))
    return Model(
        source=read.source,
        hidden_size=hidden,
        vocab_size=vocab,
        layers=tuple(
            Layer(path=f"{_PATH}.layers.{index}", parts=parts) for index, parts in enumerate(layers)
        ),
        outside=tuple(outside),
    )


#: By the architecture of the target.
#: Source: vLLM 0.32 ``config/speculative.py``, ``SpeculativeConfig.hf_config_override``.
DRAFTS: dict[str, Callable[[Fields], Model]] = {
    "NemotronHForCausalLM": build_nemotron_h_mtp,
    "Qwen3NextForCausalLM": build_qwen3_next_mtp,
    "Qwen3_5ForCausalLM": build_qwen3_5_mtp,
    "Qwen3_5ForConditionalGeneration": build_qwen3_5_mtp,
    "Qwen3_5MoeForCausalLM": build_qwen3_5_moe_mtp,
    "Qwen3_5MoeForConditionalGeneration": build_qwen3_5_moe_mtp,
}
