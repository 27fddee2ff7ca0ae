"""The web server: sockets, uvicorn, and an orderly end."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from vllm_capacity.errors import Fault, SettingsError

_BACKLOG = 128
_SHUTDOWN_SECONDS = 3


class WebServer(uvicorn.Server):
    """uvicorn without its signal handling, which would end the process before our own end.

    Args:
        application: what is served.
    """

    def __init__(self, application: Starlette) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to whoever runs this server."""
        yield

    def stop(self) -> None:
        """Finish what is being answered and return from ``serve``; twice: at once."""
        self.force_exit = self.should_exit
        self.should_exit = True


def listening(address: str) -> socket.socket:
    """A socket that listens on ``host:port``; without a host on every address of the machine.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host or (not host and socket.has_ipv6) else socket.AF_INET
    try:
        return socket.create_server(
            (host, int(port)),
            family=family,
            backlog=_BACKLOG,
            dualstack_ipv6=family == socket.AF_INET6 and not host and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        problem = f"cannot be listened on: {error.strerror or error}"
        raise SettingsError("settings", [Fault("web.listen-address", address, problem)]) from None


def url_of(listening: socket.socket) -> str:
    """Where a browser finds what is served there."""
    host, port = listening.getsockname()[:2]
    shown = "localhost" if host in {"::", "0.0.0.0"} else host  # noqa: S104 (compared, not bound)
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"
