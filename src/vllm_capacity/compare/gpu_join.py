"""Which of the processes that NVML lists are an engine's."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vllm_capacity.compare.gpu_units import Unit
from vllm_capacity.observe.engine_process import EngineOnHost, EngineProcess


@dataclass(frozen=True, slots=True)
class Join:
    """The engine's processes by the numbers that NVML gives them.

    Attributes:
        complete: whether every rank is among them, so that it is nowhere else.
        all_listed: whether NVML lists whoever there is, of every PID namespace.
        unknown: numbers that were not looked up yet.
    """

    method: Literal["pid", "cgroup"]
    members: Mapping[int, EngineProcess | None]
    complete: bool
    all_listed: bool
    unknown: frozenset[int]


def join_processes(
    host: EngineOnHost | None,
    units: Sequence[Unit],
    *,
    pids: Iterable[int],
    min_ranks: int,
    sole: bool,
) -> Join | None:
    """Which of the processes that NVML lists are the engine's; None if none is known to be.

    Args:
        host: what ``/proc`` says.
        units: what NVML says.
        pids: the engine's by the operator's word.
        min_ranks: processes with a GPU that it has at least.
        sole: whether no other engine is watched, with which it may share a pod.
    """
    numbers = frozenset(one.pid for unit in units for one in unit.held or () if one.pid)
    host = host or EngineOnHost()
    members: dict[int, EngineProcess | None] = dict.fromkeys(
        numbers.intersection(pids) - {process.pid for process in host.processes}
    )
    by_number = _numbered(host, numbers, min_ranks)
    members.update({pid: by_number[pid] for pid in numbers & by_number.keys()})
    method: Literal["pid", "cgroup"] = "pid"
    neighbours = _neighbours(host, members.keys(), sole=sole)
    if neighbours:
        method = "cgroup"
        members.update({process.pid: process for process in neighbours})
    if not members:
        return None
    holders = {p.pid for p in host.processes if p.uses_gpu}
    found = {process.pid for process in members.values() if process is not None}
    return Join(
        method=method,
        members=members,
        complete=holders <= found and len(members) >= min_ranks,
        all_listed=host.numbers_agree,
        unknown=numbers - host.asked_pids - members.keys(),
    )


def _numbered(
    host: EngineOnHost, numbers: frozenset[int], min_ranks: int
) -> Mapping[int, EngineProcess]:
    """The engine's processes by the numbers that NVML would give them; none where that is unsure.

    Drivers count as the machine does or, newer ones, as the PID namespace that asks. Unless the
    two are the same, a number alone may be anybody's: it must be that of a rank, and every
    rank's number must be there.
    """
    inner = len(host.exporter.namespace_pids) if host.exporter else 0
    outside = {process.pid: process for process in host.processes}
    if host.numbers_agree:
        return outside
    inside = {
        process.namespace_pids[-1]: process
        for process in host.processes
        if process.namespace_pids and len(process.namespace_pids) == inner
    }
    ranks = {process.pid for process in _holders(host.processes)}
    for numbering in (inside, outside):
        listed = {process.pid for number, process in numbering.items() if number in numbers}
        if listed and (ranks <= listed if ranks else len(listed) >= min_ranks):
            return {
                n: process for n, process in numbering.items() if process.pid in ranks or not ranks
            }
    return {}


def _holders(processes: Sequence[EngineProcess]) -> tuple[EngineProcess, ...]:
    """Those that hold a GPU: seen to, or by their titles; () where neither tells.

    With one GPU an engine core computes itself, with several its workers do.
    """
    seen = tuple(process for process in processes if process.uses_gpu)
    for title in ("::Worker", "::EngineCore"):
        seen = seen or tuple(p for p in processes if p.arguments and title in p.arguments[0])
    return seen


def _neighbours(
    host: EngineOnHost, members: Collection[int], *, sole: bool
) -> tuple[EngineProcess, ...]:
    """Listed processes outside the engine's tree, but in its container or in our own pod.

    As workers are that Ray started. Only by numbers that are sure; another server's are its own.
    """
    if not host.numbers_agree:
        return ()
    others = tuple(p for p in host.listed if p.pid not in members)
    if host.processes:
        container = host.processes[0].containment.container_id
        return tuple(
            p
            for p in others
            if container and p.containment.container_id == container and not p.is_vllm
        )
    pod = host.exporter.containment.pod_uid if host.exporter and host.local and sole else None
    return tuple(p for p in others if pod and p.containment.pod_uid == pod)
