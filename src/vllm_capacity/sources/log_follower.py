"""A log file that grows, is rotated, truncated, or is not there yet."""

import os
from pathlib import Path

from vllm_capacity.errors import SourceError

#: Read in one go; a longer backlog is caught up with over the next calls.
_CHUNK_BYTES = 1 << 20
MAX_BYTES_PER_READ = 64 << 20
#: A line without an end is given up beyond this.
_LONGEST_LINE_BYTES = 1 << 20


class LogFollower:
    """Gives every line of a log once, across rotation and truncation.

    A file that was renamed away is read to its end before its successor is begun; one that was
    cut to less than what was read is begun anew.

    Args:
        path: of the log.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        self._rest = b""
        self._is_skipping = False

    def read(self, max_bytes: int = MAX_BYTES_PER_READ) -> list[str]:
        """The lines that came since the last call, at most ``max_bytes`` of them.

        Raises:
            SourceError: the file is not there (``absent``) or cannot be read (``invalid``).
        """
        try:
            return self._read(max_bytes)
        except FileNotFoundError as error:
            raise SourceError("absent", f"{self.path} is not there (yet)") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise SourceError("invalid", f"{self.path} cannot be read: {reason}") from error

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._identity = None

    def _read(self, max_bytes: int) -> list[str]:
        descriptor = self._open() if self._descriptor is None else self._descriptor
        lines, left = self._drain(descriptor, max_bytes)
        if left and self._was_replaced():
            lines += self._last_line()
            self.close()
            lines += self._drain(self._open(), left)[0]
        return lines

    def _open(self) -> int:
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        self._identity = status.st_dev, status.st_ino
        self._offset, self._rest, self._is_skipping = 0, b"", False
        return self._descriptor

    def _was_replaced(self) -> bool:
        try:
            status = Path(self.path).stat()
        except FileNotFoundError:
            return False  # renamed away; its successor is not there yet
        return (status.st_dev, status.st_ino) != self._identity

    def _drain(self, descriptor: int, max_bytes: int) -> tuple[list[str], int]:
        """New lines of the open file, and how many bytes may still be read."""
        if os.fstat(descriptor).st_size < self._offset:
            self._offset, self._rest, self._is_skipping = 0, b"", False
        lines: list[str] = []
        while max_bytes > 0:
            chunk = os.pread(descriptor, min(_CHUNK_BYTES, max_bytes), self._offset)
            if not chunk:
                break
            self._offset += len(chunk)
            max_bytes -= len(chunk)
            lines += self._split(chunk)
        return lines, max_bytes

    def _split(self, chunk: bytes) -> list[str]:
        *whole, rest = (self._rest + chunk).split(b"\n")
        if self._is_skipping and whole:
            whole, self._is_skipping = whole[1:], False
        if len(rest) > _LONGEST_LINE_BYTES:
            rest, self._is_skipping = b"", True
        self._rest = b"" if self._is_skipping else rest
        return [line.decode("utf-8", "replace") for line in whole]

    def _last_line(self) -> list[str]:
        """What a file that gets no more lines ends with."""
        rest, self._rest = self._rest, b""
        return [rest.decode("utf-8", "replace")] if rest else []
