"""Wrappers: a text model of another family, and towers beside it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import NO_RENAMES, Model, Outside, Renames
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.config_defaults import ARCHITECTURES, TEXT_DEFAULTS
from vllm_capacity.predict.models.registry import text_builder_of
from vllm_capacity.predict.models.vision.items import encoder_item
from vllm_capacity.predict.refusal import Refusal

#: The outer configuration and the text model's → what stands beside the text model.
Towers = Callable[[Fields, Fields], Iterator[Outside]]
#: The outer configuration → a number of layers.
Levels = Callable[[Fields], int]
_WHOLE_IMAGES = frozenset({"bagel", "gemma3", "molmo2", "moondream3", "paligemma"})
_GEMMA4 = frozenset({"gemma4", "gemma4_unified"})
_TIE = "tie_word_embeddings"
#: 70 of the frame, two around it, six of its time.
#: Source: vLLM 0.32 ``models/gemma4_mm.py``, ``get_mm_max_tokens_per_item``.
_GEMMA4_FRAME_TOKENS = 78
_ROPE_KEYS = ("rope_scaling", "rope_parameters")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wrapper:
    """How one class finds its text model and what it builds beside it.

    Attributes:
        source: file under vLLM's ``model_executor/models/``.
        architecture: class of the text model; None where the text configuration decides.
        text_keys: where the text configuration stands; the first that is there.
        inner_key: object that holds the text configuration and those of the encoders.
        text_type: its ``model_type`` where it names none.
        text_type_decides: whether ``model_type`` of the text configuration chooses its class; if
            not, ``text_type`` has the defaults in any case.
        flat: whether its keys may stand in the file itself.
        tied: ``tie_word_embeddings`` of the outer class where the file does not say; None where
            the text configuration decides then.
        inner_tie: whether that of the text configuration counts too.
        named_tie: whether the outer one counts only where the text configuration names its class.
        short_positions: whether positions never exceed the number of tokens, so that the
            rotary table has no further rows.
        path: vLLM's name of the text model's decoder.
        head_path: the same of what its head stands in.
        stages_refusal: why vLLM would not pipeline it, None if it would.
        outer_tie: whether ``tie_word_embeddings`` of the file counts beside that of the text
            configuration.
        said_tie: whether the class reads ``tie_word_embeddings`` of a configuration that has no
            default of it.
        ignored: keys of the text configuration that the class of its own does not read.
        levels: how many layers of the text model take embeddings besides the first; None where
            none does.
        renames: how the class renames the checkpoint's modules.
    """

    source: str
    towers: Towers
    architecture: str | None = None
    text_keys: tuple[str, ...] = ("text_config",)
    inner_key: str | None = None
    text_type: str = "llama"
    text_type_decides: bool = True
    flat: bool = False
    tied: bool | None = False
    inner_tie: bool = False
    named_tie: bool = False
    short_positions: bool = False
    path: str = "language_model.model"
    head_path: str = "language_model"
    stages_refusal: str | None = None
    outer_tie: bool = True
    said_tie: bool = False
    ignored: tuple[str, ...] = ()
    levels: Levels | None = None
    renames: Renames = NO_RENAMES


def build_wrapped(
    config: Fields, wrapper: Wrapper, *, path: str = "", head_path: str = ""
) -> Model:
    """The text model with its towers.

    Args:
        config: the whole configuration.
        wrapper: how its class builds it.
        path: not asked; the wrapper knows its own.
        head_path: likewise.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``models/utils.py``, ``init_vllm_registered_model``.
    """
    del path, head_path
    inner = inner_fields(config, wrapper)
    text = text_fields(config, wrapper)
    if wrapper.said_tie and not (config.has(_TIE) or text.has(_TIE)):
        raise Refusal(f"vLLM refuses to start: {wrapper.source} reads {_TIE}, which is missing")
    build = _builder(text, wrapper)
    levels = 0 if wrapper.levels is None else wrapper.levels(inner)
    model = build(text, path=wrapper.path, head_path=wrapper.head_path)
    whole_images = _attends_to_whole_images(config, text)
    asks = whole_images and config.text("model_type") in _GEMMA4
    return replace(
        model,
        source=wrapper.source,
        outside=(*model.outside, *wrapper.towers(inner, text)),
        text_values=text.values,
        mm_prefix=whole_images,
        frame_tokens=_GEMMA4_FRAME_TOKENS if asks else 0,
        renames=wrapper.renames,
        encoder_elements=(1 + levels) * model.hidden_size,
        encoder_item=encoder_item(wrapper.source, inner),
        batch_elements=model.batch_elements + levels * model.hidden_size,
        stages_refusal=wrapper.stages_refusal or model.stages_refusal,
    )


def _attends_to_whole_images(config: Fields, text: Fields) -> bool:
    """Whether tokens of an image attend to later ones of it, which few kernels can.

    Source: vLLM 0.32 ``transformers_utils/model_arch_config_convertor.py``, ``is_mm_prefix_lm``.
    """
    kind = config.text("model_type")
    if kind in _GEMMA4:
        return text.values.get("use_bidirectional_attention") == "vision"
    said = config.boolean("is_mm_prefix_lm")
    return kind in _WHOLE_IMAGES if said is None else said


def inner_fields(config: Fields, wrapper: Wrapper) -> Fields:
    """Where text model and towers are described: the file itself, or one object in it."""
    if wrapper.inner_key is None:
        return config
    inner = config.mapping(wrapper.inner_key)
    if inner is None:
        config.fault(wrapper.inner_key, "is missing; add the model's configuration")
        return Fields({}, path=f"{wrapper.inner_key}.", faults=config.faults)
    return inner


def text_fields(config: Fields, wrapper: Wrapper) -> Fields:
    """The text model's configuration with what its class and the wrapper add."""
    whole = config
    config = inner_fields(config, wrapper)
    inner = next(filter(None, map(config.mapping, wrapper.text_keys)), None)
    if inner is None and not wrapper.flat:
        config.fault(wrapper.text_keys[0], "is missing; add the text model's configuration")
    if inner is None:
        hidden = {"architectures", "vision_config", "audio_config", "tie_word_embeddings"}
        flat = {key: value for key, value in config.values.items() if key not in hidden}
        inner = Fields(flat, path=config.path, faults=config.faults)
    kind = inner.text("model_type") if wrapper.text_type_decides else None
    defaults = TEXT_DEFAULTS.get(kind or wrapper.text_type, {})
    values: dict[str, Any] = {**defaults, **inner.values}
    values = {key: value for key, value in values.items() if key not in wrapper.ignored}
    tied = _tied(whole, values, wrapper)
    if tied is not None:
        values["tie_word_embeddings"] = tied
    if wrapper.short_positions:
        values = {key: _without_sections(key, value) for key, value in values.items()}
    if "model_type" not in inner.values:
        values["model_type"] = wrapper.text_type
    return Fields(values, path=inner.path, faults=config.faults)


