"""A program in a pseudo-terminal, and the screen that a person would see of it."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import pyte

if TYPE_CHECKING:
    from collections.abc import Callable


# Makes the terminal that it finds the session's own, so that Ctrl-C and Ctrl-Z reach the program.
_IN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


class LiveTerminal:
    """``vllm-capacity`` with these words, in a terminal of that size."""

    def __init__(self, *words: str, columns: int = 80, lines: int = 24, **environment: str) -> None:
        self._outside, self.inside = pty.openpty()
        self.resize(columns, lines)
        self.modes_before = termios.tcgetattr(self.inside)
        self.screen = pyte.Screen(columns, lines)
        self.written = b""
        self._stream = pyte.ByteStream(self.screen)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_TERMINAL, "-m", "vllm_capacity.cli", *words],
            stdin=self.inside,
            stdout=self.inside,
            stderr=self.inside,
            start_new_session=True,
            env={**_environment(), "TERM": "xterm-256color", **environment},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for descriptor in (self.inside, self._outside):
            with suppress(OSError):
                os.close(descriptor)
        self._reader.join(5)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    def type(self, keys: str) -> None:
        os.write(self._outside, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self.inside, termios.TIOCSWINSZ, size)
        if hasattr(self, "screen"):
            self.screen.resize(lines, columns)
            os.killpg(self.process.pid, signal.SIGWINCH)

    def wait_for(self, seen: str | Callable[[str], bool], seconds: float = 20.0) -> str:
        """The screen's text once that is on it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            text = self.text
            if seen in text if isinstance(seen, str) else seen(text):
                return text
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {seen!r}; the screen was\n{self.text}")

    def end(self, seconds: float = 10.0) -> int:
        """The exit status of a program that is about to end, once all it wrote is read."""
        status = self.process.wait(seconds)
        end = time.monotonic() + 2
        while not self.written.endswith(b"\x1b[?1049l") and time.monotonic() < end:
            time.sleep(0.02)
        return status

    def is_as_before(self) -> bool:
        """Whether modes, screen and cursor are as the program found them."""
        return (
            termios.tcgetattr(self.inside) == self.modes_before
            and self.written.count(b"\x1b[?1049h") == self.written.count(b"\x1b[?1049l")
            and self.written.rfind(b"\x1b[?25h") > self.written.rfind(b"\x1b[?25l")
        )

    def _read(self) -> None:
        with suppress(OSError, ValueError):
            while data := os.read(self._outside, 65536):
                self.written += data
                self._stream.feed(data)


def _environment() -> dict[str, str]:
    left_out = ("VLLM_CAPACITY_", "NO_COLOR", "FORCE_COLOR", "LC_", "LANG", "COLUMNS", "LINES")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    return {**kept, "LANG": "C.UTF-8"}
