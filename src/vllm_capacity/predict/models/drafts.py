"""Draft models for speculative decoding: what proposes tokens before the target checks them.

A draft is built on the last pipeline stage, after the target, and its layers keep caches of their
own. Multi-token predictors (MTP) come with the target and reuse its decoder layer, so that they
are put together from the target's parts; EAGLE heads have a configuration of their own.

Embeddings and heads are described as vLLM constructs them; after loading, most are shared with the
target. Source: vLLM 0.32 ``config/speculative.py``, ``SpeculativeConfig``.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Outside, Part, Stages
from vllm_capacity.predict.models import latent_drafts, state_space_drafts
from vllm_capacity.predict.models.assembly import (
    FULL,
    MAX_LAYERS,
    MAX_TOKENS,
    MAX_WIDTH,
    SLIDING,
    flag,
    layer_types,
    max_positions,
    num_layers,
    refuse_unless,
    self_attention,
    width,
    window,
    with_defaults,
)
from vllm_capacity.predict.models.draft_model import build_draft_model
from vllm_capacity.predict.models.mimo_v2 import mimo_attention
from vllm_capacity.predict.models.windows import check_silu
from vllm_capacity.predict.parts import (
    LogitsHead,
    Mlp,
    SelfAttention,
    TokenEmbedding,
    Vectors,
)
from vllm_capacity.predict.parts.projection import Projection
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.rope import read_rope

_INT64 = 8
#: Methods that hold no weights and keep no cache.
WITHOUT_MODEL = frozenset({"ngram", "[ngram]", "ngram_gpu", "suffix"})
_SHARING_METHODS = frozenset({"eagle", "eagle3", "dflash", "dspark"})
#: Files whose decoder is that of llama.py or qwen2.py.
_SHARED_EMBEDDINGS = frozenset(
    {
        "glm4.py",
        "llama.py",
        "llama4.py",
        "mistral.py",
        "phi3.py",
        "teleflm.py",
        "qwen2.py",
        "qwen3.py",
    }
)
#: Source: transformers 5 ``llama/configuration_llama.py``.
_LLAMA: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The model that a draft proposes tokens for.

    Attributes:
        architecture: its class.
        config: the configuration of its text model.
        model: its parts.
        max_model_len: the longest request, as resolved.
    """

    architecture: str
    config: Fields
    model: Model
    max_model_len: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """How a class builds its multi-token predictor: the target's layer between norms.

    Attributes:
        source: vLLM's file.
        block: what is repeated of the target.
        count_always: how many layers there are whatever ``num_nextn_predict_layers`` says.
        path: module path of the layers; those before the target's number count on from it.
        joins: name of the projection that joins embedding and hidden state.
        norms: norms of ``hidden_size`` in every layer besides the block's own.
        layer_heads: whether every layer has a logits head of its own.
        ties_head: whether a tied target ties the predictor's head too.
    """

    source: str
    block: Callable[[Target], tuple[Part, ...]]
    count_always: int | None = None
    path: str = "model.layers"
    joins: str = "eh_proj"
    norms: int = 3
    layer_heads: bool = False
    ties_head: bool = False

    def __call__(self, target: Target) -> Model:
        """The predictor of ``target``."""
        hidden, vocab = target.model.hidden_size, target.model.vocab_size
        join = Projection(
            name=self.joins, input_size=2 * hidden, output_size=hidden, quantizable=False
        )
        head = LogitsHead(vocab_size=vocab, hidden_size=hidden, name="shared_head.head")
        parts = (
            *self.block(target),
            Vectors(name="predictor_norms", elements=self.norms * hidden),
            join,
            *((head,) if self.layer_heads else ()),
        )
        return _draft(
            self.source,
            target,
            [Layer(path=path, parts=parts) for path in self._paths(target)],
            self._outside(target, hidden, vocab),
        )

    def _paths(self, target: Target) -> list[str]:
        if self.count_always is not None:
            return [f"{self.path}.{index}" for index in range(self.count_always)]
        count = target.config.integer("num_nextn_predict_layers", minimum=0, maximum=MAX_LAYERS)
        first = num_layers(target.config)
        return [f"{self.path}.{first + index}" for index in range(count or 0)]

    def _outside(self, target: Target, hidden: int, vocab: int) -> Iterator[tuple[str, Part]]:
        yield "model", TokenEmbedding(vocab_size=vocab, hidden_size=hidden)
        if not self.layer_heads:
            tied = self.ties_head and flag(target.config, "tie_word_embeddings")
            yield "", LogitsHead(vocab_size=vocab, hidden_size=hidden, tied=tied)


