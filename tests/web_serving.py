"""The web server on a real socket, in a thread of the test."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.types import ASGIApp

from vllm_capacity.web.access import Access
from vllm_capacity.web.server import WebServer, listening, url_of


@dataclass(frozen=True)
class Serving:
    """A server that runs."""

    urls: tuple[str, ...]
    ports: tuple[int, ...]
    server: WebServer
    access: Access

    @property
    def url(self) -> str:
        return self.urls[0].rstrip("/")

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def open_connections(self) -> int:
        return len(self.server._connections)


@contextmanager
def serving(
    application: Callable[[Access], ASGIApp],
    *,
    web_config: str | None = None,
    most_connections: int | None = None,
    addresses: tuple[str, ...] = ("127.0.0.1:0",),
) -> Iterator[Serving]:
    """Serve the application, given who may read it, until the block ends."""
    access = Access(web_config)
    sockets = [listening(address) for address in addresses]
    server = WebServer(application(access), access, most_connections=most_connections)

    async def run() -> None:
        async with access:
            await server.serve(sockets=sockets)

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    urls = tuple(url_of(each, tls=access.context() is not None) for each in sockets)
    ports = tuple(each.getsockname()[1] for each in sockets)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    try:
        yield Serving(urls, ports, server, access)
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive(), "the server does not end"
