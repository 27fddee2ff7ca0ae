"""What the screen remembers of the engine that is shown, and of no other."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# pytest's importlib mode adds no folder to the path.
sys.path.insert(0, str(Path(__file__).parent.parent / "top"))

from documents import MADE, document, engine, target

from vllm_capacity.commands.top_screen import _pen, _Shown
from vllm_capacity.top.feed import Feed
from vllm_capacity.top.pen import ASCII, UNICODE, Pen
from vllm_capacity.top.screen import Place

if TYPE_CHECKING:
    from collections.abc import Mapping


class Sources:
    """Two engines; the history of engine 0 is full, that of engine 1 empty."""

    def __init__(self) -> None:
        self.document = document(target(engine("0"), engine("1")))
        self.asked: list[tuple[str, float]] = []

    def feeds(self) -> list[Feed]:
        return [Feed(origin="http://d", document=self.document, made_seconds=time.monotonic())]

    async def history(
        self, _: str, __: str, engine: str, *, since: float
    ) -> Mapping[str, Any] | None:
        self.asked.append((engine, since))
        times = [at for at in (MADE - 10, MADE - 5, MADE) if at > since]
        share = {"0": 1.0, "1": 0.0}[engine]
        return {
            "columns": {"timestamp_seconds": times, "kv_cache_usage_ratio": [share] * len(times)}
        }


def curve(shown: _Shown) -> str | None:
    """The curve of what was used, without its label and the number behind it."""
    lines = shown.lines(Place(width=80, height=40)).plain.split("\n")
    found = next((line for line in lines if line.startswith("used  ")), None)
    return None if found is None else found[11:69].strip()


def test_each_engine_is_shown_with_its_own_last_minutes_from_the_first_moment() -> None:
    sources = Sources()
    shown = _Shown(sources, Pen())  # type: ignore[arg-type]
    assert curve(shown) is None
    assert asyncio.run(shown.remember())
    assert curve(shown) == "███"
    shown.press("j")
    assert curve(shown) is None  # never those of the engine before
    assert asyncio.run(shown.remember())
    assert curve(shown) == "▁▁▁"


def test_history_is_asked_for_once_a_document_and_only_for_what_is_new() -> None:
    sources = Sources()
    shown = _Shown(sources, Pen())  # type: ignore[arg-type]
    for _ in range(3):
        asyncio.run(shown.remember())
    assert sources.asked == [("0", 0.0)]
    sources.document = {**sources.document, "sequence": 18}
    assert not asyncio.run(shown.remember())
    assert sources.asked == [("0", 0.0), ("0", MADE)]
    assert curve(shown) == "███"


@pytest.mark.parametrize(
    ("environment", "encoding", "is_ascii"),
    [
        ({"LANG": "en_US.UTF-8"}, "utf-8", False),
        ({}, "utf-8", False),
        ({"LC_ALL": "C"}, "utf-8", True),
        ({"LC_ALL": "", "LANG": "POSIX"}, "utf-8", True),
        ({"LC_ALL": "C.UTF-8", "LANG": "C"}, "utf-8", False),
        ({"LANG": "de_DE"}, "iso-8859-1", True),
        ({"LANG": "de_DE"}, "UTF8", False),
    ],
)
def test_the_locale_and_the_output_say_which_characters_can_be_shown(
    environment: dict[str, str], encoding: str, *, is_ascii: bool
) -> None:
    assert _pen(environment, encoding).glyphs is (ASCII if is_ascii else UNICODE)
