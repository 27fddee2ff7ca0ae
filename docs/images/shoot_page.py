#!/usr/bin/env python3
"""Write docs/images/page-*.png: the page over recordings of a real vLLM, played at once.

Usage: python docs/images/shoot_page.py [FOLDER]

Needs chromium. Each recording is played into the exporter's own web application with a clock that
goes as the recording's did; nothing here makes up a value.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1] / "tests"
sys.path[:0] = [str(TESTS / name) for name in ("browser", "status", "compare")]

from exporter import Exporter  # noqa: E402 (tests are no package)
from fleets import fleet, known, recorded, silent, target  # noqa: E402
from opened import chromium  # noqa: E402
from recordings import scrapes  # noqa: E402

from vllm_capacity.monitor import Pipeline  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from vllm_capacity.compare.fleet import TargetAssessment


class Picture(NamedTuple):
    """What is shot: a recording up to a moment, and how it is looked at."""

    recording: str
    seconds: float
    scheme: str = "light"
    width: int = 1440
    height: int = 900
    others: tuple[TargetAssessment, ...] = ()


def pictures() -> dict[str, Picture]:
    """Every picture by its name."""
    others = (
        recorded("steady", 60.0, name="chat-2:8000"),
        recorded("ramp2", 100.0, name="batch-1:8000"),
        recorded("ramp2", 50.0, name="chat-3:8000"),
        silent("chat-4:8000"),
    )
    return {
        "page-light": Picture("prefix", 61.0),
        "page-dark": Picture("prefix", 61.0, "dark"),
        "page-phone": Picture("mixed3", 175.0, width=390, height=844),
        "page-fleet-light": Picture("mixed3", 175.0, others=others),
    }


def play(exporter: Exporter, picture: Picture) -> None:
    """Publish the recording page by page, as the daemon would have."""
    pipeline, health = Pipeline(), target().health["vllm"]
    pages = [(t, page) for t, page in scrapes(picture.recording) if t <= picture.seconds]
    before = pages[0][0]
    for t, text in pages:
        page = pipeline.read(text.encode(), taken_at_seconds=t)
        facts = known().with_labels(page.engines[0].cache_config)
        now = health.succeeded(at=exporter.now + t - before, seconds=0.02)
        others = [replace(o, health={"vllm": now}) if o.engines else o for o in picture.others]
        one = replace(
            target(facts=facts),
            target="chat-1:8000" if picture.others else "localhost:8000",
            engines=pipeline.assess(page, facts),
            prediction=pipeline.predicted(facts)[0],
            health={"vllm": now, "config": now},
        )
        exporter.publish(fleet(one, *others), after_seconds=t - before)
        before = t


def shoot(browser: Browser, picture: Picture, path: Path) -> None:
    """Write one picture."""
    with Exporter(fleet(target(), *picture.others), interval_seconds=1.0) as exporter:
        play(exporter, picture)
        page = browser.new_page(
            viewport={"width": picture.width, "height": picture.height},
            color_scheme="dark" if picture.scheme == "dark" else "light",
        )
        page.goto(exporter.url)
        page.wait_for_selector("html[data-ready]", state="attached")
        page.wait_for_selector(".plot .used[d*='L']", state="attached")
        page.screenshot(path=path)
        page.close()


def main() -> None:
    """Run the script."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    with chromium() as browser:
        for name, picture in pictures().items():
            shoot(browser, picture, folder / f"{name}.png")


if __name__ == "__main__":
    main()
