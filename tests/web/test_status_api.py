"""The status API: one document for who asks once, every newer one for who stays."""

import asyncio
import json
import socket
import time
from dataclasses import replace

import pytest
from fleets import NOW, fleet, on_gpu, recorded, silent, target
from readers import EVENTS, Reader, reading, run, until
from starlette.applications import Starlette

from vllm_capacity.compare.fleet import FleetAssessment
from vllm_capacity.status.document import EVERYTHING
from vllm_capacity.web import documents as documents_module
from vllm_capacity.web.documents import StatusDocuments, event, gzipped_event, plain
from vllm_capacity.web.events import StatusStreams
from vllm_capacity.web.security_headers import SecurityHeaders
from vllm_capacity.web.server import WebServer
from vllm_capacity.web.status_api import status_routes

LOOK_SECONDS = 0.01
GZIP = {"accept_encoding": "gzip, deflate, br"}


class Exporter:
    """The API over fleets that the test publishes."""

    def __init__(self, published: FleetAssessment | None = None, **speeds: float) -> None:
        self.fleet = fleet(target("a:1"), target("b:2")) if published is None else published
        self.looks = 0
        documents = StatusDocuments(self._published, scrape_interval_seconds=5.0, wall=self._wall)
        self.streams = StatusStreams(documents, **{"look_seconds": LOOK_SECONDS, **speeds})
        routes = status_routes(documents, self.streams)
        self.application = SecurityHeaders(Starlette(routes=routes))

    def _wall(self) -> float:
        return NOW

    def _published(self) -> FleetAssessment:
        self.looks += 1
        return self.fleet

    def publish(self, name: str) -> None:
        """Something new: a fleet of one silent target of that name."""
        self.fleet = fleet(silent(name))

    def get(self, path: str = "/api/v1/status", **headers: str) -> Reader:
        found: list[Reader] = []

        async def ask() -> None:
            async with reading(self.application, path, **headers) as reader:
                await reader.done.wait()
            found.append(reader)

        asyncio.run(ask())
        return found[0]


def names(document: dict[str, list[dict[str, str]]]) -> list[str]:
    return [each["target"] for each in document["targets"]]


def test_who_asks_once_gets_one_document() -> None:
    answer = Exporter().get()
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert names(answer.json) == ["a:1", "b:2"]
    assert answer.json["generated_timestamp_seconds"] == NOW


def test_an_answer_is_kept_by_nobody_and_framed_by_nobody() -> None:
    for headers in ({}, EVENTS, GZIP):
        exporter = Exporter()
        exporter.streams.stop()
        answer = exporter.get(**headers)
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["vary"] == "Accept, Accept-Encoding"


def test_a_document_keeps_its_number_until_something_is_published() -> None:
    exporter = Exporter()
    first, second = exporter.get().json, exporter.get().json
    assert first == second
    exporter.publish("c:3")
    third = exporter.get().json
    assert third["sequence"] == first["sequence"] + 1
    assert names(third) == ["c:3"]


def test_numbers_grow_over_restarts() -> None:
    before, after = Exporter(), Exporter()
    after._wall = lambda: NOW + 10.0  # type: ignore[method-assign]
    later = StatusDocuments(after._published, scrape_interval_seconds=5.0, wall=after._wall)
    assert later.newest() > before.get().json["sequence"]


def test_who_takes_gzip_gets_the_same_in_less() -> None:
    exporter = Exporter()
    small, large = exporter.get(**GZIP), exporter.get()
    assert small.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in large.headers
    assert small.json == large.json
    assert len(small.body) < len(large.body) / 2


@pytest.mark.parametrize("headers", [{}, GZIP])
def test_descriptions_are_given_to_who_asks_for_them(headers: dict[str, str]) -> None:
    exporter = Exporter()
    described = exporter.get("/api/v1/status?descriptions=true", **headers).json
    assert described.pop("descriptions")["kv_cache_used_blocks"]["help"]
    assert described == exporter.get(**headers).json


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("", ["a:1", "b:2"]),
        ("?target=b:2", ["b:2"]),
        ("?target=a:1&target=b:2", ["a:1", "b:2"]),
        ("?engine=0", ["a:1", "b:2"]),
        ("?engine=7", []),
        ("?target=a:1&engine=7", []),
    ],
)
def test_a_query_narrows_it_down(query: str, left: list[str]) -> None:
    assert names(Exporter().get(f"/api/v1/status{query}").json) == left


