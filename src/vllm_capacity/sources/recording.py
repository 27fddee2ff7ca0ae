"""Recorded scrapes, read line by line."""

import gzip
import json
import lzma
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeGuard, cast

from vllm_capacity.errors import Fault, RecordingError
from vllm_capacity.units import MIB

MAX_LINE_BYTES = 64 * MIB
_GZIP_MAGIC = b"\x1f\x8b"
_XZ_MAGIC = b"\xfd7zXZ\x00"
_BROKEN_ARCHIVE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedScrape:
    """One line of a recording.

    Attributes:
        t: seconds since the recording began; never less than in the line before.
        metrics: the page as text; None where the scrape failed.
    """

    t: float
    metrics: str | None


def read_recording(path: str | Path) -> Iterator[RecordedScrape]:
    """The scrapes of a recording, one at a time, in constant memory.

    JSON lines of ``{"t": seconds, "metrics": text or null}``, plain, gzip or xz, told apart by
    their first bytes. Other keys are not read; blank lines are passed over.

    Raises:
        RecordingError: while iterating, at the first line that cannot be used.
            The lines before it have been given out by then.
    """
    source = str(path)
    latest = -math.inf
    with _reporting_files(source), _opened(Path(path)) as lines:
        for number, line in _numbered(source, lines):
            scrape = _scrape(source, number, line, latest)
            latest = scrape.t
            yield scrape


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        magic = file.read(len(_XZ_MAGIC))
    if magic.startswith(_GZIP_MAGIC):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if magic == _XZ_MAGIC:
        return cast("IO[bytes]", lzma.open(path, "rb"))
    return path.open("rb")


@contextmanager
def _reporting_files(source: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}; name a file of JSON lines"
        raise RecordingError(source, [Fault("file", source, problem)]) from error


def _numbered(source: str, lines: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := _next_line(source, number + 1, lines):
        number += 1
        if line.strip():
            yield number, line


def _next_line(source: str, number: int, lines: IO[bytes]) -> bytes:
    try:
        line = lines.readline(MAX_LINE_BYTES + 1)
    except _BROKEN_ARCHIVE as error:
        raise _fault(
            source, number, None, f"the archive is cut or damaged here: {error}"
        ) from error
    if len(line) > MAX_LINE_BYTES:
        limit = f"{MAX_LINE_BYTES // MIB} MiB"
        raise _fault(source, number, None, f"is longer than {limit}; write one scrape a line")
    return line


def _scrape(source: str, number: int, line: bytes, latest: float) -> RecordedScrape:
    record = _json_object(source, number, line)
    faults = [*_time_faults(number, record, latest), *_metrics_faults(number, record)]
    if faults:
        raise RecordingError(source, faults)
    return RecordedScrape(t=float(record["t"]), metrics=record["metrics"])


def _json_object(source: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _fault(source, number, None, f"is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        problem = f"is not JSON at column {error.colno}: {error.msg}"
        raise _fault(source, number, line.decode().strip(), problem) from error
    except (ValueError, RecursionError) as error:
        raise _fault(source, number, None, f"is no JSON of ours: {error}") from error
    if not isinstance(record, dict):
        raise _fault(source, number, record, 'must be an object {"t": …, "metrics": …}')
    return record


def _time_faults(number: int, record: dict[str, Any], latest: float) -> Iterator[Fault]:
    key, value = f"line {number}: t", record.get("t")
    if not _is_finite_number(value):
        yield Fault(key, value, "must be the seconds since the recording began")
    elif value < latest:
        yield Fault(key, value, f"goes back in time; the line before says {latest:g} seconds")


def _metrics_faults(number: int, record: dict[str, Any]) -> Iterator[Fault]:
    key, value = f"line {number}: metrics", record.get("metrics")
    if "metrics" not in record:
        yield Fault(key, None, "is missing; write null where the scrape failed")
    elif value is not None and not isinstance(value, str):
        yield Fault(key, value, "must be the page as text, or null where the scrape failed")
    elif value is not None and not _is_encodable(value):
        yield Fault(key, value, "holds half a surrogate pair, which no page can")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_finite_number(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _fault(source: str, number: int, value: object, problem: str) -> RecordingError:
    return RecordingError(source, [Fault(f"line {number}", value, problem)])
