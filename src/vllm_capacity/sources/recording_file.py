"""A recording that is being made: whole lines in compressed parts, continued after any end."""

import fcntl
import gzip
import json
import lzma
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vllm_capacity.errors import Fault, RecordingError, TornRecordingError
from vllm_capacity.sources.recording import GZIP_MAGIC, XZ_MAGIC, read_recorded_lines
from vllm_capacity.units import MIB

_PART_BYTES = 4 * MIB


class RecordingFile:
    """A recording, open at its end; a new one where there is none.

    Lines are collected and written as one part: a gzip member or an xz stream of their own, so the
    file is whole after each. The form follows from what is there, of a new file from its suffix:
    ``.gz``, ``.xz``, else plain. An end that was cut off is mended before anything is added, in a
    copy that takes the file's place once it is complete.

    Args:
        path: of the file.
        max_bytes: how large it may grow; a part that would pass that is not written.

    Attributes:
        size_bytes: of the file.
        is_full: whether a part was left out for its size.
        started_timestamp_seconds: Unix time at which t was 0; None in a new file.
        last_t: of its last line; 0 in a new file.

    Raises:
        RecordingError: it cannot be written, is being written by another process, is no
            recording, is damaged, does not say when it began, or is as large as it may be.
    """

    def __init__(self, path: str | Path, *, max_bytes: int) -> None:
        self._path, self._max_bytes = Path(path), max_bytes
        self._lines: list[bytes] = []
        self.is_full = False
        self.started_timestamp_seconds: float | None = None
        self.last_t = 0.0
        self._file = self._opened(self._path)
        try:
            self._compress = _compression(self._path)
            self._continue()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if not isinstance(error, RecordingError):
                self.flush()
        finally:
            self._file.close()

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line; it is in the file after the next ``flush``."""
        self._lines.append(json.dumps(record, allow_nan=False).encode() + b"\n")

    def flush(self) -> None:
        """Write what was added, so that the end of this process cannot take it away.

        Raises:
            RecordingError: it cannot be written; the file is as it was before.
        """
        if not any(line.strip() for line in self._lines) or self.is_full:
            return
        part = self._compress(b"".join(self._lines))
        self._lines.clear()
        self.is_full = self.size_bytes + len(part) > self._max_bytes
        if not self.is_full:
            self._write(part)

    @property
    def size_bytes(self) -> int:
        """How large the file is."""
        return os.fstat(self._file.fileno()).st_size

    def _opened(self, path: Path) -> Any:
        try:
            file = path.open("ab", buffering=0)
        except OSError as error:
            raise self._fault(f"cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise self._fault("is being written by another process") from error
        return file

    def _continue(self) -> None:
        if self.size_bytes >= self._max_bytes:
            raise self._fault(f"already holds {self.size_bytes} bytes; allow more or name another")
        last = b"\n"
        try:
            for line, scrape in read_recorded_lines(self._path):
                last, self.last_t = line, scrape.t
                if self.started_timestamp_seconds is None:
                    self.started_timestamp_seconds = scrape.started_timestamp_seconds
        except TornRecordingError:
            self._mend()
        else:
            if not last.endswith(b"\n"):
                self._lines.append(b"\n")
        if last.strip() and self.started_timestamp_seconds is None:
            raise self._fault("does not say when it began, so it cannot be continued")

    def _mend(self) -> None:
        """Put a copy of all whole lines in the file's place."""
        copy = self._path.with_name(self._path.name + ".mended")
        copy.unlink(missing_ok=True)
        torn, self._file = self._file, self._opened(copy)
        with torn:
            self._copy_lines()
            os.fsync(self._file)
            copy.chmod(self._path.stat().st_mode & 0o7777)
            copy.replace(self._path)

    def _copy_lines(self) -> None:
        part: list[bytes] = []
        try:
            for line, _ in read_recorded_lines(self._path):
                part.append(line)
                if sum(map(len, part)) >= _PART_BYTES:
                    self._write(self._compress(b"".join(part)))
                    part.clear()
        except TornRecordingError:
            if part:
                self._write(self._compress(b"".join(part)))

    def _write(self, part: bytes) -> None:
        before, left = self.size_bytes, memoryview(part)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            os.ftruncate(self._file.fileno(), before)
            raise self._fault(f"cannot be written: {error.strerror}") from error

    def _fault(self, problem: str) -> RecordingError:
        return RecordingError(str(self._path), [Fault("file", str(self._path), problem)])


def _compression(path: Path) -> Callable[[bytes], bytes]:
    """As the file's first bytes say; a few of them may be all that a crash left."""
    with path.open("rb") as file:
        head = file.read(len(XZ_MAGIC))
    suffix = path.suffix.lower()
    if head.startswith(GZIP_MAGIC) or (GZIP_MAGIC.startswith(head) and suffix == ".gz"):
        return gzip.compress
    if head == XZ_MAGIC or (XZ_MAGIC.startswith(head) and suffix == ".xz"):
        return _xz
    return bytes


def _xz(lines: bytes) -> bytes:
    # Pages repeat themselves: higher presets cost ten times the time for 3 % of the size.
    return lzma.compress(lines, preset=1)