def build_draft(
    method: str, target: Target, draft_config: Fields | None, *, num_speculative_tokens: int
) -> Model | None:
    """The draft model of ``--speculative-config``, None where the method has none.

    Its layers and what is outside them are all on the last pipeline stage.

    Args:
        method: as vLLM calls it: ``mtp``, ``eagle``, ``eagle3``, ``ngram``, ``suffix`` …
        target: the model that it proposes tokens for.
        draft_config: the draft's own ``config.json``, None where it comes with the target.
        num_speculative_tokens: tokens that it proposes at a time.

    Raises:
        Refusal: vLLM would not start so, or the draft is not described exactly.
    """
    if method in WITHOUT_MODEL:
        return None
    if method == "mtp" or method.endswith("_mtp"):
        refuse_unless(draft_config is None, "a multi-token predictor apart from its target")
        return _predictor(target, num_speculative_tokens)
    if method not in {"eagle", "eagle3", "draft_model"}:
        raise Refusal(f"speculative decoding by {method} is not described exactly yet")
    if draft_config is None:
        raise Refusal(f"the draft model of {method} is not given: its config.json is needed")
    refuse_unless(
        not draft_config.has("quantization_config"), "a quantised draft model is not covered yet"
    )
    if method == "draft_model":
        return build_draft_model(target.model, draft_config)
    name = _eagle_class(method, draft_config)
    builder = EAGLE_BUILDERS.get(name)
    if builder is None:
        raise Refusal(f"draft architecture {name} is not described exactly yet")
    return builder(target, draft_config)


def beside_draft(target: Model, method: str) -> Model:
    """The target as it is built beside a draft: some keep their embedding on the last stage too.

    Source: vLLM 0.32 ``model_executor/models/utils.py``, ``spec_decode_needs_target_embed``, which
    ``llama.py`` and ``qwen2.py`` ask.
    """
    if method not in _SHARING_METHODS or target.source not in _SHARED_EMBEDDINGS:
        return target
    return replace(target, outside=tuple(map(_on_last_stage_too, target.outside)))


def _on_last_stage_too(each: Outside) -> Outside:
    if isinstance(each.part, TokenEmbedding) and each.stages is Stages.FIRST:
        return replace(each, stages=Stages.FIRST_AND_LAST)
    return each


def _eagle_class(method: str, config: Fields) -> str:
    """Source: vLLM 0.32 ``transformers_utils/configs/eagle.py``, ``EAGLEConfig``."""
    names = config.texts("architectures") or ()
    if not names:
        raise Refusal("the draft model's config.json names no architectures")
    prefix = "Eagle3" if method == "eagle3" else "Eagle"
    if names[0].startswith(prefix) or (method == "eagle3" and names[0].endswith(prefix)):
        return names[0]
    return prefix + names[0]


def _predictor(target: Target, tokens: int) -> Model:
    build = PREDICTORS.get(target.architecture)
    if build is None:
        raise Refusal(f"the multi-token predictor of {target.architecture} is not described yet")
    model = build(target)
    layers = len(model.layers)
    refuse_unless(layers > 0, "vLLM refuses to start: the model has no num_nextn_predict_layers")
    refuse_unless(
        tokens <= layers or tokens % layers == 0,
        f"vLLM refuses to start: num_speculative_tokens {tokens} must be divisible by {layers}",
    )
    return model


def _draft(
    source: str, target: Target, layers: Iterable[Layer], outside: Iterable[tuple[str, Part]]
) -> Model:
    return Model(
        source=source,
        hidden_size=target.model.hidden_size,
        vocab_size=target.model.vocab_size,
        layers=tuple(layers),
        outside=tuple(Outside(part=part, stages=Stages.EVERY, path=path) for path, part in outside),
    )


