"""What open streams of the status document cost the daemon, with its targets being recordings.

    python benchmarks/streams.py [STREAMS] [TARGETS] [SECONDS]

Starts `serve` over servers that play a recording, measures the processor time of that process
alone, first without streams and then with them, and prints both as shares of one core.
"""

import asyncio
import contextlib
import json
import lzma
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TRACE = Path(__file__).parent.parent / "tests" / "data" / "traces" / "ramp.jsonl.xz"
CONFIG = Path(__file__).parent.parent / "tests" / "data" / "models" / "small-llama"
INTERVAL_SECONDS = 5
_REQUEST = (
    b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
    b"Accept-Encoding: gzip\r\n\r\n"
)


def pages() -> list[bytes]:
    with lzma.open(TRACE, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["metrics"].encode() for line in lines]


@contextlib.contextmanager
def engine(recorded: list[bytes], ahead: int) -> Iterator[int]:
    """A server that plays a recording in its own time, so many seconds ahead."""
    began = time.monotonic() - ahead

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = recorded[int(time.monotonic() - began) % len(recorded)]
            found = self.path == "/metrics"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body) if found else 0))
            self.end_headers()
            self.wfile.write(body if found else b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


async def read(port: int, received: list[int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_REQUEST)
    try:
        while part := await reader.read(1 << 16):
            received[0] += len(part)
    finally:
        writer.close()


def processor_seconds(pid: int) -> float:
    """User and system time, as ``/proc/<pid>/stat`` counts it."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def share(pid: int, seconds: float) -> float:
    before, began = processor_seconds(pid), time.monotonic()
    await asyncio.sleep(seconds)
    return (processor_seconds(pid) - before) / (time.monotonic() - began)


async def measure(streams: int, targets: int, seconds: float) -> None:
    recorded = pages()
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(engine(recorded, 7 * i)) for i in range(targets)]
        daemon = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "vllm_capacity.cli", "serve"),
            *("--web.listen-address", "127.0.0.1:0", "--scrape-interval", f"{INTERVAL_SECONDS}s"),
            *("--model-config", str(CONFIG)),
            *(word for port in ports for word in ("--target", f"http://127.0.0.1:{port}")),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            port = await listening_port(daemon)
            await asyncio.sleep(2 * INTERVAL_SECONDS)
            await report(daemon.pid, port, streams, targets, seconds)
        finally:
            daemon.terminate()
            await daemon.communicate()


async def listening_port(daemon: asyncio.subprocess.Process) -> int:
    """As the daemon says it, of the line that holds its own address."""
    if daemon.stderr is not None:
        async for line in daemon.stderr:
            if b"serving" in line and (said := re.search(rb":(\d+)/", line)):
                return int(said[1])
    raise SystemExit("the daemon ended before it served")


async def report(pid: int, port: int, streams: int, targets: int, seconds: float) -> None:
    alone = await share(pid, seconds)
    received = [0]
    readers = [asyncio.create_task(read(port, received)) for _ in range(streams)]
    await asyncio.sleep(INTERVAL_SECONDS)
    received[0] = 0
    busy = await share(pid, seconds)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    print(f"{targets} targets every {INTERVAL_SECONDS} s, each share over {seconds:.0f} s:")
    print(f"  without streams   {alone:.2%} of a core")
    print(f"  with {streams} streams   {busy:.2%}, that is {busy - alone:.2%} more")
    print(f"  a stream receives {received[0] / streams / seconds:,.0f} bytes a second")


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    asyncio.run(measure(*[*given, *(50, 1, 60)[len(given) :]]))
