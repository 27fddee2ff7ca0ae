"""What one collection costs: parse, ledger, compare, publish; and what 1,000 engines take.

Recordings of a real vLLM are fed through the daemon's own monitors, so the ledger is in real
states. The processor time of a tick stands beside that of one reading of the same page by
prometheus_client's parser: the ratio holds on machines fast and slow, and is what is promised,
with room for noise. Exits with 1 beyond a limit. An argument says how many engines are enough.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from vllm_capacity.compare.fleet import FleetAssessment
from vllm_capacity.export.collector import CapacityCollector
from vllm_capacity.monitor import Monitor
from vllm_capacity.sources.model_files import read_model_config
from vllm_capacity.sources.recording import read_recording
from vllm_capacity.sources.vllm_http import ServedModel
from vllm_capacity.target_settings import TargetSettings

TRACES = Path(__file__).parent.parent / "tests" / "data" / "traces"
ENGINES = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
MEMORY_SECONDS = 600
INTERVAL_SECONDS = 5
# Where prometheus_client takes 5 ms for the page, this is the 1 ms that is promised.
MOST_SHARE_OF_REFERENCE = 0.25
MOST_BYTES = 200_000


class Recorded:
    """A server that answers one page of a recording after another; and its clock."""

    url = "http://recorded:8000"

    def __init__(self) -> None:
        self.page, self.now = b"", 0.0

    async def metrics(self) -> bytes:
        return self.page

    async def models(self) -> tuple[ServedModel, ...]:
        return ()

    async def version(self) -> str | None:
        return None

    def clock(self) -> float:
        return self.now

    def pages(self, recording: Path, every: int = 1) -> Iterator[bytes]:
        """Its pages, each while it is the one that is answered."""
        for scrape in islice(read_recording(recording), None, None, every):
            if scrape.metrics is not None:
                self.page, self.now = scrape.metrics.encode(), scrape.t
                yield self.page


def monitor(engine: Recorded, name: str) -> Monitor:
    settings = TargetSettings(
        url=engine.url, model_config=str(TRACES.parent / "models" / "small-llama")
    )
    return Monitor(
        name,
        settings,
        engine=engine,
        read_config=read_model_config,
        monotonic=engine.clock,
        wall=engine.clock,
    )


async def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    shares = [await tick(recording) for recording in sorted(TRACES.glob("*.jsonl.xz"))]
    each = await memory(TRACES / "longdecode.jsonl.xz")
    return 0 if max(shares) <= MOST_SHARE_OF_REFERENCE and each <= MOST_BYTES else 1


async def tick(recording: Path) -> float:
    """Mean cost of a tick and engine, as a share of the reference."""
    engine = Recorded()
    watched = monitor(engine, "recorded")
    await watched.collect_config()
    ticks, reference = [], []
    for number, page in enumerate(engine.pages(recording)):
        start = time.thread_time()
        await watched.collect_engine()
        ticks.append(time.thread_time() - start)
        if number % 20 == 0:
            text = page.decode()
            reference.append(seconds(lambda t=text: list(text_string_to_metric_families(t))))
    engines = len(watched.current().engines)
    mean = sum(ticks) / len(ticks) / engines
    share = mean / (median(reference) / engines)
    page = rendering([watched])
    render = median(seconds(page) for _ in range(20)) / engines
    print(
        f"{recording.name.split('.')[0]:<11} {engines} engine(s), {len(engine.page)} bytes: tick "
        f"{mean * 1e3:.2f} ms an engine (95 % below {ordered(ticks, 0.95) / engines * 1e3:.2f}, "
        f"all below {max(ticks) / engines * 1e3:.1f}), {share:.3f} of prometheus_client's parsing; "
        f"our own page of {len(page())} bytes {render * 1e3:.2f} ms an engine"
    )
    return share


async def memory(recording: Path) -> float:
    """Bytes that each of many engines takes after ten minutes."""
    engine = Recorded()
    warm = monitor(engine, "warm")
    for _ in islice(engine.pages(recording), 10):
        await warm.collect_engine()
    before = resident_bytes()
    monitors = [monitor(engine, f"target-{i}") for i in range(ENGINES)]
    for _ in engine.pages(recording, INTERVAL_SECONDS):
        for watched in monitors:
            await watched.collect_engine()
        if engine.now > MEMORY_SECONDS:
            break
    each = (resident_bytes() - before) / ENGINES
    page = rendering(monitors)
    print(
        f"{ENGINES} engines after {engine.now:.0f} s: {each / 1e3:.0f} kB resident each; "
        f"their page of {len(page()) / 1e6:.1f} MB takes {seconds(page):.2f} s"
    )
    return each


def rendering(monitors: list[Monitor]) -> Callable[[], bytes]:
    registry = CollectorRegistry(auto_describe=False)
    fleet = FleetAssessment(targets=tuple(m.current() for m in monitors))
    registry.register(CapacityCollector(lambda: fleet, with_target=len(monitors) > 1))
    return lambda: generate_latest(registry)


def seconds(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def ordered(values: list[float], quantile: float) -> float:
    return sorted(values)[int(quantile * (len(values) - 1))]


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
