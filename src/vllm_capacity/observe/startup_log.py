"""vLLM's start-up log as measured facts: what it was asked, what it took, why it failed.

Every release from 0.6 on; see docs/parse-log.md for the lines that are read.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_capacity.observe import startup_failure, startup_lines
from vllm_capacity.observe.startup_args import read_arguments
from vllm_capacity.observe.startup_failure import FailureFinder, StartupFailure
from vllm_capacity.observe.startup_framing import Framed, Framing, Process
from vllm_capacity.observe.startup_lines import RANK_FIELDS, SMALLEST_IS_TIGHTEST, Reading
from vllm_capacity.units import Blocks, Bytes, Tokens

_VERSION = re.compile(
    r"vLLM (?:API )?server version (?P<server>[\w.+-]{1,100})"
    r"(?:, serving model (?P<served>\S{1,500}))?"
    r"|[^\w(]{0,80}[█▀▄\ufffd][^\w(]{0,9}version (?P<banner>[\w.+-]{1,100})\s*"
)
_BANNER_MODEL = re.compile(r"[^\w(]{0,80}[█▀▄\ufffd][^\w(]{0,9}model {1,10}(\S{1,500})\s*")
_ARGS = re.compile(r"(?:non-default args: (?=\{)|args: (?=Namespace\())")
_INIT = re.compile(r"Initializing an? (?:V\d )?LLM engine \(v([\w.+-]{1,100})\) with config: ")
_STARTED = re.compile(
    r"Application startup complete|Uvicorn running on |Starting vLLM (?:API )?server(?: \d+)? on "
)
_MAX_RANKS = 4_096
_MAX_SERVERS = 64
#: A start-up begins with one of these; long, since long ones are found sooner.
_HEAD_KEYS = (b"version ", b"default args: {", b"args: Namespace(", b"Initializing a")
_KEYS = (
    *("version ", "model  ", "args: ", "Initializing a", "startup complete", "Uvicorn"),
    *("Starting vLLM", "init engine", *startup_lines.KEYS, *startup_failure.KEYS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStartup:
    """What one process measured; None where its lines do not say.

    Attributes:
        name: the process as the log calls it; empty where it does not.
        weights_bytes: model, draft model, LoRA slots and rope caches as the allocator counts them.
        activation_peak_bytes: peak of the profiling run above the weights.
        non_torch_bytes: growth outside PyTorch's allocator (printed before 0.28).
        cuda_graph_bytes: what capturing took.
        total_memory_bytes: of the device.
        requested_memory_bytes: total × utilisation.
        kv_cache_bytes: what is left for the KV cache; negative where nothing is.
        consumed_bytes: weights and all else that stays (printed since 0.28).
        non_kv_cache_bytes: all that the profiling run found to be needed beside the KV cache.
        cuda_graph_estimate_bytes: what vLLM expected capturing to take.
        free_memory_bytes: of the device at the engine's first look: its CUDA context and
            communicators stand, its model does not.
        lines: number of the line of each field.
        uncertainty_bytes: by field, how far the printed number may be from the true one.
    """

    name: str = ""
    weights_bytes: Bytes | None = None
    activation_peak_bytes: Bytes | None = None
    non_torch_bytes: Bytes | None = None
    cuda_graph_bytes: Bytes | None = None
    total_memory_bytes: Bytes | None = None
    requested_memory_bytes: Bytes | None = None
    kv_cache_bytes: Bytes | None = None
    consumed_bytes: Bytes | None = None
    non_kv_cache_bytes: Bytes | None = None
    cuda_graph_estimate_bytes: Bytes | None = None
    free_memory_bytes: Bytes | None = None
    lines: Mapping[str, int] = field(default_factory=dict)
    uncertainty_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupLog(RankStartup):
    """The last start-up of a log; None is what it does not say.

    With several ranks each number is the tightest: the smallest of device, request, KV cache,
    tokens, blocks and concurrency, the largest of all that is taken; each field for itself.

    Attributes:
        vllm_version: as printed.
        model: as the operator named it.
        engine_args: arguments in vLLM's names, without secrets.
        engine_config: what vLLM made of them.
        architecture: class of the model.
        attention_backend: in vLLM's names.
        kv_cache_size_tokens: capacity of one engine.
        num_gpu_blocks: with the null block.
        max_concurrency: requests of ``max_model_len`` tokens at once.
        max_model_len: as in force at the end.
        failure: why the start failed; None where it did not, or not yet.
        is_started: whether the server said that it serves.
        ranks: of each process that measured anything; one where there is one GPU.
    """

    vllm_version: str | None = None
    model: str | None = None
    engine_args: Mapping[str, Any] | None = None
    engine_config: Mapping[str, Any] | None = None
    architecture: str | None = None
    attention_backend: str | None = None
    kv_cache_size_tokens: Tokens | None = None
    num_gpu_blocks: Blocks | None = None
    max_concurrency: float | None = None
    max_model_len: Tokens | None = None
    failure: StartupFailure | None = None
    is_started: bool = False
    ranks: tuple[RankStartup, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether the engine serves, or has sized its KV cache and is about to."""
        return self.is_started or (self.kv_cache_bytes is not None and self.failure is None)


