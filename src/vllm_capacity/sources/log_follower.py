"""A log file that grows, is rotated, truncated, or is not there yet."""

import os
import stat
from collections.abc import Generator, Iterator

from vllm_capacity.errors import SourceError

#: Whole lines are given in blocks of about this size.
_BLOCK_BYTES = 64 << 10
#: A longer backlog is caught up with over the next calls.
MAX_BYTES_PER_READ = 16 << 20
#: A line without an end is given up beyond this.
_LONGEST_LINE_BYTES = 1 << 20
#: What stands before the place that was read up to tells the file from another in its place.
_REMEMBERED_BYTES = 1 << 10


class LogFollower:
    """Gives every line of a log once, across rotation and truncation.

    A file that was renamed away is read to its end before its successor is begun, and goes on to
    be read while its successor is empty: who writes it may not have noticed. A file that was cut,
    or cut and written anew beyond what was read (``copytruncate``), is begun anew: what stood
    before the place that was read up to is no longer there.

    Attributes:
        path: of the log.
        is_behind: whether the last call left something to read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_behind = False
        self._file: _OpenFile | None = None

    def read(self, max_bytes: int = MAX_BYTES_PER_READ) -> Iterator[bytes]:
        """Blocks of whole lines that came since the last call, at most ``max_bytes`` in all.

        Raises:
            SourceError: the file is not there (``absent``) or cannot be read (``invalid``).
        """
        try:
            yield from self._read(max_bytes)
        except FileNotFoundError as error:
            raise SourceError("absent", f"{self.path} is not there (yet)") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise SourceError("invalid", f"{self.path} cannot be read: {reason}") from error

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def _read(self, max_bytes: int) -> Iterator[bytes]:
        self.is_behind = False
        file = self._file = self._file or _OpenFile(self.path)
        left = yield from file.read(max_bytes)
        if left and self._has_successor(file):
            successor = _OpenFile(self.path)
            yield from file.last_line()
            file.close()
            self._file = successor
            left = yield from successor.read(left)
        self.is_behind = not left

    def _has_successor(self, file: "_OpenFile") -> bool:
        try:
            status = os.stat(self.path)  # noqa: PTH116 (as everything here: by descriptor)
        except FileNotFoundError:
            return False  # renamed away; its successor is not there yet
        return (status.st_dev, status.st_ino) != file.identity and status.st_size > 0


class _OpenFile:
    """One file, and how far it was read."""

    def __init__(self, path: str) -> None:
        # A pipe without a writer would block for ever.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise OSError(None, "is no regular file")
        self.identity = status.st_dev, status.st_ino
        self._offset, self._before = self._first_byte(), b""
        self._rest, self._is_skipping = b"", False

    def close(self) -> None:
        os.close(self._descriptor)

    def read(self, max_bytes: int) -> Generator[bytes, None, int]:
        """Blocks of new lines; returns how many bytes might still have been read."""
        if self._was_cut():
            self._begin_anew()
        while max_bytes > 0:
            chunk = os.pread(self._descriptor, min(_BLOCK_BYTES, max_bytes), self._offset)
            if not chunk:
                break
            self._offset += len(chunk)
            max_bytes -= len(chunk)
            self._before = (self._before + chunk)[-_REMEMBERED_BYTES:]
            if block := self._whole_lines(chunk):
                yield block
        return max_bytes

    def last_line(self) -> Iterator[bytes]:
        """What a file that gets no more lines ends with."""
        if self._rest:
            yield self._rest
        self._rest = b""

    def _begin_anew(self) -> None:
        self._offset, self._before = self._first_byte(), b""
        self._rest, self._is_skipping = b"", False

    def _first_byte(self) -> int:
        """Who goes on writing where a cut file had ended leaves a hole of zeros before it."""
        try:
            return os.lseek(self._descriptor, 0, os.SEEK_DATA)
        except OSError:
            return 0

    def _was_cut(self) -> bool:
        start = self._offset - len(self._before)
        return os.pread(self._descriptor, len(self._before), start) != self._before

    def _whole_lines(self, chunk: bytes) -> bytes:
        if b"\0" in chunk:
            chunk = chunk.replace(b"\0", b"")
        end = chunk.rfind(b"\n") + 1
        block, rest = (self._rest + chunk[:end], chunk[end:]) if end else (b"", self._rest + chunk)
        if self._is_skipping and end:
            block, self._is_skipping = block.partition(b"\n")[2], False
        if len(rest) > _LONGEST_LINE_BYTES:
            self._is_skipping = True
        self._rest = b"" if self._is_skipping else rest
        return block
