"""Which GPUs ``NVIDIA_VISIBLE_DEVICES`` and ``CUDA_VISIBLE_DEVICES`` leave to a process."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vllm_capacity.observe.engine_process import DeviceVisibility
from vllm_capacity.observe.gpu_reading import GpuReading

_EVERY = {"all"}
_NOTHING_SAID = {"", "void"}  # "void": the devices came another way, as by CDI
_OLD_MIG = re.compile(r"MIG-(GPU-[0-9a-fA-F-]+)/(\d+)/(\d+)")
_LEADING_NUMBER = re.compile(r"\s*\+?(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Device:
    """A GPU, or a MIG instance of one, by its names in NVML."""

    gpu: int
    gpu_uuid: str
    mig_uuid: str | None = None


def devices_of(reading: GpuReading) -> tuple[Device, ...]:
    """A GPU's MIG instances, or the GPU itself where it has none."""
    whole = Device(gpu=reading.index, gpu_uuid=reading.uuid)
    instances = tuple(
        Device(gpu=reading.index, gpu_uuid=reading.uuid, mig_uuid=instance.uuid)
        for instance in reading.mig_instances
    )
    return instances or (whole,)


def given_devices(
    names: Iterable[str], readings: Sequence[GpuReading]
) -> tuple[Device, ...] | None:
    """Devices that an operator named: NVML's indices, UUIDs or their beginnings, MIG UUIDs.

    None if a name fits none here, or several.
    """
    found: list[Device] = []
    for name in names:
        named = _named(name.strip(), readings)
        if named is None:
            return None
        found += [device for device in named if device not in found]
    return tuple(found)


def visible_devices(
    process: DeviceVisibility, exporter: DeviceVisibility | None, readings: Sequence[GpuReading]
) -> tuple[Device, ...] | None:
    """What a process was given, in its own order; None where that is not restricted or unknown.

    Args:
        process: its variables.
        exporter: this program's: NVML shows it what its own container was given.
        readings: every GPU that NVML shows.
    """
    given, cuda = process.nvidia_visible_devices, process.cuda_visible_devices
    shown = _in_container(given, exporter, readings)
    if shown is None:
        return None
    if cuda is None:
        return None if _unrestricted(given) else _all_of(shown)
    return _by_cuda(cuda, process.cuda_device_order, shown)


def _in_container(
    given: str | None, exporter: DeviceVisibility | None, readings: Sequence[GpuReading]
) -> tuple[GpuReading, ...] | None:
    """GPUs in the container of a process, by the runtime's variable."""
    own = exporter.nvidia_visible_devices if exporter else None
    if _unrestricted(given) or given == own:
        return tuple(readings) if _unrestricted(own) or given == own else None
    if given == "none":
        return ()
    words = [word.strip() for word in (given or "").split(",")]
    if not _unrestricted(own) and not all(word.startswith(("GPU-", "MIG-")) for word in words):
        return None  # indices of the machine, and NVML shows us other ones
    devices = given_devices(words, readings)
    if devices is None:
        return None
    return tuple(_narrowed(reading, devices) for reading in _in_order(devices, readings))


def _unrestricted(variable: str | None) -> bool:
    return variable is None or variable.strip() in _EVERY | _NOTHING_SAID


def _in_order(devices: Iterable[Device], readings: Sequence[GpuReading]) -> list[GpuReading]:
    """The runtime keeps the machine's order, whatever the order of the names."""
    wanted = {device.gpu_uuid for device in devices}
    return [reading for reading in readings if reading.uuid in wanted]


def _narrowed(reading: GpuReading, devices: Iterable[Device]) -> GpuReading:
    """A GPU with those of its MIG instances that were given."""
    kept = {device.mig_uuid for device in devices}
    instances = tuple(one for one in reading.mig_instances if one.uuid in kept)
    return replace(reading, mig_instances=instances)


def _by_cuda(
    variable: str, order: str | None, shown: tuple[GpuReading, ...]
) -> tuple[Device, ...] | None:
    """CUDA's reading: what cannot be read ends the list, a repetition empties it.

    Source: CUDA C++ Programming Guide, "CUDA Environment Variables"; where that is silent
    (repetitions, ambiguous beginnings) as PyTorch does, ``torch/cuda/__init__.py``
    ``_parse_visible_devices``.
    """
    words = [word.strip() for word in variable.split(",")]
    by_name = words[0].startswith(("GPU-", "MIG-"))
    if not by_name and not _numbered_alike(order, shown) and _index(words[0]) is not None:
        return None
    found: list[Device] = []
    for word in words:
        device = _cuda_device(word, words[0][:4] if by_name else "", shown)
        if device is None:
            break
        if device in found:
            return ()
        found.append(device)
    return tuple(found)


def _cuda_device(word: str, kind: str, shown: tuple[GpuReading, ...]) -> Device | None:
    if kind:
        named = _named(word, shown) if word.startswith(kind) else None
        return named[0] if named else None
    index = _index(word)
    if index is None or index >= len(shown):
        return None
    return devices_of(shown[index])[0]  # of a divided GPU CUDA takes the first instance


def _index(word: str) -> int | None:
    """As C's strtoul does: what follows the digits is not looked at."""
    match = _LEADING_NUMBER.match(word)
    return int(match[1]) if match else None


def _numbered_alike(order: str | None, shown: tuple[GpuReading, ...]) -> bool:
    """Whether CUDA's indices are NVML's: by the bus, or all are alike (fastest first else)."""
    return order == "PCI_BUS_ID" or len({reading.name for reading in shown}) <= 1


def _named(name: str, readings: Sequence[GpuReading]) -> tuple[Device, ...] | None:
    """The one GPU or MIG instance that a name fits, a divided GPU as all its instances."""
    old = _OLD_MIG.fullmatch(name)
    if old is not None:
        return _instance(old[1], int(old[2]), int(old[3]), readings)
    if name.startswith("MIG-"):
        fitting = [d for d in _all_of(readings) if (d.mig_uuid or "").startswith(name)]
        return tuple(fitting) if len(fitting) == 1 else None
    if name.isdecimal():
        whole = [reading for reading in readings if reading.index == int(name)]
    else:
        whole = [r for r in readings if name.startswith("GPU-") and r.uuid.startswith(name)]
    return devices_of(whole[0]) if len(whole) == 1 else None


def _instance(
    uuid: str, gpu_instance: int, compute_instance: int, readings: Sequence[GpuReading]
) -> tuple[Device, ...] | None:
    """By the names of drivers before 470."""
    for reading in readings:
        for one in reading.mig_instances:
            ids = (one.gpu_instance_id, one.compute_instance_id)
            if reading.uuid == uuid and ids == (gpu_instance, compute_instance):
                return (Device(gpu=reading.index, gpu_uuid=uuid, mig_uuid=one.uuid),)
    return None


def _all_of(readings: Iterable[GpuReading]) -> tuple[Device, ...]:
    return tuple(device for reading in readings for device in devices_of(reading))
