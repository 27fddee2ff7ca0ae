"""Readers of an application without sockets: what is answered, as it is answered."""

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp

EVENTS = {"accept": "text/event-stream"}


class Reader:
    """One request and its answer so far.

    Attributes:
        status: of the answer, once it began.
        headers: of the answer.
        body: as it came.
        takes: cleared while the reader takes nothing.
        done: whether the application is through with it.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.takes = asyncio.Event()
        self.takes.set()
        self.gone = asyncio.Event()
        self.done = asyncio.Event()
        self._asked = False

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        await self.takes.wait()
        self.body += message.get("body", b"")

    @property
    def text(self) -> str:
        if self.headers.get("content-encoding") != "gzip":
            return self.body.decode()
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(self.body).decode()

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def events(self) -> list[dict[str, str]]:
        """Every whole event, by field; a comment is the field ""."""
        blocks = self.text.split("\n\n")[:-1]
        return [dict(_field(line) for line in block.split("\n")) for block in blocks]

    @property
    def documents(self) -> list[Any]:
        return [json.loads(event["data"]) for event in self.events if "data" in event]


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.removeprefix(" ")


@asynccontextmanager
async def reading(
    application: ASGIApp, path: str = "/api/v1/status", **headers: str
) -> AsyncIterator[Reader]:
    """A reader that hangs up at the end."""
    where, _, query = path.partition("?")
    reader = Reader()
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": where,
        "raw_path": where.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
    }

    async def answer() -> None:
        try:
            await application(scope, reader.receive, reader.send)  # type: ignore[arg-type]
        finally:
            reader.done.set()

    task = asyncio.create_task(answer())
    try:
        yield reader
    finally:
        reader.gone.set()
        reader.takes.set()
        await asyncio.wait_for(task, 5)


async def until(condition: Callable[[], object], *, seconds: float = 5.0) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (conditions are the tests')
            await asyncio.sleep(0.001)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Play a scenario in a loop of its own."""

    async def played() -> None:
        await scenario()

    asyncio.run(played())