def test_who_stays_gets_the_document_at_once_and_each_newer_one_once() -> None:
    async def scenario() -> None:
        exporter = Exporter()
        async with reading(exporter.application, **EVENTS) as reader:
            await until(lambda: len(reader.documents) == 1)
            assert reader.headers["content-type"].startswith("text/event-stream")
            await asyncio.sleep(10 * LOOK_SECONDS)
            assert len(reader.documents) == 1
            exporter.publish("c:3")
            await until(lambda: len(reader.documents) == 2)
        retry, first, second = reader.events
        assert retry == {"retry": "2000"}
        assert first["event"] == second["event"] == "status"
        for sent, document in zip((first, second), reader.documents, strict=True):
            assert int(sent["id"]) == document["sequence"]
            assert "descriptions" not in document
        assert [names(each) for each in reader.documents] == [["a:1", "b:2"], ["c:3"]]

    run(scenario)


def test_a_stream_is_narrowed_down_as_well() -> None:
    async def scenario() -> None:
        path = "/api/v1/status?target=b:2"
        async with reading(Exporter().application, path, **EVENTS) as reader:
            await until(lambda: reader.documents)
        assert names(reader.documents[0]) == ["b:2"]

    run(scenario)


def test_who_comes_back_gets_only_what_is_newer() -> None:
    async def scenario() -> None:
        exporter = Exporter()
        async with reading(exporter.application, **EVENTS) as before:
            await until(lambda: before.documents)
        last = before.events[-1]["id"]
        async with reading(exporter.application, **EVENTS, last_event_id=last) as after:
            await asyncio.sleep(10 * LOOK_SECONDS)
            assert not after.documents
            exporter.publish("c:3")
            await until(lambda: after.documents)
        assert [names(each) for each in after.documents] == [["c:3"]]

    run(scenario)


@pytest.mark.parametrize("last", ["1", "", "yesterday", "-1", "²", "9" * 5000])
def test_a_number_that_is_not_the_newest_gets_the_newest(last: str) -> None:
    async def scenario() -> None:
        async with reading(Exporter().application, **EVENTS, last_event_id=last) as reader:
            await until(lambda: reader.documents)

    run(scenario)


def test_silence_is_broken_by_a_comment() -> None:
    async def scenario() -> None:
        exporter = Exporter(heartbeat_seconds=5 * LOOK_SECONDS)
        async with reading(exporter.application, **EVENTS) as reader:
            await until(lambda: len(reader.events) >= 5)
        assert [set(each) for each in reader.events[2:5]] == [{""}] * 3
        assert len(reader.documents) == 1

    run(scenario)


def test_streams_share_one_look_and_one_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(*args: object, **named: object) -> dict[str, object]:
        made.append(args)
        return documents_module_status(*args, **named)  # type: ignore[arg-type]

    documents_module_status = documents_module.status_document
    monkeypatch.setattr(documents_module, "status_document", counted)

    async def scenario() -> None:
        exporter = Exporter(look_seconds=0.2)
        async with asyncio.TaskGroup() as group:

            async def listen() -> None:
                async with reading(exporter.application, **EVENTS) as reader:
                    await until(lambda: len(reader.documents) == 2)

            readers = [group.create_task(listen()) for _ in range(50)]
            await asyncio.sleep(0.1)
            exporter.publish("c:3")
        assert all(each.done() for each in readers)
        assert len(made) == 2
        assert exporter.looks <= 4

    run(scenario)


def test_while_nobody_listens_nobody_looks() -> None:
    async def scenario() -> None:
        exporter = Exporter()
        await asyncio.sleep(10 * LOOK_SECONDS)
        assert exporter.looks == 0
        async with reading(exporter.application, **EVENTS) as reader:
            await until(lambda: reader.documents)
        looks = exporter.looks
        await asyncio.sleep(10 * LOOK_SECONDS)
        assert exporter.looks == looks

    run(scenario)


def test_a_slow_reader_skips_what_it_is_too_late_for() -> None:
    async def scenario() -> None:
        exporter = Exporter()
        async with reading(exporter.application, **EVENTS) as reader:
            await until(lambda: reader.documents)
            reader.takes.clear()
            for number in range(20):
                exporter.publish(f"c:{number}")
                await asyncio.sleep(2 * LOOK_SECONDS)
            reader.takes.set()
            await until(lambda: names(reader.documents[-1]) == ["c:19"])
        assert len(reader.documents) == 3  # the first, one that waited to be taken, the newest

    run(scenario)


def test_a_reader_who_takes_nothing_is_let_go() -> None:
    async def scenario() -> None:
        exporter = Exporter(stalled_seconds=0.05)
        async with reading(exporter.application, **EVENTS) as reader:
            reader.takes.clear()
            await asyncio.wait_for(reader.done.wait(), 5)

    run(scenario)


def test_a_fault_of_ours_ends_a_stream_and_is_not_hidden() -> None:
    async def scenario() -> None:
        exporter = Exporter()
        exporter.fleet = None  # type: ignore[assignment]
        with pytest.raises(AttributeError):
            async with reading(exporter.application, **EVENTS) as reader:
                await asyncio.wait_for(reader.done.wait(), 5)

    run(scenario)


