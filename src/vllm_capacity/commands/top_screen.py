"""The screen of ``top``, once or live; the only part that needs rich, with ``top/``."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

from rich.console import Console
from rich.text import Text

from vllm_capacity.settings import Settings
from vllm_capacity.status_feeds import StatusFeeds
from vllm_capacity.terminal import Terminal
from vllm_capacity.top.entries import Entry, Key, entries_of
from vllm_capacity.top.moments import Moment, moments_of
from vllm_capacity.top.pen import ASCII, UNICODE, Pen
from vllm_capacity.top.screen import Place, screen
from vllm_capacity.top.view import View, index_of, pressed

# Ages are told in seconds.
_BETWEEN_PAINTS_SECONDS = 1.0
_MOST_MOMENTS = 720
_UNKNOWN_SIZE = os.terminal_size((80, 24))


async def show_once(sources: StatusFeeds, *, no_color: bool) -> None:
    """Print the screen as it is now, as long as it takes."""
    console = _console(no_color=no_color)
    shown = _Shown(sources, _pen(os.environ, console.encoding))
    await shown.remember()
    console.print(shown.lines(Place(width=console.width)), soft_wrap=True)


async def show_live(settings: Settings, *, no_color: bool) -> int:
    """Paint the terminal until a key or a signal ends it, and give it back as it was."""
    async with StatusFeeds(settings) as sources:
        await _Live(sources, _console(no_color=no_color)).run()
    return 0


def _console(*, no_color: bool) -> Console:
    return Console(no_color=no_color or None, highlight=False, emoji=False, markup=False)


def _pen(environment: Mapping[str, str], encoding: str) -> Pen:
    """Plain ASCII where the locale asks for it, or the output can show no more."""
    told = (environment.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    locale = next((value for value in told if value), "")
    is_plain = locale in {"C", "POSIX"} or not encoding.lower().replace("-", "").startswith("utf")
    return Pen(glyphs=ASCII if is_plain else UNICODE)


class _Shown:
    """What is shown: the feeds, what is remembered of them, and what the reader chose."""

    def __init__(self, sources: StatusFeeds, pen: Pen) -> None:
        self._sources, self._pen = sources, pen
        self._moments: tuple[Moment, ...] = ()
        self._moments_of: Key | None = None
        self._moments_at: object = None
        self.view = View()

    def lines(self, place: Place) -> Text:
        """The screen."""
        entry = self._entry()
        is_remembered = entry is not None and entry.key == self._moments_of
        drawn = screen(
            self._sources.feeds(),
            self._moments if is_remembered else (),
            self.view,
            now=time.monotonic(),
            place=place,
            pen=self._pen,
        )
        return Text("\n", no_wrap=True, end="").join(drawn)

    def press(self, key: str) -> None:
        """Do what a key asks for."""
        self.view = pressed(self.view, key, self._entries())

    async def remember(self) -> bool:
        """Ask for the last minutes of the engine that is shown, once for each document.

        Returns:
            Whether there is more to show than before.
        """
        entry = self._entry()
        is_shown = entry is not None and entry.key == self._moments_of
        if entry is None or (is_shown and entry.document is self._moments_at):
            return False
        known = self._moments if is_shown else ()
        since = known[-1].at_seconds if known else 0.0
        more = moments_of(await self._sources.history(*entry.key, since=since))
        self._moments = (*known, *more)[-_MOST_MOMENTS:]
        self._moments_of, self._moments_at = entry.key, entry.document
        return bool(more)

    def _entry(self) -> Entry | None:
        """The engine that is shown."""
        entries = self._entries()
        return entries[index_of(self.view, entries)] if entries else None

    def _entries(self) -> list[Entry]:
        return entries_of(self._sources.feeds(), time.monotonic(), self.view.order)


class _Live:
    """One terminal from when it is taken over until it is given back."""

    def __init__(self, sources: StatusFeeds, console: Console) -> None:
        self._console = console
        self._shown = _Shown(sources, _pen(os.environ, console.encoding))
        typed = sys.stdin.fileno() if sys.stdin is not None else None
        self._terminal = Terminal(sys.stdout, typed)
        self._news, self._is_over = asyncio.Event(), False

    async def run(self) -> None:
        """Paint once a second, and when a key is pressed or the window changes."""
        self._listen_to_signals()
        with self._terminal:
            self._terminal.listen(self._press, self._stop)
            while not self._is_over:
                self._terminal.paint(self._painted())
                self._news.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_BETWEEN_PAINTS_SECONDS):
                        if not await self._shown.remember():
                            await self._news.wait()

    def _painted(self) -> str:
        size = self._size()
        place = Place(width=size.columns, height=size.lines, keys=self._terminal.has_keys)
        with self._console.capture() as captured:
            self._console.print(self._shown.lines(place), soft_wrap=True, end="")
        return captured.get()

    def _size(self) -> os.terminal_size:
        size = os.get_terminal_size(sys.stdout.fileno())
        return size if size.columns and size.lines else _UNKNOWN_SIZE

    def _press(self, key: str) -> None:
        if key == "q":
            self._stop()
            return
        self._shown.press(key)
        self._news.set()

    def _stop(self) -> None:
        self._is_over = True
        self._news.set()

    def _resized(self) -> None:
        self._terminal.forget()
        self._news.set()

    def _suspend(self) -> None:
        self._terminal.suspend()
        self._news.set()

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGWINCH, self._resized)
        loop.add_signal_handler(signal.SIGTSTP, self._suspend)
