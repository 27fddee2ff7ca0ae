"""Which processes of this machine are a target's engine: ``/proc`` → EngineOnHost."""

import ipaddress
import re
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vllm_capacity.observe.command_line import (
    data_parallel_rank,
    flag_value,
    is_vllm,
    kept_words,
    words_of,
)
from vllm_capacity.observe.engine_process import (
    EngineOnHost,
    EngineProcess,
    ProcessStat,
    read_containment,
    read_namespace_pids,
    read_stat,
    read_visibility,
    tree_of,
)
from vllm_capacity.observe.listening import (
    Address,
    answering,
    read_listeners,
    read_local_addresses,
)

_RESCAN_SECONDS = 60.0
_RETRY_SECONDS = 15.0
_DEFAULT_PORTS = {"http": 80, "https": 443}
_VLLM_PORT = "8000"
_SOCKET = re.compile(r"socket:\[(\d+)\]")
#: Open in every process with a CUDA context: Linux, and Linux under Windows.
_CUDA_DEVICES = ("/dev/nvidia-uvm", "/dev/dxg")
_ANCESTORS = 40

Table = Mapping[int, ProcessStat]


@dataclass(frozen=True, slots=True)
class _Found:
    """A search's outcome, kept while its processes live."""

    at_seconds: float
    local: bool | None
    processes: tuple[EngineProcess, ...]
    gpu_pids: frozenset[int]


