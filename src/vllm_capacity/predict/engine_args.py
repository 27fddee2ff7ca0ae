"""vLLM's arguments, as far as they move memory."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from vllm_capacity.errors import EngineArgsError, Fault
from vllm_capacity.predict.argument_names import NEUTRAL
from vllm_capacity.predict.command_line import arguments_of
from vllm_capacity.predict.engine_flags import (
    BY_NAME,
    ENGINE_FLAGS,
    EngineFlag,
    parsed_number,
    parsed_value,
)
from vllm_capacity.predict.fields import Fields
from vllm_capacity.secrecy import HIDDEN

_DECLARED_LABELS = {
    "cache_dtype": "kv_cache_dtype",
    "gpu_memory_utilization": "gpu_memory_utilization",
    "num_gpu_blocks_override": "num_gpu_blocks_override",
    "kv_cache_memory_bytes": "kv_cache_memory_bytes",
    "cpu_kvcache_space_bytes": "kv_cache_memory_bytes",
    "enable_prefix_caching": "enable_prefix_caching",
    "mamba_cache_dtype": "mamba_cache_dtype",
    "mamba_ssm_cache_dtype": "mamba_ssm_cache_dtype",
    "cpu_offload_gb": "cpu_offload_gb",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineArgs:
    """vLLM's arguments; what is absent is None and takes vLLM's default.

    Attributes:
        not_covered: names of given arguments that move memory, or may, in ways not described.

    The other attributes are vLLM's, see :data:`ENGINE_FLAGS`.
    """

    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    data_parallel_size: int | None = None
    enable_expert_parallel: bool | None = None
    enable_eplb: bool | None = None
    eplb_config: Mapping[str, Any] | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    kv_cache_dtype: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    enforce_eager: bool | None = None
    async_scheduling: bool | None = None
    disable_hybrid_kv_cache_manager: bool | None = None
    disable_sliding_window: bool | None = None
    max_cudagraph_capture_size: int | None = None
    distributed_executor_backend: str | None = None
    performance_mode: str | None = None
    decode_context_parallel_size: int | None = None
    speculative_config: Mapping[str, Any] | None = None
    kv_cache_dtype_skip_layers: tuple[str, ...] | None = None
    cpu_offload_gb: float | None = None
    enable_lora: bool | None = None
    max_loras: int | None = None
    max_lora_rank: int | None = None
    fully_sharded_loras: bool | None = None
    mamba_cache_dtype: str | None = None
    mamba_ssm_cache_dtype: str | None = None
    mamba_block_size: int | None = None
    mamba_cache_mode: str | None = None
    limit_mm_per_prompt: Mapping[str, Any] | None = None
    language_model_only: bool | None = None
    mm_encoder_tp_mode: str | None = None
    not_covered: tuple[str, ...] = ()

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, source: str = "engine arguments") -> Self:
        """Read vLLM's arguments by their names with underscores; null is absent.

        Raises:
            EngineArgsError: with every fault found.
        """
        if not isinstance(mapping, Mapping):
            raise EngineArgsError(source, [Fault("", mapping, "must be an object")])
        faults: list[Fault] = []
        reader = Fields(mapping, faults=faults)
        values: dict[str, Any] = {flag.name: _value(reader, flag) for flag in ENGINE_FLAGS}
        if values["max_model_len"] == 0:
            reader.fault("max_model_len", "must be at least 1 token, or -1 to fit it to memory")
        if values["gpu_memory_utilization"] == 0:
            reader.fault("gpu_memory_utilization", "must be above 0 and at most 1")
        if faults:
            raise EngineArgsError(source, faults)
        given = (str(name) for name, value in mapping.items() if _is_given(value))
        rest = tuple(name for name in given if name not in BY_NAME and name not in NEUTRAL)
        return cls(**values, not_covered=rest)

    @classmethod
    def as_told(cls, mapping: Mapping[str, Any]) -> Self:
        """Read what an engine runs with, from a source that nobody can correct.

        Never raises: what cannot be read, or is hidden, is left out and named in ``not_covered``.
        """
        faulty = {name for name, value in mapping.items() if name in BY_NAME and _is_hidden(value)}
        try:
            cls.from_mapping(mapping)
        except EngineArgsError as error:
            faulty |= {fault.key.partition(".")[0] for fault in error.faults}
        readable = {name: value for name, value in mapping.items() if name not in faulty}
        told = cls.from_mapping(readable)
        return replace(told, not_covered=(*told.not_covered, *sorted(faulty)))

    @classmethod
    def from_command_line(cls, words: Sequence[str]) -> Self:
        """Read a vLLM command line, or only its arguments.

        Both spellings ``--max-num-seqs 64`` and ``--max_num_seqs=64`` are understood, vLLM's
        short forms, and what stands before ``serve`` or ``…api_server`` is dropped.

        Raises:
            EngineArgsError: with every fault found.
        """
        return cls.from_mapping(arguments_of(words), source="vLLM's command line")

    @classmethod
    def declared_in_cache_config(cls, labels: Mapping[str, str]) -> Self:
        """What ``vllm:cache_config_info`` declares: arguments, never results of the start-up.

        Raises:
            EngineArgsError: a label does not hold what vLLM writes there.
        """
        declared = {
            name: parsed_value(labels[label], BY_NAME[name])
            for label, name in _DECLARED_LABELS.items()
            if labels.get(label, "None") not in {"None", ""}
        }
        # Releases without the first label do not change the block size after start either.
        if labels.get("user_specified_block_size", "True") == "True":
            block_size = labels.get("block_size", "None")
            declared["block_size"] = (
                None if block_size == "None" else parsed_number(block_size, int)
            )
        skipped = labels.get("kv_cache_dtype_skip_layers", "[]")
        if skipped not in {"[]", "None", ""}:
            declared["kv_cache_dtype_skip_layers"] = re.findall(r"[\w.]+", skipped)
        return cls.from_mapping(declared, source="vllm:cache_config_info")

    def allows_modality(self, modality: str) -> bool:
        """Whether a prompt may hold any ``image``, ``video`` or ``audio``.

        Source: vLLM 0.32 ``config/multimodal.py``, ``MultiModalConfig.get_limit_per_prompt``.
        """
        if self.language_model_only:
            return False
        limit = (self.limit_mm_per_prompt or {}).get(modality)
        count = limit.get("count") if isinstance(limit, Mapping) else limit
        return not isinstance(count, int) or count > 0

    def video_frames(self, most: int) -> int:
        """Frames of the longest video that a prompt may hold, ``most`` without a limit.

        Source: vLLM 0.32 ``config/multimodal.py``, ``VideoDummyOptions.num_frames``.
        """
        limit = (self.limit_mm_per_prompt or {}).get("video")
        frames = limit.get("num_frames") if isinstance(limit, Mapping) else None
        return min(frames, most) if isinstance(frames, int) and frames > 0 else most

    @property
    def given(self) -> dict[str, Any]:
        """The arguments that are given, by name; those of ``not_covered`` apart."""
        return {
            item.name: value
            for item in fields(self)
            if item.name != "not_covered" and (value := getattr(self, item.name)) is not None
        }

    def merged_over(self, other: Self) -> Self:
        """These arguments, and ``other``'s where these are silent."""
        rest = tuple(dict.fromkeys(self.not_covered + other.not_covered))
        return replace(other, **self.given, not_covered=rest)


def _value(reader: Fields, flag: EngineFlag) -> Any:
    if flag.type is dict:
        return _given_mapping(reader, flag.name)
    if flag.type is tuple:
        return reader.texts(flag.name) or None
    if flag.type is bool:
        return reader.boolean(flag.name)
    if flag.type is int:
        return reader.integer(flag.name, minimum=int(flag.minimum), maximum=int(flag.maximum))
    if flag.type is float:
        return reader.number(flag.name, minimum=flag.minimum, maximum=flag.maximum)
    return reader.text(flag.name)


def _given_mapping(reader: Fields, name: str) -> Mapping[str, Any] | None:
    inner = reader.mapping(name)
    return None if inner is None or not inner.values else dict(inner.values)


def _is_hidden(value: Any) -> bool:
    return HIDDEN in value if isinstance(value, list | tuple) else value == HIDDEN


def _is_given(value: Any) -> bool:
    """Whether an argument asks for something; ``False``, ``[]`` and the like are defaults."""
    return value not in (None, False, [], {}, "", 0)
