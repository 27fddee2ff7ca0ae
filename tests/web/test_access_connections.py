"""Clients that cost a server its time: whatever they do, who asks properly is answered."""

import resource
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from pki import HASH, PASSWORD, Authority
from test_daemon import Running, daemon
from vllm_capacity.web import connections as limits
from vllm_capacity.web.access import Access
from vllm_capacity.web.connections import most_connections
from web_serving import serving

HALF_A_HEAD = b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: "
A_REQUEST = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
A_SLOW_BODY = b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nx"
HUGE_HEADERS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"x" * 100_000
HALF_A_CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
NEVER_READ = A_REQUEST * 10  # many pages, which nobody takes
KINDS: dict[str, bytes] = {
    "silent": b"",
    "half a head": HALF_A_HEAD,
    "a slow body": A_SLOW_BODY,
    "huge headers": HUGE_HEADERS,
    "asked ten times and never read": NEVER_READ,
    "asked once and idle": A_REQUEST,
    "not HTTP": b"\x00\xff" * 50,
}
QUICK_SECONDS = 0.5
SMALL_CONTAINER_BYTES = 128 << 20  # the limit in deploy/kustomize


@pytest.fixture(autouse=True)
def _enough_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 4096:
        pytest.skip(f"this process may open {hard} descriptors only")
    if 0 <= soft < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))


@contextmanager
def clients(port: int, number: int, first: bytes) -> Iterator[list[socket.socket]]:
    """That many connections, each of which has said this much."""
    with ExitStack() as stack:
        opened = []
        for _ in range(number):
            client = socket.socket()
            stack.callback(client.close)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(20)
            with suppress(OSError):  # the server may have had enough of it already
                client.connect(("127.0.0.1", port))
                client.setblocking(False)
                client.send(first)
            opened.append(client)
        yield opened


@contextmanager
def dripping(sockets: list[socket.socket]) -> Iterator[None]:
    """Say one more byte on each connection, again and again."""
    ended = threading.Event()

    def drip() -> None:
        while not ended.wait(0.05):
            for client in sockets:
                with suppress(OSError):
                    client.send(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def still_open(client: socket.socket) -> bool:
    try:
        while client.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def eventually(what: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"did not come true within {seconds} s"
        time.sleep(0.05)


# ---- the whole daemon ----


@pytest.fixture(scope="module")
def plain() -> Iterator[Running]:
    with daemon("--simulate", "--no-nvml") as running:
        running.wait_for(lambda: running.get("/-/ready").status_code == 200)
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    authority = Authority.new(tmp_path_factory.mktemp("tls"))
    authority.signs("server")
    config = authority.folder / "web.yml"
    config.write_text(
        "tls_server_config: {cert_file: server.pem, key_file: server-key.pem}\n"
        f"basic_auth_users: {{prometheus: {HASH}}}\n"
    )
    with daemon("--simulate", "--no-nvml", "--web.config.file", str(config)) as running:
        running.url = running.url.replace("http:", "https:")
        eventually(lambda: scrape_seconds(running.url, authority.pem) is not None)
        yield running, authority.pem


def scrape_seconds(url: str, ca: Path | None = None) -> float | None:
    """How long a scrape takes on a connection of its own; None where nobody listens yet."""
    import ssl

    verify = ssl.create_default_context(cafile=ca) if ca else False
    auth = ("prometheus", PASSWORD) if ca else None
    begun = time.perf_counter()
    try:
        response = httpx.get(
            f"{url}/metrics", timeout=10.0, verify=verify, auth=auth, trust_env=False
        )
    except httpx.ConnectError:
        return None
    assert response.status_code == 200
    assert "vllm_capacity_build_info" in response.text
    return time.perf_counter() - begun


def typical_scrape(url: str, ca: Path | None = None) -> float:
    times = [scrape_seconds(url, ca) for _ in range(9)]
    answered = [seconds for seconds in times if seconds is not None]
    assert len(answered) == len(times), "a scrape found nobody listening"
    assert max(answered) < 5.0, "Prometheus gives up after ten seconds"
    return statistics.median(answered)


def descriptors(running: Running) -> int:
    return len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))


def resident_bytes(running: Running) -> int:
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


