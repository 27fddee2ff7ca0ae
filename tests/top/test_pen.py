"""What others wrote is shown on its line, and does nothing."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vllm_capacity.top.pen import ASCII, UNICODE, Pen

HOSTILE = (
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b2Jc1",
    "line\nbreak\r\x08\x7f",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe",
    "[bold red]markup[/] [link=http://x]l[/link]",
    ":smiley: \N{ZERO WIDTH SPACE}",
    "\ud800 half a character",
    "名前 wide",
)


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
@pytest.mark.parametrize("written", HOSTILE, ids=ascii)
def test_no_name_can_move_the_cursor_or_style_the_text(written: str, glyphs: object) -> None:
    pen = Pen(glyphs=ASCII if glyphs is ASCII else UNICODE)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200, highlight=False, emoji=False)
    console.print(pen.text(written, "bold"), soft_wrap=True)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())  # the pen's own bold
    assert all(c.isprintable() for c in shown.rstrip("\n"))
    assert out.getvalue().count("\x1b") == 2
    shown.encode("utf-8")


def test_markup_is_text() -> None:
    assert Pen().text("[bold]x[/bold]").plain == "[bold]x[/bold]"


@given(st.text())
def test_plain_text_is_one_printable_line(written: str) -> None:
    assert Pen().plain(written).isprintable()
    assert Pen(glyphs=ASCII).plain(written).isascii()


@given(st.text(), st.integers(0, 60), st.booleans())
def test_padded_text_is_exactly_as_wide(written: str, width: int, right: bool) -> None:
    pen = Pen()
    assert pen.padded(pen.text(written), width, right=right).cell_len == width


def test_a_cut_is_seen() -> None:
    assert Pen().fitted(Pen().text("abcdef"), 4).plain == "abc…"
    assert Pen(glyphs=ASCII).fitted(Pen().text("abcdef"), 4).plain == "abc~"


@given(st.text(), st.integers(1, 60))
def test_wrapped_text_loses_no_word_that_fits(written: str, width: int) -> None:
    pen = Pen()
    lines = pen.wrapped(written, width)
    assert all(line.cell_len <= width for line in lines)
    if all(pen.text(word).cell_len <= width for word in pen.plain(written).split(" ")):
        assert " ".join(line.plain for line in lines) == pen.plain(written)
