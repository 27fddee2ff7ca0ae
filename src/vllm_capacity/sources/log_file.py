"""A log file, plain, gzip or xz, or standard input, line by line."""

import gzip
import lzma
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, cast

from vllm_capacity.errors import Fault, InputError

#: The rest of a longer line is passed over.
MAX_LINE_BYTES = 1_000_000
_GZIP_MAGIC = b"\x1f\x8b"
_XZ_MAGIC = b"\xfd7zXZ\x00"
_BROKEN_ARCHIVE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


def read_log_lines(path: str) -> Iterator[str]:
    """The lines of a log in constant memory; bytes that are no UTF-8 become U+FFFD.

    Args:
        path: of the log; ``-`` for standard input.

    Raises:
        InputError: while iterating, where the file cannot be opened or read on.
    """
    try:
        with closing(_opened(path)) as file:
            yield from _lines(file)
    except _BROKEN_ARCHIVE as error:
        raise _fault(path, f"the archive is cut or damaged: {error}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _fault(path, f"cannot be read: {reason}; name a log file, or - for stdin") from error


def _opened(path: str) -> IO[bytes]:
    if path == "-":
        return sys.stdin.buffer
    if not Path(path).is_file():  # a pipe can be opened once only
        return Path(path).open("rb")
    with Path(path).open("rb") as file:
        magic = file.read(len(_XZ_MAGIC))
    if magic.startswith(_GZIP_MAGIC):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if magic == _XZ_MAGIC:
        return cast("IO[bytes]", lzma.open(path, "rb"))
    return Path(path).open("rb")


def _lines(file: IO[bytes]) -> Iterator[str]:
    while line := file.readline(MAX_LINE_BYTES):
        yield line.decode("utf-8", "replace")
        while len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)


def _fault(path: str, problem: str) -> InputError:
    return InputError(path, [Fault("file", path, problem)])
