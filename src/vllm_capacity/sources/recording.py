"""Recorded scrapes, read line by line."""

import gzip
import io
import json
import lzma
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeGuard, cast

from vllm_capacity.errors import Fault, RecordingError, TornRecordingError
from vllm_capacity.units import MIB

MAX_LINE_BYTES = 64 * MIB
GZIP_MAGIC = b"\x1f\x8b"
XZ_MAGIC = b"\xfd7zXZ\x00"
_BLOCK_BYTES = 1 << 16
_BROKEN_ARCHIVE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedScrape:
    """One line of a recording.

    Attributes:
        t: seconds since the recording began; never less than in the line before.
        metrics: the page as text; None where the scrape failed.
        started_timestamp_seconds: Unix time at which t was 0, where the line says it.
    """

    t: float
    metrics: str | None
    started_timestamp_seconds: float | None = None


def read_recording(path: str | Path) -> Iterator[RecordedScrape]:
    """The scrapes of a recording, one at a time, in constant memory.

    JSON lines of ``{"t": seconds, "metrics": text or null}``, plain, gzip or xz, told apart by
    their first bytes. Other keys are not read, but for the start that ``record`` notes; blank
    lines are passed over.

    Raises:
        TornRecordingError: while iterating, at the end, where the last line or the archive was
            cut off.
        RecordingError: while iterating, at the first line that cannot be used.
            The lines before it have been given out by then.
    """
    for _, scrape in read_recorded_lines(path):
        yield scrape


def read_recorded_lines(path: str | Path) -> Iterator[tuple[bytes, RecordedScrape]]:
    """The lines of a recording as they stand there, each with what it says.

    Raises:
        RecordingError: as ``read_recording``.
    """
    source = str(path)
    latest = -math.inf
    with _reporting_files(source), _opened(Path(path)) as lines:
        for number, line in _numbered(source, lines):
            scrape = _scrape(source, number, line, latest)
            latest = scrape.t
            yield line, scrape


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        magic = file.read(len(XZ_MAGIC))
    if magic.startswith(GZIP_MAGIC):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if magic == XZ_MAGIC:
        return cast("IO[bytes]", io.BufferedReader(_XzStreams(path.open("rb"))))
    return path.open("rb")


class _XzStreams(io.RawIOBase):
    """The text of xz streams, one after another.

    ``lzma.LZMAFile`` takes a stream whose first bytes are damaged for the end of the file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        self._is_new = True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            given = b""
            if self._stream.eof:
                given = self._stream.unused_data
                self._stream, self._is_new = lzma.LZMADecompressor(lzma.FORMAT_XZ), True
            elif self._stream.needs_input:
                given = self._file.read(_BLOCK_BYTES)
                if not given and self._is_new:
                    return 0
                if not given:
                    raise EOFError("its last stream has no end")
            if self._is_new:
                given = given.lstrip(b"\0")  # between streams there may be padding
                self._is_new = not given
            data = self._stream.decompress(given, len(buffer))
        buffer[: len(data)] = data
        return len(data)


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
        problem = f"the archive is cut or damaged here: {error}"
        raise _fault(source, number, None, problem, torn=_is_torn(error)) from error
    if len(line) > MAX_LINE_BYTES:
        limit = f"{MAX_LINE_BYTES // MIB} MiB"
        raise _fault(source, number, None, f"is longer than {limit}; write one scrape a line")
    return line


def _is_torn(error: Exception) -> bool:
    """Whether an archive ends too early; of the next gzip member one byte may be there."""
    return isinstance(error, EOFError) or str(error).endswith(f"({GZIP_MAGIC[:1]!r})")


def _scrape(source: str, number: int, line: bytes, latest: float) -> RecordedScrape:
    record = _json_object(source, number, line)
    faults = [*_time_faults(number, record, latest), *_metrics_faults(number, record)]
    if faults:
        raise RecordingError(source, faults)
    return RecordedScrape(
        t=float(record["t"]),
        metrics=record["metrics"],
        started_timestamp_seconds=_started(record.get("recording")),
    )


def _started(header: object) -> float | None:
    started = header.get("started_timestamp_seconds") if isinstance(header, dict) else None
    return float(started) if _is_finite_number(started) else None


def _json_object(source: str, number: int, line: bytes) -> dict[str, Any]:
    torn = not line.endswith(b"\n")  # no part of a JSON object is one
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 at byte {error.start}"
        raise _fault(source, number, None, problem, torn=torn) from error
    except json.JSONDecodeError as error:
        problem = f"is not JSON at column {error.colno}: {error.msg}"
        raise _fault(source, number, line.decode().strip(), problem, torn=torn) from error
    except (ValueError, RecursionError) as error:
        raise _fault(source, number, None, f"is no JSON of ours: {error}", torn=torn) from error
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


def _fault(
    source: str, number: int, value: object, problem: str, *, torn: bool = False
) -> RecordingError:
    kind = TornRecordingError if torn else RecordingError
    return kind(source, [Fault(f"line {number}", value, problem)])
