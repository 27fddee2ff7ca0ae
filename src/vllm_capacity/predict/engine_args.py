"""vLLM's arguments, as far as they move memory."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from vllm_capacity.errors import EngineArgsError, Fault
from vllm_capacity.predict.argument_names import NEUTRAL, SWITCHES
from vllm_capacity.predict.fields import Fields

_MAX_PARALLEL = 4096
_MAX_TOKENS = 1 << 32


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFlag:
    """One vLLM argument that the prediction reads.

    Attributes:
        name: vLLM's name, with underscores.
        type: ``int``, ``float``, ``str``, ``bool``, ``tuple`` (of strings) or ``dict`` (JSON).
        help: what it does to memory.
        minimum, maximum: bounds of a number.
        aliases: vLLM's other spellings on the command line.
    """

    name: str
    type: type
    help: str
    minimum: float = 1
    maximum: float = _MAX_TOKENS
    aliases: tuple[str, ...] = ()


#: Source: vLLM 0.32 ``engine/arg_utils.py``, ``EngineArgs``.
ENGINE_FLAGS: tuple[EngineFlag, ...] = (
    EngineFlag(
        name="tensor_parallel_size",
        type=int,
        help="GPUs that share every layer",
        maximum=_MAX_PARALLEL,
        aliases=("-tp",),
    ),
    EngineFlag(
        name="pipeline_parallel_size",
        type=int,
        help="stages of consecutive layers",
        maximum=_MAX_PARALLEL,
        aliases=("-pp",),
    ),
    EngineFlag(
        name="data_parallel_size",
        type=int,
        help="replicas behind one server",
        maximum=_MAX_PARALLEL,
        aliases=("-dp",),
    ),
    EngineFlag(
        name="enable_expert_parallel",
        type=bool,
        help="distribute whole experts over GPUs",
        aliases=("-ep",),
    ),
    EngineFlag(
        name="enable_eplb",
        type=bool,
        help="copy busy experts to other GPUs (expert parallelism load balancing)",
    ),
    EngineFlag(
        name="eplb_config",
        type=dict,
        help='how, as JSON: {"num_redundant_experts": 32} adds as many experts to every layer',
    ),
    EngineFlag(
        name="max_model_len",
        type=int,
        help="longest request in tokens, prompt and output; -1 fits it to memory",
        minimum=-1,
    ),
    EngineFlag(
        name="max_num_seqs",
        type=int,
        help="requests that run at once; the sampler's memory grows with it",
    ),
    EngineFlag(
        name="max_num_batched_tokens",
        type=int,
        help="tokens of one step; activation memory grows with it",
    ),
    EngineFlag(name="block_size", type=int, help="tokens of one KV cache block", maximum=1 << 20),
    EngineFlag(
        name="gpu_memory_utilization",
        type=float,
        help="share of the GPU's memory that vLLM may take, 0 to 1",
        minimum=0.0,
        maximum=1.0,
    ),
    EngineFlag(
        name="kv_cache_memory_bytes",
        type=int,
        help="bytes of KV cache per GPU, instead of what is left over",
        minimum=0,
        maximum=1 << 50,
        aliases=("--kv-cache-memory",),
    ),
    EngineFlag(
        name="num_gpu_blocks_override",
        type=int,
        help="number of KV cache blocks, instead of what fits",
    ),
    EngineFlag(
        name="kv_cache_dtype", type=str, help="element type of the KV cache: auto, fp8, bfloat16 …"
    ),
    EngineFlag(name="dtype", type=str, help="element type of the weights: auto, bfloat16 …"),
    EngineFlag(name="quantization", type=str, help="quantisation of the weights", aliases=("-q",)),
    EngineFlag(
        name="enable_prefix_caching", type=bool, help="keep finished blocks for later requests"
    ),
    EngineFlag(
        name="enable_chunked_prefill", type=bool, help="split long prompts over several steps"
    ),
    EngineFlag(name="enforce_eager", type=bool, help="no CUDA graphs, hence none of their memory"),
    EngineFlag(
        name="async_scheduling", type=bool, help="prepare the next step while one still runs"
    ),
    EngineFlag(
        name="disable_hybrid_kv_cache_manager",
        type=bool,
        help="treat sliding-window layers as full attention",
    ),
    EngineFlag(
        name="disable_sliding_window", type=bool, help="full attention up to the window's length"
    ),
    EngineFlag(
        name="max_cudagraph_capture_size",
        type=int,
        help="largest batch that gets a CUDA graph",
        minimum=0,
    ),
    EngineFlag(
        name="distributed_executor_backend",
        type=str,
        help="mp, uni or ray; only the first two overlap steps by default",
    ),
    EngineFlag(
        name="performance_mode",
        type=str,
        help="balanced, interactivity or throughput; the last doubles the scheduler's defaults",
    ),
    EngineFlag(
        name="decode_context_parallel_size",
        type=int,
        help="tensor-parallel ranks that share each token's keys and values",
        maximum=_MAX_PARALLEL,
        aliases=("-dcp",),
    ),
    EngineFlag(
        name="speculative_config",
        type=dict,
        help='draft model or method, as JSON: {"method": "mtp", "num_speculative_tokens": 1}',
        aliases=("-sc",),
    ),
    EngineFlag(
        name="kv_cache_dtype_skip_layers",
        type=tuple,
        help="layers, or kinds of them, whose KV cache keeps the model's dtype",
    ),
    EngineFlag(
        name="cpu_offload_gb",
        type=float,
        help="GiB of weights per GPU that stay in host memory",
        minimum=0.0,
        maximum=1 << 20,
    ),
    EngineFlag(name="enable_lora", type=bool, help="reserve slots for LoRA adapters"),
    EngineFlag(name="max_loras", type=int, help="adapters in one batch", maximum=1 << 20),
    EngineFlag(name="max_lora_rank", type=int, help="rank of an adapter slot", maximum=1 << 16),
    EngineFlag(
        name="fully_sharded_loras", type=bool, help="divide both halves of adapters over GPUs"
    ),
    EngineFlag(
        name="mamba_cache_dtype", type=str, help="element type of state-space layers' state: auto …"
    ),
    EngineFlag(
        name="mamba_ssm_cache_dtype",
        type=str,
        help="element type of their recurrent state alone: auto, float32 …",
    ),
    EngineFlag(
        name="mamba_block_size",
        type=int,
        help="tokens between cached states of state-space layers",
    ),
    EngineFlag(
        name="mamba_cache_mode", type=str, help="which of these states are cached: none, all, align"
    ),
    EngineFlag(
        name="limit_mm_per_prompt",
        type=dict,
        help='images, videos and audios per prompt, as JSON: {"image": 0} builds no tower',
    ),
    EngineFlag(name="language_model_only", type=bool, help="build no vision or audio tower at all"),
    EngineFlag(
        name="mm_encoder_tp_mode",
        type=str,
        help="weights divides towers over GPUs, data gives every GPU a whole one",
    ),
)
_BY_NAME = {flag.name: flag for flag in ENGINE_FLAGS}
_ALIASES = {alias: flag.name for flag in ENGINE_FLAGS for alias in flag.aliases}

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
_UNITS = {"k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_UNITS |= {letter.upper(): 1 << 10 * power for power, letter in enumerate("kmgt", start=1)}
_HUMAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kmgtKMGT])")


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
        rest = tuple(name for name in given if name not in _BY_NAME and name not in NEUTRAL)
        return cls(**values, not_covered=rest)

    @classmethod
    def from_command_line(cls, words: Sequence[str]) -> Self:
        """Read a vLLM command line, or only its arguments.

        Both spellings ``--max-num-seqs 64`` and ``--max_num_seqs=64`` are understood, vLLM's
        short forms, and what stands before ``serve`` or ``…api_server`` is dropped.

        Raises:
            EngineArgsError: with every fault found.
        """
        return cls.from_mapping(_mapping_of(_arguments(words)), source="vLLM's command line")

    @classmethod
    def declared_in_cache_config(cls, labels: Mapping[str, str]) -> Self:
        """What ``vllm:cache_config_info`` declares: arguments, never results of the start-up.

        Raises:
            EngineArgsError: a label does not hold what vLLM writes there.
        """
        declared = {
            name: _parsed(labels[label], _BY_NAME[name])
            for label, name in _DECLARED_LABELS.items()
            if labels.get(label, "None") not in {"None", ""}
        }
        # Releases without the first label do not change the block size after start either.
        if labels.get("user_specified_block_size", "True") == "True":
            block_size = labels.get("block_size", "None")
            declared["block_size"] = None if block_size == "None" else _number(block_size, int)
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

    def merged_over(self, other: Self) -> Self:
        """These arguments, and ``other``'s where these are silent."""
        mine = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name != "not_covered" and getattr(self, item.name) is not None
        }
        rest = tuple(dict.fromkeys(self.not_covered + other.not_covered))
        return replace(other, **mine, not_covered=rest)


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


