"""What the last hour of an engine costs: memory, processor time a collection, and its size.

Recordings of a real vLLM are fed through the daemon's own monitor; the time that one collection
takes to remember stands beside that of the collection. Exits with 1 beyond a limit.
"""

import asyncio
import gzip
import json
import sys
import time
from dataclasses import replace

import structlog
from tick import TRACES, Recorded, monitor, resident_bytes

from vllm_capacity.compare.fleet import TargetAssessment
from vllm_capacity.status.history import HOUR_SECONDS, History

ENGINES = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
INTERVAL_SECONDS = 5.0
STEPS = int(HOUR_SECONDS / INTERVAL_SECONDS)
MOST_BYTES = 60_000
MOST_SHARE_OF_TICK = 0.1
RECORDING = TRACES / "longdecode.jsonl.xz"


async def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    share, last, history = await remembered()
    document(history)
    each = memory(last)
    return 0 if share <= MOST_SHARE_OF_TICK and each <= MOST_BYTES else 1


async def remembered() -> tuple[float, TargetAssessment, History]:
    """The share of a collection's processor time that remembering it takes on top."""
    engine, history = Recorded(), History(INTERVAL_SECONDS)
    watched = monitor(engine, "recorded")
    await watched.collect_config()
    collecting = remembering = 0.0
    for number, _ in enumerate(engine.pages(RECORDING)):
        start = time.thread_time()
        await watched.collect_engine()
        collected = time.thread_time()
        history.record(watched.current(), INTERVAL_SECONDS * number)
        remembering += time.thread_time() - collected
        collecting += collected - start
    share = remembering / collecting
    print(f"remembering takes {share:.3f} of what the collection itself does")
    return share, watched.current(), history


def document(history: History) -> None:
    """The size of an hour's answer."""
    columns = history.columns("recorded", "0", since=0.0)
    body = json.dumps(columns, separators=(",", ":")).encode()
    print(
        f"{len(columns['timestamp_seconds'])} rows of one engine: {len(body)} bytes, "
        f"{len(gzip.compress(body, compresslevel=1))} compressed"
    )


def memory(last: TargetAssessment) -> float:
    """Bytes that a whole hour of each of many engines takes."""
    targets = [replace(last, target=f"target-{i}") for i in range(ENGINES)]
    before, history = resident_bytes(), History(INTERVAL_SECONDS)
    for step in range(STEPS + 10):
        for each in targets:
            history.record(each, INTERVAL_SECONDS * step)
    size = (resident_bytes() - before) / ENGINES
    print(f"{ENGINES} engines for an hour: {size / 1e3:.0f} kB resident each")
    return size


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
