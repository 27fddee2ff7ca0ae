"""``--web.config.file``: TLS, users, headers and a rate limit, in the exporter-toolkit's form.

Source: prometheus/exporter-toolkit, docs/web-configuration.md and web/tls_config.go of July 2026.
What Python's ssl cannot do is a fault that says so, never something weaker.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_capacity.errors import Fault, SettingsError
from vllm_capacity.secrecy import HIDDEN
from vllm_capacity.web.config_section import Section, duration_seconds, switch
from vllm_capacity.web.config_tls import read_tls
from vllm_capacity.web.config_yaml import read_yaml
from vllm_capacity.web.passwords import problem_of_hash
from vllm_capacity.web.tls import TlsSettings, server_context

MAX_FILE_BYTES = 1 << 20
_KEYS = ("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit")
#: Headers that may be set, and the values that some of them may have.
HEADERS: Mapping[str, tuple[str, ...]] = {
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
    "Content-Security-Policy": (),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RateLimit:
    """A bucket of requests, all clients' together.

    Attributes:
        interval_seconds: time in which it gains one request.
        burst: requests that it holds.
    """

    interval_seconds: float
    burst: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WebConfig:
    """The file, read and checked; as nothing but defaults it lets everybody in.

    Attributes:
        tls: what ``tls_server_config`` says; None: plain HTTP.
        context: the same for new connections.
        users: bcrypt hashes by user name; empty: no password is asked for.
        headers: instead of our own; an empty value leaves one out.
        rate_limit: None: no limit.
        http2: whether the file asks for HTTP/2, which is not served.
        files: what it was read from, itself first.
    """

    tls: TlsSettings | None = None
    context: ssl.SSLContext | None = None
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    rate_limit: RateLimit | None = None
    http2: bool = False
    files: tuple[Path, ...] = ()


def read_web_config(path: str) -> WebConfig:
    """The web configuration in a file; relative paths in it start at its folder.

    Raises:
        SettingsError: with every fault found; no password or key is repeated in it.
    """
    file = Path(path)
    document = read_yaml(path, _content(path))
    faults: list[Fault] = []
    top = Section("", document, _KEYS, faults)
    tls, more_files = read_tls(top.value("tls_server_config"), file.parent, faults)
    http2, headers = _http(top.value("http_server_config"), faults)
    config = WebConfig(
        tls=tls,
        context=None if tls is None else _context(tls, faults),
        users=_users(top.value("basic_auth_users"), faults),
        headers=headers,
        rate_limit=_rate_limit(top.value("rate_limit"), faults),
        http2=http2,
        files=(file, *more_files),
    )
    if faults:
        raise SettingsError(path, faults)
    return config


def lost_protection(before: WebConfig, now: WebConfig) -> tuple[str, ...]:
    """What protected the old configuration and is missing in the new one.

    A file that is being written may be read half: the first half of a good file must not open
    the door. So protection can be changed while serving, and not be taken away.
    """
    nobody = ssl.CERT_NONE
    return tuple(
        key
        for key, was, stays in (
            ("tls_server_config", before.tls is not None, now.tls is not None),
            (
                "tls_server_config.client_auth_type",
                before.tls is not None and before.tls.client_auth is not nobody,
                now.tls is not None
                and before.tls is not None
                and now.tls.client_auth >= before.tls.client_auth,
            ),
            (
                "tls_server_config.client_allowed_sans",
                before.tls is not None and bool(before.tls.client_allowed_sans),
                now.tls is not None and bool(now.tls.client_allowed_sans),
            ),
            ("basic_auth_users", bool(before.users), bool(now.users)),
        )
        if was and not stays
    )


def _content(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise SettingsError(path, [Fault("web.config.file", path, problem)]) from None
    if len(content) > MAX_FILE_BYTES:
        problem = f"must not be longer than {MAX_FILE_BYTES} bytes"
        raise SettingsError(path, [Fault("web.config.file", path, problem)])
    return content


def _context(tls: TlsSettings, faults: list[Fault]) -> ssl.SSLContext | None:
    try:
        return server_context(tls)
    except ValueError as error:
        faults.append(Fault("tls_server_config", HIDDEN, str(error)))
        return None


def _http(value: Any, faults: list[Fault]) -> tuple[bool, Mapping[str, str]]:
    http = Section("http_server_config", value, ("http2", "headers"), faults)
    headers = Section("http_server_config.headers", http.value("headers"), tuple(HEADERS), faults)
    read = {name: headers.text(name) for name in headers}
    for name, written in read.items():
        allowed = HEADERS[name]
        if allowed and written not in ("", *allowed):
            headers.fault(name, written, f"must be one of {', '.join(allowed)}")
        elif not written.isascii() or not written.isprintable():
            headers.fault(name, written, "must be printable ASCII in one line")
    return http.parsed("http2", switch, default=False), read


def _users(value: Any, faults: list[Fault]) -> Mapping[str, str]:
    users = Section("basic_auth_users", value, None, faults)
    hashes = {}
    for name in users:
        hashed = users.value(name)
        if ":" in name or not name.isprintable():
            users.fault(name, HIDDEN, "must have a user name without a colon, in one line")
        elif problem := problem_of_hash(hashed):
            users.fault(name, HIDDEN, problem)
        else:
            hashes[name] = hashed
    return hashes


def _rate_limit(value: Any, faults: list[Fault]) -> RateLimit | None:
    section = Section("rate_limit", value, ("interval", "burst"), faults)
    interval = section.parsed("interval", duration_seconds, default=0.0)
    burst = section.parsed("burst", int, default=0, problem="must be a whole number")
    if interval == 0:
        return None
    if burst < 1:
        section.fault("burst", burst, "must be at least 1, or every request would be refused")
        return None
    return RateLimit(interval_seconds=interval, burst=burst)
