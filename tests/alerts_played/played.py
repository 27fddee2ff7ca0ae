"""Recordings and simulated scenarios as Prometheus would scrape them: vLLM's pages and ours."""

import asyncio
import json
import lzma
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.compare.fleet import FleetAssessment
from vllm_capacity.errors import SourceError
from vllm_capacity.export.collector import CapacityCollector
from vllm_capacity.monitor import Monitor
from vllm_capacity.predict import EngineArgs
from vllm_capacity.simulate import SCENARIOS
from vllm_capacity.simulate.scrapes import Scraping, scrapes
from vllm_capacity.simulate.target import SimulatedTarget
from vllm_capacity.sources.model_files import ModelFiles
from vllm_capacity.sources.vllm_http import ServedModel
from vllm_capacity.target_settings import TargetSettings

TRACES = Path(__file__).parents[1] / "data" / "traces"
RECORDINGS = tuple(sorted(path.name.removesuffix(".jsonl.xz") for path in TRACES.glob("*.xz")))
#: Simulated seconds of each scenario: until what goes wrong has been seen and is over.
SIMULATED = {
    "slow-ramp": 490,
    "flash-crowd": 330,
    "leak": 440,
    "too-few-sequences": 330,
    "smaller-pool": 330,
    "hot-engine": 120,
}
#: From here on a queue is one that a user notices.
LONG_QUEUE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Scraped:
    """One second: what the exporter and the engine show; None where nobody answers.

    Attributes:
        t: recorded seconds.
        exporter: our page.
        engine: vLLM's page.
    """

    t: float
    exporter: str
    engine: str | None


@dataclass(frozen=True, slots=True)
class Queue:
    """A time in which requests waited for room without a pause, on one engine."""

    engine: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Played:
    """A recording or scenario, and what really happened in it.

    Attributes:
        name: of the recording or scenario.
        pages: in the order of time.
        preempted: by engine that ever did, when its counter of preemptions first moved.
        queues: of every engine.
        full: by engine, the seconds at which 95 % of its blocks were used.
        load: requests in all engines, running and waiting, at each second with an answer.
        down: times without an answer, each from the first failed scrape to the next good one.
    """

    name: str
    pages: tuple[Scraped, ...]
    preempted: dict[str, float]
    queues: tuple[Queue, ...]
    full: dict[str, tuple[float, ...]]
    load: tuple[tuple[float, int], ...]
    down: tuple[tuple[float, float], ...]

    @property
    def first_preemption(self) -> float | None:
        return min(self.preempted.values(), default=None)

    @property
    def climbs_before_preempting(self) -> bool:
        """Whether load rose from each ten seconds to the next over the 30 s before it preempted."""
        end = self.first_preemption
        if end is None or end < self.load[0][0] + 30:
            return False
        tens = [
            [count for t, count in self.load if end - back < t <= end - back + 10]
            for back in (30, 20, 10)
        ]
        means = [sum(counts) / len(counts) if counts else 0.0 for counts in tens]
        return means[0] < means[1] < means[2]

    @property
    def first_long_queue(self) -> float | None:
        """When requests had first been waiting for ``LONG_QUEUE_SECONDS`` without a pause."""
        long = [q.begin for q in self.queues if q.end - q.begin >= LONG_QUEUE_SECONDS]
        return min(long) + LONG_QUEUE_SECONDS if long else None


class _Replayed:
    """An engine whose next answer is put into it."""

    url = "http://played:8000"

    def __init__(self) -> None:
        self.page: str | None = None
        self.t = 0.0

    async def metrics(self) -> bytes:
        if self.page is None:
            raise SourceError("connect", "nobody listens")
        return self.page.encode()

    async def models(self) -> tuple[ServedModel, ...]:
        return ()

    async def version(self) -> str | None:
        return None


def _no_config(where: str) -> ModelFiles:
    raise SourceError("absent", where)