class StartupLogReader:
    """Reads a log line by line, also while it is being written.

    Attributes:
        restarts: start-ups begun so far, less the first of each server.
    """

    def __init__(self) -> None:
        self.restarts = 0
        self._number = 0
        self._framing = Framing()
        self._servers: dict[str, _Server] = {"": _Server()}
        self._last = self._servers[""]

    @property
    def servers(self) -> tuple[str, ...]:
        """Servers that began a start-up, as the log's collector calls them; "" without one."""
        return tuple(name for name, server in self._servers.items() if server.has_begun)

    def feed(self, line: str) -> None:
        """Take the next line, with or without its end."""
        self._number += 1
        if not (self._waits or self._framing.is_due(line)):
            for key in _KEYS:
                if key in line:
                    break
            else:
                return
        for framed in self._framing.unframed(line):
            self._take(framed)

    def feed_block(self, block: bytes) -> None:
        """Take whole lines at once, some 64 KiB of them.

        Once an engine serves, only another start-up is looked for: what it logs then, which may be
        gigabytes, costs little more than reading it.
        """
        if self._is_of_no_interest(block):
            self._number += block.count(b"\n")
            return
        for line in block.decode("utf-8", "replace").removesuffix("\n").split("\n"):
            self.feed(line)

    def result(self) -> StartupLog:
        """What is known of the last start-up by now."""
        return self._last.startup.result()

    def complete(self) -> StartupLog:
        """The last start-up that is complete; the last of all before any is."""
        return self._last.complete()

    @property
    def _waits(self) -> bool:
        return any(server.startup.failures.waits for server in self._servers.values())

    def _is_of_no_interest(self, block: bytes) -> bool:
        if self._waits or self._framing.is_amid:
            return False
        if not all(s.startup.is_started for s in self._servers.values() if s.has_begun):
            return False
        return bool(self.servers) and not any(key in block for key in _HEAD_KEYS)

    def _take(self, framed: Framed) -> None:
        name = framed.server
        if name not in self._servers and len(self._servers) < _MAX_SERVERS:
            self._servers[name] = _Server()
        server = self._servers.get(name, self._last)
        if server.take(framed, self._number):
            self.restarts += 1
        if _marker(framed) or not self._last.has_begun:
            self._last = server


class _Server:
    """The start-ups of one server, one after the other."""

    def __init__(self) -> None:
        self.startup = _Startup()
        self._complete: StartupLog | None = None

    @property
    def has_begun(self) -> bool:
        return self.startup.has_begun or self._complete is not None

    def complete(self) -> StartupLog:
        latest = self.startup.result()
        return latest if self._complete is None or latest.is_complete else self._complete

    def take(self, framed: Framed, line: int) -> bool:
        """Take a message; whether it begins another start-up."""
        begins = self.startup.is_begun_anew_by(framed)
        if begins:
            complete = self.complete()
            self._complete = complete if complete.is_complete else None
            self.startup = _Startup()
        self.startup.take(framed, line)
        return begins


def read_startup_log(lines: Iterable[str]) -> StartupLog:
    """What a log says of its last start-up.

    Never raises: lines that are not understood are passed over.
    """
    reader = StartupLogReader()
    for line in lines:
        reader.feed(line)
    return reader.result()


@dataclass(frozen=True, slots=True)
class _Found:
    """A reading and its line."""

    reading: Reading
    line: int

    @property
    def precedence(self) -> tuple[int, int, float, int]:
        """Least first: the most believable, then the finest, the tightest, the earliest."""
        reading = self.reading
        tightness = 0.0
        if isinstance(reading.value, int | float) and reading.field != "max_model_len":
            sign = 1 if reading.field in SMALLEST_IS_TIGHTEST else -1
            tightness = sign * reading.value
        return (reading.grade, reading.uncertainty_bytes, tightness, self.line)


