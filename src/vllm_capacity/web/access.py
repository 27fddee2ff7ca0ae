"""Who may read what is served: the web configuration, kept up with its files."""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import structlog
from starlette.types import ASGIApp

from vllm_capacity.errors import Fault, SettingsError
from vllm_capacity.secrecy import HIDDEN
from vllm_capacity.web.basic_auth import BasicAuth
from vllm_capacity.web.config_file import (
    RateLimit,
    WebConfig,
    lost_protection,
    read_web_config,
)
from vllm_capacity.web.connections import most_connections
from vllm_capacity.web.limits import MOST_STREAMS, Limits
from vllm_capacity.web.passwords import Passwords
from vllm_capacity.web.security_headers import SecurityHeaders

log = structlog.get_logger()

_LOOK_SECONDS = 1.0
_Seen = tuple[tuple[int, int, int, int] | None, ...]


class Access:
    """The web configuration that counts now.

    Unreadable at the start, it is an error. Later, a file that cannot be used, or that takes
    all protection away, changes nothing: what was read before goes on, and that is logged once.

    Args:
        path: of the web configuration file; None: everybody may read.

    Raises:
        SettingsError: the file cannot be used.
    """

    def __init__(self, path: str | None = None) -> None:
        self._path = path
        self._config = WebConfig()
        self._passwords = Passwords()
        self._seen: _Seen = ()
        self._watcher: asyncio.Task[None] | None = None
        self.reload_succeeded: bool | None = None
        self._complaint = ""
        if path is not None:
            # Looked at before it is read, so that no change between the two is missed.
            self._seen = _seen(read_web_config(path).files)
            self._take(read_web_config(path))

    async def __aenter__(self) -> Self:
        if self._path is not None:
            self._watcher = asyncio.create_task(self._watch(self._path))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        self._passwords.close()

    def guard(self, application: ASGIApp) -> ASGIApp:
        """The application behind limits and passwords, each answer with the security headers."""
        guarded = BasicAuth(application, self._users, self._passwords)
        # Streams keep their places, so half of the places are left for everything else.
        most_streams = min(MOST_STREAMS, most_connections() // 2)
        limited = Limits(guarded, self._rate_limit, most_streams=most_streams)
        return SecurityHeaders(limited, self._headers)

    def context(self) -> ssl.SSLContext | None:
        """TLS of a new connection; None: plain HTTP."""
        return self._config.context

    def allowed_names(self) -> frozenset[str]:
        """Of which a new client's certificate needs one; empty: it needs none."""
        tls = self._config.tls
        return frozenset() if tls is None else tls.client_allowed_sans

    def _users(self) -> Mapping[str, str]:
        return self._config.users

    def _headers(self) -> Mapping[str, str]:
        return self._config.headers

    def _rate_limit(self) -> RateLimit | None:
        return self._config.rate_limit

    def _take(self, config: WebConfig) -> None:
        self._config, self.reload_succeeded, self._complaint = config, True, ""
        verified = config.tls is not None and config.tls.client_auth is ssl.CERT_REQUIRED
        log.info(
            "web configuration read",
            path=self._path,
            tls=config.tls is not None,
            client_certificates=verified,
            users=len(config.users),
        )
        if config.http2:
            log.warning("http2: true in the web configuration has no effect: HTTP/1.1 is served")

    async def _watch(self, path: str) -> None:
        """Read again when a file changes; files are touched in a thread, for a disk may hang."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            seen = await asyncio.to_thread(_seen, self._config.files)
            # A broken file may wait for another one that is not there yet, so it is tried again.
            if seen != self._seen or not self.reload_succeeded:
                self._seen = seen
                await self._read_again(path)

    async def _read_again(self, path: str) -> None:
        try:
            self._take(await asyncio.to_thread(_read_again, path, self._config))
        except SettingsError as error:
            self._complain(str(error))
        except Exception as error:  # noqa: BLE001 (a fault of ours; what was read before goes on)
            self._complain(f"internal error, please report it: {error!r}")

    def _complain(self, error: str) -> None:
        self.reload_succeeded = False
        if error != self._complaint:
            self._complaint = error
            log.error("web configuration cannot be used, the old one stays", error=error)


def _read_again(path: str, before: WebConfig) -> WebConfig:
    config = read_web_config(path)
    problem = "must not go away while serving; restart to do without"
    if faults := [Fault(key, HIDDEN, problem) for key in lost_protection(before, config)]:
        raise SettingsError(path, faults)
    return config


def _seen(files: tuple[Path, ...]) -> _Seen:
    """What changes when a file does, links followed; None for one that is not there."""
    seen: list[tuple[int, int, int, int] | None] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            seen.append(None)
        else:
            seen.append((status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(seen)
