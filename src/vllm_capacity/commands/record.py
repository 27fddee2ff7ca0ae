"""``vllm-capacity record URL FILE``: a recording of a server's metrics pages, for ``replay``."""

import argparse
import asyncio
import math
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import httpx

from vllm_capacity import __version__
from vllm_capacity.errors import ExpositionError, Fault, SettingsError, SourceError
from vllm_capacity.monitor import Pipeline
from vllm_capacity.setting_values import duration_seconds, size_bytes
from vllm_capacity.settings import SETTINGS, Setting
from vllm_capacity.sources.recording_file import RecordingFile
from vllm_capacity.sources.redaction import Redaction
from vllm_capacity.sources.vllm_http import VllmHttp, new_client

_FLUSH_SECONDS = 5.0
_PROGRESS_SECONDS = 60.0
_IDENTITY_SECONDS = 60.0
_TLS = ("ca-file", "client-cert-file", "client-key-file", "tls-server-name")
_AS_IN_SERVE = ("scrape-timeout", "max-page-size", "bearer-token-file", *_TLS)
OPTIONS = (
    Setting("interval", "1s", duration_seconds, "time between two scrapes", metavar="DURATION"),
    Setting("duration", "1h", duration_seconds, "how long to record", metavar="DURATION"),
    Setting("max-bytes", "100MB", size_bytes, "how large FILE may grow", metavar="SIZE"),
    *(setting for setting in SETTINGS if setting.name in _AS_IN_SERVE),
)

