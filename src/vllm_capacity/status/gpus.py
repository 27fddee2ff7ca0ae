"""One GPU, or MIG instance, of the status document: where its memory goes."""

from collections.abc import Iterable
from typing import Any

from vllm_capacity.compare.fleet import FleetAssessment
from vllm_capacity.compare.gpu_memory import GpuMemoryStack


def gpu_statuses(fleet: FleetAssessment) -> Iterable[dict[str, Any]]:
    """Every GPU and MIG instance that tells how much of its memory is in use."""
    names = {gpu.uuid: gpu.name for gpu in fleet.gpus}
    for stack in fleet.gpu_memory:
        yield {
            "gpu": stack.gpu,
            "gpu_uuid": stack.gpu_uuid,
            "mig_uuid": stack.mig_uuid,
            "name": names.get(stack.gpu_uuid) or None,
            "total_bytes": stack.total_bytes,
            "used_bytes": stack.used_bytes,
            "free_bytes": stack.free_bytes,
            "budget_bytes": stack.budget_bytes,
            "held": dict(stack.held),
            "reported": dict(stack.reported),
            "predicted": dict(stack.predicted),
            "engines": stack.engines,
            "unaccounted_growth_bytes_per_second": stack.unaccounted_growth,
            "attribution": list(_attribution(fleet, stack)),
        }


def _attribution(fleet: FleetAssessment, stack: GpuMemoryStack) -> Iterable[dict[str, Any]]:
    """Of each target that was looked for here, what it holds and how that is known."""
    here = (stack.gpu, stack.gpu_uuid, stack.mig_uuid)
    for target in fleet.targets:
        for one in target.gpus:
            if (one.gpu, one.gpu_uuid, one.mig_uuid) == here:
                yield {
                    "target": target.target,
                    "method": one.method,
                    "engine_bytes": one.engine_bytes,
                }
