"""Where every byte of a GPU goes: a stack that sums to what the driver counts as used.

What is certain to be held stands first. What is only bounded takes of the rest as much as its bound
allows: PyTorch's allocator keeps between nothing and the activation peak, and nobody outside the
process can tell how much. What then remains is unaccounted, and negative where terms exceed use.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_capacity.compare.gpu_attribution import GpuAttribution
from vllm_capacity.compare.memory_terms import MemoryTerms
from vllm_capacity.observe.gpu_reading import GpuReading, MigInstance
from vllm_capacity.units import Bytes

#: Held for as long as an engine runs; the first two leave the GPU while it sleeps.
_LEAVE_IN_SLEEP = ("weights", "kv_cache")
_CERTAIN = (*_LEAVE_IN_SLEEP, "cuda_graph", "non_torch")
#: Without one of these no remainder means anything.
_ESSENTIAL = frozenset({"weights", "kv_cache", "activation_peak"})
#: Of a stack in the order in which it is drawn. One of the last two takes the signed remainder:
#: ``unaccounted`` where it is the engines' and their large terms are known, else ``unattributed``.
COMPONENTS = (
    *(*_CERTAIN, "context", "reserved", "activation_peak"),
    *("other_processes", "unaccounted", "unattributed"),
)

Stack = Mapping[str, Bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Occupant:
    """One deployment's rank on a GPU.

    Attributes:
        target: the deployment's name.
        attribution: what its processes hold here.
        engines: labels of its engines that it is a rank of.
        measured: what its start-up log or its metrics say.
        predicted: what no measurement went into.
        is_awake: False while weights and KV cache are off the GPU.
    """

    target: str
    attribution: GpuAttribution
    engines: tuple[str, ...] = ()
    measured: MemoryTerms = field(default_factory=MemoryTerms)
    predicted: MemoryTerms = field(default_factory=MemoryTerms)
    is_awake: bool = True

    @property
    def expected(self) -> Stack:
        """What it ought to hold: as measured, and as predicted where nothing was measured."""
        terms = {**self.predicted.by_component(), **self.measured.by_component()}
        asleep = () if self.is_awake else _LEAVE_IN_SLEEP
        return {name: size for name, size in terms.items() if name not in asleep}

    @property
    def is_told(self) -> bool:
        """Whether all that it holds in large amounts is known."""
        asleep = () if self.is_awake else _LEAVE_IN_SLEEP
        return self.expected.keys() >= _ESSENTIAL.difference(asleep)


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuMemoryStack:
    """One GPU's memory, or one MIG instance's, by component.

    Attributes:
        gpu, gpu_uuid: NVML's names of the GPU.
        mig_uuid: the instance; None for a whole GPU.
        total_bytes: as the driver counts it.
        used_bytes: as the driver counts it; ``held`` sums to it exactly.
        free_bytes: as the driver counts it.
        held: bytes in use, by component. The remainder alone may be negative.
        reported: what vLLM said of its own components.
        predicted: what was predicted of them.
        budget_bytes: what the engines here may take by ``gpu_memory_utilization``; None if unknown.
        engines: the engines here, as (target, engine label).
        unaccounted_growth: of the remainder, in bytes a second; None if not known yet.
    """

    gpu: int
    gpu_uuid: str
    mig_uuid: str | None
    total_bytes: Bytes | None
    used_bytes: Bytes
    free_bytes: Bytes | None
    held: Stack
    reported: Stack
    predicted: Stack
    budget_bytes: Bytes | None
    engines: tuple[tuple[str, str], ...] = ()
    unaccounted_growth: float | None = None

    @property
    def key(self) -> str:
        """What stays the same from one reading to the next."""
        return f"{self.gpu}/{self.gpu_uuid}/{self.mig_uuid or ''}"

    @property
    def headroom_ratio(self) -> float | None:
        """Share of the memory that nobody holds, 0–1."""
        if self.free_bytes is None or not self.total_bytes:
            return None
        return self.free_bytes / self.total_bytes


def gpu_memory_stacks(
    reading: GpuReading, occupants: Sequence[Occupant], strangers: Sequence[GpuAttribution] = ()
) -> tuple[GpuMemoryStack, ...]:
    """The stacks of one GPU: its own, or those of its MIG instances that tell their memory.

    Args:
        reading: what the driver says.
        occupants: the deployments on it.
        strangers: attributions of deployments that hold nothing here, as they tell of others.
    """
    divided = _with_memory(reading)
    apart = {uuid for uuids, _ in divided for uuid in uuids}
    spaces: list[tuple[frozenset[str | None], MigInstance | None]] = [*divided]
    if not divided or any(o.attribution.mig_uuid not in apart for o in occupants):
        whole = {a.mig_uuid for a in (*(o.attribution for o in occupants), *strangers)} - apart
        spaces.insert(0, (frozenset(whole), None))
    stacks = (
        _stack(
            reading,
            instance,
            [o for o in occupants if o.attribution.mig_uuid in uuids],
            [a for a in strangers if a.mig_uuid in uuids],
            is_shared=instance is None and bool(divided),
        )
        for uuids, instance in spaces
    )
    return tuple(stack for stack in stacks if stack is not None)


def _with_memory(reading: GpuReading) -> list[tuple[frozenset[str | None], MigInstance]]:
    """Instances that tell their memory, each once: those of one GPU instance share it."""
    found: dict[object, list[MigInstance]] = {}
    for one in reading.mig_instances:
        if one.used_bytes is not None:
            alone = one.gpu_instance_id is None
            found.setdefault(one.uuid if alone else one.gpu_instance_id, []).append(one)
    return [(frozenset(one.uuid for one in sharing), sharing[0]) for sharing in found.values()]


def _stack(
    reading: GpuReading,
    instance: MigInstance | None,
    occupants: Sequence[Occupant],
    strangers: Sequence[GpuAttribution],
    *,
    is_shared: bool = False,
) -> GpuMemoryStack | None:
    space = reading if instance is None else instance
    if space.used_bytes is None:
        return None
    others = None if is_shared else _other_bytes(occupants, strangers)
    return GpuMemoryStack(
        gpu=reading.index,
        gpu_uuid=reading.uuid,
        mig_uuid=None if instance is None else instance.uuid,
        total_bytes=space.total_bytes,
        used_bytes=space.used_bytes,
        free_bytes=space.free_bytes,
        held=held_stack(
            space.used_bytes, occupants, others, reserved_at_most=_hidden_reserve(space, occupants)
        ),
        reported=_added(o.measured.by_component() for o in occupants),
        predicted=_added(o.predicted.by_component() for o in occupants),
        budget_bytes=_total(occupants, _budget),
        engines=tuple((o.target, label) for o in occupants for label in o.engines),
    )


def held_stack(
    used: Bytes,
    occupants: Sequence[Occupant],
    others: Bytes | None,
    *,
    reserved_at_most: Bytes | None = None,
) -> Stack:
    """Bytes by component that sum to ``used``, whatever is known.

    Args:
        used: as the driver counts it.
        occupants: the deployments on the GPU.
        others: held by processes of no deployment of ours; None if unknown.
        reserved_at_most: what of the driver's own reserve may be in ``used``.
    """
    expected = _sum_of_known(o.expected for o in occupants)
    held = {name: expected[name] for name in _CERTAIN if name in expected}
    known = {} if others is None else {"other_processes": others}
    ours = Bytes(used - others) if others is not None else _engine_bytes(occupants)
    if ours is None or not (occupants or known) or not all(o.is_told for o in occupants):
        rest = used - sum(held.values()) - sum(known.values())
        return {**held, **known, "unattributed": Bytes(rest)}
    bounds = {"context": _context(occupants, others or Bytes(0))}
    if reserved_at_most is not None and known:
        bounds["reserved"] = reserved_at_most
    bounds["activation_peak"] = expected.get("activation_peak", Bytes(0))
    left = ours - sum(held.values())
    for name, bound in bounds.items():
        if bound:
            held[name] = Bytes(min(bound, max(0, left)))
            left -= held[name]
    held["unaccounted"] = Bytes(left)
    return {**held, **(known or {"unattributed": Bytes(used - ours)})}


def _context(occupants: Sequence[Occupant], others: Bytes) -> Bytes:
    """What stood at each engine's first look, less whoever of today fits into it.

    An engine that is started beside another finds that one's memory held.
    """
    total = 0
    for i, occupant in enumerate(occupants):
        left = occupant.expected.get("context", Bytes(0))
        rest = [one.attribution.engine_bytes or 0 for one in (*occupants[:i], *occupants[i + 1 :])]
        for size in sorted((*rest, others), reverse=True):
            left = Bytes(left - size) if size <= left else left
        total += left
    return Bytes(total)


def _other_bytes(
    occupants: Sequence[Occupant], strangers: Sequence[GpuAttribution]
) -> Bytes | None:
    """What is held by nobody of ours; to one deployment the others of ours are strangers too."""
    for i, occupant in enumerate(occupants):
        other = occupant.attribution.other_bytes
        rest = _engine_bytes([*occupants[:i], *occupants[i + 1 :]])
        if other is not None and rest is not None:
            return Bytes(max(0, other - rest))
    ours = _engine_bytes(occupants)
    told = (a.other_bytes for a in strangers)
    other = next((other for other in told if other is not None), None)
    return None if other is None or ours is None else Bytes(max(0, other - ours))


def _engine_bytes(occupants: Sequence[Occupant]) -> Bytes | None:
    return _total(occupants, lambda o: o.attribution.engine_bytes) if occupants else Bytes(0)


def _hidden_reserve(space: GpuReading | MigInstance, occupants: Sequence[Occupant]) -> Bytes | None:
    """What the first memory structure counts as used though the driver keeps it.

    CUDA's total is the driver's less that reserve.
    """
    totals = [o.measured.total_bytes for o in occupants if o.measured.total_bytes is not None]
    if space.reserved_bytes is not None or space.total_bytes is None or not totals:
        return None
    return Bytes(max(0, space.total_bytes - min(totals)))


def _budget(occupant: Occupant) -> Bytes | None:
    measured = occupant.measured.requested_bytes
    return occupant.predicted.requested_bytes if measured is None else measured


def _total(occupants: Sequence[Occupant], read: Callable[[Occupant], Bytes | None]) -> Bytes | None:
    """A sum over all occupants; None where one of them is unknown, and where there is none."""
    sizes = [read(occupant) for occupant in occupants]
    known = [size for size in sizes if size is not None]
    return Bytes(sum(known)) if known and len(known) == len(sizes) else None


def _added(stacks: Iterable[Stack]) -> Stack:
    """Components that every stack knows, added up: a part of a sum would look like all of it."""
    each = list(stacks)
    shared = [name for name in COMPONENTS if each and all(name in one for one in each)]
    return {name: Bytes(sum(one[name] for one in each)) for name in shared}


def _sum_of_known(stacks: Iterable[Stack]) -> Stack:
    total: dict[str, Bytes] = {}
    for stack in stacks:
        for name, size in stack.items():
            total[name] = Bytes(total.get(name, 0) + size)
    return total
