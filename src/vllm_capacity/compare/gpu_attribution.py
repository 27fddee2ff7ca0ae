"""Whose the memory of each GPU is: this engine's, others', or not to be told."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vllm_capacity.compare.gpu_join import Join, join_processes
from vllm_capacity.compare.gpu_units import Held, Unit, total_bytes, units_of
from vllm_capacity.compare.visible_devices import (
    Device,
    devices_of,
    given_devices,
    visible_devices,
)
from vllm_capacity.observe.engine_process import EngineOnHost, EngineProcess
from vllm_capacity.observe.gpu_reading import GpuReading
from vllm_capacity.units import Bytes

Method = Literal["pid", "cgroup", "exclusive", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuAttribution:
    """Whose the memory of one GPU, or of one MIG instance, is.

    Attributes:
        gpu: NVML's index.
        gpu_uuid: of the whole GPU.
        mig_uuid: of the instance; None: the GPU is not divided.
        method: how that is known. "pid": NVML lists the engine's processes. "cgroup": it lists
            processes of the engine's container or pod. "exclusive": nobody else is there.
            "none": it is not known, and ``engine_bytes`` is None exactly then.
        engines: vLLM's ``engine`` labels with a rank there; () if unknown, or there is none.
        engine_bytes: held by this deployment's processes. 0 says that it is known to hold none.
        other_bytes: held by other processes; None: unknown.
    """

    gpu: int
    gpu_uuid: str
    mig_uuid: str | None
    method: Method
    engines: tuple[str, ...]
    engine_bytes: Bytes | None
    other_bytes: Bytes | None


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuClaim:
    """All that is known of where one target's engine may be.

    Attributes:
        engines: its ``engine`` labels.
        host: what ``/proc`` says.
        pids: given by the operator: numbers as NVML lists them, or as ``/proc`` does.
        devices: given by the operator: indices or UUIDs; None: not given.
        exclusive: whether the operator says that its GPUs are its alone.
        min_ranks: processes with a GPU that it has at least.
        min_bytes: what its fullest rank holds at least, as its KV cache; None: unknown.
    """

    engines: tuple[str, ...] = ()
    host: EngineOnHost | None = None
    pids: tuple[int, ...] = ()
    devices: tuple[str, ...] | None = None
    exclusive: bool = False
    min_ranks: int = 1
    min_bytes: Bytes | None = None


def attribute_gpus(
    readings: Sequence[GpuReading], claims: Sequence[GpuClaim]
) -> tuple[tuple[GpuAttribution, ...], ...]:
    """For every claim, in order: every GPU or MIG instance and what of it is the engine's.

    What two engines would each have for themselves is nobody's.
    """
    units = tuple(unit for reading in readings for unit in units_of(reading))
    sole = len(claims) == 1
    answers = [_answers(claim, units, readings, sole=sole) for claim in claims]
    return tuple(
        tuple(
            _disputed(own, [other[i] for other in answers if other is not mine])
            for i, own in enumerate(mine)
        )
        for mine in answers
    )


def _answers(
    claim: GpuClaim, units: Sequence[Unit], readings: Sequence[GpuReading], *, sole: bool
) -> tuple[GpuAttribution, ...]:
    join = join_processes(claim.host, units, pids=claim.pids, min_ranks=claim.min_ranks, sole=sole)
    if join is not None:
        return tuple(_joined(claim, join, unit) for unit in units)
    return _alone(claim, units, readings)


def _joined(claim: GpuClaim, join: Join, unit: Unit) -> GpuAttribution:
    if unit.held is None:
        return _unknown(unit)
    mine = [one for one in unit.held if one.pid in join.members]
    others = [one for one in unit.held if one.pid not in join.members]
    looked_at = all(one.pid and one.pid not in join.unknown for one in others)
    all_listed = join.all_listed and looked_at
    other_bytes = total_bytes(others) if all_listed or (mine and claim.exclusive) else None
    if not mine:
        if join.complete and looked_at:
            return _attributed(unit, join.method, (), Bytes(0), other_bytes)
        return _unknown(unit, other_bytes=other_bytes)
    engines = _engines_of([join.members[one.pid] for one in mine], claim.engines)
    engine_bytes = total_bytes(mine)
    if engine_bytes is not None:
        return _attributed(unit, join.method, engines, engine_bytes, other_bytes)
    alone = claim.exclusive or (join.all_listed and not others)
    if alone and unit.in_use_bytes is not None:
        return _attributed(unit, "exclusive", engines, unit.in_use_bytes, Bytes(0))
    return _unknown(unit, engines, other_bytes)


def _engines_of(
    processes: Sequence[EngineProcess | None], engines: tuple[str, ...]
) -> tuple[str, ...]:
    """Labels of the data-parallel ranks of some processes."""
    if len(engines) == 1:
        return engines
    ranks = {str(p.data_parallel_rank) for p in processes if p and p.data_parallel_rank is not None}
    return tuple(engine for engine in engines if engine in ranks)


def _alone(
    claim: GpuClaim, units: Sequence[Unit], readings: Sequence[GpuReading]
) -> tuple[GpuAttribution, ...]:
    """Without any process known: by having the GPUs to itself."""
    devices = _candidates(claim, readings)
    if devices is None:
        return tuple(map(_unknown, units))
    there = [unit for device in devices for unit in units if unit.device == device]
    ranks = there if claim.exclusive else _occupied(claim, there)
    if not ranks:
        return tuple(map(_unknown, units))
    engines = {unit.device: engine for unit, engine in _placed(claim, ranks)}
    return tuple(
        _occupant(claim, unit, engines.get(unit.device, ()))
        if unit in ranks
        else _elsewhere(claim, unit)
        for unit in units
    )


def _candidates(claim: GpuClaim, readings: Sequence[GpuReading]) -> tuple[Device, ...] | None:
    """Where the engine can be: as given, as its environment says, as ours does, or anywhere."""
    if claim.devices is not None:
        return given_devices(claim.devices, readings)
    host = claim.host
    if host is None or not host.local:
        return None
    own = host.exporter.visibility if host.exporter else None
    told = (process.visibility for process in host.processes)
    ours = () if _without_gpu(host) and not claim.exclusive else (own,)
    for variables in (*told, *ours):
        devices = None if variables is None else visible_devices(variables, own, readings)
        if devices is not None:
            return devices
    return tuple(device for reading in readings for device in devices_of(reading)) if ours else None


def _without_gpu(host: EngineOnHost) -> bool:
    """Whether the engine can be seen to use no GPU, as on a processor or before it starts."""
    return bool(host.processes) and all(p.uses_gpu is False for p in host.processes)


def _occupied(claim: GpuClaim, units: Sequence[Unit]) -> list[Unit]:
    """The units of the engine's ranks, if there are just as many processes, one on each."""
    ranks = [unit.ranks for unit in units]
    complete = all(unit.held is not None for unit in units) and all(
        _may_be_rank(one, claim.host) for held in ranks for one in held
    )
    counts = [len(held) for held in ranks]
    if not complete or sum(counts) != claim.min_ranks or max(counts) > 1:
        return []
    amounts = [total_bytes(unit.ranks) or unit.in_use_bytes for unit in units if unit.ranks]
    if max(amount or 0 for amount in amounts) < (claim.min_bytes or 0):
        return []  # too small to be it
    return [unit for unit, count in zip(units, counts, strict=True) if count]


