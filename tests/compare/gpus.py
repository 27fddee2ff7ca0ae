"""GPUs, their processes and whose they are, for the tests of this folder."""

from typing import Literal

from vllm_capacity.compare.gpu_attribution import GpuAttribution
from vllm_capacity.observe.gpu_reading import GpuReading, MigInstance
from vllm_capacity.units import GIB, MIB, Bytes

RESERVED = 474 * MIB
TOTAL = 81_559 * MIB  # an H100 of "80 GB", by NVML


def size(gib: float | None) -> Bytes | None:
    return None if gib is None else Bytes(round(gib * GIB))


def gpu(
    used: float | None, *, index: int = 0, mig: tuple[MigInstance, ...] = (), old: bool = False
) -> GpuReading:
    """A GPU with ``used`` GiB in use; an ``old`` driver counts its reserve as used."""
    held = None if used is None else round(used * GIB) + (RESERVED if old else 0)
    return GpuReading(
        index=index,
        uuid=f"GPU-{index}",
        name="NVIDIA H100 80GB HBM3",
        total_bytes=Bytes(TOTAL),
        used_bytes=None if held is None else Bytes(held),
        free_bytes=None if held is None else Bytes(TOTAL - held - (0 if old else RESERVED)),
        reserved_bytes=None if old else Bytes(RESERVED),
        compute_capability=(9, 0),
        mig_enabled=bool(mig),
        processes=None,
        mig_instances=mig,
    )


def mig(number: int, used: float | None, total: float = 39.5) -> MigInstance:
    return MigInstance(
        uuid=f"MIG-{number}",
        profile="3g.40gb",
        gpu_instance_id=number,
        compute_instance_id=0,
        total_bytes=None if used is None else size(total),
        used_bytes=size(used),
        free_bytes=None if used is None else size(total - used),
        reserved_bytes=None if used is None else Bytes(0),
        processes=None,
    )


def attribution(
    engine: float | None,
    other: float | None,
    *,
    index: int = 0,
    mig_uuid: str | None = None,
    method: Literal["pid", "cgroup", "exclusive", "none"] = "pid",
    engines: tuple[str, ...] = ("0",),
) -> GpuAttribution:
    return GpuAttribution(
        gpu=index,
        gpu_uuid=f"GPU-{index}",
        mig_uuid=mig_uuid,
        method=method,
        engines=engines,
        engine_bytes=size(engine),
        other_bytes=size(other),
    )