class Processes:
    """The processes of one ``/proc``, looked through for engines. Calls block: use a thread.

    The whole of it is gone through once a minute, and when a process that was found is gone; in
    between only those that were found are asked whether they live.

    Args:
        root: where ``/proc`` is mounted; another place where the host's is mounted beside one's
            own, as node_exporter does.
        monotonic: a clock.
    """

    def __init__(
        self, root: str = "/proc", *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._root = Path(root)
        self._monotonic = monotonic
        self._found: dict[tuple[str, tuple[int, ...]], _Found] = {}
        self._listed: dict[tuple[int, int], EngineProcess] = {}

    def engine_of(
        self, url: str, *, pids: tuple[int, ...] = (), gpu_pids: Collection[int] = ()
    ) -> EngineOnHost:
        """What this machine says of the engine behind an address; never fails.

        Args:
            url: of the target.
            pids: processes that are known to be the engine's; then nothing is searched.
            gpu_pids: numbers that NVML lists.
        """
        gpu_pids = frozenset(gpu_pids)
        found = self._current(url, pids, gpu_pids)
        engine = {process.pid for process in found.processes}
        exporter = self._self()
        return EngineOnHost(
            local=found.local,
            numbers_agree=self._numbers_agree(exporter),
            processes=found.processes,
            listed=self._list(gpu_pids - engine),
            asked_pids=gpu_pids,
            exporter=exporter,
        )

    def _current(self, url: str, pids: tuple[int, ...], gpu_pids: frozenset[int]) -> _Found:
        key, now = (url, pids), self._monotonic()
        known = self._found.get(key)
        if known is not None and self._holds(known, now, gpu_pids):
            return known
        self._found[key] = found = self._search(url, pids, now, gpu_pids)
        return found

    def _holds(self, found: _Found, now: float, gpu_pids: frozenset[int]) -> bool:
        age = now - found.at_seconds
        if gpu_pids - found.gpu_pids:  # it may be the engine's, born since
            return False
        if not found.processes and found.local:
            return age < _RETRY_SECONDS
        return age < _RESCAN_SECONDS and all(map(self._lives, found.processes))

    def _lives(self, process: EngineProcess) -> bool:
        stat = self._stat(process.pid)
        return stat is not None and stat.running and stat.start_ticks == process.start_ticks

    def _search(
        self, url: str, pids: tuple[int, ...], now: float, gpu_pids: frozenset[int]
    ) -> _Found:
        table = self._table()
        where = _Where(self._root, url)
        sure = gpu_pids if self._numbers_agree(self._self()) else frozenset()
        servers = frozenset(pids) or _Search(self._root, table, where, sure).servers()
        members = dict.fromkeys(pid for server in sorted(servers) for pid in tree_of(server, table))
        local = True if servers else where.local
        return _Found(now, local, tuple(self._processes(members, table)), gpu_pids)

    def _processes(self, pids: Iterable[int], table: Table) -> Iterator[EngineProcess]:
        for pid in pids:
            process = self._process(pid, table)
            if process is not None:
                yield process

    def _table(self) -> dict[int, ProcessStat]:
        return {
            pid: stat
            for pid in _numbers(self._root)
            if (stat := self._stat(pid)) is not None and stat.running
        }

    def _stat(self, pid: int) -> ProcessStat | None:
        return read_stat(_text(self._root / str(pid) / "stat"))

    def _process(self, pid: int, table: Table) -> EngineProcess | None:
        stat = table.get(pid)
        if stat is None:
            return None
        place = self._root / str(pid)
        ancestry = [_words(self._root, one) for one in _ancestry(pid, table)]
        ranks = (rank for words in ancestry if (rank := data_parallel_rank(words)) is not None)
        vllm = any(map(is_vllm, ancestry))
        return EngineProcess(
            pid=pid,
            namespace_pids=read_namespace_pids(_text(place / "status")),
            parent_pid=stat.parent_pid,
            start_ticks=stat.start_ticks,
            arguments=kept_words(ancestry[0]) if vllm else (),
            is_vllm=vllm,
            data_parallel_rank=next(ranks, None),
            containment=read_containment(_text(place / "cgroup")),
            visibility=read_visibility(_bytes(place / "environ")),
            uses_gpu=_uses_gpu(place),
        )

    def _list(self, pids: frozenset[int]) -> tuple[EngineProcess, ...]:
        """Those of these numbers that there are, each looked at once in its life."""
        stats = {pid: stat for pid in pids if (stat := self._stat(pid)) is not None}
        kept = {
            (pid, stat.start_ticks): self._listed.get((pid, stat.start_ticks))
            or self._process(pid, self._lineage(pid, stat))
            for pid, stat in sorted(stats.items())
            if stat.running
        }
        self._listed = {key: process for key, process in kept.items() if process is not None}
        return tuple(self._listed.values())

    def _lineage(self, pid: int, stat: ProcessStat) -> Table:
        table = {pid: stat}
        while len(table) < _ANCESTORS and stat.parent_pid not in table:
            above = self._stat(stat.parent_pid)
            if above is None:
                break
            table[stat.parent_pid] = stat = above
        return table

    def _self(self) -> EngineProcess | None:
        place = self._root / "self"
        stat = read_stat(_text(place / "stat"))
        if stat is None:
            return None
        numbers = read_namespace_pids(_text(place / "status"))
        return EngineProcess(
            pid=numbers[0] if numbers else 0,
            namespace_pids=numbers,
            start_ticks=stat.start_ticks,
            containment=read_containment(_text(place / "cgroup")),
            visibility=read_visibility(_bytes(place / "environ")),
        )

    def _numbers_agree(self, exporter: EngineProcess | None) -> bool:
        """Whether this ``/proc`` is the first PID namespace's, and this program runs in it.

        There alone runs the kernel's thread number 2.
        """
        kernel = self._stat(2)
        return (
            exporter is not None
            and len(exporter.namespace_pids) == 1
            and kernel is not None
            and kernel.name == "kthreadd"
            and kernel.parent_pid == 0
        )


class _Where:
    """What an address means on this machine."""

    def __init__(self, root: Path, url: str) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        self.port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 80)
        self.addresses = _resolved(parts.hostname or "")
        own = _local_addresses(root / "net")
        self.here = frozenset(a for a in self.addresses if a.is_loopback or a in own)
        self.local = bool(self.here) if self.addresses else None