def _is_given(value: Any) -> bool:
    """Whether an argument asks for something; ``False``, ``[]`` and the like are defaults."""
    return value not in (None, False, [], {}, "", 0)


def _arguments(words: Sequence[str]) -> Sequence[str]:
    for index, word in enumerate(words):
        if word == "serve" or word.endswith("api_server"):
            return words[index + 1 :]
    return words


def _mapping_of(words: Sequence[str]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("-"):
            continue
        name, joined, text = _split(word)
        negated = name.startswith("no_") and name[3:] in _BY_NAME | dict.fromkeys(SWITCHES)
        name = name[3:] if negated else name
        flag = _BY_NAME.get(name)
        takes_value = (
            not negated and name not in SWITCHES and (flag is None or flag.type is not bool)
        )
        if takes_value and not joined and position < len(words) and not _is_flag(words[position]):
            text = words[position]
            position += 1
            joined = True
        if flag is not None and flag.type is tuple:
            words_of, position = _words_of(words, position, text if joined else None)
            mapping[name] = words_of
        else:
            mapping[name] = (not negated) if not joined else _argument(text, flag)
    return mapping


def _words_of(words: Sequence[str], position: int, first: str | None) -> tuple[list[str], int]:
    """The words of an argument that takes several, and where the next argument starts."""
    found = [] if first is None else [first]
    while position < len(words) and not _is_flag(words[position]):
        found.append(words[position])
        position += 1
    return [part for word in found for part in word.split(",")], position


def _split(word: str) -> tuple[str, bool, str]:
    head, equals, text = word.partition("=")
    name = _ALIASES.get(head) or head.lstrip("-").replace("-", "_")
    for alias, full in _ALIASES.items():
        # -tp2 is vLLM's -tp 2.
        if len(alias) == 3 and head.startswith(alias) and head[3:].isdigit():
            return full, True, head[3:]
    dashed = _ALIASES.get("--" + name.replace("_", "-"))
    return dashed or name, bool(equals), text


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not re.fullmatch(r"-\d+(\.\d+)?", word)


def _argument(text: str, flag: EngineFlag | None) -> Any:
    if flag is not None:
        return _parsed(text, flag)
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parsed(text: str, flag: EngineFlag) -> Any:
    if flag.type is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if flag.type is dict:
        return _json_or_pairs(text)
    if flag.type is tuple:
        return [word for word in text.split(",") if word]
    return text if flag.type is str else _number(text, flag.type)


def _json_or_pairs(text: str) -> Any:
    """JSON, or the older ``image=2,video=1``; the text itself where it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pairs = [pair.partition("=") for pair in text.split(",")]
    if all(equals and count.strip().isdigit() for _, equals, count in pairs):
        return {name.strip(): int(count) for name, _, count in pairs}
    return text


def _number(text: str, kind: type) -> Any:
    """The number that vLLM reads in ``text``, or the text itself where it reads none.

    Source: vLLM 0.32 ``engine/arg_utils.py``, ``human_readable_int``: ``k`` is 1000, ``K`` 1024.
    """
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        pass
    match = _HUMAN.fullmatch(text)
    if match is None or (match[2].isupper() and "." in match[1]):
        return {"auto": -1}.get(text, text)
    return int(float(match[1]) * _UNITS[match[2]])