def _last_block(target: Target) -> tuple[Part, ...]:
    """The target's last layer, as the next one would be."""
    return target.model.layers[-1].parts


def _ernie_block(target: Target) -> tuple[Part, ...]:
    """A dense Llama layer, whatever the target's layers are.

    Source: vLLM 0.32 ``model_executor/models/ernie_mtp.py``, ``llama.py``, ``LlamaDecoderLayer``.
    """
    hidden = target.model.hidden_size
    check_silu(target.config, "llama.py")
    attentions = [part for part in _last_block(target) if isinstance(part, SelfAttention)]
    inner = width(target.config, "intermediate_size")
    norms = Vectors(name="layernorms", elements=2 * hidden)
    return (*attentions, Mlp(hidden_size=hidden, intermediate_size=inner), norms)


def _mimo_v2_block(target: Target) -> tuple[Part, ...]:
    """A dense layer with a window; its output projection is never quantised.

    Source: vLLM 0.32 ``model_executor/models/mimo_v2_mtp.py``, ``MiMoV2MTPLayer``.
    """
    hidden = target.model.hidden_size
    attention = replace(mimo_attention(target.config, sliding=1), o_quantizable=False)
    inner = width(target.config, "intermediate_size")
    norms = Vectors(name="layernorms", elements=2 * hidden)
    return (attention, Mlp(hidden_size=hidden, intermediate_size=inner), norms)


_BLOCK_WITH_HEAD = Predictor(source="deepseek_mtp.py", block=_last_block, layer_heads=True)
_MIMO_V2 = Predictor(
    source="mimo_v2_mtp.py", block=_mimo_v2_block, count_always=1, path="model.mtp.layers"
)


def _of_config(build: Callable[[Fields], Model]) -> Callable[[Target], Model]:
    return lambda target: build(target.config)


#: By the target's class.
PREDICTORS: dict[str, Callable[[Target], Model]] = {
    **{name: _of_config(build) for name, build in latent_drafts.PREDICTORS.items()},
    **{name: _of_config(build) for name, build in state_space_drafts.DRAFTS.items()},
    "MiMoForCausalLM": Predictor(source="mimo_mtp.py", block=_last_block, joins="input_proj"),
    "MiMoV2FlashForCausalLM": _MIMO_V2,
    "MiMoV2ForCausalLM": _MIMO_V2,
    "Glm4MoeForCausalLM": replace(_BLOCK_WITH_HEAD, source="glm4_moe_mtp.py"),
    "Glm4MoeLiteForCausalLM": replace(_BLOCK_WITH_HEAD, source="glm4_moe_lite_mtp.py"),
    "Ernie4_5_MoeForCausalLM": Predictor(
        source="ernie_mtp.py",
        block=_ernie_block,
        joins="mtp_linear_proj",
        norms=2,
        ties_head=True,
    ),
}


def build_eagle3_llama(target: Target, config: Fields) -> Model:
    """Llama layers, the first of which sees the embedding beside the hidden state.

    Source: vLLM 0.32 ``model_executor/models/llama_eagle3.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _LLAMA)
    hidden = width(config, "hidden_size")
    first = len(target.model.layers)
    blocks = [
        (attention, *_llama_parts(config, hidden, norms=3))
        for attention in _eagle_attentions(config, target, doubled=True)
    ]
    layers = [Layer(path=f"model.layers.{first + i}", parts=each) for i, each in enumerate(blocks)]
    return _draft("llama_eagle3.py", target, layers, _eagle3_outside(target, config, hidden))


def _eagle3_outside(target: Target, config: Fields, hidden: int) -> Iterator[tuple[str, Part]]:
    vocab = width(config, "vocab_size")
    draft_vocab = config.integer("draft_vocab_size", maximum=MAX_WIDTH) or vocab
    yield "model", TokenEmbedding(vocab_size=vocab, hidden_size=hidden)
    yield "model", Vectors(name="norm", elements=hidden)
    yield from _eagle3_join(config, hidden)
    yield "", LogitsHead(vocab_size=draft_vocab, hidden_size=hidden)
    if draft_vocab != target.model.vocab_size:
        yield "", Vectors(name="draft_id_to_target_id", elements=draft_vocab, element_bytes=_INT64)


def _eagle3_join(config: Fields, hidden: int) -> Iterator[tuple[str, Part]]:
    """The projection of several of the target's hidden states, and norms before it."""
    own = config.mapping("eagle_config") or Fields({}, faults=config.faults)
    if own.boolean("use_aux_hidden_state") is False:
        return
    states = config.integer("num_aux_hidden_states", maximum=MAX_LAYERS)
    states = states or len(own.integers("eagle_aux_hidden_state_layer_ids") or ()) or 3
    seen = config.integer("target_hidden_size", maximum=MAX_WIDTH) or hidden
    before = own.boolean("norm_before_fc")
    norms = bool(config.boolean("norm_before_fc") if before is None else before)
    norms_wide = (norms + flag(config, "fc_norm")) * states * seen
    if norms_wide:
        yield "model", Vectors(name="input_norms", elements=norms_wide)
    yield "model", Projection(name="fc", input_size=states * seen, output_size=hidden)


