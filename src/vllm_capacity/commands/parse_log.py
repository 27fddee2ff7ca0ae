"""``vllm-capacity parse-log``: what a vLLM start-up log says."""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from vllm_capacity.observe.startup_lines import RANK_FIELDS
from vllm_capacity.observe.startup_log import StartupLog, read_startup_log
from vllm_capacity.sources.log_file import read_log_lines
from vllm_capacity.units import format_gib

_EPILOG = """\
LOG may be plain, .gz or .xz, or - for standard input; as vLLM prints it or as Docker, Kubernetes
and the like wrap it; of any vLLM from 0.6 on. Of several start-ups the last is read.
What the log does not say is null. docs/parse-log.md tells which lines are read.
"""
_FACTS = (
    ("vLLM", "vllm_version"),
    ("model", "model"),
    ("architecture", "architecture"),
    ("attention backend", "attention_backend"),
    ("max_model_len", "max_model_len"),
)
_MEMORY = (
    ("GPU memory", "total_memory_bytes"),
    ("requested", "requested_memory_bytes"),
    ("weights", "weights_bytes"),
    ("activation peak", "activation_peak_bytes"),
    ("outside PyTorch", "non_torch_bytes"),
    ("weights and all that stays", "consumed_bytes"),
    ("CUDA graphs, estimated", "cuda_graph_estimate_bytes"),
    ("CUDA graphs", "cuda_graph_bytes"),
    ("KV cache", "kv_cache_bytes"),
)
_CAPACITY = (
    ("KV cache tokens", "kv_cache_size_tokens"),
    ("KV cache blocks", "num_gpu_blocks"),
    ("concurrency at full length", "max_concurrency"),
)
_ORDER = (
    *("vllm_version", "model", "engine_args", "engine_config", "architecture"),
    *("attention_backend", *RANK_FIELDS, "kv_cache_size_tokens", "num_gpu_blocks"),
    *("max_concurrency", "max_model_len", "failure", "is_started"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``parse-log``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("log", metavar="LOG", help="the log file")
    parser.add_argument("--json", action="store_true", help="write one JSON object")


def run(args: argparse.Namespace) -> int:
    """Read the log; the exit status is 0 when it could be read, whatever it says."""
    log = read_startup_log(read_log_lines(args.log))
    if args.json:
        print(json.dumps(as_json(log), allow_nan=False, indent=2))
    else:
        print("\n".join(_table(log)))
    return 0


def as_json(log: StartupLog) -> Mapping[str, Any]:
    """The log's facts as ``--json`` writes them; unknown is None."""
    facts = asdict(log)
    ordered = {name: facts[name] for name in _ORDER}
    ordered |= {f"{name}_uncertainty_bytes": n for name, n in log.uncertainty_bytes.items()}
    ordered["ranks"] = _ranks(log) if len(log.ranks) > 1 else None
    ordered["lines"] = dict(log.lines)
    return ordered


def _ranks(log: StartupLog) -> Mapping[str, Any]:
    """Each field that any rank knows, as a list in the order of the ranks."""
    columns = {name: [getattr(rank, name) for rank in log.ranks] for name in ("name", *RANK_FIELDS)}
    return {
        name: values
        for name, values in columns.items()
        if any(value is not None for value in values)
    }


def _table(log: StartupLog) -> Iterator[str]:
    if not log.lines:
        yield "nothing of a vLLM start-up is in this log"
        return
    for label, name in (*_FACTS, *_CAPACITY):
        yield from _row(log, label, name, str(getattr(log, name)))
    if log.engine_args is not None:
        yield from _row(log, "arguments", "engine_args", _shown_args(log.engine_args))
    yield from _memory(log)
    if log.failure is not None:
        yield from _row(log, "failed", "failure", f"{log.failure.kind}: {log.failure.message}")
    elif log.is_started:
        yield "started"
    else:
        yield "neither the end of the start-up nor a failure is in this log"


def _memory(log: StartupLog) -> Iterator[str]:
    known = [(label, name) for label, name in _MEMORY if getattr(log, name) is not None]
    if known:
        yield (
            "per GPU" if len(log.ranks) < 2 else f"per GPU, the tightest of {len(log.ranks)} ranks"
        )
    for label, name in known:
        yield from _row(log, f"  {label}", name, format_gib(getattr(log, name)))


def _row(log: StartupLog, label: str, name: str, shown: str) -> Iterator[str]:
    if getattr(log, name) is not None:
        yield f"{label:<28} {shown}  (line {log.lines[name]})"


def _shown_args(engine_args: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in engine_args.items())
