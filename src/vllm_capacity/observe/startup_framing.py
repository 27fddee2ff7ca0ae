"""What stands around a line of vLLM's log: containers, collectors, colours, processes.

Source: vLLM 0.32 ``logging_utils/formatter.py`` and ``envs.py`` (``VLLM_LOGGING_PREFIX``), 0.6.6
``logger.py`` (the header without its opening bracket), and the formats of Docker, the container
runtime interface, Compose and journald.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

#: Longer lines are cut; vLLM's longest, the dump of its configuration, has some 10 kB.
MAX_LINE_CHARACTERS = 1_000_000
#: Docker's json-file driver splits lines here.
_DOCKER_CHUNK = 16_000

_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[@-~]|\][^\x07\x1b]*\x07)")
_HEADER = re.compile(
    r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,9})? "
    r"(?:\[[^\]]{0,200}\]|[\w./-]{1,100}:\d{1,6}\]) ?"
)
_PROCESS = (
    r"\((?:(?P<name>[A-Za-z_][\w.]{0,80}) )?(?:rank=(?P<rank>\d{1,6}) )?pid=(?P<pid>\d{1,10})"
    r"(?:, ip=(?P<ip>[\w.:]{1,60}))?\)"
)
_PROCESSES = re.compile(_PROCESS)
_LEADING_PROCESS = re.compile(r"\s*" + _PROCESS + r"\s?")
_GLUED = re.compile(
    r"(?=\((?:[A-Za-z_][\w.]{0,80} )?(?:rank=\d{1,6} )?pid=\d{1,10}(?:, ip=[\w.:]{1,60})?\) "
    r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d )"
)
_STAMP = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)\s{1,4}"
    r"(?:(?P<pipe>stdout|stderr) (?P<part>[FP])(?: |$))?"
)
_WRAPPERS = (
    _STAMP,
    re.compile(r"\[pod/[^\]]{1,300}\] "),
    re.compile(r"\[\d{4}-\d\d-\d\dT[\d:.]{8,20}Z\] "),
    re.compile(r"(?:[A-Za-z][\w.-]{0,100})?\s{1,40}\| "),
    re.compile(r"[A-Z][a-z]{2} {1,2}\d{1,2} \d\d:\d\d:\d\d \S{1,100} \S{1,100}\[\d{1,10}\]: "),
    re.compile(r"\[rank\d{1,6}\]: ?"),
)
# Which server wrote a line, where several servers' lines come together in one log.
_SERVERS = (
    re.compile(r"\[pod/(?P<server>[^\]]{1,300})\] "),
    re.compile(
        r"(?!(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\s)(?P<server>[A-Za-z][\w.-]{0,100})\s{1,40}\| "
    ),
    re.compile(
        r"[A-Z][a-z]{2} {1,2}\d{1,2} \d\d:\d\d:\d\d (?P<server>\S{1,100} \S{1,100})\[\d{1,10}\]: "
    ),
)
_TEXT_KEYS = ("log", "message", "msg", "MESSAGE", "textPayload", "text")
_LEVEL_KEYS = ("level", "levelname", "severity", "log_level")


@dataclass(frozen=True, slots=True)
class Process:
    """Who wrote a line; all empty where the line does not say.

    Attributes:
        name: as vLLM calls it (``EngineCore``, ``Worker_TP0``, ``VllmWorker rank=0``).
        pid: its number; a worker keeps it when it gets its final name.
        ip: its node, where Ray says so.
    """

    name: str = ""
    pid: str = ""
    ip: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What stays the same for one process."""
        return (self.ip, self.pid)


NOBODY = Process()


@dataclass(frozen=True, slots=True)
class Framed:
    """A line without what stands around it.

    Attributes:
        process: who wrote it.
        level: of vLLM's header; empty where there is none.
        has_header: whether vLLM's own header stood before the text.
        text: the message.
        server: container, pod or unit that wrote it, where a collector says so.
    """

    process: Process
    level: str
    has_header: bool
    text: str
    server: str = ""


class Framing:
    """Takes the frames off; joins what a container runtime has split."""

    def __init__(self) -> None:
        self._parts: dict[str, str] = {}

    @property
    def is_amid(self) -> bool:
        """Whether parts of a split line are missing."""
        return bool(self._parts)

    def is_due(self, line: str) -> bool:
        """Whether a line must be looked at for its frame alone."""
        return bool(self._parts) or len(line) > _DOCKER_CHUNK or " P " in line

    def unframed(self, line: str) -> Iterator[Framed]:
        """The messages of a line: usually one; none while parts are missing."""
        whole, level = self._joined(line[:MAX_LINE_CHARACTERS].rstrip("\r\n"))
        if whole is None:
            return
        text = _ANSI.sub("", whole) if "\x1b" in whole else whole
        server = _server_of(text)
        for piece in re.split(r"[\r\n]", text):
            for framed in _pieces(piece, level):
                yield replace(framed, server=server) if server else framed

    def _joined(self, line: str) -> tuple[str | None, str]:
        if line.lstrip().startswith("{") and (record := _json_record(line)):
            return self._docker_part(record)
        stamp = _STAMP.match(line)
        if stamp is None or stamp["part"] is None:
            return line, ""
        before = self._parts.pop(stamp["pipe"], "")
        text = (before + line[stamp.end() :])[:MAX_LINE_CHARACTERS]
        if stamp["part"] == "F":
            return text, ""
        self._parts[stamp["pipe"]] = text
        return None, ""

    def _docker_part(self, record: dict[str, Any]) -> tuple[str | None, str]:
        text = next(record[key] for key in _TEXT_KEYS if isinstance(record.get(key), str))
        level = next((str(record[key]) for key in _LEVEL_KEYS if record.get(key)), "")
        before = self._parts.pop("docker", "")
        text = (before + text)[:MAX_LINE_CHARACTERS]
        is_split = len(text) > _DOCKER_CHUNK and not text.endswith("\n")
        if is_split and "log" in record and len(text) < MAX_LINE_CHARACTERS:
            self._parts["docker"] = text
            return None, ""
        return text.rstrip("\r\n"), level.upper()


def _server_of(text: str) -> str:
    stamp = _STAMP.match(text)
    begin = stamp.end() if stamp else 0
    found = (match["server"] for server in _SERVERS if (match := server.match(text, begin)))
    return next(found, "")


def _json_record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    return record if any(isinstance(record.get(key), str) for key in _TEXT_KEYS) else None


def _pieces(text: str, level: str) -> Iterator[Framed]:
    """Two processes writing at once may leave two messages on one line."""
    if text.count("pid=") > 1:
        for piece in _GLUED.split(text):
            yield _framed(piece, level)
    else:
        yield _framed(text, level)


def _framed(text: str, level: str) -> Framed:
    header = _HEADER.search(text)
    if header is None:
        return _without_header(text, level)
    processes = list(_PROCESSES.finditer(text, 0, header.start()))
    process = _process(processes[-1]) if processes else NOBODY
    return Framed(process, header[1], True, text[header.end() :])


def _without_header(text: str, level: str) -> Framed:
    process = NOBODY
    for _ in range(8):  # frames may stand inside each other
        if match := _LEADING_PROCESS.match(text):
            process = _process(match)
        else:
            match = next((m for wrapper in _WRAPPERS if (m := wrapper.match(text))), None)
        if match is None:
            break
        text = text[match.end() :]
    return Framed(process, level, False, text)


def _process(match: re.Match[str]) -> Process:
    rank = match["rank"]
    name = (match["name"] or "") + ("" if rank is None else f" rank={rank}")
    return Process(name=name, pid=match["pid"], ip=match["ip"] or "")