class _Search:
    """One search for the processes that serve an address.

    Args:
        root: of the files.
        table: every process.
        where: the address.
        on_gpu: processes that are known to use a GPU.
    """

    def __init__(self, root: Path, table: Table, where: _Where, on_gpu: frozenset[int]) -> None:
        self._root, self._table, self._where, self._on_gpu = root, table, where, on_gpu
        self._words = {pid: _words(root, pid) for pid in table}
        self._vllm = frozenset(pid for pid, words in self._words.items() if is_vllm(words))

    def servers(self) -> frozenset[int]:
        """The engine's outermost process; none if several trees could be meant."""
        where = self._where
        if not where.here:
            return self._elsewhere(where.addresses, where.port)
        return self._listening(self._root / "net", where.here, where.port) or self._forwarded()

    def _listening(self, net: Path, addresses: frozenset[Address], port: int) -> frozenset[int]:
        inodes = _answering(net, addresses, port)
        if not inodes:
            return frozenset()
        holders = self._holding(inodes, self._vllm) or self._holding(inodes, self._table)
        return self._outermost(holders or self._unseen(net, port))

    def _holding(self, inodes: frozenset[int], pids: Iterable[int]) -> set[int]:
        return {pid for pid in pids if inodes & _sockets(self._root / str(pid))}

    def _elsewhere(self, addresses: frozenset[Address], port: int) -> frozenset[int]:
        """In the network of a container on this machine that has the address."""
        for pid in sorted(self._vllm):
            net = self._root / str(pid) / "net"
            mine = addresses & _local_addresses(net)
            if mine:
                found = self._listening(net, mine, port)
                if found:
                    return found
        return frozenset()

    def _forwarded(self) -> frozenset[int]:
        """Behind Docker's proxy for a published port, which says where it forwards to."""
        for words in self._words.values():
            if not words or not words[0].endswith("docker-proxy"):
                continue
            said = {flag: flag_value(words, flag) for flag in ("host-port", "container-port")}
            container = flag_value(words, "container-ip") or ""
            if said["host-port"] == str(self._where.port) and said["container-port"]:
                return self._elsewhere(_resolved(container), int(said["container-port"]))
        return frozenset()

    def _unseen(self, net: Path, port: int) -> set[int]:
        """Another user's, whose sockets are hidden: the vLLMs in a network that got the port."""
        addresses = _local_addresses(net)
        return {
            pid
            for pid in self._vllm
            if not _seen(self._root / str(pid))
            and (flag_value(self._words[pid], "port") or _VLLM_PORT) == str(port)
            and _local_addresses(self._root / str(pid) / "net") == addresses
        }

    def _outermost(self, pids: Iterable[int]) -> frozenset[int]:
        """The root of the tree that these are in, if it is one and an engine's, no proxy's."""
        roots = {self._root_of(pid) for pid in pids}
        roots = {pid for pid in roots if not roots.intersection(_ancestry(pid, self._table)[1:])}
        if len(roots) != 1:
            return frozenset()
        tree = tree_of(min(roots), self._table)
        engine = self._vllm | self._on_gpu
        is_engine = any(pid in engine or _uses_gpu(self._root / str(pid)) for pid in tree)
        return frozenset(roots) if is_engine else frozenset()

    def _root_of(self, pid: int) -> int:
        """Up through vLLM's own processes, but not past one of several servers side by side."""
        for above in _ancestry(pid, self._table)[1:]:
            title = (self._words[pid] or ("",))[0]
            if above not in self._vllm or "APIServer_DP" in title:
                break
            pid = above
        return pid


def _ancestry(pid: int, table: Table) -> list[int]:
    line: list[int] = []
    while pid in table and pid not in line and len(line) < _ANCESTORS:
        line.append(pid)
        pid = table[pid].parent_pid
    return line


def _answering(net: Path, addresses: frozenset[Address], port: int) -> frozenset[int]:
    listeners = [one for name in ("tcp", "tcp6") for one in read_listeners(_text(net / name))]
    return answering(listeners, addresses, port)


def _local_addresses(net: Path) -> frozenset[Address]:
    return read_local_addresses(_text(net / "fib_trie"), _text(net / "if_inet6"))


def _resolved(host: str) -> frozenset[Address]:
    try:
        return frozenset({ipaddress.ip_address(host)})
    except ValueError:
        pass
    try:
        answers = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        return frozenset()
    return frozenset(
        ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers
    )


def _words(root: Path, pid: int) -> tuple[str, ...]:
    return words_of(_bytes(root / str(pid) / "cmdline"))


def _numbers(root: Path) -> list[int]:
    try:
        return [int(entry.name) for entry in root.iterdir() if entry.name.isdecimal()]
    except OSError:
        return []


def _links(place: Path) -> Iterator[str] | None:
    """What a process has open; None where that is not to be seen."""
    try:
        entries = list((place / "fd").iterdir())
    except OSError:
        return None
    return (target for entry in entries if (target := _target(entry)) is not None)


def _target(link: Path) -> str | None:
    try:
        return str(link.readlink())
    except OSError:
        return None


def _seen(place: Path) -> bool:
    return _links(place) is not None


def _sockets(place: Path) -> frozenset[int]:
    links = _links(place) or ()
    return frozenset(int(match[1]) for link in links if (match := _SOCKET.fullmatch(link)))


def _uses_gpu(place: Path) -> bool | None:
    links = _links(place)
    return None if links is None else any(link in _CUDA_DEVICES for link in links)


def _text(path: Path) -> str:
    return _bytes(path).decode("utf-8", "replace")


def _bytes(path: Path) -> bytes:
    """A file's content; nothing if it is gone or not to be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
