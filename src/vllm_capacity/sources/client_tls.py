"""TLS towards a server: whom to trust, who we are, and files that change meanwhile."""

import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from vllm_capacity.errors import Fault, SettingsError, SourceError

# By then whatever was asked on a connection with the old files has been answered or given up.
_RETIRED_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files for TLS, read again when they change.

    Attributes:
        ca_file: authorities to trust, or the server's own certificate; None: the system's.
        client_cert_file: our certificate, with those between it and its authority.
        client_key_file: its key; None: it stands in the certificate's file.
    """

    ca_file: str | None = None
    client_cert_file: str | None = None
    client_key_file: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Those that are given."""
        files = (self.ca_file, self.client_cert_file, self.client_key_file)
        return tuple(file for file in files if file is not None)

    def context(self) -> ssl.SSLContext:
        """A context made of what the files hold now; it verifies every server.

        Raises:
            SettingsError: a file cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise _refusal("ca_file", self.ca_file, error) from error
        # Every certificate that is given is trusted as it is, be it no authority's.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if self.client_cert_file is not None:
            try:
                # An encrypted key must not ask for its password on our terminal.
                context.load_cert_chain(self.client_cert_file, self.client_key_file, password="")
            except OSError as error:
                raise _refusal("client_cert_file", self.client_cert_file, error) from error
        return context


class RenewingTransport(httpx.AsyncBaseTransport):
    """Connections whose TLS is that of the files as they are now.

    Args:
        files: at least one.
        connect: makes the connections of one context.
        clock: monotonic, in seconds.

    Raises:
        SettingsError: a file cannot be used.
    """

    def __init__(
        self,
        files: TlsFiles,
        connect: Callable[[ssl.SSLContext], httpx.AsyncBaseTransport],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._connect, self._clock = files, connect, clock
        self._seen = _seen(files)
        self._current = connect(files.context())
        self._retired: list[tuple[float, httpx.AsyncBaseTransport]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request.

        Raises:
            SourceError: ``invalid``: a file changed and cannot be used.
        """
        seen = _seen(self._files)
        if seen != self._seen:
            self._renew()
            self._seen = seen
        await self._close_retired(self._clock() - _RETIRED_SECONDS)
        return await self._current.handle_async_request(request)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._close_retired(float("inf"))
        await self._current.aclose()

    def _renew(self) -> None:
        try:
            context = self._files.context()
        except SettingsError as error:
            raise SourceError("invalid", str(error)) from error
        self._retired.append((self._clock(), self._current))
        self._current = self._connect(context)

    async def _close_retired(self, until: float) -> None:
        while self._retired and self._retired[0][0] <= until:
            _, transport = self._retired.pop(0)
            await transport.aclose()


def _seen(files: TlsFiles) -> tuple[tuple[int, int, int], ...]:
    """What changes when a file does, links followed."""
    seen = []
    for path in files.paths:
        with suppress(OSError):
            status = Path(path).stat()
            seen.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(seen)


def _refusal(key: str, path: str | None, error: OSError) -> SettingsError:
    reason = getattr(error, "reason", None)
    words = reason.lower().replace("_", " ") if reason else error.strerror or str(error)
    problem = f"cannot be used: {words}; name a PEM file of certificates"
    if key == "client_cert_file":
        problem = f"cannot be used with its key: {words}; both must be PEM, the key not encrypted"
    return SettingsError("TLS", [Fault(key, path, problem)])
