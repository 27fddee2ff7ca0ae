"""The terminal is taken over and given back as it was, whatever happens between."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import termios
from contextlib import suppress
from typing import TYPE_CHECKING

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.terminal import Terminal, keys_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    """A terminal: whoever looks at it and types, and the program's side."""
    outside, inside = pty.openpty()
    yield outside, inside
    for descriptor in (outside, inside):
        with suppress(OSError):
            os.close(descriptor)


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        (b"jkq", ["j", "k", "q"]),
        (b"\x1b[A\x1b[B\x1bOA\x1bOB", ["up", "down", "up", "down"]),
        (b"\x1b[5~q", ["q"]),
        (b"\x1b[1;5Aj", ["j"]),
        (b"\x1b", []),
        ("ü?".encode(), ["?"]),
        (b"\r\n\t\x00\x7f", []),
    ],
)
def test_what_is_typed_becomes_keys(typed: bytes, keys: list[str]) -> None:
    assert keys_of(typed) == keys


@given(st.binary(max_size=200))
def test_whatever_is_typed_keys_are_single_characters_or_arrows(typed: bytes) -> None:
    assert all(
        key in {"up", "down"} or (len(key) == 1 and key.isprintable()) for key in keys_of(typed)
    )


def written(outside: int) -> bytes:
    """All that has been written, once nothing more comes: a terminal hands it over in pieces."""
    data = b""
    while select.select([outside], [], [], 0.3)[0]:
        data += os.read(outside, 65536)
    return data


def seen(outside: int, columns: int = 20, lines: int = 5) -> pyte.Screen:
    shown = pyte.Screen(columns, lines)
    pyte.ByteStream(shown).feed(written(outside))
    return shown


def test_lines_are_painted_over_what_stood_there(pair: tuple[int, int]) -> None:
    outside, inside = pair
    with os.fdopen(os.dup(inside), "w") as output, Terminal(output, None) as terminal:
        terminal.paint("x" * 20 + "\nlonger line\nthird")
        terminal.paint("y" * 20 + "\nline")
        shown = seen(outside)
    assert [line.rstrip() for line in shown.display] == ["y" * 20, "line", "", "", ""]


def test_only_lines_that_changed_are_written(pair: tuple[int, int]) -> None:
    outside, inside = pair
    with os.fdopen(os.dup(inside), "w") as output, Terminal(output, None) as terminal:
        terminal.paint("a\nb")
        written(outside)
        terminal.paint("a\nc")
        assert written(outside) == b"\x1b[2;1H\x1b[Kc"
        terminal.paint("a\nc")
        assert written(outside) == b""
        terminal.forget()
        terminal.paint("a\nc")
        assert {b"a", b"c"} <= set(written(outside).replace(b"\x1b", b"K").split(b"K"))


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_modes_screen_and_cursor_come_back(
    pair: tuple[int, int], error: type[BaseException] | None
) -> None:
    outside, inside = pair
    before = termios.tcgetattr(inside)

    def use() -> None:
        with os.fdopen(os.dup(inside), "w") as output, Terminal(output, inside) as terminal:
            assert terminal.has_keys
            assert termios.tcgetattr(inside)[3] & (termios.ECHO | termios.ICANON) == 0
            assert termios.tcgetattr(inside)[3] & termios.ISIG
            if error is not None:
                raise error

    if error is None:
        use()
    else:
        with pytest.raises(error):
            use()
    assert termios.tcgetattr(inside) == before
    shown = written(outside)
    assert shown.index(b"\x1b[?1049h") < shown.index(b"\x1b[?1049l")
    assert shown.endswith(b"\x1b[?25h\x1b[?1049l")


def test_keys_reach_the_reader_and_the_end_of_typing_is_told_once(pair: tuple[int, int]) -> None:
    outside, inside = pair
    pressed: list[str] = []

    async def use() -> int:
        hung_up = asyncio.Event()
        times = 0

        def hang_up() -> None:
            nonlocal times
            times += 1
            hung_up.set()

        with (
            suppress(OSError),  # what is still to be written has no one to go to
            os.fdopen(os.dup(inside), "w") as output,
            Terminal(output, inside) as terminal,
        ):
            terminal.listen(pressed.append, hang_up)
            os.write(outside, b"j\x1b[B")
            for _ in range(500):
                if len(pressed) < 2:
                    await asyncio.sleep(0.01)
            os.close(outside)
            async with asyncio.timeout(5):
                await hung_up.wait()
            await asyncio.sleep(0.05)
        return times

    assert asyncio.run(use()) == 1
    assert pressed == ["j", "down"]


def test_without_a_terminal_to_type_in_there_are_no_keys(pair: tuple[int, int]) -> None:
    _, inside = pair
    reading, writing = os.pipe()
    with os.fdopen(os.dup(inside), "w") as output, Terminal(output, reading) as terminal:
        assert not terminal.has_keys
    os.close(reading)
    os.close(writing)