@pytest.mark.parametrize("number", [500, 2000])
@pytest.mark.parametrize("kind", KINDS)
def test_half_open_connections_do_not_keep_prometheus_from_scraping(
    plain: Running, kind: str, number: int
) -> None:
    eventually(lambda: descriptors(plain) < 50)
    before, port = descriptors(plain), int(plain.url.rpartition(":")[2])
    alone = typical_scrape(plain.url)
    with clients(port, number, KINDS[kind]) as opened, dripping(opened[:50]):
        beside = typical_scrape(plain.url)
        assert descriptors(plain) <= before + most_connections() + 10
    assert beside < max(10 * alone, 1.0), f"{alone:.3f} s alone"
    eventually(lambda: descriptors(plain) <= before + 3)


@pytest.mark.parametrize("number", [500, 2000])
@pytest.mark.parametrize("first", [b"", HALF_A_CLIENT_HELLO], ids=["silent", "half a hello"])
def test_tls_that_is_never_finished_does_not_keep_prometheus_from_scraping(
    guarded: tuple[Running, Path],
    first: bytes,
    number: int,
) -> None:
    running, ca = guarded
    eventually(lambda: descriptors(running) < 50)
    before, port = descriptors(running), int(running.url.rpartition(":")[2])
    alone = typical_scrape(running.url, ca)
    with clients(port, number, first):
        beside = typical_scrape(running.url, ca)
        assert resident_bytes(running) < SMALL_CONTAINER_BYTES
        assert descriptors(running) <= before + most_connections() + 10
    assert beside < max(10 * alone, 1.0), f"{alone:.3f} s alone"
    eventually(lambda: descriptors(running) <= before + 3)


def test_the_daemon_itself_ends_every_kind_of_half_open_connection(plain: Running) -> None:
    port = int(plain.url.rpartition(":")[2])
    eventually(lambda: descriptors(plain) < 50)
    before = descriptors(plain)
    with ExitStack() as stack:
        half = (b"", HALF_A_HEAD, A_SLOW_BODY, HUGE_HEADERS)
        opened = [stack.enter_context(clients(port, 100, first)) for first in half]
        stack.enter_context(dripping([client for group in opened for client in group[:20]]))
        eventually(lambda: descriptors(plain) > before + 100)
        eventually(lambda: descriptors(plain) <= before + 3, seconds=30.0)


# ---- the limits, made short ----


def endless(_: Request) -> StreamingResponse:
    async def events():  # noqa: ANN202 (an asynchronous generator of bytes)
        import asyncio

        while True:
            yield b": heartbeat\n\n"
            await asyncio.sleep(0.1)

    return StreamingResponse(events(), media_type="text/event-stream")


def flood(_: Request) -> StreamingResponse:
    async def megabytes():  # noqa: ANN202
        for _ in range(200):
            yield b"x" * 100_000

    return StreamingResponse(megabytes())


def small(access: Access) -> ASGIApp:
    routes = [
        Route("/metrics", lambda _: PlainTextResponse("a 1\n" * 5000)),
        Route("/events", endless),
        Route("/flood", flood),
    ]
    return access.guard(Starlette(routes=routes))


@pytest.fixture
def _short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = dict.fromkeys(limits.LIMITS_SECONDS, QUICK_SECONDS)
    monkeypatch.setattr(limits, "LIMITS_SECONDS", quick)
    monkeypatch.setattr(limits, "_SWEEP_SECONDS", 0.1)


