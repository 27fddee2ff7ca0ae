"""What a machine tells of the processes of an engine: pure readers of files in ``/proc``."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_CONTAINER = re.compile(r"(?<![0-9a-f])([0-9a-f]{64})(?![0-9a-f])")
_POD = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})")
_VISIBILITY = ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceVisibility:
    """Environment variables that say which GPUs a process may use; None: not set.

    Attributes:
        nvidia_visible_devices: which the container runtime gave to the container.
        cuda_visible_devices: which of those CUDA may use, in CUDA's order.
        cuda_device_order: "PCI_BUS_ID" or "FASTEST_FIRST".
    """

    nvidia_visible_devices: str | None = None
    cuda_visible_devices: str | None = None
    cuda_device_order: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Containment:
    """The container that a process runs in, by its cgroup; None: none that can be told.

    Attributes:
        container_id: 64 hexadecimal digits.
        pod_uid: of the Kubernetes pod, with dashes.
    """

    container_id: str | None = None
    pod_uid: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessStat:
    """What ``/proc/<pid>/stat`` says.

    Attributes:
        parent_pid: its parent.
        start_ticks: when it started, in clock ticks since the machine did; with the pid it names
            a process for good.
        running: whether it still runs; a zombie holds nothing.
        name: at most 15 characters.
    """

    parent_pid: int
    start_ticks: int
    running: bool
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineProcess:
    """A process of an engine, or one that may be.

    Attributes:
        pid: as the ``/proc`` that was read counts.
        namespace_pids: its numbers from there inwards, its own PID namespace's last.
        parent_pid: its parent.
        start_ticks: see ``ProcessStat``.
        arguments: its command line without secrets, or the title that it gave itself; of other
            programs than vLLM nothing is kept.
        is_vllm: whether that, or an ancestor's, is vLLM's.
        data_parallel_rank: by its title or an ancestor's; None where they tell none.
        containment: where it runs.
        visibility: which GPUs it was given; None if its environment cannot be read.
        uses_gpu: whether it has CUDA's device open; None if that cannot be seen.
    """

    pid: int
    namespace_pids: tuple[int, ...] = ()
    parent_pid: int = 0
    start_ticks: int = 0
    arguments: tuple[str, ...] = ()
    is_vllm: bool = False
    data_parallel_rank: int | None = None
    containment: Containment = field(default_factory=Containment)
    visibility: DeviceVisibility | None = None
    uses_gpu: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOnHost:
    """What this machine's ``/proc`` says of one target.

    Attributes:
        local: whether the target's address is one of this machine's; None: cannot be told.
        numbers_agree: whether NVML and this ``/proc`` number processes alike for sure, since both
            do as the machine's first PID namespace does.
        processes: the engine's, its server first; empty: not found.
        listed: further processes that have a number which NVML lists.
        asked_pids: all numbers that were looked up.
        exporter: of this program itself.
    """

    local: bool | None = None
    numbers_agree: bool = False
    processes: tuple[EngineProcess, ...] = ()
    listed: tuple[EngineProcess, ...] = ()
    asked_pids: frozenset[int] = frozenset()
    exporter: EngineProcess | None = None


def read_stat(text: str) -> ProcessStat | None:
    """``/proc/<pid>/stat``; the name in it may hold blanks and brackets. None: it is none."""
    name, bracket, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    if not bracket or len(fields) < 20:
        return None
    return ProcessStat(
        parent_pid=int(fields[1]),
        start_ticks=int(fields[19]),
        running=fields[0] not in {"Z", "X", "x"},
        name=name,
    )


def read_namespace_pids(status: str) -> tuple[int, ...]:
    """``NSpid`` of ``/proc/<pid>/status``; empty before Linux 4.1."""
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            return tuple(int(number) for number in line.split()[1:])
    return ()


def read_containment(cgroup: str) -> Containment:
    """``/proc/<pid>/cgroup``, version 1 or 2, of Docker, containerd, CRI-O, Podman, Kubernetes.

    Of nested containers the innermost counts. Seen from another cgroup namespace the path may
    begin with ``/..``, and says nothing of one's own container.
    """
    containers = _CONTAINER.findall(cgroup)
    pods = _POD.findall(cgroup)
    return Containment(
        container_id=containers[-1] if containers else None,
        pod_uid=_dashed(pods[-1]) if pods else None,
    )


def read_visibility(environ: bytes) -> DeviceVisibility | None:
    """The three variables of ``/proc/<pid>/environ``; nothing else of it is ever looked at.

    None where there is no environment: a process that gives itself a title (vLLM's children do,
    by setproctitle) writes over it.
    """
    if not environ.strip(b"\0"):
        return None
    found: dict[str, str] = {}
    for item in environ.split(b"\0"):
        name, _, value = item.partition(b"=")
        key = name.decode("ascii", "replace")
        if key in _VISIBILITY:
            found.setdefault(key.lower(), value.decode("utf-8", "replace"))
    return DeviceVisibility(**found)


def tree_of(root: int, table: Mapping[int, ProcessStat]) -> tuple[int, ...]:
    """A process and all its descendants, it first, each parent before its children."""
    children: dict[int, list[int]] = {}
    for pid, stat in table.items():
        children.setdefault(stat.parent_pid, []).append(pid)
    found = [root]
    for pid in found:  # grows
        found += [child for child in sorted(children.get(pid, ())) if child not in found]
    return tuple(found)


def _dashed(uid: str) -> str:
    plain = uid.replace("_", "").replace("-", "")
    return "-".join((plain[:8], plain[8:12], plain[12:16], plain[16:20], plain[20:]))
