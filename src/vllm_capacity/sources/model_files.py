"""A model's ``config.json``: from a path, a folder, or the local hub cache."""

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_capacity.errors import SourceError
from vllm_capacity.sources.checkpoint_files import checkpoint_bytes
from vllm_capacity.units import MIB, Bytes

MAX_CONFIG_BYTES = 8 * MIB
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COMMIT = re.compile(r"[\w.-]*\w[\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """What a model's folder says of it.

    Numbers that JSON does not have (``NaN``, ``Infinity``, as the ``time_step_limit`` of Mamba
    models holds) stay text: a reader that needs a number there refuses them by name.

    Attributes:
        config: ``config.json``.
        hf_quant_config: ModelOpt's ``hf_quant_config.json``, where there is one.
        path: the ``config.json`` that was read.
        checkpoint_bytes: of the tensors beside it; None where there are none, or not all.
    """

    config: dict[str, Any]
    hf_quant_config: dict[str, Any] | None
    path: str
    checkpoint_bytes: Bytes | None = None


def read_model_config(where: str) -> ModelFiles:
    """The configuration of a model on this machine; nothing is fetched.

    Args:
        where: a ``config.json``, a folder that holds one, or a hub id as in ``Qwen/Qwen3-8B``
            that the local hub cache holds (``HF_HUB_CACHE``, ``HUGGINGFACE_HUB_CACHE``,
            ``HF_HOME``, ``~/.cache/huggingface``; the commit that ``main`` names).

    Raises:
        SourceError: ``absent`` where nothing of that name is here; ``invalid`` where it cannot
            be read as one JSON object.
    """
    path = _located(where)
    beside = path.with_name("hf_quant_config.json")
    return ModelFiles(
        config=_json_object(path),
        hf_quant_config=_json_object(beside) if _kind(beside) is not None else None,
        path=str(path),
        checkpoint_bytes=checkpoint_bytes(path.parent),
    )


def _located(where: str) -> Path:
    for path in _candidates(where):
        kind = _kind(path)
        if kind is not None and stat.S_ISREG(kind):
            return path
        if kind is not None and not stat.S_ISDIR(kind):
            raise SourceError("invalid", f"{path}: is no regular file; name a config.json")
    cache = f" and not in the hub cache {_hub_cache()}" if _HUB_ID.fullmatch(where) else ""
    raise SourceError(
        "absent",
        f"{where or 'model configuration'}: no config.json and no folder holding one{cache}",
    )


def _candidates(where: str) -> Iterator[Path]:
    if not where or "\0" in where:
        return
    named = _expanded(where)
    yield named
    yield named / "config.json"
    if _HUB_ID.fullmatch(where):
        yield from _cached_snapshots(_hub_cache() / f"models--{where.replace('/', '--')}")


def _cached_snapshots(model: Path) -> Iterator[Path]:
    """Of the commit that ``main`` names; else of the only snapshot.

    Source: huggingface_hub 2.4 ``file_download.py``, ``try_to_load_from_cache``.
    """
    try:
        commit = (model / "refs" / "main").read_text("ascii").strip()
        names = [commit] if _COMMIT.fullmatch(commit) else []
    except (OSError, ValueError):
        names = [entry.name for entry in _entries(model / "snapshots")]
    if len(names) == 1:
        yield model / "snapshots" / names[0] / "config.json"


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _hub_cache() -> Path:
    """Source: huggingface_hub 2.4 ``constants.py``, ``HF_HUB_CACHE``."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if folder := os.environ.get(variable):
            return _expanded(folder)
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{caches}/huggingface"
    return _expanded(home) / "hub"


def _expanded(folder: str) -> Path:
    try:
        return Path(folder).expanduser()
    except RuntimeError:  # no such user, or no home
        return Path(folder)


def _kind(path: Path) -> int | None:
    """The file's mode; None where there is nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SourceError("invalid", f"{path}: cannot be read: {error.strerror}") from error


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(
            _text(path),
            object_pairs_hook=_without_duplicates,
            parse_float=_finite_or_text,
            parse_constant=str,
        )
    except json.JSONDecodeError as error:
        problem = f"is not JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        raise SourceError("invalid", f"{path}: {problem}") from error
    except RecursionError as error:
        raise SourceError("invalid", f"{path}: is nested deeper than any model's") from error
    except ValueError as error:
        raise SourceError("invalid", f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise SourceError("invalid", f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise SourceError("invalid", f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_CONFIG_BYTES:
        limit = f"{MAX_CONFIG_BYTES // MIB} MiB"
        raise SourceError("invalid", f"{path}: is longer than {limit}; name a config.json")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SourceError("invalid", f"{path}: is not UTF-8 at byte {error.start}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"gives {twice!r} twice; remove one")
    return unique


def _finite_or_text(literal: str) -> float | str:
    number = float(literal)
    return number if math.isfinite(number) else literal
