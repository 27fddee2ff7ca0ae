"""Status documents as they come, over server-sent events.

Each stream looks once a second whether there is a newer document and sends the newest, so that a
reader who falls behind skips some and nothing is kept for it. Encoding is shared, and while nobody
listens nobody looks.

Source: HTML Living Standard, section 9.2, "Server-sent events".
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import suppress

from starlette.types import Receive, Scope, Send

from vllm_capacity.status.document import Selection
from vllm_capacity.web.documents import (
    GZIP_BEGIN,
    StatusDocuments,
    event,
    gzip_part,
    gzipped_event,
)

_LOOK_SECONDS = 1.0
_HEARTBEAT_SECONDS = 15.0
#: Somebody who takes nothing for so long is let go.
_STALLED_SECONDS = 30.0
#: How long the last event may take to leave once the server ends.
_FAREWELL_SECONDS = 0.2
_RETRY = b"retry: 2000\n\n"
_HEARTBEAT = b":\n\n"


class StatusStreams:
    """Every open stream of status documents.

    Args:
        documents: what is streamed.
        look_seconds: between looks at what is published.
        heartbeat_seconds: after which silence is broken.
        stalled_seconds: after which a reader who takes nothing is let go.
    """

    def __init__(
        self,
        documents: StatusDocuments,
        *,
        look_seconds: float = _LOOK_SECONDS,
        heartbeat_seconds: float = _HEARTBEAT_SECONDS,
        stalled_seconds: float = _STALLED_SECONDS,
    ) -> None:
        self._documents = documents
        self._look_seconds = look_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self.stalled_seconds = stalled_seconds
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End every stream, so that the server need not wait for any."""
        self._stopping.set()

    async def stopped(self) -> None:
        """Wait until streams are to end."""
        await self._stopping.wait()

    async def parts(
        self, selection: Selection, *, last: str | None, gzip: bool
    ) -> AsyncIterator[bytes]:
        """What one stream sends, part by part.

        Args:
            selection: what is asked for.
            last: what the reader says is the number of the document that it has.
            gzip: whether the reader takes gzip.
        """
        form = gzipped_event if gzip else event
        yield GZIP_BEGIN + gzip_part(_RETRY) if gzip else _RETRY
        silent_seconds = 0.0
        while not self._stopping.is_set():
            number = str(self._documents.newest(within_seconds=self._look_seconds))
            if number != last:
                last, silent_seconds = number, 0.0
                yield self._documents.encoded(selection, form)
            elif silent_seconds >= self._heartbeat_seconds:
                silent_seconds = 0.0
                yield gzip_part(_HEARTBEAT) if gzip else _HEARTBEAT
            silent_seconds += self._look_seconds
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._look_seconds)


class EventStream:
    """The response that sends the parts of one stream, until its reader leaves or stalls.

    Args:
        streams: which it is one of.
        parts: what is sent.
        headers: beside those of an event stream.
    """

    def __init__(
        self, streams: StatusStreams, parts: AsyncIterator[bytes], headers: Mapping[str, str]
    ) -> None:
        self._streams, self._parts = streams, parts
        self._headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "x-accel-buffering": "no",  # nginx would wait for more
            **headers,
        }

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        sending = asyncio.create_task(self._send(send))
        ends = [asyncio.create_task(_left(receive)), asyncio.create_task(self._farewell())]
        try:
            await asyncio.wait([sending, *ends], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, *ends):
                task.cancel()
            failed = (await asyncio.gather(sending, *ends, return_exceptions=True))[0]
        if isinstance(failed, Exception) and not isinstance(failed, TimeoutError):
            raise failed  # a fault of ours, for the log

    async def _send(self, send: Send) -> None:
        raw = [(name.lower().encode(), value.encode()) for name, value in self._headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        async for part in self._parts:
            await self._in_time(
                send({"type": "http.response.body", "body": part, "more_body": True})
            )
        await self._in_time(send({"type": "http.response.body", "body": b""}))

    async def _in_time(self, sending: Awaitable[None]) -> None:
        async with asyncio.timeout(self._streams.stalled_seconds):
            await sending

    async def _farewell(self) -> None:
        await self._streams.stopped()
        await asyncio.sleep(_FAREWELL_SECONDS)


async def _left(receive: Receive) -> None:
    """Wait until the reader is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
