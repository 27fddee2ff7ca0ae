"""A response body, inflated and counted as it comes."""

import zlib
from typing import NoReturn

import httpx

from vllm_capacity.errors import SourceError
from vllm_capacity.units import MIB


class BoundedBody:
    """Takes a body up to a limit, and never holds more.

    httpx by itself would inflate a whole network chunk, a thousandfold, before anyone could
    count; so the raw chunks are taken and inflated here.

    Attributes:
        wire_bytes: how much has come so far, as sent.
    """

    def __init__(self, url: str, *, max_bytes: int) -> None:
        self.wire_bytes = 0
        self._url = url
        self._max_bytes = max_bytes
        self._inflated_bytes = 0

    async def read(self, response: httpx.Response) -> bytes:
        """The whole body, inflated.

        Raises:
            SourceError: ``too_large`` past the limit; ``http`` for a compressed body that is
                damaged, cut, or in a coding that was not asked for.
        """
        self._refuse_announced_length(response)
        decoder = self._decoder(response)
        chunks = []
        async for chunk in response.aiter_raw():
            self.wire_bytes += len(chunk)
            chunks.append(self._counted(decoder.add(chunk)))
        if not decoder.finished:
            self._fail("http", "its compressed body is cut, or has a tail")
        return b"".join(chunks)

    def _counted(self, data: bytes) -> bytes:
        self._inflated_bytes += len(data)
        if self._inflated_bytes > self._max_bytes:
            self._fail("too_large", f"its body is longer than {self._limit()}")
        return data

    def _refuse_announced_length(self, response: httpx.Response) -> None:
        announced = response.headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            self._fail("too_large", f"its body of {announced} bytes is longer than {self._limit()}")

    def _limit(self) -> str:
        return f"the limit of {self._max_bytes} bytes ({self._max_bytes / MIB:.1f} MiB)"

    def _decoder(self, response: httpx.Response) -> "_Plain | _Gzip":
        coding = response.headers.get("Content-Encoding", "").strip().lower()
        if coding in ("", "identity"):
            return _Plain()
        if coding in ("gzip", "x-gzip"):
            return _Gzip(self._url, max_bytes=self._max_bytes)
        return self._fail("http", f"answered in the coding {coding[:40]!r}, which nobody asked for")

    def _fail(self, reason: str, problem: str) -> NoReturn:
        raise SourceError(reason, f"{self._url}: {problem}")


class _Plain:
    finished = True

    def add(self, data: bytes) -> bytes:
        return data


class _Gzip:
    """Inflates at most one byte over the limit, which is enough to see it passed."""

    def __init__(self, url: str, *, max_bytes: int) -> None:
        self._url = url
        self._left_bytes = max_bytes + 1
        self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)

    @property
    def finished(self) -> bool:
        return self._inflate.eof and not self._inflate.unused_data

    def add(self, data: bytes) -> bytes:
        try:
            inflated = self._inflate.decompress(data, self._left_bytes)
        except zlib.error as error:
            problem = f"its compressed body is damaged: {error}"
            raise SourceError("http", f"{self._url}: {problem}") from error
        self._left_bytes -= len(inflated)
        return inflated
