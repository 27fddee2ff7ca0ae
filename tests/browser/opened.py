"""The page in a browser: what it shows, and what went wrong with it."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from playwright.sync_api import expect, sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request

# What a browser says of an answer that the test provoked.
_PROVOKED = ("Failed to load resource", "net::ERR")
SLOW_MILLISECONDS = 20_000

expect.set_options(timeout=SLOW_MILLISECONDS)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of the distribution: the one on PATH, or where CHROMIUM says."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert found, "no chromium: install the package chromium, or say where it is in CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True, slots=True)
class Shown:
    """A number as it is shown.

    Attributes:
        metric: its name without the prefix.
        at: the value of its label, None without one.
        text: what is written.
    """

    metric: str
    at: str | None
    text: str


class OpenedPage:
    """The page at a URL.

    Attributes:
        page: Playwright's.
        faults: errors on the console, violations of the content policy, exceptions, requests to
            anywhere else, dialogs.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page, self._url = page, url.partition("#")[0]
        self.faults: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.faults.append(f"exception: {error}"))
        page.on("request", self._on_request)
        page.on("dialog", lambda dialog: self.faults.append(f"dialog: {dialog.message}"))
        page.goto(url)

    def _on_console(self, message: ConsoleMessage) -> None:
        is_provoked = any(words in message.text for words in _PROVOKED)
        if message.type in {"error", "warning"} and not is_provoked:
            self.faults.append(f"console: {message.text}")

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((self._url, "data:")):
            self.faults.append(f"request: {request.url}")

    def of(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def wait_for(self, sequence: int | None = None) -> None:
        """Until it shows this document, or any."""
        number = "" if sequence is None else f'="{sequence}"'
        self.page.wait_for_selector(f"html[data-ready{number}]", state="attached")

    def says(self, selector: str, text: Any) -> None:
        expect(self.of(selector)).to_have_text(text)

    def evaluate(self, expression: str) -> Any:
        return self.page.evaluate(expression)

    def numbers(self, within: str = "main") -> list[Shown]:
        """Every metric that is visible, as it is written at one moment."""
        found = self.page.evaluate(
            """within => [...document.querySelectorAll(`${within} .metric`)]
              .filter(one => one.checkVisibility({ visibilityProperty: true }))
              .map(one => [one.dataset.metric, one.dataset.at ?? null, one.textContent])""",
            within,
        )
        return [Shown(*each) for each in found]