def watched(
    name: str, engine_pages: Iterator[tuple[float, str | None]], engine_args: EngineArgs
) -> Played:
    """The daemon's own monitor and collector over pages, on their clock."""
    engine = _Replayed()
    settings = TargetSettings(url=engine.url, engine_args=engine_args)
    monitor = Monitor(
        name,
        settings,
        engine=engine,
        read_config=_no_config,
        monotonic=lambda: engine.t,
        wall=lambda: engine.t,
    )
    registry = CollectorRegistry(auto_describe=False)
    registry.register(
        CapacityCollector(lambda: FleetAssessment(targets=(monitor.current(),)), with_target=False)
    )
    pages, seen = [], []
    for t, page in engine_pages:
        engine.t, engine.page = t, page
        asyncio.run(monitor.collect_engine())
        pages.append(Scraped(t, generate_latest(registry).decode(), page))
        seen.append((t, monitor.current().engines if page is not None else ()))
    return _witnessed(name, tuple(pages), seen)


def _witnessed(
    name: str,
    pages: tuple[Scraped, ...],
    seen: list[tuple[float, tuple[EngineAssessment, ...]]],
) -> Played:
    engines = sorted({a.snapshot.engine for _, some in seen for a in some})
    preempted, queues, full = {}, [], {}
    for engine in engines:
        own = [(t, a) for t, some in seen for a in some if a.snapshot.engine == engine]
        moved = (
            t
            for (_, before), (t, now) in pairwise(own)
            if (now.snapshot.preemptions or 0) > (before.snapshot.preemptions or 0)
            and not now.ledger.restarted
        )
        if (first := next(moved, None)) is not None:
            preempted[engine] = first
        full[engine] = tuple(t for t, a in own if (a.snapshot.kv_cache_usage_ratio or 0) >= 0.95)
        waits = [(t, a.snapshot.waiting_by_reason.get("capacity", 0) > 0) for t, a in own]
        queues += [Queue(engine, *span) for span in _spans(waits)]
    load = tuple(
        (t, sum((a.snapshot.running or 0) + (a.snapshot.waiting or 0) for a in some))
        for t, some in seen
        if some
    )
    down = _spans([(page.t, page.engine is None) for page in pages])
    return Played(name, pages, preempted, tuple(queues), full, load, tuple(down))


def _spans(moments: list[tuple[float, bool]]) -> list[tuple[float, float]]:
    """Stretches of True, from their first moment to the first that is False again."""
    found: list[tuple[float, float]] = []
    begin: float | None = None
    for t, on in moments:
        if on and begin is None:
            begin = t
        if not on and begin is not None:
            found.append((begin, t))
            begin = None
    return found if begin is None else [*found, (begin, moments[-1][0])]


def _recorded_pages(name: str) -> Iterator[tuple[float, str | None]]:
    with lzma.open(TRACES / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
        for line in lines:
            scrape = json.loads(line)
            yield scrape["t"], scrape["metrics"]


def _simulated_pages(name: str) -> Iterator[tuple[float, str | None]]:
    scenario = SCENARIOS[name]
    arrivals = scenario.workload.arrivals(scenario.config)
    target = SimulatedTarget(scenario.config, arrivals, scenario.restarts)
    for scrape in scrapes(target, Scraping(), until_seconds=SIMULATED[name]):
        yield scrape.at_seconds, None if scrape.page is None else scrape.page.decode()


@cache
def played(name: str) -> Played:
    """A recording or a simulated scenario through the exporter."""
    if name in RECORDINGS:
        return watched(name, _recorded_pages(name), EngineArgs())
    limit = EngineArgs(max_num_seqs=SCENARIOS[name].config.max_num_seqs)
    return watched(name, _simulated_pages(name), limit)


def all_played() -> list[Played]:
    """Every recording and scenario, two at a time; the longest first."""
    names = [*sorted(SIMULATED, key=lambda n: n != "hot-engine"), *RECORDINGS]
    with ProcessPoolExecutor(2) as pool:
        made = {p.name: p for p in pool.map(played, names)}
    return [made[name] for name in (*RECORDINGS, *SIMULATED)]
