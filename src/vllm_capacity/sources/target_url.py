"""What an operator types for a server → where to ask, with what credentials."""

from dataclasses import dataclass
from urllib.parse import unquote

import httpx

from vllm_capacity.errors import Fault, SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetUrl:
    """A server's address.

    Attributes:
        base: scheme, host, port and path prefix, without credentials; safe to show.
        auth: the user and password that the address held.
    """

    base: str
    auth: httpx.BasicAuth | None


def parse_target_url(url: str) -> TargetUrl:
    """Read ``http://host:8000``, ``host:8000/metrics``, ``https://user:password@host/prefix``.

    Raises:
        SettingsError: no server's address. No credential is repeated in it.
    """
    parsed = _parsed(url.strip())
    path = parsed.path.rstrip("/").removesuffix("/metrics").rstrip("/")
    bare = parsed.copy_with(username=None, password=None, path=path or "/")
    return TargetUrl(base=str(bare).rstrip("/"), auth=_basic_auth(parsed))


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url if "://" in url else f"http://{url}")
    except httpx.InvalidURL:
        raise _refusal(url, "is no address; write it as http://host:8000") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise _refusal(url, "must be http or https with a host, as in http://host:8000")
    if parsed.port is not None and not 1 <= parsed.port <= 65535:
        raise _refusal(url, "must have a port from 1 to 65535")
    if "@" in parsed.path:
        raise _refusal(url, "must have its @ right before the host; write / in a password as %2F")
    if parsed.query or parsed.fragment:
        raise _refusal(url, "must end before ? and #; a token goes into a bearer token file")
    return parsed


def _basic_auth(url: httpx.URL) -> httpx.BasicAuth | None:
    if not url.userinfo:
        return None
    return httpx.BasicAuth(unquote(url.username), unquote(url.password))


def _refusal(url: str, problem: str) -> SettingsError:
    return SettingsError("target", [Fault("url", _without_secrets(url), problem)])


def _without_secrets(url: str) -> str:
    """As typed, less all that may be a credential; works on what cannot be parsed."""
    if "@" in url:
        url = "…@" + url.rpartition("@")[2]
    return url.partition("?")[0].partition("#")[0]
