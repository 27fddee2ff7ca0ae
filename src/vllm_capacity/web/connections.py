"""Connections that cost their time: none stays half-open, and the oldest idle one makes room.

uvicorn limits nothing but the time between two requests. Here each connection has a state and
the time for which it may stay in it; a new one that finds no room takes that of the one that has
waited longest. So whoever sends a whole request at once is answered, whatever others do.
"""

import asyncio
import resource
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

from vllm_capacity.web.tls import alternative_names

log = structlog.get_logger()

State = Literal["handshake", "head", "answer", "write", "idle", "closing"]

#: Seconds that a connection may stay in a state; an answer takes its own time.
LIMITS_SECONDS: Mapping[State, float] = {
    "handshake": 10.0,  # of TLS
    "head": 10.0,  # from the first byte of a request, or the connection, to the end of its head
    "write": 30.0,  # the client does not read what it asked for
    "idle": 65.0,  # between two requests; longer than Prometheus's usual minute
    "closing": 10.0,  # the client does not take the end
}
# With TLS each takes some 70 kB: so many fit into a container of 128 MiB.
MOST_CONNECTIONS = 500
_ANSWERING = (h11.SEND_RESPONSE, h11.SEND_BODY)
_SWEEP_SECONDS = 1.0
_FULL_LOG_SECONDS = 60.0


def most_connections() -> int:
    """How many connections are held at once: half of the descriptors that we may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if soft < 0 else max(16, min(MOST_CONNECTIONS, soft // 2))


class Connections:
    """All connections of the web server.

    Args:
        most: how many at once.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, most: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most_connections() if most is None else most
        self._clock = clock
        self._all: set[Connection] = set()
        # Those that wait for their client, the one that has waited longest first.
        self._waiting: OrderedDict[Connection, None] = OrderedDict()
        self._logged_full_at: float | None = None

    def __len__(self) -> int:
        return len(self._all)

    def now(self) -> float:
        """The time, in seconds."""
        return self._clock()

    def admit(self, connection: "Connection") -> bool:
        """Take a new connection in, if need be in place of another; False: there is no room."""
        if len(self._all) >= self._most and not self.make_room():
            return False
        self._all.add(connection)
        self.waits(connection)
        return True

    def make_room(self) -> bool:
        """Close the connection that has waited longest for its client; False: none waits."""
        self._log_full()
        victim = next(iter(self._waiting), None)
        if victim is None:
            return False
        self.gone(victim)
        victim.abort()
        return True

    def waits(self, connection: "Connection") -> None:
        """It waits for its client from now on."""
        if connection in self._all:
            self._waiting[connection] = None
            self._waiting.move_to_end(connection)

    def works(self, connection: "Connection") -> None:
        """It is being answered, so it is left alone."""
        self._waiting.pop(connection, None)

    def gone(self, connection: "Connection") -> None:
        """It is closed."""
        self._all.discard(connection)
        self._waiting.pop(connection, None)

    async def sweep(self) -> None:
        """Close what has stayed too long in its state, for ever."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            for connection in tuple(self._all):
                connection.expire()

    def _log_full(self) -> None:
        now = self._clock()
        if self._logged_full_at is None or now - self._logged_full_at > _FULL_LOG_SECONDS:
            self._logged_full_at = now
            log.warning("too many connections: the one idle for longest is closed", most=self._most)


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 on one connection, which knows what it waits for and since when.

    Args:
        accepted: the socket.
        connections: those that it is one of.
        allowed_names: alternative names of which a client's certificate needs one, if any.
        options: uvicorn's own.

    Attributes:
        is_made: whether it stands, with its TLS.
    """

    def __init__(
        self,
        accepted: socket.socket,
        connections: Connections,
        allowed_names: frozenset[str],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._socket, self._connections = accepted, connections
        self._allowed_names = allowed_names
        self._state: State = "handshake"
        self._since = connections.now()
        self._request_begun = True
        self.is_made = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection stands, with its TLS."""
        super().connection_made(transport)
        self.is_made = True
        self._settle()
        if self._allowed_names:
            names = alternative_names(transport.get_extra_info("peercert"))
            if not names & self._allowed_names:
                log.debug("client certificate without an allowed name", names=sorted(names))
                transport.abort()

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request came."""
        if not self.transport.is_closing():
            self._request_begun = True
            super().data_received(data)
        self._settle()

    def on_response_complete(self) -> None:
        """The last byte of an answer was handed on.

        Who has sent more before it came does not wait for answers, as a flood does not; no
        browser and no Prometheus does that.
        """
        self._request_begun = False
        if self.conn.trailing_data[0]:
            self.transport.close()
        super().on_response_complete()
        self._settle()

    def pause_writing(self) -> None:
        """The client reads slower than it is answered."""
        self.flow.pause_writing()
        self._settle()

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._settle()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._connections.gone(self)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Finish what is being answered; who is not being answered is not waited for."""
        if self._state == "answer":
            super().shutdown()
        else:
            self.abort()

    def expire(self) -> None:
        """Close the connection if it has stayed too long in its state."""
        self._settle()
        limit = LIMITS_SECONDS.get(self._state)
        if limit is not None and self._connections.now() - self._since > limit:
            log.debug("connection closed", state=self._state, client=self.client)
            self.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        if self.is_made:
            self.transport.abort()
        else:  # asyncio is at its TLS, sees the end of it, and closes the socket itself
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _settle(self) -> None:
        """Note the state, and since when, if it is another than before."""
        state = self._now_in()
        if state == self._state:
            return
        self._state, self._since = state, self._connections.now()
        if state == "answer":
            self._connections.works(self)
        else:
            self._connections.waits(self)

    def _now_in(self) -> State:
        if not self.is_made:
            return "handshake"
        if self.transport.is_closing():
            return "closing"
        if self.flow.write_paused:
            return "write"
        if self.conn.our_state in _ANSWERING:
            return "answer"
        return "head" if self._request_begun else "idle"
