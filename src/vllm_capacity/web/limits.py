"""What one request may ask for: no body, its share of a rate, one of so many streams."""

import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_capacity.web.config_file import RateLimit
from vllm_capacity.web.refusal import refusal

MOST_STREAMS = 200
_LATER = {"Retry-After": "1"}
_CLOSE = {"Connection": "close"}
_EVENT_STREAM = "text/event-stream"


class Limits:
    """Refuses what asks for too much.

    Args:
        application: what is served.
        rate_limit: as configured, asked for each request; None: no limit.
        most_streams: event streams that are open at once.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        application: ASGIApp,
        rate_limit: Callable[[], RateLimit | None] = lambda: None,
        *,
        most_streams: int = MOST_STREAMS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._application, self._rate_limit = application, rate_limit
        self._most_streams, self._streams = most_streams, 0
        self._clock = clock
        self._limit: RateLimit | None = None
        self._tokens, self._filled_at = 0.0, 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        headers = Headers(scope=scope)
        if not self._within_rate():
            await refusal(scope, 429, "Too many requests.", _LATER)(scope, receive, send)
        elif "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
            # Nothing served takes a body, and who sends one slowly would keep its connection.
            await refusal(scope, 413, "No body is taken here.", _CLOSE)(scope, receive, send)
        elif _EVENT_STREAM in headers.get("accept", ""):
            await self._stream(scope, receive, send)
        else:
            await self._application(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._streams >= self._most_streams:
            await refusal(scope, 503, "Too many streams are open.", _LATER)(scope, receive, send)
            return
        self._streams += 1
        try:
            await self._application(scope, receive, send)
        finally:
            self._streams -= 1

    def _within_rate(self) -> bool:
        """Whether the bucket holds a token for this request, which it then takes."""
        limit, now = self._rate_limit(), self._clock()
        if limit is None:
            return True
        if limit != self._limit:
            self._limit, self._tokens, self._filled_at = limit, limit.burst, now
        gained = (now - self._filled_at) / limit.interval_seconds
        self._tokens, self._filled_at = min(limit.burst, self._tokens + gained), now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
