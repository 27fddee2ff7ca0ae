"""The web server: sockets, uvicorn on our own connections, and an orderly end."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from vllm_capacity.errors import Fault, SettingsError
from vllm_capacity.web.access import Access
from vllm_capacity.web.connections import LIMITS_SECONDS, Connection, Connections
from vllm_capacity.web.listener import Listener

# Many may knock at once without one of them being turned away by the kernel.
_BACKLOG = 1024
_SHUTDOWN_SECONDS = 3
_UNACKNOWLEDGED_MS = 60_000


class WebServer(uvicorn.Server):
    """uvicorn on connections that are limited in time and number.

    It leaves out uvicorn's signal handling, which would end the process before our own end.

    Args:
        application: what is served.
        access: who may connect; None: everybody.
        most_connections: held at once; None: as many as the process may.
    """

    def __init__(
        self,
        application: ASGIApp,
        access: Access | None = None,
        *,
        most_connections: int | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                log_config=None,
                log_level="error",  # not a line for each request that is none
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                proxy_headers=False,  # a client's address is the one that it connects from
                timeout_keep_alive=int(LIMITS_SECONDS["idle"]),
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            )
        )
        self._access = access or Access()
        self._connections = Connections(most_connections)
        self._sweep: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        self._sweep = asyncio.create_task(self._connections.sweep())
        self.servers: list[Any] = [  # of which uvicorn uses close and wait_closed
            Listener(each, self._connections, self._connection, self._access.context)
            for each in sockets or ()
        ]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is being answered, and close everything."""
        await super().shutdown(sockets)
        if self._sweep is not None:
            self._sweep.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweep

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to whoever runs this server."""
        yield

    def stop(self) -> None:
        """Finish what is being answered and return from ``serve``; twice: at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

    def _connection(self, accepted: socket.socket) -> Connection:
        return Connection(
            accepted,
            self._connections,
            self._access.allowed_names(),
            config=self.config,
            server_state=self.server_state,
            app_state={},
        )


def listening(address: str) -> socket.socket:
    """A socket that listens on ``host:port``; without a host on every address of the machine.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host or (not host and socket.has_ipv6) else socket.AF_INET
    try:
        listening = socket.create_server(
            (host, int(port)),
            family=family,
            backlog=_BACKLOG,
            dualstack_ipv6=family == socket.AF_INET6 and not host and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        problem = f"cannot be listened on: {error.strerror or error}"
        raise SettingsError("settings", [Fault("web.listen-address", address, problem)]) from None
    # asyncio sets this where a socket names its protocol, which none of create_server's does. Head
    # and body are two writes, and without it the second waits 40 ms for the client's delayed ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A client that went without a word, as with its power, is noticed at the next event sent to it.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
    return listening


def url_of(listening: socket.socket, *, tls: bool = False) -> str:
    """Where a browser finds what is served there."""
    scheme = "https" if tls else "http"
    host, port = listening.getsockname()[:2]
    shown = "localhost" if host in {"::", "0.0.0.0"} else host  # noqa: S104 (compared, not bound)
    return f"{scheme}://[{shown}]:{port}/" if ":" in shown else f"{scheme}://{shown}:{port}/"
