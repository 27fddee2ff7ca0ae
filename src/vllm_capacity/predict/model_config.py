"""What ``config.json`` says about a model, as far as memory is concerned."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm_capacity.errors import Fault, ModelConfigError
from vllm_capacity.predict.architectures import TRAITS
from vllm_capacity.predict.decoder import MAX_TOKENS, Decoder, read_decoder
from vllm_capacity.predict.dtypes import MODEL_DTYPES
from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.rope import Rope
from vllm_capacity.units import Tokens

#: Keys by which vLLM 0.32 changes memory in ways that no row of the architecture table covers.
#: Source: vLLM 0.32 ``config/model.py``, ``transformers_utils/model_arch_config_convertor.py``.
_UNCOVERED_KEYS = (
    "text_config",
    "vision_config",
    "audio_config",
    "thinker_config",
    "per_layer_config",
    "dual_chunk_attention_config",
    "attention_chunk_size",
    "rswa_window",
    "kv_lora_rank",
    "block_configs",
    "target_layer_count",
    "compression_config",
    "index_topk",
    "num_kv_shared_layers",
    "head_dtype",
)
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
        decoder: None where ``unsupported`` says why.
        unsupported: one sentence, None where the model is described exactly.
    """

    architecture: str
    model_type: str
    dtype: str | None
    quantization_config: Mapping[str, Any] | None
    default_max_model_len: Tokens | None
    longest_max_model_len: Tokens | None
    decoder: Decoder | None
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
        decoder=None,
        unsupported=_uncovered(config, names),
    )
    if model.unsupported is not None or names[0] not in TRAITS:
        return model
    decoder, reason = read_decoder(config, TRAITS[names[0]])
    if reason is not None:
        return replace(model, unsupported=reason)
    default, longest = _max_model_len(config, decoder.rope)
    return replace(
        model, decoder=decoder, default_max_model_len=default, longest_max_model_len=longest
    )


def _uncovered(config: Fields, names: tuple[str, ...]) -> str | None:
    if len(set(names)) > 1:
        return f"more than one architecture is listed: {', '.join(names)}"
    if names[0] and names[0] not in TRAITS:
        return f"architecture {names[0]} is not described exactly yet"
    for key in _UNCOVERED_KEYS:
        if config.values.get(key):
            return f"config key {key} changes memory in a way that is not covered yet"
    if config.values.get("is_causal") is False:
        return "bidirectional attention (is_causal false) keeps no KV cache"
    return None


def _dtype(config: Fields) -> str | None:
    key = "dtype" if config.has("dtype") else "torch_dtype"
    text = config.text(key)
    if text is None:
        return None
    dtype = MODEL_DTYPES.get(text.removeprefix("torch."))
    if dtype is None:
        config.fault(key, f"must be one of {', '.join(sorted(MODEL_DTYPES))}")
    return dtype


def _quantization_config(
    config: Fields, hf_quant_config: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    published = config.mapping("quantization_config")
    if published is not None:
        return published.values
    if hf_quant_config is None:
        return None
    quantization = Fields({"hf_quant_config": hf_quant_config}, faults=config.faults)
    reader = quantization.mapping("hf_quant_config")
    return None if reader is None else {"quant_method": "modelopt", **reader.values}


def _max_model_len(config: Fields, rope: Rope | None) -> tuple[Tokens, Tokens]:
    """The longest request by default, and the longest that the operator may ask for.

    Source: vLLM 0.32 ``config/model.py``, ``_get_and_verify_max_len``, and
    ``transformers_utils/model_arch_config_convertor.py``, ``derive_max_model_len_and_key``.
    """
    lengths = [config.integer(key, maximum=MAX_TOKENS) for key in _POSITION_KEYS]
    explicit = config.integer("model_max_length", maximum=MAX_TOKENS)
    derived = explicit or min((length for length in lengths if length), default=1)
    if rope is not None:
        derived = int(derived * rope.length_factor)
    default = derived
    if rope is not None and rope.rope_type == "longrope":
        original = config.integer("original_max_position_embeddings", maximum=MAX_TOKENS)
        default = original or derived
    return Tokens(default), Tokens(max(derived, explicit or 0))
