"""The page over a real vLLM under load: its numbers are those of ``/metrics``."""

from __future__ import annotations

import re
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "browser"))

from harness import Server, exporter
from opened import OpenedPage, chromium
from shown_numbers import disagreements, series

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import ViewportSize

pytestmark = pytest.mark.real

CLIENTS = 8
SCREEN: ViewportSize = {"width": 1440, "height": 900}


@pytest.fixture
def load(vllm: Server) -> Iterator[None]:
    """Clients that ask for one answer after the other."""
    over = threading.Event()

    def ask(seed: int) -> None:
        body = {"model": "tiny-llama", "max_tokens": 400, "ignore_eos": True}
        while not over.is_set():
            prompt = [10 + (seed * 31 + i) % 200 for i in range(60 + 40 * seed)]
            answer = httpx.post(
                vllm.url + "/v1/completions", json={**body, "prompt": prompt}, timeout=120
            )
            assert answer.status_code == 200

    clients = [threading.Thread(target=ask, args=(seed,)) for seed in range(CLIENTS)]
    for client in clients:
        client.start()
    yield
    over.set()
    for client in clients:
        client.join()


@pytest.mark.usefixtures("load")
def test_under_load_the_page_shows_what_the_metrics_say(
    vllm: Server, model: Path, tmp_path: Path
) -> None:
    flags = ["--target", vllm.url, "--model-config", str(model), "--scrape-interval", "5s"]
    with exporter(tmp_path, *flags) as watcher, chromium() as browser:
        page = OpenedPage(browser.new_page(viewport=SCREEN), watcher.url + "/")
        page.wait_for()
        compare(page, watcher.url, moments=4)
        assert page.faults == []


def test_a_simulated_engine_is_shown_as_the_metrics_say_and_outlives_its_exporter(
    tmp_path: Path,
) -> None:
    flags = ["--simulate", "--scrape-interval", "5s"]
    with exporter(tmp_path / "one", *flags) as watcher, chromium() as browser:
        page = OpenedPage(browser.new_page(viewport=SCREEN), watcher.url + "/")
        page.wait_for()
        compare(page, watcher.url, moments=2)
        watcher.stop()
        page.says("#link-words", re.compile("^connection lost"))
        assert page.faults == []


def compare(page: OpenedPage, url: str, *, moments: int) -> None:
    """Hold the page to the metrics at so many moments at which requests run."""
    seen: set[str] = set()
    deadline = time.monotonic() + 60 + 30 * moments
    while len(seen) < moments and time.monotonic() < deadline:
        number, running = shown_now(page)
        numbers, metrics = page.numbers(), httpx.get(url + "/metrics").text
        latest = str(httpx.get(url + "/api/v1/status").json()["sequence"])
        if number == latest == shown_now(page)[0] and running != "0":  # all of one document
            assert disagreements(numbers, series(metrics)) == []
            seen.add(number)
        time.sleep(0.2)
    assert len(seen) == moments


def shown_now(page: OpenedPage) -> tuple[str, str]:
    """The document that is shown, and how many requests run."""
    number, running = page.evaluate(
        """() => [document.documentElement.dataset.ready,
          document.querySelector("#facts [data-metric=running_requests]").textContent]"""
    )
    return number, running