class _Startup:
    """One start-up as read so far."""

    def __init__(self) -> None:
        self.failures = FailureFinder()
        self.is_started = False
        self._seen: set[tuple[str, str]] = set()
        self._args: dict[str, Any] | None = None
        self._config: dict[str, Any] | None = None
        self._engine: dict[str, _Found] = {}
        self._ranks: dict[tuple[str, str], dict[str, _Found]] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._lines: dict[str, int] = {}

    @property
    def has_begun(self) -> bool:
        """Whether a line was read that a start-up begins with."""
        return bool(self._seen)

    def is_begun_anew_by(self, framed: Framed) -> bool:
        """Whether a message can only be of another start-up.

        The server prints its version and its arguments once; a process initialises one engine.
        """
        marker = _marker(framed)
        if marker is None or marker not in self._seen:
            return False
        return bool(framed.process.name or marker[0] != "init" or self._ranks)

    def take(self, framed: Framed, line: int) -> None:
        marker = _marker(framed)
        if marker is not None:
            self._seen.add(marker)
            self._take_head(framed.text, line)
        elif not self.is_started:
            self._take_body(framed, line)

    def _take_head(self, text: str, line: int) -> None:
        if match := _VERSION.match(text):
            self._note(_text("vllm_version", match["server"] or match["banner"]), line)
            self._note(_text("model", match["served"], grade=2), line)
        elif match := _ARGS.match(text):
            self._args = read_arguments(text[match.end() :])
            self._lines.setdefault("engine_args", line)
            self._note(_text("model", self._args.get("model") or self._args.get("model_tag")), line)
            self._note(_length(self._args.get("max_model_len"), grade=4), line)
        elif match := _INIT.match(text):
            self._note(_text("vllm_version", match[1]), line)
            if self._config is None:
                self._config = read_arguments(text[match.end() :])
            self._note(_text("model", self._config.get("model"), grade=1), line)
            self._note(_length(self._config.get("max_seq_len"), grade=3), line)

    def _take_body(self, framed: Framed, line: int) -> None:
        self.failures.feed(framed, line)
        if self._tells_of_the_end(framed.text):
            self.is_started = True
        elif match := _BANNER_MODEL.match(framed.text):
            self._note(_text("model", match[1], grade=2), line)
        for reading in startup_lines.readings(framed.text):
            if reading.of_engine:
                self._note(reading, line)
            else:
                self._note_rank(framed.process, reading, line)

    def _tells_of_the_end(self, text: str) -> bool:
        """A server says that it serves; an engine without one, that it is initialised."""
        if ("version", "") in self._seen:
            return _STARTED.search(text) is not None
        return _STARTED.search(text) is not None or text.startswith("init engine (profile")

    def _note(self, reading: Reading | None, line: int) -> None:
        if reading is not None:
            _keep(self._engine, _Found(reading, line))

    def _note_rank(self, process: Process, reading: Reading, line: int) -> None:
        if len(self._ranks) >= _MAX_RANKS and process.key not in self._ranks:
            return
        _keep(self._ranks.setdefault(process.key, {}), _Found(reading, line))
        if process.name:
            self._names[process.key] = process.name

    def result(self) -> StartupLog:
        """The tightest of all ranks, and each of them."""
        best = dict(self._engine)
        for found in (found for rank in self._ranks.values() for found in rank.values()):
            _keep_tightest(best, found)
        failure = None if self.is_started else self.failures.failure()
        lines = {name: found.line for name, found in best.items()} | self._lines
        if failure is not None:
            lines["failure"] = failure[1]
        return StartupLog(
            **{name: found.reading.value for name, found in best.items()},  # type: ignore[arg-type]
            lines=dict(sorted(lines.items())),
            uncertainty_bytes=_uncertainties(best),
            engine_args=self._args,
            engine_config=self._config,
            failure=failure and failure[0],
            is_started=self.is_started,
            ranks=tuple(
                _rank(self._names.get(key, ""), found)
                for key, found in sorted(self._ranks.items(), key=self._rank_order)
            ),
        )

    def _rank_order(self, item: tuple[tuple[str, str], object]) -> tuple[list[str | int], ...]:
        """By name, numbers in it by their size; ranks of one name by node and process."""
        key, _ = item
        return tuple(_natural(part) for part in (self._names.get(key, ""), *key))


def _marker(framed: Framed) -> tuple[str, str] | None:
    """Which of the lines that a start-up prints once this is, and who printed it."""
    text = framed.text
    if _ARGS.match(text):
        return ("args", "")
    if _VERSION.match(text):
        return ("version", "")
    return ("init", framed.process.name) if _INIT.match(text) else None


def _text(name: str, value: object, grade: int = 0) -> Reading | None:
    if not isinstance(value, str) or not value:
        return None
    return Reading(name, value, 0, grade, of_engine=True)


def _length(value: object, grade: int) -> Reading | None:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return None
    return Reading("max_model_len", value, 0, grade, of_engine=True)


def _keep(best: dict[str, _Found], found: _Found) -> None:
    before = best.get(found.reading.field)
    if before is None or found.precedence < before.precedence:
        best[found.reading.field] = found


def _keep_tightest(best: dict[str, _Found], found: _Found) -> None:
    """Among ranks the tightest counts, however finely it is printed."""
    before = best.get(found.reading.field)
    if before is None or found.precedence[2:] < before.precedence[2:]:
        best[found.reading.field] = found


def _uncertainties(best: Mapping[str, _Found]) -> dict[str, int]:
    return {
        name: found.reading.uncertainty_bytes
        for name, found in sorted(best.items())
        if found.reading.uncertainty_bytes
    }


def _rank(name: str, best: Mapping[str, _Found]) -> RankStartup:
    values = {key: found.reading.value for key, found in best.items() if key in RANK_FIELDS}
    return RankStartup(
        name=name,
        **values,  # type: ignore[arg-type]
        lines={key: found.line for key, found in sorted(best.items())},
        uncertainty_bytes=_uncertainties(best),
    )


def _natural(text: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
