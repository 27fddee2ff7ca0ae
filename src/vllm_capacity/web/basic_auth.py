"""Basic authentication before everything that is served."""

import base64
import binascii
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_capacity.web.passwords import BusyError, Passwords
from vllm_capacity.web.refusal import refusal

_CHALLENGE = 'Basic realm="vllm-capacity", charset="UTF-8"'


class BasicAuth:
    """Lets a request through to the application only with a user's password.

    Everything is behind it, as in the exporter-toolkit: pages, metrics, streams, health and
    what does not exist.

    Args:
        application: what is guarded.
        users: bcrypt hashes by user name, asked for each request; empty: everybody may pass.
        passwords: checks them.
    """

    def __init__(
        self, application: ASGIApp, users: Callable[[], Mapping[str, str]], passwords: Passwords
    ) -> None:
        self._application, self._users, self._passwords = application, users, passwords

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        users = self._users()
        refusal = await self._refusal(scope, users) if users else None
        await (refusal or self._application)(scope, receive, send)

    async def _refusal(self, scope: Scope, users: Mapping[str, str]) -> Response | None:
        given = credentials(Headers(scope=scope).get("authorization", ""))
        if given is None:
            return _unauthorized(scope)
        client = scope.get("client") or ("",)
        try:
            right = await self._passwords.admit(*given, users, client[0])
        except BusyError:
            sentence = "Too many passwords are being checked; try again."
            return refusal(scope, 429, sentence, {"Retry-After": "1"})
        return None if right else _unauthorized(scope)


def credentials(authorization: str) -> tuple[bytes, bytes] | None:
    """User and password of an Authorization header; None where it holds none."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(token.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return (user, password) if colon else None


def _unauthorized(scope: Scope) -> Response:
    headers = {"WWW-Authenticate": _CHALLENGE}
    return refusal(scope, 401, "A user and a password are needed.", headers)