def build_eagle_llama(target: Target, config: Fields) -> Model:
    """Llama layers, the first without its norm, after a projection; no norm and head of its own.

    Source: vLLM 0.32 ``model_executor/models/llama_eagle.py``.

    Raises:
        Refusal: it is not described exactly.
    """
    config = with_defaults(config, _LLAMA)
    hidden = width(config, "hidden_size")
    first = len(target.model.layers)
    attentions = _eagle_attentions(config, target, doubled=False)
    layers = [
        Layer(
            path=f"model.layers.{first + index}",
            parts=(attention, *_llama_parts(config, hidden, norms=2 if index else 1)),
        )
        for index, attention in enumerate(attentions)
    ]
    outside: list[tuple[str, Part]] = [
        ("model", TokenEmbedding(vocab_size=width(config, "vocab_size"), hidden_size=hidden)),
        ("model", Projection(name="fc", input_size=2 * hidden, output_size=hidden)),
    ]
    return _draft("llama_eagle.py", target, layers, outside)


def _llama_parts(config: Fields, hidden: int, *, norms: int) -> Iterator[Part]:
    check_silu(config, "llama.py")
    yield Mlp(
        hidden_size=hidden,
        intermediate_size=width(config, "intermediate_size"),
        bias=flag(config, "mlp_bias"),
    )
    yield Vectors(name="layernorms", elements=norms * hidden)


def _eagle_attentions(config: Fields, target: Target, *, doubled: bool) -> Iterator[SelfAttention]:
    """The attention of every layer; where ``doubled`` the first sees two hidden states.

    The rotary table reaches as far as the target's requests.

    Source: vLLM 0.32 ``config/speculative.py``, ``_maybe_override_draft_max_position_embeddings``.
    """
    count = num_layers(config)
    own = max_positions(config)
    positions = max(own, min(target.max_model_len, MAX_TOKENS))
    rope = replace(read_rope(config, max_positions=own), max_positions=positions)
    kinds = layer_types(config, (FULL,) * count, known=(FULL, SLIDING))
    output_bias = flag(config, "attention_bias", "bias")
    input_bias = config.boolean("qkv_bias") if config.has("qkv_bias") else output_bias
    if doubled:
        input_bias = flag(config, "attention_bias")
    for index, kind in enumerate(kinds):
        attention = self_attention(
            config,
            rope,
            qkv_bias=bool(input_bias),
            o_bias=output_bias,
            sliding_window=window(config) if kind == SLIDING else None,
        )
        two = doubled and index == 0
        yield replace(attention, input_size=2 * attention.hidden_size) if two else attention


EagleBuilder = Callable[[Target, Fields], Model]
#: By the draft's class, as vLLM calls it.
EAGLE_BUILDERS: dict[str, EagleBuilder] = {
    "EagleLlamaForCausalLM": build_eagle_llama,
    **dict.fromkeys(
        (
            "Eagle3LlamaForCausalLM",
            "LlamaForCausalLMEagle3",
            "Eagle3MiniMaxM2ForCausalLM",
            "Eagle3Qwen2_5vlForCausalLM",
            "Eagle3Qwen3vlForCausalLM",
        ),
        build_eagle3_llama,
    ),
}