def _may_be_rank(one: Held, host: EngineOnHost | None) -> bool:
    """Whether a listed process may be a rank in another PID namespace, unseen by us.

    One that we see tells that the driver counts as we do, and may leave out whom we cannot see.
    """
    if host is None or not one.pid:
        return True
    if one.pid not in host.asked_pids or any(p.pid == one.pid for p in host.processes):
        return False
    seen = next((process for process in host.listed if process.pid == one.pid), None)
    if seen is None:
        return True
    if host.numbers_agree:
        return seen.is_vllm and not host.processes
    return seen.uses_gpu is False  # somebody else of that number


def _placed(claim: GpuClaim, units: Sequence[Unit]) -> Iterable[tuple[Unit, tuple[str, ...]]]:
    """Data-parallel ranks take the GPUs one after another that the engine sees, in its order.

    Which is known from the operator alone: without processes there is no environment to read it
    in, and with them ``--device-ids`` may change it.

    Source: vLLM ``v1/worker/gpu_worker.py`` ``init_device`` of 0.32.
    """
    engines = claim.engines
    if len(engines) == 1:
        return ((unit, engines) for unit in units)
    if claim.devices is None or not engines or len(units) % len(engines):
        return ()
    each = len(units) // len(engines)
    in_order = sorted(engines, key=lambda engine: (len(engine), engine))
    return ((unit, (in_order[i // each],)) for i, unit in enumerate(units))


def _occupant(claim: GpuClaim, unit: Unit, engines: tuple[str, ...]) -> GpuAttribution:
    held = (unit.held or ()) if claim.exclusive else unit.ranks
    others = [one for one in unit.held or () if one not in held]
    amount = total_bytes(held) if held else None
    if amount is not None:
        return _attributed(unit, "exclusive", engines, amount, total_bytes(others))
    if others or unit.in_use_bytes is None:
        return _unknown(unit, engines)
    return _attributed(unit, "exclusive", engines, unit.in_use_bytes, Bytes(0))


def _elsewhere(claim: GpuClaim, unit: Unit) -> GpuAttribution:
    """A GPU without the engine: as the operator says, or since all of its ranks were found."""
    # Where the operator's word is all there is, NVML may leave processes out.
    all_listed = not claim.exclusive or (claim.host is not None and claim.host.numbers_agree)
    others = total_bytes(unit.held) if all_listed and unit.held is not None else None
    return _attributed(unit, "exclusive", (), Bytes(0), others)


def _disputed(own: GpuAttribution, others: Sequence[GpuAttribution]) -> GpuAttribution:
    if own.method == "exclusive" and own.engine_bytes and any(o.engine_bytes for o in others):
        return replace(own, method="none", engines=(), engine_bytes=None, other_bytes=None)
    return own


def _attributed(
    unit: Unit,
    method: Method,
    engines: tuple[str, ...],
    engine_bytes: Bytes | None,
    other_bytes: Bytes | None,
) -> GpuAttribution:
    return GpuAttribution(
        gpu=unit.device.gpu,
        gpu_uuid=unit.device.gpu_uuid,
        mig_uuid=unit.device.mig_uuid,
        method=method,
        engines=() if engine_bytes == 0 else engines,
        engine_bytes=engine_bytes,
        other_bytes=other_bytes,
    )


def _unknown(
    unit: Unit, engines: tuple[str, ...] = (), other_bytes: Bytes | None = None
) -> GpuAttribution:
    return _attributed(unit, "none", engines, None, other_bytes)
