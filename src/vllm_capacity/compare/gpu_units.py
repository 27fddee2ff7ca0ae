"""A GPU or MIG instance as a place where processes hold memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllm_capacity.compare.visible_devices import Device, devices_of
from vllm_capacity.observe.gpu_reading import GpuProcess, GpuReading
from vllm_capacity.units import Bytes


@dataclass(frozen=True, slots=True)
class Held:
    """A process and what it holds; pid 0 where the driver does not name it."""

    pid: int
    used_bytes: Bytes | None
    kinds: frozenset[str]


@dataclass(frozen=True, slots=True)
class Unit:
    """A GPU or MIG instance as a place where memory is held.

    Attributes:
        in_use_bytes: by all processes, with what the driver adds to them; None: unknown.
        held: by its processes; None: unknown.
    """

    device: Device
    in_use_bytes: Bytes | None
    held: tuple[Held, ...] | None

    @property
    def ranks(self) -> tuple[Held, ...]:
        """Processes that may be a rank: who draws is none, nor is the server of MPS."""
        held = self.held or ()
        clients = tuple(one for one in held if "mps" in one.kinds)
        return clients or tuple(one for one in held if one.kinds & {"compute"})


def units_of(reading: GpuReading) -> tuple[Unit, ...]:
    """A GPU's MIG instances, or the GPU itself; in the order of ``devices_of``."""
    devices = devices_of(reading)
    if not reading.mig_instances:
        return (Unit(devices[0], reading.used_bytes, _held(reading.processes)),)
    ids = [instance.gpu_instance_id for instance in reading.mig_instances]
    return tuple(
        # Compute instances side by side share their GPU instance's memory.
        Unit(
            device,
            instance.used_bytes if ids.count(instance.gpu_instance_id) == 1 else None,
            _held(instance.processes),
        )
        for device, instance in zip(devices, reading.mig_instances, strict=True)
    )


def _held(processes: tuple[GpuProcess, ...] | None) -> tuple[Held, ...] | None:
    """Each process once, however often it is listed."""
    if processes is None:
        return None
    unnamed = [Held(0, one.used_bytes, frozenset({one.kind})) for one in processes if not one.pid]
    named: dict[int, list[GpuProcess]] = {}
    for one in processes:
        named.setdefault(one.pid, []).append(one)
    named.pop(0, None)
    return (*(_merged(pid, entries) for pid, entries in named.items()), *unnamed)


def _merged(pid: int, entries: Sequence[GpuProcess]) -> Held:
    # A context takes memory: drivers that say 0 could not look into another PID namespace.
    most = max((one.used_bytes or 0 for one in entries), default=0)
    return Held(pid, Bytes(most) if most else None, frozenset(one.kind for one in entries))


def total_bytes(held: Iterable[Held]) -> Bytes | None:
    """What some processes hold together; None if it is unknown of one."""
    amounts = [one.used_bytes for one in held]
    known = [amount for amount in amounts if amount is not None]
    return Bytes(sum(known)) if len(known) == len(amounts) else None
