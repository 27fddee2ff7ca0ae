"""Feeds of daemons, of servers watched here, and of what is not known yet to be either."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import respx

from vllm_capacity.errors import SourceError
from vllm_capacity.settings import Settings, resolve_settings
from vllm_capacity.status_feeds import StatusFeeds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vllm_capacity.top.feed import Feed

DAEMON, VLLM = "http://daemon:8935", "http://vllm:8000"
PAGE = 'vllm:num_requests_running{engine="0",model_name="m"} 1\n'


def settings_for(*urls: str, **flags: Any) -> Settings:
    given = {"target": list(urls) or None, "nvml": False, "scrape-interval": "50ms", **flags}
    return resolve_settings(given, {}, {}, needs_target=False)


def document(sequence: int = 1, *, made: float | None = None) -> dict[str, Any]:
    return {
        "api_version": 1,
        "sequence": sequence,
        "generated_timestamp_seconds": time.time() if made is None else made,
        "targets": [],
    }


class Servers:
    """What every address answers; an address without an answer refuses connections."""

    def __init__(self, **pages: Any) -> None:
        self.pages: dict[str, Any] = pages

    def __call__(self, request: httpx.Request) -> httpx.Response:
        url = str(request.url)
        if url not in self.pages:
            raise httpx.ConnectError("refused")
        answer = self.pages[url]
        if isinstance(answer, str):
            return httpx.Response(200, text=answer)
        return httpx.Response(404 if answer is None else 200, json=answer)

    def add_vllm(self, url: str = VLLM) -> None:
        self.pages[f"{url}/api/v1/status"] = None
        self.pages[f"{url}/metrics"] = PAGE
        self.pages[f"{url}/v1/models"] = {"data": []}
        self.pages[f"{url}/version"] = {"version": "0.32.0"}


def use(
    servers: Servers, settings: Settings, look: Callable[[StatusFeeds], Awaitable[None]]
) -> None:
    async def run() -> None:
        with respx.mock(assert_all_called=False) as router:
            router.route().mock(side_effect=servers)
            async with StatusFeeds(settings) as feeds:
                await look(feeds)

    asyncio.run(run())


async def until(sources: StatusFeeds, condition: Callable[[list[Feed]], Any]) -> list[Feed]:
    for _ in range(500):
        if condition(sources.feeds()):
            return sources.feeds()
        await asyncio.sleep(0.02)
    raise AssertionError(f"never came true: {sources.feeds()}")


def test_a_daemon_is_asked_and_a_vllm_watched() -> None:
    servers = Servers()
    servers.pages[f"{DAEMON}/api/v1/status"] = document(7)
    servers.add_vllm()

    async def look(sources: StatusFeeds) -> None:
        await sources.settle()
        asked, watched = sources.feeds()
        assert (asked.origin, watched.origin) == (DAEMON, "")
        assert asked.document is not None
        assert asked.document["sequence"] == 7
        assert watched.document is not None
        (target,) = watched.document["targets"]
        assert target["url"] == VLLM
        assert len(target["engines"]) == 1
        json.dumps(watched.document, allow_nan=False)

    use(servers, settings_for(DAEMON, VLLM), look)


def test_new_documents_come_and_the_same_one_grows_older() -> None:
    servers = Servers()
    servers.pages[f"{DAEMON}/api/v1/status"] = document(1)

    async def look(sources: StatusFeeds) -> None:
        (first,) = sources.feeds()
        await asyncio.sleep(0.2)
        (again,) = sources.feeds()
        assert again.made_seconds == first.made_seconds
        servers.pages[f"{DAEMON}/api/v1/status"] = document(2)
        (newer,) = await until(sources, lambda f: f[0].document["sequence"] == 2)
        assert newer.made_seconds > first.made_seconds

    use(servers, settings_for(DAEMON), look)


def test_a_daemon_that_is_gone_leaves_what_it_said_until_that_is_too_old() -> None:
    servers = Servers()
    servers.pages[f"{DAEMON}/api/v1/status"] = document(1)

    async def look(sources: StatusFeeds) -> None:
        known = servers.pages.pop(f"{DAEMON}/api/v1/status")
        (feed,) = await until(sources, lambda f: f[0].problem)
        assert "cannot connect" in str(feed.problem)
        assert feed.document == known
        await until(sources, lambda f: f[0].document is None)
        servers.pages[f"{DAEMON}/api/v1/status"] = document(2)
        (feed,) = await until(sources, lambda f: f[0].document is not None)
        assert feed.problem is None

    use(servers, settings_for(DAEMON, expiry="500ms"), look)


def test_a_daemon_that_comes_late_is_found_and_no_longer_watched_as_a_vllm() -> None:
    servers = Servers()

    async def look(sources: StatusFeeds) -> None:
        (feed,) = await until(
            sources, lambda f: f[0].document["targets"][0]["sources"][0]["last_error"]
        )
        assert feed.origin == ""
        servers.pages[f"{DAEMON}/api/v1/status"] = document(3)
        (feed,) = await until(sources, lambda f: f[0].origin == DAEMON)
        assert feed.document is not None
        assert feed.document["sequence"] == 3

    use(servers, settings_for(DAEMON), look)


def test_a_daemon_that_becomes_something_else_is_told_not_forgotten() -> None:
    servers = Servers()
    servers.pages[f"{DAEMON}/api/v1/status"] = document(1)

    async def look(sources: StatusFeeds) -> None:
        servers.pages[f"{DAEMON}/api/v1/status"] = None
        (feed,) = await until(sources, lambda f: f[0].problem)
        assert "no daemon any more" in str(feed.problem)

    use(servers, settings_for(DAEMON), look)


def test_what_both_remember_of_an_engine_is_asked_of_whoever_watches_it() -> None:
    servers = Servers()
    servers.pages[f"{DAEMON}/api/v1/status"] = document(1)
    asked = f"{DAEMON}/api/v1/history?target=a%3A1&engine=0&since=5.0"
    servers.pages[asked] = {"columns": {"timestamp_seconds": [6.0]}}
    servers.add_vllm()

    async def look(sources: StatusFeeds) -> None:
        assert await sources.history(DAEMON, "a:1", "0", since=5.0) == servers.pages[asked]
        assert await sources.history(DAEMON, "b:1", "0") is None
        assert await sources.history("http://nobody", "a:1", "0") is None
        await until(sources, lambda f: f[1].document["targets"][0]["engines"])
        own = await sources.history("", "vllm:8000", "0")
        assert own is not None
        assert "kv_cache_usage_ratio" in own["columns"]

    use(servers, settings_for(DAEMON, VLLM), look)


def test_a_vllm_that_comes_late_is_shown() -> None:
    servers = Servers()

    async def look(sources: StatusFeeds) -> None:
        servers.add_vllm()
        await until(sources, lambda f: f[0].document["targets"][0]["engines"])

    use(servers, settings_for(VLLM), look)


@pytest.mark.parametrize("first", [True, False], ids=["daemon", "vllm"])
def test_without_a_name_the_first_that_answers_is_taken(*, first: bool) -> None:
    servers = Servers()
    servers.add_vllm("http://localhost:8000")
    if first:
        servers.pages["http://localhost:8935/api/v1/status"] = document()

    async def look(sources: StatusFeeds) -> None:
        (feed,) = sources.feeds()
        assert feed.origin == ("http://localhost:8935" if first else "")

    use(servers, settings_for(), look)


def test_without_a_name_and_without_an_answer_both_are_named() -> None:
    async def look(_: StatusFeeds) -> None:
        raise AssertionError("somebody answered")

    with pytest.raises(SourceError) as caught:
        use(Servers(), settings_for(), look)
    assert "http://localhost:8935" in str(caught.value)
    assert "http://localhost:8000" in str(caught.value)


def test_a_document_is_made_anew_only_when_something_was_collected() -> None:
    servers = Servers()
    servers.add_vllm()

    async def look(sources: StatusFeeds) -> None:
        await until(sources, lambda f: f[0].document["targets"][0]["engines"])
        before = sources.feeds()[0].document
        assert sources.feeds()[0].document is before
        await until(sources, lambda f: f[0].document["sequence"] > before["sequence"])

    use(servers, settings_for(VLLM, **{"scrape-interval": "300ms"}), look)


def test_nothing_is_left_running_at_the_end() -> None:
    servers = Servers()
    servers.pages[f"{DAEMON}/api/v1/status"] = document()
    servers.add_vllm()
    left: list[Any] = []

    async def run() -> None:
        with respx.mock(assert_all_called=False) as router:
            router.route().mock(side_effect=servers)
            async with StatusFeeds(settings_for(DAEMON, VLLM)) as feeds:
                await feeds.settle()
            left.extend(task for task in asyncio.all_tasks() if task is not asyncio.current_task())

    asyncio.run(run())
    assert all(task.cancelling() or task.done() for task in left)
