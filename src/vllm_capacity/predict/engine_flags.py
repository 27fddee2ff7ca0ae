"""The vLLM arguments that move memory, and how their values are written."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

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
BY_NAME = {flag.name: flag for flag in ENGINE_FLAGS}

_UNITS = {"k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_UNITS |= {letter.upper(): 1 << 10 * power for power, letter in enumerate("kmgt", start=1)}
_HUMAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kmgtKMGT])")


def parsed_value(text: str, flag: EngineFlag) -> Any:
    """The value that ``text`` stands for, or the text itself where vLLM would refuse it."""
    if flag.type is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if flag.type is dict:
        return _json_or_pairs(text)
    if flag.type is tuple:
        return [word for word in text.split(",") if word]
    return text if flag.type is str else parsed_number(text, flag.type)


def _json_or_pairs(text: str) -> Any:
    """JSON, or the older ``image=2,video=1``; the text itself where it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pairs = [pair.partition("=") for pair in text.split(",")]
    if all(equals and count.strip().isdigit() for _, equals, count in pairs):
        return {name.strip(): int(count) for name, _, count in pairs}
    return text


def parsed_number(text: str, kind: type) -> Any:
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
    number = float(match[1]) * _UNITS[match[2]]
    return int(number) if math.isfinite(number) else text