def test_a_reader_who_leaves_ends_its_stream() -> None:
    async def scenario() -> None:
        exporter = Exporter()
        async with reading(exporter.application, **EVENTS) as reader:
            await until(lambda: reader.documents)
            reader.gone.set()
            await asyncio.wait_for(reader.done.wait(), 5)

    run(scenario)


@pytest.mark.parametrize("takes", [True, False])
def test_the_end_of_the_server_ends_every_stream_at_once(*, takes: bool) -> None:
    async def scenario() -> None:
        exporter = Exporter(look_seconds=60.0)
        async with reading(exporter.application, **EVENTS) as reader:
            await until(lambda: reader.documents)
            if not takes:
                reader.takes.clear()
            exporter.streams.stop()
            began = time.monotonic()
            await asyncio.wait_for(reader.done.wait(), 5)
            assert time.monotonic() - began < 1.0

    run(scenario)


def test_a_compressed_stream_says_the_same_event_by_event() -> None:
    async def scenario() -> None:
        exporter = Exporter(heartbeat_seconds=3 * LOOK_SECONDS)
        async with reading(exporter.application, **EVENTS, **GZIP) as reader:
            await until(lambda: reader.documents)
            await until(lambda: {"": ""} in reader.events)
            exporter.publish("c:3")
            await until(lambda: len(reader.documents) == 2)
        assert reader.headers["content-encoding"] == "gzip"
        assert reader.events[0] == {"retry": "2000"}
        assert names(reader.documents[-1]) == ["c:3"]

    run(scenario)


def test_many_selections_are_not_all_remembered() -> None:
    exporter = Exporter()
    for number in range(300):
        exporter.get(f"/api/v1/status?target={number}")
    documents = StatusDocuments(exporter._published, scrape_interval_seconds=5.0)
    documents.newest()
    for number in range(300):
        documents.encoded(replace(EVERYTHING, targets=frozenset({str(number)})), plain)
    assert len(documents._encoded) <= 64


#: Scrapes of recordings in which much is happening.
MOMENTS = [("ramp", 25.0), ("ramp", 80.0), ("longdecode", 120.0), ("dp-ramp", 60.0)]
MOST_BYTES = 5000


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_an_update_takes_less_than_5_kb_an_engine(moment: tuple[str, float]) -> None:
    one = recorded(*moment)
    documents = StatusDocuments(lambda: on_gpu(one), scrape_interval_seconds=5.0)
    documents.newest()
    sent = documents.encoded(EVERYTHING, gzipped_event)
    assert len(sent) < MOST_BYTES * len(one.engines)


def test_of_64_engines_it_takes_less_than_5_kb_each_even_unpacked() -> None:
    engines = recorded("ramp", 80.0).engines * 64
    many = fleet(replace(recorded("ramp", 80.0), engines=engines))
    documents = StatusDocuments(lambda: many, scrape_interval_seconds=5.0)
    documents.newest()
    assert len(documents.encoded(EVERYTHING, event)) < 64 * MOST_BYTES
    assert len(documents.encoded(EVERYTHING, gzipped_event)) < 64 * 1000


async def _served(exporter: Exporter) -> tuple[WebServer, asyncio.Task[None], int]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = WebServer(exporter.application)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    await until(lambda: server.started)
    return server, serving, listening.getsockname()[1]


def test_no_stream_keeps_a_real_server_from_stopping() -> None:
    async def scenario() -> None:
        exporter = Exporter(fleet(*(target(f"a:{i}") for i in range(64))), look_seconds=1.0)
        server, serving, port = await _served(exporter)
        opened = []
        for _ in range(20):  # half of them never read what they are sent
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
            writer.write(
                b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
            )
            opened.append((reader, writer))
        for reader, _ in opened[:10]:
            await reader.readuntil(b"event: status")
        began = time.monotonic()
        exporter.streams.stop()
        server.stop()
        await asyncio.wait_for(serving, 10)
        took = time.monotonic() - began
        for _, writer in opened:
            writer.close()
        assert took < 1.5

    run(scenario)


def test_what_a_stream_sends_is_json_on_one_line() -> None:
    marked = fleet(target("a\nb: </script>"))
    documents = StatusDocuments(lambda: marked, scrape_interval_seconds=5.0)
    documents.newest()
    lines = documents.encoded(EVERYTHING, event).split(b"\n")
    assert [line.partition(b":")[0] for line in lines] == [b"id", b"event", b"data", b"", b""]
    assert json.loads(lines[2].removeprefix(b"data: "))["targets"][0]["target"] == "a\nb: </script>"
