"""Listening sockets, whose every connection is counted from the moment that it is accepted."""

import asyncio
import socket
import ssl
from asyncio import sslproto
from collections.abc import Callable, Mapping

import structlog

from vllm_capacity.web.connections import LIMITS_SECONDS, Connection, Connections

log = structlog.get_logger()

# Far fewer than are held, so that who was just accepted is read before others take its place.
_ACCEPTED_AT_ONCE = 64
# asyncio takes 256 KiB for each TLS connection before a byte of it has come, which a thousand
# half-open ones multiply; a request is far shorter than a TLS record.
sslproto.SSLProtocol.max_size = 16 << 10

_TLS_LIMITS: Mapping[str, float] = {
    "ssl_handshake_timeout": LIMITS_SECONDS["handshake"],
    "ssl_shutdown_timeout": LIMITS_SECONDS["closing"],
}


class Listener:
    """Accepts connections of one listening socket.

    Args:
        listening: the socket.
        connections: where they are counted.
        new_connection: makes the protocol of one.
        context: TLS of a new connection, asked for each; None: plain HTTP.
    """

    def __init__(
        self,
        listening: socket.socket,
        connections: Connections,
        new_connection: Callable[[socket.socket], Connection],
        context: Callable[[], ssl.SSLContext | None],
    ) -> None:
        self._listening, self._connections = listening, connections
        self._new_connection, self._context = new_connection, context
        self._handshakes: dict[asyncio.Task[None], Connection] = {}
        self._accepting = asyncio.create_task(self._accept())

    def close(self) -> None:
        """Accept no more, and give up what is not through its TLS."""
        self._accepting.cancel()
        for connection in self._handshakes.values():
            connection.abort()

    async def wait_closed(self) -> None:
        """Wait for the end of what ``close`` gave up."""
        await asyncio.gather(self._accepting, *self._handshakes, return_exceptions=True)

    async def _accept(self) -> None:
        self._listening.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            try:
                for _ in range(_ACCEPTED_AT_ONCE):
                    accepted, _ = await loop.sock_accept(self._listening)
                    self._take(accepted)
            except OSError:  # no descriptor is left, or the client is gone already
                self._connections.make_room()
                await asyncio.sleep(0.05)
            await asyncio.sleep(0)  # who is connected already has a turn before the next ones

    def _take(self, accepted: socket.socket) -> None:
        connection = self._new_connection(accepted)
        if not self._connections.admit(connection):
            accepted.close()
            return
        task = asyncio.create_task(self._shake_hands(connection, accepted, self._context()))
        self._handshakes[task] = connection
        task.add_done_callback(self._handshakes.pop)

    async def _shake_hands(
        self, connection: Connection, accepted: socket.socket, context: ssl.SSLContext | None
    ) -> None:
        tls = {} if context is None else _TLS_LIMITS
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: connection, accepted, ssl=context, **tls)
        except OSError as error:
            log.debug("no TLS with a client", error=str(error))
            # Its frames hold it, and all of OpenSSL's memory, until some later garbage collection.
            error.__traceback__ = None
        finally:
            if not connection.is_made:
                self._connections.gone(connection)
