"""vLLM's pages over HTTP: ``/metrics``, ``/v1/models``, ``/version``."""

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any, NoReturn

import httpx

from vllm_capacity.errors import Fault, SettingsError, SourceError
from vllm_capacity.sources.client_tls import RenewingTransport, TlsFiles
from vllm_capacity.sources.http_body import BoundedBody
from vllm_capacity.sources.target_url import parse_target_url

MAX_TOKEN_BYTES = 65536
# Below uvicorn's keep-alive of 5 s: a connection that the server is about to close is not reused.
KEEP_ALIVE_SECONDS = 2.0
_LIMITS = httpx.Limits(keepalive_expiry=KEEP_ALIVE_SECONDS)
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody
_TLS_HINTS = {
    "CERTIFICATE_VERIFY_FAILED": (
        "; name its authority, or its own certificate, in ca-file, and in tls-server-name the "
        "name in it if the address has another"
    ),
    "CERTIFICATE_REQUIRED": "; give a client-cert-file",
    "ALERT_HANDSHAKE_FAILURE": "; it may want a client-cert-file",
    # What a server on asyncio, vLLM among them, does to a client without one.
    "disconnected without sending a response": "; it may want a client-cert-file",
    "Connection reset by peer": "; it may want a client-cert-file",
    "WRONG_VERSION_NUMBER": "; it may speak plain http",
}
_NO_EXPOSITION = ("text/html", "application/xhtml+xml", "application/json", "application/xml")
_HINTS = {
    401: "; give a bearer token file",
    403: "; these credentials may not read the page",
    404: "; is it a vLLM server?",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A base model that a server lists; its LoRA adapters are left out.

    Attributes:
        id: name that requests give, and the ``model_name`` label of vLLM's metrics.
        root: folder or hub id that the weights came from.
        max_model_len: tokens that one request may hold.

    Source: vLLM 0.32 ``entrypoints/serve/engine/protocol.py``, ``ModelCard``.
    """

    id: str
    root: str | None
    max_model_len: int | None


def new_client(
    *,
    tls: bool = True,
    ca_file: str | None = None,
    client_cert_file: str | None = None,
    client_key_file: str | None = None,
) -> httpx.AsyncClient:
    """An HTTP client for all servers with the same TLS; the caller closes it.

    It takes no proxy and no ``.netrc`` from the environment, keeps no cookies and follows no
    redirects, so credentials go where the operator sent them and nowhere else.

    Args:
        tls: load the system's certificate authorities. False saves memory where every target
            is plain ``http``; an ``https`` one is then refused, never trusted blindly.
        ca_file: PEM file of the authorities to trust instead of the system's.
        client_cert_file: PEM file of the certificate to show; with the others read again when it
            changes.
        client_key_file: PEM file of its key; None: it stands in ``client_cert_file``.

    Raises:
        SettingsError: a file cannot be used.
    """
    files = TlsFiles(
        ca_file=ca_file, client_cert_file=client_cert_file, client_key_file=client_key_file
    )
    return httpx.AsyncClient(
        transport=RenewingTransport(files, _connections) if files.paths else None,
        verify=files.context() if tls and not files.paths else _NO_TLS,
        trust_env=False,
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        limits=_LIMITS,
        # The engine's server need not compress what mostly stays on one machine.
        headers={"Accept-Encoding": "identity", "User-Agent": "vllm-capacity"},
    )


def _connections(context: ssl.SSLContext) -> httpx.AsyncHTTPTransport:
    return httpx.AsyncHTTPTransport(verify=context, trust_env=False, limits=_LIMITS)


class VllmHttp:
    """One vLLM server, asked over HTTP.

    Every request raises ``SourceError`` with one clear line and one of these reasons:
    ``timeout``, ``connect``, ``http`` (status, redirect, cut answer), ``parse`` (not what the
    page should be), ``too_large``, ``invalid`` (our own token file).

    Args:
        url: ``http://host:8000`` or ``host:8000``, after it a path if a proxy adds one, with
            or without ``/metrics``. A user and password in it are sent as basic
            authentication and never shown.
        client: from ``new_client``; shared by all targets.
        timeout_seconds: for a whole answer, from connecting to its last byte; half of it for
            the connection, and half for its TLS.
        max_body_bytes: the longest body taken, counted after decompression.
        bearer_token_file: file holding a token, read anew for each request.
        tls_server_name: name that its certificate must have; None: the host of ``url``.

    Attributes:
        url: the server as messages name it, without credentials.

    Raises:
        SettingsError: ``url`` names no server, or gives credentials beside a token file.
    """

    def __init__(
        self,
        url: str,
        *,
        client: httpx.AsyncClient,
        timeout_seconds: float,
        max_body_bytes: int,
        bearer_token_file: str | None = None,
        tls_server_name: str | None = None,
    ) -> None:
        target = parse_target_url(url)
        if target.auth and bearer_token_file is not None:
            problem = "must hold no user and password where a bearer token file is given"
            raise SettingsError("target", [Fault("url", target.base, problem)])
        self.url = target.base
        self._auth = target.auth
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._max_body_bytes = max_body_bytes
        self._token_file = bearer_token_file
        self._extensions = {"sni_hostname": tls_server_name} if tls_server_name else {}

    async def metrics(self) -> bytes:
        """The exposition that ``/metrics`` answers; whether it parses is not looked at."""
        page = await self._get("/metrics")
        if page.content_type in _NO_EXPOSITION or page.body.lstrip()[:1] == b"<":
            kind = page.content_type if page.content_type in _NO_EXPOSITION else "HTML or XML"
            _fail("parse", page.url, f"answered {len(page.body)} bytes of {kind}, not metrics")
        return page.body

    async def models(self) -> tuple[ServedModel, ...]:
        """The base models that ``/v1/models`` lists; several names may mean one model."""
        page = await self._get("/v1/models")
        cards = _json_object(page).get("data")
        if not isinstance(cards, list):
            _fail("parse", page.url, "answered JSON without the list data")
        return tuple(_served_model(page, card) for card in cards if not _is_adapter(card))

    async def version(self) -> str | None:
        """What ``/version`` answers, as in ``0.32.0``; None where the server does not tell."""
        page = await self._get("/version", accept=(200, 404))
        if page.status == httpx.codes.NOT_FOUND:
            return None
        version = _json_object(page).get("version")
        return version if isinstance(version, str) else None

    async def _get(self, path: str, *, accept: tuple[int, ...] = (200,)) -> "_Page":
        url = self.url + path
        body = BoundedBody(url, max_bytes=self._max_body_bytes)
        with self._translated_errors(url, body):
            async with asyncio.timeout(self._timeout_seconds), self._answer(url) as response:
                _check_status(url, response, accept)
                content = await body.read(response)
        date = response.headers.get("Date")
        return _Page(url, response.status_code, _content_type(response), content, date)

    @asynccontextmanager
    async def _answer(self, url: str) -> AsyncIterator[httpx.Response]:
        # TCP and TLS get half each: httpx leaks the socket of a handshake that is cut from outside.
        limits = httpx.Timeout(self._timeout_seconds, connect=self._timeout_seconds / 2)
        request = self._client.build_request(
            "GET",
            url,
            headers=self._authorization(),
            timeout=limits,
            extensions=dict(self._extensions),
        )
        response = await self._client.send(
            request, stream=True, auth=self._auth, follow_redirects=False
        )
        try:
            yield response
        finally:
            await response.aclose()

    def _authorization(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        return {"Authorization": f"Bearer {_token(self._token_file)}"}

    @contextmanager
    def _translated_errors(self, url: str, body: BoundedBody) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectTimeout as error:
            problem = f"no connection within {self._timeout_seconds / 2:g} s"
            raise _error("timeout", url, problem) from error
        except (TimeoutError, httpx.TimeoutException) as error:
            problem = f"no complete answer within {self._timeout_seconds:g} s"
            raise _error("timeout", url, f"{problem}{_so_far(body)}") from error
        except httpx.ConnectError as error:
            problem = _with_hint(url, _root_cause(error))
            raise _error("connect", url, f"cannot connect: {problem}") from error
        except httpx.RemoteProtocolError as error:
            problem = _with_hint(url, _brief(error))
            raise _error("http", url, f"broken HTTP{_so_far(body)}: {problem}") from error
        except httpx.TransportError as error:
            cause = _root_cause(error)
            cause = cause if body.wire_bytes else _with_hint(url, cause)
            problem = f"connection lost{_so_far(body)}: {cause}"
            raise _error("connect", url, problem) from error


@dataclass(frozen=True, slots=True)
class _Page:
    url: str
    status: int
    content_type: str
    body: bytes
    date: str | None


def _token(path: str) -> str:
    where = f"bearer token file {path}"
    try:
        with Path(path).open("rb") as file:
            token = file.read(MAX_TOKEN_BYTES + 1).strip()
    except OSError as error:
        raise _error("invalid", where, f"cannot be read: {_words(error)}") from error
    if not 1 <= len(token) <= MAX_TOKEN_BYTES or not all(0x21 <= byte <= 0x7E for byte in token):
        _fail(
            "invalid", where, f"must hold one visible ASCII word, at most {MAX_TOKEN_BYTES} bytes"
        )
    return token.decode("ascii")


def _check_status(url: str, response: httpx.Response, accept: tuple[int, ...]) -> None:
    status = response.status_code
    if status in accept:
        return
    if redirected := response.next_request:
        where = _cut(str(_bare(redirected.url)))
        _fail("http", url, f"answered {status}, a redirect to {where}; give the final address")
    phrase = httpx.codes.get_reason_phrase(status)
    _fail("http", url, f"answered {status} {phrase}".rstrip() + _HINTS.get(status, ""))


def _bare(url: httpx.URL) -> httpx.URL:
    return url.copy_with(username=None, password=None, query=None, fragment=None)


def _content_type(response: httpx.Response) -> str:
    content_type: str = response.headers.get("Content-Type", "")
    return content_type.partition(";")[0].strip().lower()


def _json_object(page: _Page) -> dict[str, Any]:
    try:
        answer = json.loads(page.body)
    except (ValueError, RecursionError) as error:
        problem = f"answered {len(page.body)} bytes that are not JSON: {_brief(error)}"
        raise _error("parse", page.url, problem) from error
    if not isinstance(answer, dict):
        _fail("parse", page.url, "answered JSON that is not an object")
    return answer


def _is_adapter(card: object) -> bool:
    return isinstance(card, dict) and card.get("parent") is not None


def _served_model(page: _Page, card: object) -> ServedModel:
    if not isinstance(card, dict) or not isinstance(card.get("id"), str):
        _fail("parse", page.url, "lists a model without an id")
    root, length = card.get("root"), card.get("max_model_len")
    return ServedModel(
        id=card["id"],
        root=root if isinstance(root, str) else None,
        max_model_len=length if type(length) is int and length > 0 else None,
    )


def _so_far(body: BoundedBody) -> str:
    return f" after {body.wire_bytes} bytes of the body" if body.wire_bytes else ""


def _root_cause(error: BaseException) -> str:
    """The system's own words, which httpx, httpcore and anyio wrap up."""
    seen: set[int] = set()
    while (inner := _cause(error)) and id(inner) not in seen:  # a chain may be a circle
        seen.add(id(inner))
        error = inner
    return _words(error) if isinstance(error, OSError) else _brief(error)


def _with_hint(url: str, problem: str) -> str:
    hints = _TLS_HINTS if url.startswith("https:") else {}
    return problem + next((hint for name, hint in hints.items() if name in problem), "")


def _cause(error: BaseException) -> BaseException | None:
    if isinstance(error, BaseExceptionGroup):
        return error.exceptions[0]
    return error.__cause__ or error.__context__


def _words(error: OSError) -> str:
    if isinstance(error, ssl.SSLError) or not error.errno or error.errno < 0:
        return _cut(error.strerror or str(error))
    return os.strerror(error.errno)


def _brief(error: BaseException) -> str:
    return _cut(str(error) or type(error).__name__)


def _cut(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _error(reason: str, where: str, problem: str) -> SourceError:
    return SourceError(reason, f"{where}: {problem}")


def _fail(reason: str, where: str, problem: str) -> NoReturn:
    raise _error(reason, where, problem)
