"""Why a start of vLLM failed: its own sentence, found among the tracebacks of all processes.

Each process that dies takes others with it, and each prints a traceback. The first one that says
something of its own is the cause; the others only report a death (``v1/engine/core.py``,
``v1/executor/multiproc_executor.py``, ``v1/engine/utils.py``).
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from vllm_capacity.observe.startup_framing import Framed, Process
from vllm_capacity.secrecy import without_secrets

FailureKind = Literal[
    "oom",
    "no_kv_cache_room",
    "max_len_too_long",
    "insufficient_free_memory",
    "model_access_denied",
    "model_not_found",
    "unsupported",
    "invalid_arguments",
    "missing_dependency",
    "gpu_unavailable",
    "address_in_use",
    "communication",
    "other",
]

#: A line without any of these neither begins, continues nor ends a traceback.
KEYS = ("Err", "xception", "Traceback (", "error: ")

_MAX_CHAINS = 64
_MAX_LINKS = 12
_MAX_MESSAGE = 2_000
_MAX_PROCESSES = 4_096
#: Messages of all processes among which the end of a sentence is looked for.
_PATIENCE = 50
_QUIET_LEVELS = frozenset({"DEBUG", "INFO", "WARNING"})

_EXCEPTION = re.compile(
    r"(?:[A-Za-z_]\w{0,80}\.){0,12}(?P<type>[A-Z]\w{0,80}(?:Error|Exception)|Exception)"
    r"(?:\(\w{1,80}\))?(?:: ?(?P<message>.*)|\s*)"
)
_USAGE = re.compile(
    r"(?:vllm(?: serve)?|[\w./-]{0,200}\.py)(?: \S{1,200})?: error: (?P<message>.+)"
)
_IN_USE = re.compile(r"(?:ERROR: +)?(?P<message>\[Errno 98\] .+)")
_CONTINUED = re.compile(r"\d+ validation errors? for .*|")
_VALIDATION_TAIL = re.compile(r" \[type=[a-z_]+, input_value=.*")

#: Sentences of processes that only report another one's death.
_REPORTS_ANOTHER = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed"
    r"|Engine process failed to start|See (?:root cause|stack trace)|EngineCore encountered"
    r"|Engine loop (?:is not running|has died)|ray::|Broken pipe|Connection (?:reset|closed)"
    r"|cancelled|Failed core proc"
)
_TYPES_OF_DEATHS = frozenset(
    {
        *("BrokenPipeError", "EOFError", "ConnectionResetError", "EngineDeadError"),
        *("CancelledError", "RayTaskError", "ActorDiedError", "MQEngineDeadError"),
    }
)
_QUOTED = re.compile(r"Worker failed with error '(.+)', please check the stack trace", re.DOTALL)

_KINDS: tuple[tuple[FailureKind, re.Pattern[str]], ...] = (
    ("oom", re.compile(r"out of memory|OutOfMemory", re.IGNORECASE)),
    (
        "no_kv_cache_room",
        re.compile(
            r"No available memory for the cache blocks|Cannot auto-fit max_model_len"
            r"|on kv cache allocation is less than requested memory"
        ),
    ),
    (
        "max_len_too_long",
        re.compile(
            r"To serve at least one request with the model"
            r"|larger than the maximum number of tokens that can be stored in KV cache"
            r"|User-specified max_model_len .* is greater than the derived"
        ),
    ),
    (
        "insufficient_free_memory",
        re.compile(
            r"Free memory on device|Externally held weights on device"
            r"|Error in memory profiling|Available memory on node .* is less than"
        ),
    ),
    (
        "model_access_denied",
        re.compile(r"\b40[13] Client Error|gated repo|Unauthorized|Forbidden|access token"),
    ),
    (
        "model_not_found",
        re.compile(
            r"\b404 Client Error|Repository ?Not ?Found|is not a local folder|couldn't connect to"
            r"|does not appear to have a file|Cannot find any model weights|LocalEntryNotFound"
            r"|Repo id must be in the form|Incorrect path_or_model_id|Invalid repository ID"
            r"|can't load the (?:model|config)|couldn't find them in the cached files"
            r"|No such file or directory: '[^']*(?:config|tokenizer)[^']*\.json'"
        ),
    ),
    (
        "gpu_unavailable",
        re.compile(
            r"No CUDA GPUs are available|Failed to infer device type|CUDA driver"
            r"|rank \d+ is out of bounds|invalid device ordinal|no NVIDIA driver"
            r"|not enough GPUs|larger than the number of available GPUs|placement group"
            r"|number of required GPUs exceeds"
        ),
    ),
    (
        "address_in_use",
        re.compile(r"address already in use|Errno 98|EADDRINUSE", re.IGNORECASE),
    ),
    (
        "unsupported",
        re.compile(
            r"not (?:currently |yet )?support|(?:is|are) only supported"
            r"|does not recognize this architecture"
            r"|Unknown quantization|failed to be inspected|unsupported|no kernel image"
            r"|compute capability|not ?implemented|No valid attention backend",
            re.IGNORECASE,
        ),
    ),
    ("missing_dependency", re.compile(r"ImportError|ModuleNotFoundError|[Pp]lease install ")),
    ("communication", re.compile(r"NCCL|DistBackendError|DistNetworkError|TCPStore|Gloo")),
    (
        "invalid_arguments",
        re.compile(
            r"divisible by|unrecognized arguments|invalid choice|expected one argument"
            r"|must be (?:greater|less|one of|a |in )|cannot be (?:greater|less|used)"
            r"|Invalid argument|ValidationError|trust_remote_code"
        ),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupFailure:
    """Why a start failed.

    Attributes:
        kind: a stable name; see docs/parse-log.md.
        message: vLLM's own sentence; with ``(cause: …)`` where another exception led to it.
    """

    kind: FailureKind
    message: str


@dataclass(slots=True)
class _Chain:
    """Exceptions of one process, the first of which led to the others."""

    line: int
    links: list[tuple[str, str]] = field(default_factory=list)

    @property
    def reports_another(self) -> bool:
        return all(_reports_another(*link) for link in self.links)


@dataclass(slots=True)
class _Traceback:
    """Where the traceback of one process stands."""

    is_ignored: bool = False
    chain: _Chain | None = None
    continues: bool = False
    wants_text: int = 0


class FailureFinder:
    """Finds the cause among the messages of a start, one by one."""

    def __init__(self) -> None:
        self._chains: list[_Chain] = []
        self._tracebacks: dict[tuple[str, str], _Traceback] = {}
        self._waiting = 0

    @property
    def waits(self) -> bool:
        """Whether the next messages matter whatever they hold."""
        return self._waiting > 0

    def feed(self, framed: Framed, line: int) -> None:
        """Take the next message."""
        if framed.level in _QUIET_LEVELS:
            return
        text = framed.text.strip()
        state = self._state_of(framed.process)
        self._waiting -= self.waits
        if text.startswith("Traceback (most recent call last)"):
            state.wants_text = 0
        elif "above exception" in text:
            state.continues, state.wants_text = True, 0
        elif state.wants_text:
            self._continue_message(state, text)
        elif text.startswith("Exception ignored in"):
            state.is_ignored = True
        else:
            self._exception(state, text, line)

    def failure(self) -> tuple[StartupFailure, int] | None:
        """The cause and the line that it was found in; None where nothing failed."""
        own = [chain for chain in self._chains if not chain.reports_another]
        if not (own or self._chains):
            return None
        chain = own[0] if own else self._chains[0]
        return _failure(chain), chain.line

    def _state_of(self, process: Process) -> _Traceback:
        if len(self._tracebacks) < _MAX_PROCESSES:
            return self._tracebacks.setdefault(process.key, _Traceback())
        return self._tracebacks.get(process.key) or _Traceback()

    def _exception(self, state: _Traceback, text: str, line: int) -> None:
        if match := _USAGE.fullmatch(text):
            self._begin(state, line).links.append(("ArgumentError", match["message"]))
            return
        if match := _IN_USE.fullmatch(text):
            self._begin(state, line).links.append(("OSError", match["message"]))
            return
        match = _EXCEPTION.fullmatch(text)
        if match is None:
            return
        if state.is_ignored:
            state.is_ignored = False
            return
        chain = state.chain if state.continues and state.chain else self._begin(state, line)
        state.continues = False
        if len(chain.links) < _MAX_LINKS:
            message = (match["message"] or "").strip()[:_MAX_MESSAGE]
            chain.links.append((match["type"], message))
            if match["message"] is not None and _CONTINUED.fullmatch(message):
                state.wants_text = 4
                self._waiting = _PATIENCE

    def _begin(self, state: _Traceback, line: int) -> _Chain:
        state.chain = _Chain(line)
        if len(self._chains) < _MAX_CHAINS:
            self._chains.append(state.chain)
        return state.chain

    def _continue_message(self, state: _Traceback, text: str) -> None:
        """The sentence of an exception that begins on a line of its own."""
        if "%|" in text:  # a progress bar
            return
        state.wants_text -= 1
        is_sentence = " " in text and not text.startswith(("File ", "^"))
        if is_sentence and state.chain is not None:
            kind, _ = state.chain.links[-1]
            said = _VALIDATION_TAIL.sub("", text.removeprefix("Value error, "))[:_MAX_MESSAGE]
            state.chain.links[-1] = (kind, said)
            state.wants_text = 0


def _reports_another(kind: str, message: str) -> bool:
    return (
        kind in _TYPES_OF_DEATHS
        or _REPORTS_ANOTHER.search(message) is not None
        or _QUOTED.search(message) is not None
    )


def _failure(chain: _Chain) -> StartupFailure:
    own = [link for link in chain.links if not _reports_another(*link)] or chain.links
    (first_type, first), (last_type, last) = own[0], own[-1]
    if quoted := _QUOTED.search(last):
        last = quoted[1]
    message = last or last_type
    if first not in message and len(own) > 1:
        message += f" (cause: {first_type}: {first})" if first else f" (cause: {first_type})"
    return StartupFailure(kind=_kind(own), message=without_secrets(message))


def _kind(links: list[tuple[str, str]]) -> FailureKind:
    """By what the last exception says, then by what led to it."""
    said = [f"{kind}: {message}" for kind, message in reversed(links)]
    for kind, pattern in _KINDS:
        if any(pattern.search(text) for text in said):
            return kind
    return "invalid_arguments" if links[-1][0] == "ArgumentError" else "other"