@pytest.mark.usefixtures("_short_limits")
@pytest.mark.parametrize(
    "first",
    [b"", b"G", HALF_A_HEAD, A_REQUEST, A_REQUEST + b"GET", b"GET /flood HTTP/1.1\r\n\r\n"],
    ids=["silent", "a byte", "half a head", "idle", "half of the second", "never read"],
)
@pytest.mark.parametrize("drips", [False, True])
def test_no_state_of_a_connection_lasts_longer_than_its_limit(
    first: bytes, drips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit, admitted = limits.Connections.admit, list[object]()
    monkeypatch.setattr(
        limits.Connections, "admit", lambda *these: admitted.append(these) or admit(*these)
    )
    with serving(small) as served, clients(served.port, 20, first) as opened, ExitStack() as stack:
        if drips and first != A_REQUEST:
            stack.enter_context(dripping(opened))
        eventually(lambda: len(admitted) == 20)
        eventually(lambda: served.open_connections == 0, seconds=10.0)


@pytest.mark.usefixtures("_short_limits")
def test_a_stream_that_is_read_outlives_every_limit() -> None:
    with serving(small) as served, clients(served.port, 1, b"") as [client]:
        client.setblocking(True)
        client.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
        end = time.monotonic() + 5 * QUICK_SECONDS
        while time.monotonic() < end:
            assert client.recv(65536)
        assert served.open_connections == 1


def test_a_new_connection_takes_the_place_of_the_one_that_waits_longest() -> None:
    with (
        serving(small, most_connections=20) as served,
        clients(served.port, 20, HALF_A_HEAD) as old,
    ):
        eventually(lambda: served.open_connections == 20)
        with clients(served.port, 5, HALF_A_HEAD) as new:
            eventually(lambda: not any(still_open(client) for client in old[:5]))
            assert all(still_open(client) for client in [*old[5:], *new])
            assert served.open_connections == 20


def test_what_is_being_answered_keeps_its_place() -> None:
    with serving(small, most_connections=20) as served:
        ask = b"GET /events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
        with clients(served.port, 20, ask) as streams:
            eventually(lambda: all(client.recv(1) for client in streams if readable(client)))
            eventually(lambda: len(served.server._connections._waiting) == 0)
            with clients(served.port, 5, A_REQUEST) as late:
                eventually(lambda: not any(still_open(client) for client in late))
            assert all(still_open(client) for client in streams)


def readable(client: socket.socket) -> bool:
    import select

    return bool(select.select([client], [], [], 5.0)[0])


def test_streams_are_counted_and_the_rest_goes_on() -> None:
    from vllm_capacity.web.limits import Limits

    def few_streams(access: Access) -> ASGIApp:
        return Limits(small(access), most_streams=3)

    with serving(few_streams) as served, ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=served.url, trust_env=False))
        wants = {"Accept": "text/event-stream"}
        for _ in range(3):
            stream = stack.enter_context(client.stream("GET", "/events", headers=wants))
            assert stream.status_code == 200
        refused = client.get("/events", headers=wants)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert client.get("/metrics").status_code == 200
        stream.close()
        eventually(lambda: answers_at_once(client, wants))


def answers_at_once(client: httpx.Client, wants: dict[str, str]) -> bool:
    with client.stream("GET", "/events", headers=wants) as stream:
        return stream.status_code == 200


@pytest.mark.parametrize("length", ["Content-Length: 5", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_a_body_is_refused_before_it_comes_and_the_connection_ends(
    method: str, length: str
) -> None:
    with serving(small) as served, socket.create_connection(("127.0.0.1", served.port)) as client:
        client.settimeout(10)
        client.sendall(f"{method} /metrics HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode())
        answer = b""
        while more := client.recv(65536):
            answer += more
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer


def test_requests_that_do_not_wait_for_answers_get_one() -> None:
    with serving(small) as served, socket.create_connection(("127.0.0.1", served.port)) as client:
        client.settimeout(10)
        client.sendall(A_REQUEST * 10)
        answer = b""
        while more := client.recv(65536):
            answer += more
        assert answer.count(b"HTTP/1.1 200 OK") == 1


def test_a_client_that_resets_leaves_nothing_behind() -> None:
    with serving(small) as served:
        for first in (b"", HALF_A_HEAD, A_REQUEST):
            with clients(served.port, 50, first) as opened:
                for client in opened:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        eventually(lambda: served.open_connections == 0)
        assert not served.server.server_state.connections


def test_a_connection_that_comes_with_the_end_is_closed() -> None:
    for _ in range(20):
        with serving(small) as served, clients(served.port, 20, HALF_A_HEAD):
            pass  # the server ends with some of them just accepted; an open socket would warn


def test_half_open_connections_do_not_hold_up_the_end() -> None:
    with serving(small) as served:
        waiting = clients(served.port, 50, HALF_A_HEAD)
        with waiting, clients(served.port, 50, A_REQUEST):
            eventually(lambda: served.open_connections == 100)
            begun = time.monotonic()
            served.server.stop()
            eventually(lambda: served.open_connections == 0)
            assert time.monotonic() - begun < 2.0
