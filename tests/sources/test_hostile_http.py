"""Servers that break every promise, on real sockets."""

import asyncio
import contextlib
import gc
import gzip
import socket
import struct
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Self

import pytest

from vllm_capacity.errors import SourceError
from vllm_capacity.sources.vllm_http import VllmHttp, new_client

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]
LIMIT = 1 << 20
TIMEOUT_SECONDS = 0.5
PATIENT_SECONDS = 20.0  # a loaded machine must not turn another fault into a timeout
PAGE = b"vllm:num_requests_running 3.0\n"


def said(head: str, body: bytes = b"") -> Answer:
    """An answer of these header lines and this body, after which the line is cut."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {head}\r\n\r\n".encode() + body)
        await writer.drain()

    return answer


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        writer.write(b"#")
        await writer.drain()
        await asyncio.sleep(0.05)


async def drip_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def say_continue_for_ever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def say_nothing(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)
    writer.write(b"too late")


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        writer.write(b"x 1\n" * 4096)
        await writer.drain()


async def reset(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx 1\n")
    await writer.drain()
    await asyncio.sleep(0.05)
    # Closed without lingering, a socket sends RST.
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Server:
    """Answers every request alike, and counts the connections."""

    def __init__(self, answer: Answer) -> None:
        self.connections = 0
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = self._server.sockets[0].getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        self._tasks.add(asyncio.ensure_future(self._talk(reader, writer)))

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(1)
            await self._answer(writer)
        except OSError:
            pass  # the client hung up, as it should
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def ask(url: str, limit: int = LIMIT, timeout_seconds: float = PATIENT_SECONDS) -> bytes:
    async with new_client(tls=False) as client:
        return await VllmHttp(
            url, client=client, timeout_seconds=timeout_seconds, max_body_bytes=limit
        ).metrics()


def asked(answer: Answer, limit: int = LIMIT, timeout_seconds: float = PATIENT_SECONDS) -> bytes:
    async def run() -> bytes:
        async with Server(answer) as server:
            return await ask(server.url, limit, timeout_seconds)

    return asyncio.run(run())


def failure(
    answer: Answer, limit: int = LIMIT, timeout_seconds: float = PATIENT_SECONDS
) -> tuple[str, str]:
    with pytest.raises(SourceError) as caught:
        asked(answer, limit, timeout_seconds)
    message = str(caught.value)
    assert message.startswith("http://127.0.0.1:")
    assert "\n" not in message
    return caught.value.reason, message.partition("/metrics: ")[2]


OK = "200 OK\r\n"
CHUNKED = OK + "Transfer-Encoding: chunked"
GZIP = OK + "Connection: close\r\nContent-Encoding: gzip"


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        (said("200 OK\r\nContent-Length: 900", PAGE), "http", "broken HTTP after 30 bytes of the"),
        (said(CHUNKED, b"1e\r\n" + PAGE + b"\r\n"), "http", "broken HTTP after 30 bytes of the"),
        (said(CHUNKED, b"zz\r\n" + PAGE), "http", "broken HTTP: illegal chunk header"),
        (said("200 OK\r\nContent-Length: 5\r\nContent-Length: 6", PAGE), "http", "broken HTTP"),
        (said("200 OK\r\nContent-Length: many", PAGE), "http", "broken HTTP: bad Content-Length"),
        (said("OK 200"), "http", "broken HTTP: illegal status line"),
        (said("200 OK\r\nX: " + "x" * 200_000), "http", "broken HTTP"),
        (reset, "connect", "connection lost after 4 bytes of the body: Connection reset by peer"),
        (said("500 Oops\r\nContent-Length: 0"), "http", "answered 500 Internal Server Error"),
        (said("302 Found\r\nLocation: /elsewhere"), "http", "answered 302, a redirect to"),
        (said(OK + "Content-Type: text/html", b"<html>"), "parse", "answered 6 bytes of text/html"),
        (said(GZIP, b"not gzip"), "http", "its compressed body is damaged"),
        (said(GZIP, gzip.compress(PAGE)[:-9]), "http", "its compressed body is cut"),
        (said(GZIP, gzip.compress(PAGE) * 2), "http", "its compressed body is cut, or has a tail"),
        (said(GZIP.replace("gzip", "br"), PAGE), "http", "answered in the coding 'br', which"),
        (drip, "timeout", "no complete answer within 0.5 s after"),
        (drip_headers, "timeout", "no complete answer within 0.5 s"),
        (say_continue_for_ever, "timeout", "no complete answer within 0.5 s"),
        (say_nothing, "timeout", "no complete answer within 0.5 s"),
        (endless, "too_large", "longer than the limit of 1048576 bytes (1.0 MiB)"),
        (
            said("200 OK\r\nContent-Length: 104857600", b"x 1\n" * 999),
            "too_large",
            "its body of 104857600 bytes is longer than the limit of 1048576 bytes (1.0 MiB)",
        ),
        (
            said(GZIP, gzip.compress(b"x 1\n" * 1_000_000)),
            "too_large",
            "its body is longer than the limit of 1048576 bytes",
        ),
    ],
)
def test_every_broken_answer_is_one_line_in_good_time(
    answer: Answer, reason: str, words: str
) -> None:
    timeout_seconds = TIMEOUT_SECONDS if reason == "timeout" else PATIENT_SECONDS
    begun = time.monotonic()
    got_reason, message = failure(answer, timeout_seconds=timeout_seconds)
    assert (got_reason, words in message) == (reason, True), message
    assert len(message) < 300
    assert time.monotonic() - begun < PATIENT_SECONDS / 2


def test_a_gzip_bomb_is_cut_before_it_fills_memory() -> None:
    bomb = gzip.compress(bytes(200 << 20), compresslevel=9)  # 200 MiB in 200 KiB
    tracemalloc.start()
    try:
        assert failure(said(GZIP, bomb))[0] == "too_large"
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 << 20


def test_a_body_of_exactly_the_limit_is_taken_plain_and_compressed() -> None:
    body = b"x 1\n" * 1000
    plain = said(OK + "Connection: close", body)
    compressed = said(GZIP, gzip.compress(body))
    assert asked(plain, limit=4000) == asked(compressed, limit=4000) == body
    assert failure(plain, limit=3999)[0] == failure(compressed, limit=3999)[0] == "too_large"


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(SourceError) as caught:
        asyncio.run(ask(f"127.0.0.1:{port}"))
    assert caught.value.reason == "connect"
    assert str(caught.value) == (
        f"http://127.0.0.1:{port}/metrics: cannot connect: Connection refused"
    )


def test_a_name_that_means_no_host_is_named() -> None:
    with pytest.raises(SourceError, match="cannot connect: ") as caught:
        asyncio.run(ask("http://no-such-host.invalid:8000"))
    assert caught.value.reason in ("connect", "timeout")  # a resolver may not answer in time


def asked_over_tls(answer: Answer, timeout_seconds: float = PATIENT_SECONDS) -> str:
    async def run() -> bytes:
        async with Server(answer) as server:
            url = server.url.replace("http", "https")
            return await ask(url, timeout_seconds=timeout_seconds)

    with pytest.raises(SourceError) as caught:
        asyncio.run(run())
    return f"{caught.value.reason} {caught.value}".partition("/metrics: ")[2]


def test_plain_http_where_tls_is_expected_is_named() -> None:
    assert asked_over_tls(said(OK, PAGE)).startswith("cannot connect: [SSL")


def test_a_tls_handshake_that_hangs_is_cut_at_half_the_time() -> None:
    assert asked_over_tls(say_nothing, TIMEOUT_SECONDS) == "no connection within 0.25 s"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("answer", [say_nothing, drip, endless, reset, said(CHUNKED, b"zz")])
def test_no_socket_stays_open_after_a_failure(answer: Answer, scheme: str) -> None:
    async def run() -> list[int]:
        counts = []
        async with Server(answer) as server, new_client(tls=False) as client:
            url = server.url.replace("http", scheme)
            engine = VllmHttp(url, client=client, timeout_seconds=0.2, max_body_bytes=LIMIT)
            for _ in range(4):
                with pytest.raises(SourceError):
                    await engine.metrics()
                counts.append(await client_sockets(server))
        return counts

    gc.disable()  # which would hide a leak
    try:
        assert asyncio.run(run()) == [0, 0, 0, 0]
    finally:
        gc.enable()


async def client_sockets(server: Server) -> int:
    """Sockets of this process that are connected to the server, once closing ones are gone."""
    await asyncio.sleep(0.05)
    return sum(peer(descriptor) == server.address for descriptor in range(3, 256))


def peer(descriptor: int) -> object:
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:  # not open, or no socket
        return None
    try:
        return found.getpeername()
    except OSError:  # not connected
        return None
    finally:
        found.detach()


def test_a_good_server_is_read_after_a_bad_one_with_the_same_client() -> None:
    async def run() -> bytes:
        good_answer = said(f"200 OK\r\nContent-Length: {len(PAGE)}", PAGE)
        async with Server(reset) as bad, Server(good_answer) as good, new_client(tls=False) as http:
            bad_engine, good_engine = (
                VllmHttp(url, client=http, timeout_seconds=PATIENT_SECONDS, max_body_bytes=LIMIT)
                for url in (bad.url, good.url)
            )
            for _ in range(3):
                with pytest.raises(SourceError):
                    await bad_engine.metrics()
            assert bad.connections == 3
            return await good_engine.metrics()

    assert asyncio.run(run()) == PAGE
