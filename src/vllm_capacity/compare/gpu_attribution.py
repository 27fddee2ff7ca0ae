"""Whose memory on a GPU is, and how that is known."""

from dataclasses import dataclass
from typing import Literal

from vllm_capacity.units import Bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuAttribution:
    """What one deployment holds of one GPU.

    Attributes:
        gpu: NVML's index.
        gpu_uuid: NVML's lasting name of it.
        mig_uuid: the instance that the engine runs on, if any.
        method: how it is known; "none" where it is not.
        engines: vLLM's engine labels with ranks here; empty if unknown.
        engine_bytes: held by this deployment's processes; None if unknown.
        other_bytes: held by other processes; None if unknown.
    """

    gpu: int
    gpu_uuid: str
    mig_uuid: str | None
    method: Literal["pid", "cgroup", "exclusive", "none"]
    engines: tuple[str, ...]
    engine_bytes: Bytes | None
    other_bytes: Bytes | None
