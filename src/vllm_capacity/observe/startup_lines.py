"""The lines of vLLM's start-up log that tell its memory, as each release words them.

Read from the sources of 0.6.4, 0.6.6, 0.8.5, 0.9.2, 0.11.2, 0.16.0, 0.25.0, 0.28.0 and 0.32.0:
``worker/worker.py`` (``determine_num_available_blocks``),
``worker/model_runner.py``, ``executor/executor_base.py``,
``v1/worker/gpu_worker.py`` (``determine_available_memory``, ``compile_or_warm_up_model``),
``v1/worker/cpu_worker.py``, ``v1/worker/gpu_model_runner.py``, ``v1/worker/utils.py``
(``request_memory``), ``utils/mem_utils.py``, ``v1/core/kv_cache_utils.py``,
``v1/metrics/loggers.py``, ``config/model.py``, ``platforms/*.py``, ``attention/selector.py``.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from vllm_capacity.units import GIB

_N = r"(-?\d{1,9}(?:\.\d{1,9})?)"
_INT = r"(\d{1,15}|\d{1,3}(?:,\d{3}){1,5})"

#: Of several values the smallest is the tightest; of all others the largest.
SMALLEST_IS_TIGHTEST = frozenset(
    {
        *("total_memory_bytes", "requested_memory_bytes", "kv_cache_bytes"),
        *("free_memory_bytes", "kv_cache_size_tokens", "num_gpu_blocks", "max_concurrency"),
    }
)
#: What each rank measures for itself.
RANK_FIELDS = (
    *("weights_bytes", "activation_peak_bytes", "non_torch_bytes", "cuda_graph_bytes"),
    *("total_memory_bytes", "requested_memory_bytes", "kv_cache_bytes"),
    *("consumed_bytes", "non_kv_cache_bytes", "cuda_graph_estimate_bytes"),
    "free_memory_bytes",
)

Kind = Literal["gib", "int", "float", "text"]


@dataclass(frozen=True, slots=True)
class Field:
    """What one group of a pattern holds.

    Attributes:
        name: the field.
        kind: how it is written.
        grade: the lower, the more it is to be believed where two lines tell the same field.
    """

    name: str
    kind: Kind = "gib"
    grade: int = 0


@dataclass(frozen=True, slots=True)
class Wording:
    """One line of one or more releases.

    Attributes:
        key: text that each such line holds, to look for first.
        pattern: the whole of it.
        fields: one for each group of the pattern, in order.
        of_engine: written by one process for all ranks.
    """

    key: str
    pattern: re.Pattern[str]
    fields: tuple[Field, ...]
    of_engine: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """A value as a line holds it.

    Attributes:
        field: which.
        value: bytes and counts as int.
        uncertainty_bytes: how far the printed number may be from the true one; 0 if it is exact.
        grade: see ``Field``.
        of_engine: see ``Wording``.
    """

    field: str
    value: int | float | str
    uncertainty_bytes: int
    grade: int
    of_engine: bool


def _rank(key: str, pattern: str, *names: str | Field) -> Wording:
    fields = tuple(name if isinstance(name, Field) else Field(name) for name in names)
    return Wording(key, re.compile(pattern), fields)


def _engine(key: str, pattern: str, *fields: Field) -> Wording:
    return Wording(key, re.compile(pattern), fields, of_engine=True)


_TOKENS = Field("kv_cache_size_tokens", "int")
_CONCURRENCY = Field("max_concurrency", "float")
_BLOCKS = Field("num_gpu_blocks", "int")


def _max_model_len(grade: int) -> Field:
    return Field("max_model_len", "int", grade)


_MEMORY = (
    _rank(
        "took", rf"(?:Model loading|Loading model weights) took {_N} (?:GiB|GB)", "weights_bytes"
    ),
    _rank("weights memory:", rf"weights memory: {_N}GiB", "weights_bytes"),
    _rank("model weights take", rf"model weights take {_N}GiB", "weights_bytes"),
    _rank("for weight,", rf"Actual usage is {_N} GiB for weight,", "weights_bytes"),
    _rank("torch peak", rf"torch peak memory increase: {_N}GiB", "activation_peak_bytes"),
    _rank("PyTorch act", rf"PyTorch activation peak memory takes {_N}GiB", "activation_peak_bytes"),
    # since 0.28 with the estimate for CUDA graphs in it, hence less to be believed
    _rank(
        "for peak activation",
        rf"{_N} GiB for peak activation",
        Field("activation_peak_bytes", grade=1),
    ),
    _rank("non-torch f", rf"non-torch forward increase memory: {_N}GiB", "non_torch_bytes"),
    _rank("non_torch_memory takes", rf"non_torch_memory takes {_N}GiB", "non_torch_bytes"),
    _rank("for non-torch memory", rf"{_N} GiB for non-torch memory", "non_torch_bytes"),
    _rank("total consumed", rf"total consumed \(from mem_get_info\): {_N}GiB", "consumed_bytes"),
    _rank("for consumed", rf"Actual usage is {_N} GiB for consumed memory", "consumed_bytes"),
    _rank("Total non KV", rf"Total non KV cache memory: {_N}GiB", "non_kv_cache_bytes"),
    _rank(
        "Graph capturing",
        rf"Graph capturing finished in \d{{1,9}} secs, took {_N} GiB",
        "cuda_graph_bytes",
    ),
    _rank("graph pool", rf"CUDA graph pool memory: {_N} GiB \(actual\)", "cuda_graph_bytes"),
    _rank("for CUDAGraph", rf"{_N} GiB for CUDAGraph memory", "cuda_graph_bytes"),
    _rank(
        "Estimated CUDA graph",
        rf"Estimated CUDA graph memory: {_N} GiB total",
        "cuda_graph_estimate_bytes",
    ),
    _rank(
        "total_memory=",
        rf"memory snapshot: .{{1,300}}?\btotal_memory={_N}GiB",
        "total_memory_bytes",
    ),
    _rank("total_gpu_memory (", rf"total_gpu_memory \({_N}GiB\)", "total_memory_bytes"),
    _rank(
        "Free memory on device",
        rf"Free memory on device(?: [\w:]{{1,40}})? \({_N}/{_N} GiB\) on startup\. "
        rf"Desired GPU memory utilization is \({_N}, {_N} GiB\)",
        *("free_memory_bytes", "total_memory_bytes", "", "requested_memory_bytes"),
    ),
    _rank("Initial free", rf"Initial free memory:? {_N} GiB", "free_memory_bytes"),
    _rank(
        "Requested memory",
        rf"Requested memory: {_N} \(util\), {_N} GiB",
        *("", "requested_memory_bytes"),
    ),
    _rank("requested GPU", rf"requested GPU memory: {_N} GiB", "requested_memory_bytes"),
    _rank("worker requested", rf"worker requested memory: {_N}GiB", "requested_memory_bytes"),
    _rank(
        "gpu_memory_utilization (",
        rf"x gpu_memory_utilization \({_N}\) = {_N}GiB",
        *("", "requested_memory_bytes"),
    ),
    _rank("Available KV", rf"Available KV cache memory: {_N} GiB", "kv_cache_bytes"),
    _rank("Current kv", rf"Current kv cache memory in use is {_N} GiB", "kv_cache_bytes"),
    _rank(
        "Current kv",  # to the byte in 0.10.2 and 0.11.0
        r"Current kv cache memory in use is (\d{1,15}) bytes",
        Field("kv_cache_bytes", "int"),
    ),
    _rank("reserved for KV", rf"reserved for KV Cache is {_N}GiB", "kv_cache_bytes"),
    _rank("memory for KV", rf", reserved {_N} GiB memory for KV Cache", "kv_cache_bytes"),
    _rank("reduced to", rf"KV cache memory reduced to {_N} GiB", "kv_cache_bytes"),
    _rank(
        "Memory profiling results",
        rf"Memory profiling results: total_gpu_memory={_N}GiB .{{1,200}}? "
        rf"non_torch_memory={_N}GiB kv_cache_size={_N}GiB",
        *("total_memory_bytes", "non_torch_bytes", "kv_cache_bytes"),
    ),
    _rank(
        "for KV cache on node",
        rf"(?:Auto|Explicitly) set \({_N}/{_N}\) GiB for KV cache on node",
        *("kv_cache_bytes", "total_memory_bytes"),
    ),
    _rank(
        "for KV cache on node",
        rf"for KV cache on node .{{1,20}}, with {_N} GiB requested memory",
        "requested_memory_bytes",
    ),
)
_ENGINE = (
    _engine("KV cache size", rf"KV cache size: {_INT} tokens", _TOKENS),
    _engine(
        "Maximum concurrency",
        rf"Maximum concurrency for {_INT} tokens per request: {_N}x",
        *(_max_model_len(1), _CONCURRENCY),
    ),
    _engine(" blocks: ", r"# (?!CPU)\w{2,10} blocks: (\d{1,15})", _BLOCKS),
    _engine("num_gpu_blocks is", r"num_gpu_blocks is: (\d{1,15})", _BLOCKS),
    # from 0 blocks: the small pool that CUDA graphs are profiled with, not the real one
    _engine(
        "num_gpu_blocks_override=",
        r"Overriding num_gpu_blocks=[1-9]\d{0,14} with num_gpu_blocks_override=(\d{1,15})",
        _BLOCKS,
    ),
    _engine(
        "Auto-fit max",
        r"Auto-fit max_model_len: reduced from \d{1,15} to (\d{1,15})",
        _max_model_len(0),
    ),
    _engine("Using max model len", r"Using max model len (\d{1,15})\b", _max_model_len(2)),
    _engine("Resolved arch", r"Resolved architecture: (\w{1,200})", Field("architecture", "text")),
)
_REFUSALS = (
    _engine(
        "is less than",
        rf"Free memory on device(?: [\w:]{{1,40}})? \({_N}/{_N} GiB\) on startup is less than "
        rf"desired GPU memory utilization \({_N}, {_N} GiB\)",
        *(Field(""), Field("total_memory_bytes"), Field(""), Field("requested_memory_bytes")),
    ),
    _engine(
        "To serve at least one",
        rf"To serve at least one request with the model'?s?'?s max seq len \((\d{{1,15}})\)"
        rf".{{1,200}}?available KV cache memory \({_N} GiB\)",
        *(_max_model_len(1), Field("kv_cache_bytes")),
    ),
    _engine(
        "model's max seq len",
        r"The model's max seq len \((\d{1,15})\) is larger than the maximum number of tokens "
        r"that can be stored in KV cache \((\d{1,15})\)",
        *(_max_model_len(1), _TOKENS),
    ),
    _engine(
        "total capacity of",
        rf"GPU \d{{1,4}} has a total capacity of {_N} GiB",
        Field("total_memory_bytes", grade=1),
    ),
)

#: vLLM's own names for what older releases wrote in words.
_BACKEND_NAMES: Mapping[str, str] = {
    "Flash Attention": "FLASH_ATTN",
    "FlashAttention": "FLASH_ATTN",
    "Flashinfer": "FLASHINFER",
    "FlashInfer": "FLASHINFER",
    "XFormers": "XFORMERS",
    "Torch SDPA": "TORCH_SDPA",
    "ROCmFlashAttention": "ROCM_FLASH",
    "Rocm Attention": "ROCM_ATTN",
    "Aiter Flash Attention": "ROCM_AITER_FA",
    "Aiter Unified Attention": "ROCM_AITER_UNIFIED_ATTN",
    "AITER MLA": "ROCM_AITER_MLA",
    "AITER TRITON MLA": "ROCM_AITER_TRITON_MLA",
    "Triton": "TRITON_ATTN",
    "Triton Attention": "TRITON_ATTN",
    "Triton MLA": "TRITON_MLA",
    "FlashMLA": "FLASHMLA",
    "Cutlass MLA": "CUTLASS_MLA",
    "FlashInfer MLA": "FLASHINFER_MLA",
    "FlexAttention": "FLEX_ATTENTION",
    "Flex Attention": "FLEX_ATTENTION",
    "BlocksparseFlashAttention": "BLOCK_SPARSE_FLASH_ATTN",
    "Pallas": "PALLAS",
    "Pallas V1": "PALLAS",
    "IPEX": "IPEX",
    "OpenVINO Attention": "OPENVINO",
    "HPUAttention": "HPU_ATTN",
    "CPU MLA": "CPU_MLA",
}
_BACKEND = re.compile(
    r"Using (?:[A-Za-z_]\w*\.)?(?P<name>[A-Za-z][\w ]{1,40}?)(?P<attention> attention)? backend"
    r"(?: on V1 engine(?: by default for .{0,80})?| \(selected via --attention-backend\)"
    r"|(?P<several> out of potential backends: .*))?\.?\s*"
)

#: Every line that is read.
WORDINGS = (*_MEMORY, *_ENGINE, *_REFUSALS)
_BACKEND_KEY = " backend"
#: A line without any of these, which are few for speed, holds nothing that is read here.
KEYS: tuple[str, ...] = (
    *(
        "GiB",
        " bytes",
        " GB",
        " tokens",
        " blocks: ",
        "num_gpu_blocks",
        "max model len",
        "Auto-fit",
    ),
    *("Resolved arch", "seq len", _BACKEND_KEY),
)


def readings(text: str) -> Iterator[Reading]:
    """Everything that one message tells."""
    for wording in WORDINGS:
        if wording.key in text and (match := wording.pattern.search(text)):
            yield from _readings(wording, match)
    if _BACKEND_KEY in text and (match := _BACKEND.fullmatch(text)):
        yield from _backend(match)


def _readings(wording: Wording, match: re.Match[str]) -> Iterator[Reading]:
    for field, text in zip(wording.fields, match.groups(), strict=True):
        if field.name:
            value, uncertainty = _VALUES[field.kind](text)
            yield Reading(field.name, value, uncertainty, field.grade, wording.of_engine)


def _backend(match: re.Match[str]) -> Iterator[Reading]:
    written = match["name"]
    name = written if re.fullmatch(r"[A-Z][A-Z0-9_]+", written) else _BACKEND_NAMES.get(written)
    if name is None and match["attention"]:
        name = _BACKEND_NAMES.get(f"{written} Attention")
    if name is not None:
        yield Reading("attention_backend", name, 0, 0, of_engine=True)


def _gib(text: str) -> tuple[int, int]:
    """GiB as bytes; ``format_gib`` rounds to two decimals and drops the zeros at the end."""
    decimals = max(2, len(text.partition(".")[2]))
    return round(float(text) * GIB), -(-GIB // (2 * 10**decimals))


def _int(text: str) -> tuple[int, int]:
    return int(text.replace(",", "")), 0


def _float(text: str) -> tuple[float, int]:
    return float(text), 0


def _text(text: str) -> tuple[str, int]:
    return text, 0


_VALUES: Mapping[Kind, Callable[[str], tuple[int | float | str, int]]] = {
    "gib": _gib,
    "int": _int,
    "float": _float,
    "text": _text,
}
