"""How many bytes of tensors the checkpoint beside a ``config.json`` holds."""

import json
from pathlib import Path

from vllm_capacity.units import Bytes

_INDEX = "model.safetensors.index.json"
_LONGEST_INDEX_BYTES = 64 << 20
_LONGEST_HEADER_BYTES = 100 << 20
_LENGTH_BYTES = 8


def checkpoint_bytes(folder: Path) -> Bytes | None:
    """The tensors' bytes: as the index says, else as the safetensors files' sizes do.

    None where there is no checkpoint, or only a part of one. A file's tensors are what follows its
    header, whose length its first eight bytes hold.
    """
    return _indexed(folder / _INDEX) or _single(folder / "model.safetensors")


def _indexed(index: Path) -> Bytes | None:
    try:
        if index.stat().st_size > _LONGEST_INDEX_BYTES:
            return None
        total = json.loads(index.read_bytes())["metadata"]["total_size"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    whole = isinstance(total, int | float) and not isinstance(total, bool) and total > 0
    return Bytes(int(total)) if whole and total < 1 << 62 else None


def _single(file: Path) -> Bytes | None:
    try:
        with file.open("rb") as opened:
            header = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        left = file.stat().st_size - _LENGTH_BYTES - header
    except OSError:
        return None
    return Bytes(left) if 0 < header <= _LONGEST_HEADER_BYTES and left > 0 else None
