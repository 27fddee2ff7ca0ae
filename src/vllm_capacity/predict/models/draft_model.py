"""A whole smaller model that drafts (``"method": "draft_model"``)."""

from dataclasses import replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Layer, Model, Outside
from vllm_capacity.predict.models.registry import text_builder_of
from vllm_capacity.predict.parts import SelfAttention
from vllm_capacity.predict.refusal import Refusal

#: vLLM's module path of everything in it.
_PATH = "draft_model"


def build_draft_model(target: Model, config: Fields) -> Model:
    """The model of the draft's own ``config.json``.

    It shares nothing with its target and is not quantised with it. Pipeline stages divide it as
    they divide the target, and only the last one builds its share.

    Args:
        target: the model that it proposes tokens for.
        config: the draft's ``config.json``.

    Raises:
        Refusal: vLLM would not start so, or the draft is not described exactly.

    Source: vLLM 0.32 ``v1/worker/gpu/spec_decode/standalone_ar/speculator.py``,
    ``load_draft_model``; ``config/speculative.py``, ``verify_equal_vocab_size_if_draft_model``.
    """
    names = config.texts("architectures") or ("",)
    builder = text_builder_of(names[0])
    if builder is None:
        raise Refusal(f"draft architecture {names[0]} is not described exactly yet")
    built = builder(config)
    if built.vocab_size != target.vocab_size:
        raise Refusal(
            f"vLLM refuses to start: a draft model with {built.vocab_size} tokens in its "
            f"vocabulary drafts for one with {target.vocab_size}"
        )
    if _has_one_window(built) or _has_one_window(target):
        raise Refusal("a draft model is not described exactly where one window is for all layers")
    return replace(
        built,
        layers=tuple(Layer(path=_under(each.path), parts=each.parts) for each in built.layers),
        outside=tuple(map(_alone, built.outside)),
    )


def _has_one_window(model: Model) -> bool:
    """Whether all layers have a window, which the target's cache configuration then decides.

    Source: vLLM 0.32 ``engine/arg_utils.py``, ``create_engine_config``.
    """
    layers = [part for part in model.parts() if isinstance(part, SelfAttention) and part.cached]
    return bool(layers) and all(layer.sliding_window is not None for layer in layers)


def _under(path: str) -> str:
    return f"{_PATH}.{path}".rstrip(".")


def _alone(each: Outside) -> Outside:
    return replace(each, path=_under(each.path))
