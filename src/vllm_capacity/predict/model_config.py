"""What ``config.json`` says about a model, as far as memory is concerned."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm_capacity.errors import Fault, ModelConfigError
from vllm_capacity.predict.dtypes import MODEL_DTYPES
from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model
from vllm_capacity.predict.models.registry import builder_of
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.units import Tokens

_MAX_TOKENS = 1 << 32
#: Where wrappers keep the text model. Source: transformers 5 ``configuration_utils.py``,
#: ``get_text_config``; vLLM 0.32 ``transformers_utils/config.py``, ``get_hf_text_config``.
_TEXT_KEYS = ("thinker_config", "text_config", "llm_config", "language_config")
#: Without any of the keys below. Source: vLLM 0.32 ``config/model.py``,
#: ``_get_and_verify_max_len``, ``default_max_len``.
_LENGTH_OF_UNBOUNDED = 2048
_POSITION_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A model as its ``config.json`` describes it.

    Attributes:
        architecture: first entry of ``architectures``.
        dtype: element type of the weights as published; None where the file does not say.
        quantization_config: as published, hf_quant_config.json folded in; None without one.
        default_max_model_len: longest request without ``--max-model-len``.
        longest_max_model_len: what ``--max-model-len`` may ask for at most.
        text: the configuration of the text model, wherever the file keeps it.
        model: the parts that vLLM builds; None where ``unsupported`` says why.
        unsupported: one sentence, None where the model is described exactly.
    """

    architecture: str
    model_type: str
    dtype: str | None
    quantization_config: Mapping[str, Any] | None
    default_max_model_len: Tokens | None
    longest_max_model_len: Tokens | None
    text: Mapping[str, Any]
    model: Model | None
    unsupported: str | None

    @classmethod
    def from_dict(
        cls,
        config: Mapping[str, Any],
        *,
        hf_quant_config: Mapping[str, Any] | None = None,
        source: str = "config.json",
    ) -> "ModelConfig":
        """Read a published ``config.json``.

        Args:
            config: the parsed file.
            hf_quant_config: the parsed ``hf_quant_config.json`` where the checkpoint has one.
            source: where it came from, for messages.

        Raises:
            ModelConfigError: with every fault found.
        """
        faults: list[Fault] = []
        if not isinstance(config, Mapping):
            raise ModelConfigError(source, [Fault("", config, "must be a JSON object")])
        model = _read(Fields(config, faults=faults), hf_quant_config)
        if faults:
            raise ModelConfigError(source, faults)
        return model


def _read(config: Fields, hf_quant_config: Mapping[str, Any] | None) -> ModelConfig:
    names = config.texts("architectures")
    if not names:
        if names is not None or not config.has("architectures"):
            config.fault("architectures", "must list the model's class; vLLM needs it")
        names = ("",)
    model = ModelConfig(
        architecture=names[0],
        model_type=config.text("model_type") or "",
        dtype=_dtype(config),
        quantization_config=_quantization_config(config, hf_quant_config),
        default_max_model_len=None,
        longest_max_model_len=None,
        text=text_config(config).values,
        model=None,
        unsupported=None,
    )
    try:
        return _described(model, config, names)
    except Refusal as refusal:
        return replace(model, unsupported=str(refusal))


def _described(model: ModelConfig, config: Fields, names: tuple[str, ...]) -> ModelConfig:
    if len(set(names)) > 1:
        raise Refusal(f"more than one architecture is listed: {', '.join(names)}")
    if not names[0]:
        return model
    builder = builder_of(names[0])
    if builder is None:
        raise Refusal(f"architecture {names[0]} is not described exactly yet")
    built = builder(_with_quantization(config, model.quantization_config))
    text = text_config(config)
    if built.text_values is not None:
        text = Fields(built.text_values, path=text.path, faults=config.faults)
    default, longest = _max_model_len(text, built)
    return replace(model, model=built, default_max_model_len=default, longest_max_model_len=longest)


def _with_quantization(config: Fields, quantization: Mapping[str, Any] | None) -> Fields:
    """The file with ``hf_quant_config.json`` in it: some towers look whether there is one."""
    if quantization is None or config.has("quantization_config"):
        return config
    values = {**config.values, "quantization_config": quantization}
    return Fields(values, path=config.path, faults=config.faults)


def text_config(config: Fields) -> Fields:
    """The configuration of the text model inside a wrapper's, or the file itself."""
    for key in _TEXT_KEYS:
        inner = config.mapping(key)
        if inner is not None:
            return text_config(inner)
    return config


def _dtype(config: Fields) -> str | None:
    for reader in (config, text_config(config)):
        key = "dtype" if reader.has("dtype") else "torch_dtype"
        text = reader.text(key)
        if text is not None:
            break
    if text is None:
        return None
    dtype = MODEL_DTYPES.get(text.removeprefix("torch."))
    if dtype is None:
        reader.fault(key, f"must be one of {', '.join(sorted(MODEL_DTYPES))}")
    return dtype


def _quantization_config(
    config: Fields, hf_quant_config: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """What says how weights are quantised.

    Source: vLLM 0.32 ``transformers_utils/model_arch_config_convertor.py``,
    ``get_quantization_config``: the file, else the text model's part of it; before both
    ``config.py`` takes ``hf_quant_config.json`` where the file says nothing.
    """
    for reader in (config, config.mapping("text_config")):
        for key in ("quantization_config", "compression_config"):
            published = None if reader is None else reader.mapping(key)
            if published is not None:
                return published.values
    if hf_quant_config is None:
        return None
    quantization = Fields({"hf_quant_config": hf_quant_config}, faults=config.faults)
    reader = quantization.mapping("hf_quant_config")
    if reader is None or not _is_modelopt(reader):
        return None
    return {"quant_method": "modelopt", **reader.values}


def _is_modelopt(hf_quant_config: Fields) -> bool:
    """Whether vLLM takes notice of hf_quant_config.json: it looks for who wrote it.

    Source: vLLM 0.32 ``transformers_utils/model_arch_config_convertor.py``,
    ``_normalize_quantization_config``.
    """
    producer = hf_quant_config.mapping("producer")
    quantization = hf_quant_config.mapping("quantization")
    signed = producer is not None and producer.text("name") == "modelopt"
    return signed or (quantization is not None and quantization.has("modelopt_quant_config"))


def _max_model_len(config: Fields, model: Model) -> tuple[Tokens, Tokens]:
    """The longest request by default, and the longest that the operator may ask for.

    Source: vLLM 0.32 ``config/model.py``, ``_get_and_verify_max_len``, and
    ``transformers_utils/model_arch_config_convertor.py``, ``derive_max_model_len_and_key``.
    """
    lengths = [config.integer(key, maximum=_MAX_TOKENS) for key in _POSITION_KEYS]
    lengths[0] = lengths[0] or model.max_positions
    explicit = config.integer("model_max_length", maximum=_MAX_TOKENS)
    if not any(lengths):
        return Tokens(_LENGTH_OF_UNBOUNDED), Tokens(_MAX_TOKENS)
    derived = explicit or min(length for length in lengths if length)
    derived = int(derived * model.length_factor)
    default = derived
    if model.rope_type == "longrope":
        original = config.integer("original_max_position_embeddings", maximum=_MAX_TOKENS)
        default = original or derived
    return Tokens(default), Tokens(max(derived, explicit or 0))
