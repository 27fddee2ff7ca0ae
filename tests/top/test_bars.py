"""A picture is as wide as it was asked to be, and shows no more than there is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.top.bars import Share, curve, marker, pool_bar, stack_bar
from vllm_capacity.top.pen import ASCII, UNICODE, Glyphs, Pen

WIDTHS = st.integers(0, 300)
RATIOS = st.none() | st.floats(0, 1) | st.floats(-10, 1000)
PENS = st.sampled_from([Pen(glyphs=UNICODE), Pen(glyphs=ASCII)])
BOTH = pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])


@given(WIDTHS, RATIOS, RATIOS, PENS)
def test_a_pool_bar_is_as_wide_as_it_was_asked_to_be(
    width: int, used: float | None, committed: float | None, pen: Pen
) -> None:
    assert pool_bar(width, used, committed, pen).cell_len == width


@given(st.integers(1, 300), st.floats(0, 1, exclude_max=True), PENS)
def test_only_a_full_pool_looks_full_and_only_an_empty_one_empty(
    width: int, used: float, pen: Pen
) -> None:
    bar, full = pool_bar(width, used, None, pen).plain, pen.glyphs.parts[-1]
    assert bar != full * width or (pen.glyphs is ASCII and width == 1)
    assert (bar == pen.glyphs.free * width) == (used == 0)
    assert pool_bar(width, 1.0, None, pen).plain == full * width


@BOTH
def test_a_pool_of_which_nothing_is_known_is_neither_empty_nor_full(glyphs: Glyphs) -> None:
    assert pool_bar(10, None, 0.5, Pen(glyphs=glyphs)).plain == "?" * 10


@pytest.mark.parametrize(
    ("used", "committed", "picture"),
    [
        (0.5, None, "#####....."),
        (0.5, 0.8, "#####+++.."),
        (0.5, 1.6, "#####+++++"),
        (0.5, 0.2, "#####....."),
        (0.0, 0.0, ".........."),
        (0.0, 0.3, "+++......."),
        (0.001, None, "#........."),
        (1.0, 2.0, "##########"),
    ],
)
def test_what_is_asked_for_stands_behind_what_is_held(
    used: float, committed: float | None, picture: str
) -> None:
    assert pool_bar(10, used, committed, Pen(glyphs=ASCII)).plain == picture


def test_eighths_of_a_cell_are_seen_where_the_terminal_can_show_them() -> None:
    assert pool_bar(4, 5 / 32, None, Pen()).plain == "▋░░░"


@given(st.integers(1, 300), RATIOS, RATIOS, RATIOS, PENS)
def test_a_marker_stays_in_its_line_and_stands_where_the_bar_ends(
    width: int, low: float | None, value: float | None, high: float | None, pen: Pen
) -> None:
    line = marker(width, low, value, high, pen).plain
    assert len(line) == (0 if value is None else width)
    if value is not None and 0 <= value < 1:
        assert line.index(pen.glyphs.marker) == int(value * width)


@pytest.mark.parametrize(
    ("low", "value", "high", "picture"),
    [
        (0.2, 0.5, 0.8, "  <--^-->"),
        (None, 0.5, None, "     ^"),
        (0.52, 0.5, 0.51, "     ^"),
        (0.0, 1.5, 2.0, "<--------^"),
    ],
)
def test_an_interval_stands_around_its_value(
    low: float | None, value: float, high: float | None, picture: str
) -> None:
    assert marker(10, low, value, high, Pen(glyphs=ASCII)).plain.rstrip() == picture


SHARES = st.lists(
    st.builds(Share, letter=st.sampled_from("WKGA"), style=st.just(""), size=st.floats(0, 1e12))
)


@given(WIDTHS, SHARES, st.floats(0, 1e12), PENS)
def test_a_stack_is_as_wide_as_it_was_asked_to_be(
    width: int, parts: list[Share], total: float, pen: Pen
) -> None:
    assert stack_bar(width, parts, total, pen).cell_len == width


def test_a_stack_gives_each_part_its_share_and_leaves_what_is_free() -> None:
    parts = [Share(letter=letter, style="", size=size) for letter, size in (("W", 30), ("K", 50))]
    assert stack_bar(10, parts, 100, Pen(glyphs=ASCII)).plain == "WWWKKKKK.."


@given(st.lists(RATIOS, max_size=200), st.integers(1, 4), PENS)
def test_a_curve_has_one_cell_for_each_share_on_each_line(
    shares: list[float | None], height: int, pen: Pen
) -> None:
    lines = curve(shares, height, "", pen)
    assert [line.cell_len for line in lines] == [len(shares)] * height


@BOTH
def test_in_a_curve_nothing_is_drawn_where_nothing_is_known_but_zero_is(glyphs: Glyphs) -> None:
    (line,) = curve([None, 0.0, None, 1.0], 1, "", Pen(glyphs=glyphs))
    assert line.plain == f" {glyphs.levels[0]} {glyphs.levels[-1]}"


@given(st.floats(0, 1), st.floats(0, 1), PENS)
def test_a_larger_share_never_stands_lower(a: float, b: float, pen: Pen) -> None:
    low, high = sorted((a, b))
    levels = pen.glyphs.levels
    (line,) = curve([low, high], 1, "", pen)
    assert levels.index(line.plain[0]) <= levels.index(line.plain[1])
