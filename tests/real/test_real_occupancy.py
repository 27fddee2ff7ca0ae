"""While a client keeps a real vLLM busy, prediction, observation and its own truth agree."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

import httpx
import pytest
from harness import Prometheus, Samples, Server
from known_load import Client, Request, after, near

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.real

BLOCK_SIZE = 32
# The share of moments at which the client may have been kept from looking at its clock.
_BUSY_MACHINE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """What the exporter said about one of its own looks at vLLM."""

    taken_at: float
    running: float
    waiting: float
    used_blocks: float
    predicted_blocks: float
    in_flight_tokens: float

    @classmethod
    def read(cls, page: str) -> Moment:
        samples = Samples.parse(page)
        prefix = "vllm_capacity_"
        waiting = samples.all(f"{prefix}waiting_requests")
        return cls(
            taken_at=samples.one(f"{prefix}last_success_timestamp_seconds", source="vllm"),
            running=samples.one(f"{prefix}running_requests"),
            waiting=sum(value for _, value in waiting),
            used_blocks=samples.one(f"{prefix}kv_cache_used_blocks"),
            predicted_blocks=samples.one(f"{prefix}predicted_kv_cache_used_blocks"),
            in_flight_tokens=samples.one(f"{prefix}in_flight_tokens"),
        )

    @property
    def error_blocks(self) -> float:
        return self.used_blocks - self.predicted_blocks


@dataclass(frozen=True, slots=True)
class Watched:
    """A run of the load: every moment that the exporter published, and the client's own record."""

    moments: tuple[Moment, ...]
    client: Client
    began_at: float
    ended_at: float

    @property
    def busy(self) -> list[Moment]:
        return [moment for moment in self.moments if moment.running]


def unlike_any_other(lengths: random.Random) -> Request:
    """A request whose prompt shares no prefix with another's."""
    prompt = [lengths.randrange(256) for _ in range(lengths.randint(40, 400))]
    return Request(prompt=prompt, output_tokens=lengths.randint(100, 480))


async def watch(exporter: Server, http: httpx.AsyncClient, moments: dict[float, Moment]) -> None:
    """Read the exporter four times a second, and keep each of its own samples once."""
    while True:
        page = (await http.get(exporter.url + "/metrics")).text
        moment = Moment.read(page)
        moments[moment.taken_at] = moment
        await asyncio.sleep(0.25)


async def load_and_watch(vllm: Server, exporter: Server, phases: Sequence[int]) -> Watched:
    moments: dict[float, Moment] = {}
    began_at = time.time()
    async with httpx.AsyncClient(timeout=120) as http:
        client = Client(vllm.url, "tiny-llama", http)
        watching = asyncio.create_task(watch(exporter, http, moments))
        for seed, workers in enumerate(phases):
            await client.keep_busy(unlike_any_other, workers=workers, seed=seed, until=after(20))
        ended_at = time.time()
        await asyncio.sleep(3)  # the idle server is a sample as well
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return Watched(tuple(moments.values()), client, began_at, ended_at)


@pytest.fixture(scope="module")
def watched(
    vllm: Server, watcher: Server, prometheus_server: Prometheus, artefacts: Path
) -> Watched:
    """Five requests at a time, then sixteen where the server runs twelve, so that some queue.

    Prometheus scrapes both pages meanwhile.
    """
    assert prometheus_server.query("vector(1)")
    run = asyncio.run(load_and_watch(vllm, watcher, phases=(5, 16)))
    report = [asdict(moment) for moment in run.moments]
    (artefacts / "occupancy.json").write_text(json.dumps(report, indent=1))
    assert len(run.busy) >= 20, "too few samples for the laws below to mean anything"
    return run


def test_the_exporter_looked_at_a_half_full_and_at_a_queueing_server(watched: Watched) -> None:
    assert any(moment.waiting for moment in watched.busy)
    assert max(moment.used_blocks for moment in watched.busy) > 150


def test_predicted_used_blocks_stay_within_one_block_per_running_request(watched: Watched) -> None:
    astray = [m for m in watched.busy if abs(m.error_blocks) > m.running]
    assert astray == []


def test_the_prediction_is_not_the_observation_handed_back(watched: Watched) -> None:
    errors = [abs(moment.error_blocks) for moment in watched.busy]
    assert median(errors) > 0


def test_used_blocks_are_what_the_clients_requests_fill(watched: Watched) -> None:
    astray = []
    for moment in watched.busy:
        known = [
            watched.client.blocks_between(start, end, BLOCK_SIZE)
            for start, end in near(moment.taken_at)
        ]
        # One more block for the token that is being computed and has not been delivered.
        if not any(low <= moment.used_blocks <= high + moment.running for low, high in known):
            astray.append((moment, known))
    assert len(astray) <= _BUSY_MACHINE * len(watched.busy), astray


def test_in_flight_tokens_are_those_of_the_client(watched: Watched) -> None:
    astray = []
    for moment in watched.busy:
        known = [watched.client.tokens_between(start, end) for start, end in near(moment.taken_at)]
        # A step delivers one token to each request.
        if not any(low <= moment.in_flight_tokens <= high + moment.running for low, high in known):
            astray.append((moment, known))
    assert len(astray) <= _BUSY_MACHINE * len(watched.busy), astray


def test_prometheus_saw_the_same_mean_usage_on_both_pages(
    watched: Watched, prometheus_server: Prometheus
) -> None:
    seconds = round(watched.ended_at - watched.began_at)
    window = f"[{seconds}s] @ {watched.ended_at:.0f}"
    theirs = prometheus_server.one(f"avg_over_time(vllm:kv_cache_usage_perc{window})")
    ours = prometheus_server.one(f"avg_over_time(vllm_capacity_kv_cache_usage_ratio{window})")
    assert theirs > 0.1
    assert ours == pytest.approx(theirs, abs=0.05)  # two scrapes a second apart


def test_an_idle_server_holds_nothing_and_is_predicted_to_hold_nothing(watched: Watched) -> None:
    last = watched.moments[-1]
    assert (last.running, last.waiting) == (0, 0)
    assert (last.used_blocks, last.predicted_blocks, last.in_flight_tokens) == (0, 0, 0)


def test_every_request_got_the_length_that_it_asked_for(watched: Watched) -> None:
    assert len(watched.client.streams) > 20
    for stream in watched.client.streams:
        assert stream.received(time.time()) == stream.output_tokens
