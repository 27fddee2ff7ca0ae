"""This host's GPUs over time: where their memory goes, for every target at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from vllm_capacity.compare.fleet import FleetAssessment, TargetAssessment
from vllm_capacity.compare.gpu_occupants import Device, device_of, gpu_memory, with_gpu_memory
from vllm_capacity.compare.unaccounted_growth import GrowthWatch
from vllm_capacity.observe.gpu_reading import GpuReading


class GpuWatch:
    """Puts targets and GPUs together, and remembers what takes time to be known."""

    def __init__(self) -> None:
        self._growth = GrowthWatch()
        self._slopes: Mapping[str, float] = {}
        self._devices: Mapping[str, Device | None] = {}

    def assessed(
        self, targets: Iterable[TargetAssessment], gpus: Sequence[GpuReading]
    ) -> FleetAssessment:
        """Everything of one moment; the targets' attributions must be there."""
        seen = tuple(targets)
        stacks = tuple(
            replace(stack, unaccounted_growth=self._slopes.get(stack.key))
            for stack in gpu_memory(gpus, seen)
        )
        return FleetAssessment(
            targets=tuple(with_gpu_memory(target, stacks) for target in seen),
            gpus=tuple(gpus),
            gpu_memory=stacks,
        )

    def record(self, now: float, fleet: FleetAssessment) -> None:
        """Take what was assessed after a reading of the GPUs, at a monotonic time."""
        self._slopes = self._growth.record(now, fleet.gpu_memory)
        self._devices = {one.target: device_of(one, fleet.gpus) for one in fleet.targets}

    def device_of(self, target: str) -> Device | None:
        """The GPU or MIG instance that a target was last known to be on."""
        return self._devices.get(target)
