"""What every response says to a browser, so that the page is only what it was meant to be."""

from collections.abc import Callable, Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Scripts and styles come from our own files alone; nothing is framed, posted or embedded.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: Numbers of now are of no use later; what may be kept, as the page's files, says so itself.
_CACHE_CONTROL = "no-store"


class SecurityHeaders:
    """Adds the security headers to every response, refusals and faults among them.

    Args:
        application: what is served.
        configured: headers that the operator sets in place of ours; an empty value leaves the
            header out. Strict-Transport-Security is sent only where it is set here.
    """

    def __init__(
        self, application: ASGIApp, configured: Callable[[], Mapping[str, str]] = dict
    ) -> None:
        self._application, self._configured = application, configured

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {**SECURITY_HEADERS, **self._configured()}.items():
                    if value:
                        headers[name] = value
                headers.setdefault("Cache-Control", _CACHE_CONTROL)
            await send(message)

        await self._application(scope, receive, send_with_headers)
