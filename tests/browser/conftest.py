"""A browser, and pages in it that must be without fault."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "status"), str(HERE.parent / "compare")]

from opened import OpenedPage, chromium  # noqa: E402 (beside this file)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser: Browser) -> Iterator[Any]:
    """Opens the page at a URL; in the end none of the pages may have had a fault."""
    contexts, pages = [], []

    def open_page(url: str, **options: Any) -> OpenedPage:
        script = options.pop("script", None)
        options.setdefault("viewport", {"width": 1440, "height": 900})
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        page: Page = context.new_page()
        if script:
            page.add_init_script(script)
        pages.append(OpenedPage(page, url))
        return pages[-1]

    yield open_page
    faults = [fault for page in pages for fault in page.faults]
    for context in contexts:
        context.close()
    assert faults == []