def _tied(config: Fields, text: dict[str, Any], wrapper: Wrapper) -> bool | None:
    """Whether the head is the embedding's table: the outer class decides.

    Source: vLLM 0.32 ``config/vllm.py``, ``VllmConfig.with_hf_config``; transformers 5
    ``configuration_*.py``, ``__post_init__``.
    """
    if not wrapper.outer_tie:
        return None
    outer = config.boolean("tie_word_embeddings")
    tied = wrapper.tied if outer is None else outer
    inner = text.get("tie_word_embeddings")
    if tied is None or (wrapper.named_tie and not text.get("architectures")):
        return None if inner is None else bool(inner)
    return tied or (wrapper.inner_tie and bool(inner))


def _without_sections(key: str, value: object) -> object:
    if key not in _ROPE_KEYS or not isinstance(value, dict):
        return value
    return {name: inner for name, inner in value.items() if name != "mrope_section"}


def _builder(text: Fields, wrapper: Wrapper) -> Builder:
    name = wrapper.architecture
    if name is None:
        listed = text.texts("architectures")
        name = listed[0] if listed else ARCHITECTURES.get(text.text("model_type") or "")
    builder = text_builder_of(name or "")
    if builder is None:
        what = name or f"model_type {text.values.get('model_type')}"
        raise Refusal(f"{wrapper.source} around {what} is not described exactly yet")
    return builder
