"""Status documents for ``top``: of daemons that are asked, and of servers watched right here."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any, Self

import httpx

from vllm_capacity.compare.fleet import FleetAssessment, TargetAssessment
from vllm_capacity.errors import SourceError
from vllm_capacity.fleet_watch import FleetWatch, clients_of, tls_files
from vllm_capacity.settings import DEFAULT_PORT, Settings
from vllm_capacity.sources.daemon_api import DaemonApi
from vllm_capacity.status.document import status_document
from vllm_capacity.status.history import History
from vllm_capacity.target_settings import TargetSettings
from vllm_capacity.top.feed import Feed

#: Asked in this order where no server is named: a daemon of ours, a vLLM.
DEFAULT_URLS = (f"http://localhost:{DEFAULT_PORT}", "http://localhost:8000")
# A state is entered when its reason has held for two seconds: before, nothing looks bad.
_SETTLED_SECONDS = 2.0
_LOOK_SECONDS = 0.05
# A daemon answers from memory; a vLLM that is too busy to say that it is none is asked again.
_ASK_SECONDS = 3.0

Clock = Callable[[], float]


class StatusFeeds:
    """Documents of every server that is named, from the beginning to the end of its context.

    Each is asked whether it is a daemon. One that does not answer is watched as a vLLM server,
    which tells why it does not, and is asked again until it is known.

    Args:
        settings: which servers, and what is known of them; without any the ``DEFAULT_URLS``.
        monotonic, wall: clocks.

    Raises:
        SourceError: on entering; no server is named and none of the default ones answers.
    """

    def __init__(
        self, settings: Settings, *, monotonic: Clock = time.monotonic, wall: Clock = time.time
    ) -> None:
        self._settings = settings
        self._monotonic, self._wall = monotonic, wall
        self._stack = AsyncExitStack()
        self._servers: Sequence[_Server] = ()
        self._fleet: FleetWatch | None = None
        self._seen: object = None
        self._local = Feed(origin="")
        self._history = History(settings.scrape_interval)
        self._sequence = 0

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._set_up(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def feeds(self) -> list[Feed]:
        """What every source of documents said last."""
        asked = [server.feed for server in self._servers if server.is_daemon]
        watched = self._watched()
        return [*asked, *([] if watched is None else [self._document_of(watched)])]

    async def history(
        self, origin: str, target: str, engine: str, *, since: float = 0.0
    ) -> Mapping[str, Any] | None:
        """What is remembered of one engine from the feed of that origin, by whoever watches it.

        Args:
            origin: of the feed.
            target: name of the server.
            engine: label of the engine.
            since: Unix time; only what came after it.

        Returns:
            As ``/api/v1/history`` answers; None where nothing is remembered.
        """
        if not origin:
            return {"columns": self._history.columns(target, engine, since=since)}
        for server in self._servers:
            if server.is_daemon and server.feed.origin == origin:
                with suppress(SourceError):
                    return await server.api.history(target, engine, since=since)
        return None

    async def settle(self) -> None:
        """Wait until every server has answered or failed to, and the state of each engine shows."""
        first: dict[str, float] = {}
        end = self._monotonic() + self._settings.scrape_timeout + 2 * _SETTLED_SECONDS
        while self._monotonic() < end:
            watched = self._watched()
            if watched is None or all(_is_settled(target, first) for target in watched.targets):
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def _set_up(self, stack: AsyncExitStack) -> None:
        self._servers = await self._asked(stack)
        watched = tuple(server.settings for server in self._servers if not server.is_daemon)
        if watched or self._settings.simulate:
            fleet = FleetWatch(replace(self._settings, targets=watched))
            self._fleet = await stack.enter_async_context(fleet)
            fleet.on_collected(lambda target: self._history.record(target, self._wall()))
            fleet.start()
        for server in self._servers:
            task = asyncio.create_task(server.poll(self._settings.scrape_interval))
            stack.push_async_callback(_end, task)

    async def _asked(self, stack: AsyncExitStack) -> "Sequence[_Server]":
        """Every server that is named, once asked what it is; without any the default one."""
        named, is_default = self._settings.targets, False
        if not named and not self._settings.simulate:
            named, is_default = tuple(TargetSettings(url=url) for url in DEFAULT_URLS), True
        clients = await clients_of(named, stack)
        servers = [self._server(target, clients[tls_files(target)]) for target in named]
        await asyncio.gather(*(server.ask() for server in servers))
        return [_first_known(servers)] if is_default else servers

    def _server(self, target: TargetSettings, client: httpx.AsyncClient) -> "_Server":
        api = DaemonApi(
            target.url,
            client=client,
            timeout_seconds=min(self._settings.scrape_timeout, _ASK_SECONDS),
            max_body_bytes=self._settings.max_page_size,
            bearer_token_file=target.bearer_token_file,
            tls_server_name=target.tls_server_name,
        )
        return _Server(target, api, self._monotonic, self._settings.expiry)

    def _watched(self) -> FleetAssessment | None:
        """What is watched here, without what turned out to be a daemon."""
        if self._fleet is None:
            return None
        fleet = self._fleet.published()
        daemons = {server.feed.origin for server in self._servers if server.is_daemon}
        targets = tuple(target for target in fleet.targets if target.url not in daemons)
        return replace(fleet, targets=targets) if targets else None

    def _document_of(self, fleet: FleetAssessment) -> Feed:
        """The document of what is watched here, made anew when something was collected."""
        seen = [(len(target.engines), target.health) for target in fleet.targets]
        if seen != self._seen:
            self._sequence += 1
            document = status_document(
                fleet,
                sequence=self._sequence,
                generated_timestamp_seconds=self._wall(),
                scrape_interval_seconds=self._settings.scrape_interval,
            )
            self._seen = seen
            self._local = Feed(origin="", document=document, made_seconds=self._monotonic())
        return self._local


class _Server:
    """One server that is named: a daemon, a vLLM, or not known yet.

    Attributes:
        is_daemon: None while it is not known.
        feed: what it said last, if it is one.
    """

    def __init__(
        self, settings: TargetSettings, api: DaemonApi, monotonic: Clock, expiry_seconds: float
    ) -> None:
        self.settings, self.api = settings, api
        self.is_daemon: bool | None = None
        self.feed = Feed(origin=api.url)
        self._monotonic, self._expiry_seconds = monotonic, expiry_seconds

    async def poll(self, interval_seconds: float) -> None:
        """Ask it again and again, unless it is a vLLM."""
        while self.is_daemon is not False:
            await asyncio.sleep(interval_seconds)
            await self.ask()

    async def ask(self) -> None:
        """Ask once; what it said before stays until it is too old, with why there is no more."""
        try:
            answer = await self.api.status()
        except SourceError as error:
            if error.reason == "invalid":  # a daemon of another version
                self.is_daemon = True
            self._fail(str(error))
            return
        if answer is None and self.is_daemon:
            self._fail(f"{self.api.url} is no daemon any more")
            return
        self.is_daemon = answer is not None
        if answer is not None:
            made = self._monotonic() - answer.age_seconds
            if _sequence(answer.document) == _sequence(self.feed.document):
                made = self.feed.made_seconds  # its own clock's seconds are whole ones
            self.feed = Feed(origin=self.api.url, document=answer.document, made_seconds=made)

    def _fail(self, problem: str) -> None:
        is_old = self.feed.age_seconds(self._monotonic()) > self._expiry_seconds
        document = None if is_old else self.feed.document
        self.feed = replace(self.feed, document=document, problem=problem)


def _sequence(document: Mapping[str, Any] | None) -> object:
    return None if document is None else document.get("sequence", document)


def _first_known(servers: Sequence[_Server]) -> _Server:
    """The first that answers.

    Raises:
        SourceError: none does.
    """
    for server in servers:
        if server.is_daemon is not None:
            return server
    problems = "; ".join(server.feed.problem or "" for server in servers)
    raise SourceError("connect", f"name a server, as no one answers by default: {problems}")


def _is_settled(target: TargetAssessment, first: dict[str, float]) -> bool:
    """Whether a server has failed, or been watched for long enough to tell its state."""
    vllm = target.health["vllm"]
    last = vllm.last_success_timestamp_seconds
    if last is None:
        return vllm.up is False
    return last - first.setdefault(target.target, last) >= _SETTLED_SECONDS


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
