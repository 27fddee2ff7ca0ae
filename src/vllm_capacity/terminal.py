"""The terminal while a screen is shown live: taken over, painted, and given back as it was."""

import asyncio
import os
import re
import signal
import termios
import tty
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TextIO

# The alternate screen, and no cursor; then both back.
_TAKE, _GIVE_BACK = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
# To the beginning of a line, which is erased before it is written: afterwards the cursor may
# stand on the last column, which would be erased with the rest.
_LINE, _ERASE_BELOW = "\x1b[{};1H\x1b[K", "\x1b[J"
_KEY = re.compile(rb"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Za-z]|[^\x1b]|\x1b", re.DOTALL)
_ARROWS = {b"\x1b[A": "up", b"\x1bOA": "up", b"\x1b[B": "down", b"\x1bOB": "down"}
_MOST_BYTES = 1024


def keys_of(typed: bytes) -> list[str]:
    """The keys in what was typed: a character each, or "up" and "down"; others are left out.

    >>> keys_of(bytes([27]) + b"[Aq" + bytes([27]) + b"[5~")
    ['up', 'q']
    """
    found = (_ARROWS.get(key) or _character(key) for key in _KEY.findall(typed))
    return [key for key in found if key is not None]


def _character(key: bytes) -> str | None:
    return key.decode("ascii") if len(key) == 1 and 0x20 <= key[0] < 0x7F else None


class Terminal:
    """Takes the terminal over for the time of its context.

    Args:
        output: where to paint; a terminal.
        typed: file descriptor of what is typed; None, or no terminal: no keys are read.
    """

    def __init__(self, output: TextIO, typed: int | None) -> None:
        self._output = output
        self._typed = typed if typed is not None and os.isatty(typed) else None
        self._modes: list[Any] | None = None
        self._painted: list[str] = []

    @property
    def has_keys(self) -> bool:
        """Whether keys can be read."""
        return self._typed is not None

    def __enter__(self) -> Self:
        self._take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back()

    def listen(self, press: Callable[[str], None], hang_up: Callable[[], None]) -> None:
        """Call ``press`` for every key, in the running event loop, until the context ends.

        Args:
            press: takes a key as ``keys_of`` names it.
            hang_up: called once when nothing can be typed any more.
        """
        if self._typed is not None:
            asyncio.get_running_loop().add_reader(self._typed, self._read, press, hang_up)

    def paint(self, lines: str) -> None:
        """Show these lines; of those that stand there already nothing is written."""
        rows, before = lines.split("\n"), self._painted
        changed = [
            _LINE.format(i + 1) + row
            for i, row in enumerate(rows)
            if i >= len(before) or row != before[i]
        ]
        if not before or len(rows) < len(before):
            changed.append(_LINE.format(len(rows) + 1) + _ERASE_BELOW)
        self._write("".join(changed))
        self._painted = rows

    def forget(self) -> None:
        """Paint anew next time, whatever stands there: the window has changed."""
        self._painted = []

    def suspend(self) -> None:
        """Give the terminal back and stop, as for Ctrl-Z; take it again when continued."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
        self.forget()

    def _take(self) -> None:
        if self._typed is not None:
            self._modes = termios.tcgetattr(self._typed)
            tty.setcbreak(self._typed, termios.TCSANOW)
        self._write(_TAKE)

    def _give_back(self) -> None:
        """Even where the terminal is gone, which nobody can be told any more."""
        if self._typed is not None and self._modes is not None:
            with suppress(termios.error, OSError):
                termios.tcflush(self._typed, termios.TCIFLUSH)
                termios.tcsetattr(self._typed, termios.TCSANOW, self._modes)
            self._modes = None
        with suppress(OSError, ValueError):
            self._write(_GIVE_BACK)

    def _read(self, press: Callable[[str], None], hang_up: Callable[[], None]) -> None:
        try:
            typed = os.read(self._typed, _MOST_BYTES) if self._typed is not None else b""
        except OSError:
            typed = b""
        if not typed:
            asyncio.get_running_loop().remove_reader(self._typed or 0)
            hang_up()
        for key in keys_of(typed):
            press(key)

    def _write(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()