_EPILOG = """\
FILE ends in .xz (an hour at one scrape a second is some 5 MB), in .gz (20 MB), or is plain
(200 MB). What is in FILE already is kept and continued, also when its end was cut off. A kill
loses at most the last five seconds. Ctrl-C or SIGTERM ends the recording, with exit status 0.

What is in it: the metrics pages with their times, vLLM's version, and the names and lengths that
/v1/models lists. Pages hold the served model's name, which may be a path, names of LoRA adapters,
and every request count; no prompt, no answer, no address, no credential. --redact numbers names.

examples:
  vllm-capacity record http://localhost:8000 vllm.jsonl.xz --duration 10m
  vllm-capacity replay vllm.jsonl.xz
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``record``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("url", metavar="URL", help="a vLLM server, as in http://localhost:8000")
    parser.add_argument("file", metavar="FILE", help="the recording: .jsonl.xz, .jsonl.gz, .jsonl")
    parser.add_argument(
        "--redact", action="store_true", help="write name-1, name-2, … for models and adapters"
    )
    for option in OPTIONS:
        shown = "" if option.default is None else " (default: %(default)s)"
        parser.add_argument(
            f"--{option.name}",
            dest=option.attribute,
            default=option.default,
            metavar=option.metavar,
            help=option.help + shown,
        )


def run(args: argparse.Namespace) -> int:
    """Record until a limit is reached or told to stop; 1 if every scrape failed."""
    return asyncio.run(_record(args, _options(args)))


def _options(args: argparse.Namespace) -> dict[str, Any]:
    values, faults = {}, []
    for option in OPTIONS:
        written = getattr(args, option.attribute)
        try:
            values[option.attribute] = None if written is None else option.parse(written)
        except ValueError as error:
            faults.append(Fault(f"--{option.name}", written, str(error)))
    if faults:
        raise SettingsError("record", faults)
    return values


async def _record(args: argparse.Namespace, options: Mapping[str, Any]) -> int:
    async with _client(options) as client:
        server = VllmHttp(
            args.url,
            client=client,
            timeout_seconds=options["scrape_timeout"],
            max_body_bytes=options["max_page_size"],
            bearer_token_file=options["bearer_token_file"],
            tls_server_name=options["tls_server_name"],
        )
        with RecordingFile(args.file, max_bytes=options["max_bytes"]) as file:
            session = Session(file, interval_seconds=options["interval"], redact=args.redact)
            _tell(f"recording {server.url} until Ctrl-C; --help says what is in a recording")
            ended = await _until_ended(session, server, options)
            file.flush()
            _tell(f"{session.progress()}; ended: {ended}")
    return 1 if session.failures and not session.pages else 0


def _client(options: Mapping[str, Any]) -> httpx.AsyncClient:
    return new_client(
        ca_file=options["ca_file"],
        client_cert_file=options["client_cert_file"],
        client_key_file=options["client_key_file"],
    )


async def _until_ended(session: "Session", server: VllmHttp, options: Mapping[str, Any]) -> str:
    """Record; returns why it ended."""
    following = asyncio.create_task(session.follow(server))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, following.cancel)
    try:
        async with asyncio.timeout(options["duration"]):
            await following
    except TimeoutError:
        return f"{options['duration']:g} s are over (--duration)"
    except asyncio.CancelledError:
        return "told to stop"
    return f"it would grow beyond {options['max_bytes'] / 1e6:g} MB (--max-bytes)"


class Session:
    """One run of ``record``: scrapes at their times, appended to a recording.

    Args:
        file: what is there already goes on by the wall clock, and never back in time.
        interval_seconds: from the start of one scrape to that of the next; a scrape that takes
            longer leaves out those that it covered.
        redact: whether names are replaced.

    Attributes:
        pages: how many came.
        failures: scrapes without one.
    """

    def __init__(self, file: RecordingFile, *, interval_seconds: float, redact: bool) -> None:
        self._file, self._interval_seconds = file, interval_seconds
        self._pipeline = Pipeline()
        self._redaction = Redaction() if redact else None
        self.pages = self.failures = 0
        now = time.time()
        self._started = file.started_timestamp_seconds or now
        self._t_at_start = max(file.last_t, now - self._started)
        self._clock_at_start = time.monotonic()
        self._flushed_at = 0.0
        self._told_at = -math.inf
        self._last_problem: str | None = None
        self._beside: dict[str, Any] = {"recording": self._header(interval_seconds)}

    def progress(self) -> str:
        """How far it is, in words."""
        return (
            f"{self.pages} pages and {self.failures} failed scrapes in {self._seconds():.0f} s, "
            f"{self._file.size_bytes / 1e6:.2f} MB"
        )

    async def follow(self, server: VllmHttp) -> None:
        """Scrape until the file is full."""
        identifying = asyncio.create_task(self._identify(server))
        try:
            due = self._seconds()
            while not self._file.is_full:
                scraped = await self._scrape(server)
                self._file.append(scraped | self._beside)
                self._beside = {}
                self._flush_and_tell()
                late = self._seconds() - due
                due += self._interval_seconds * (1 + late // self._interval_seconds)
                await asyncio.sleep(due - self._seconds())
        finally:
            identifying.cancel()

    async def _scrape(self, server: VllmHttp) -> dict[str, Any]:
        """One line: the page or why there is none, and the time at which that was known."""
        try:
            page = await server.metrics()
        except SourceError as error:
            self.failures += 1
            self._tell_once(str(error))
            return {"t": self._t(), "metrics": None, "error": error.reason}
        t = self._t()
        self.pages += 1
        self._tell_once(self._problem_with(page))
        text = page.decode("utf-8", "replace")
        return {"t": t, "metrics": self._redaction.page(text) if self._redaction else text}

    async def _identify(self, server: VllmHttp) -> None:
        """Note what is served beside the next line, once the server tells; no scrape waits."""
        while True:
            try:
                models, version = await server.models(), await server.version()
            except SourceError:
                await asyncio.sleep(_IDENTITY_SECONDS)
                continue
            self._beside["server"] = {
                "vllm_version": version,
                "models": [
                    {
                        "id": self._redaction.name(model.id) if self._redaction else model.id,
                        "max_model_len": model.max_model_len,
                    }
                    for model in models
                ],
            }
            return

    def _seconds(self) -> float:
        return time.monotonic() - self._clock_at_start

    def _t(self) -> float:
        return round(self._t_at_start + self._seconds(), 3)

    def _header(self, interval_seconds: float) -> dict[str, Any]:
        return {
            "started_timestamp_seconds": round(self._started, 3),
            "interval_seconds": interval_seconds,
            "made_by": f"vllm-capacity {__version__}",
        }

    def _flush_and_tell(self) -> None:
        now = self._seconds()
        if now - self._flushed_at >= _FLUSH_SECONDS:
            self._file.flush()
            self._flushed_at = now
        if now - self._told_at >= _PROGRESS_SECONDS:
            _tell(self.progress())
            self._told_at = now

    def _tell_once(self, problem: str | None) -> None:
        if problem != self._last_problem:
            _tell(f"t = {self._t():g}: {problem or 'pages again'}")
            self._last_problem = problem

    def _problem_with(self, page: bytes) -> str | None:
        """Why ``replay`` could not use a page, which is recorded all the same."""
        try:
            self._pipeline.read(page, taken_at_seconds=0.0)
        except ExpositionError as error:
            return str(error)
        return None


def _tell(text: str) -> None:
    print(f"vllm-capacity: {text}", file=sys.stderr, flush=True)
