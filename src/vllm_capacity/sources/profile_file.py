"""A calibration profile on disk: written whole or not at all."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from vllm_capacity.errors import Fault, InputError, SourceError
from vllm_capacity.units import MIB

MAX_PROFILE_BYTES = MIB


def load_profile(path: str | Path) -> Any:
    """The JSON value of a saved profile.

    Raises:
        InputError: it cannot be read, or is no JSON.
    """
    where = str(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_PROFILE_BYTES + 1)
        if len(data) > MAX_PROFILE_BYTES:
            raise _fault(where, f"is longer than {MAX_PROFILE_BYTES // MIB} MiB; name a profile")
        return json.loads(data)
    except OSError as error:
        raise _fault(where, f"cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise _fault(where, f"is no JSON of ours: {error}") from error


def save_profile(path: str | Path, profile: object) -> None:
    """Write a profile; what was there before stays until the new one is safely on disk.

    Raises:
        SourceError: ``invalid`` where it cannot be written.
    """
    target = Path(path)
    text = json.dumps(profile, indent=2, allow_nan=False) + "\n"
    try:
        _replace(target, text.encode())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        problem = f"{target}: cannot be written: {reason}; name a file in a folder of yours"
        raise SourceError("invalid", problem) from error


def _replace(target: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.chmod(0o644)
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fault(where: str, problem: str) -> InputError:
    return InputError(where, [Fault("profile", None, problem)])
