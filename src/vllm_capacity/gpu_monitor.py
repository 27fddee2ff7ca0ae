"""This host's GPUs: read in the background, published as one immutable value."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from vllm_capacity.compare.fleet import SourceHealth
from vllm_capacity.deployment import gpu_of_reading
from vllm_capacity.observe.gpu_reading import GpuReading
from vllm_capacity.predict import Gpu
from vllm_capacity.source_watch import SourceWatch

log = structlog.get_logger()

_RETRY_ABSENT_SECONDS = 60.0


class GpuSource(Protocol):
    """What reads GPUs; ``sources.nvml.Nvml`` is one."""

    faults: tuple[str, ...]

    def read(self) -> tuple[GpuReading, ...]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class GpuMonitor:
    """Reads every GPU of this host; no driver is a state with a name, not an error."""

    def __init__(self, source: GpuSource, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._source, self._monotonic = source, monotonic
        self._watch = SourceWatch("nvml", monotonic=monotonic)
        self.readings: tuple[GpuReading, ...] = ()
        self._faults: tuple[str, ...] = ()
        self._retry_at = 0.0

    @property
    def health(self) -> SourceHealth:
        """How the last reading went."""
        return self._watch.health

    def first_gpu(self) -> Gpu | None:
        """The first GPU as the predictor wants it."""
        return gpu_of_reading(self.readings[0]) if self.readings else None

    async def collect(self) -> None:
        """One reading of all GPUs; a driver call can hang, so it is made in a thread."""
        now = self._monotonic()
        if self.health.last_reason == "absent" and now < self._retry_at:
            return  # a driver does not come every few seconds
        self._retry_at = now + _RETRY_ABSENT_SECONDS
        readings = await self._watch.attempt(lambda: asyncio.to_thread(self._source.read))
        self.readings = readings or ()
        if readings is not None:
            self._tell_faults()

    def close(self) -> None:
        """Let go of the driver."""
        self._source.close()

    def _tell_faults(self) -> None:
        """One line when GPUs drop out of the reading or come back."""
        if self._source.faults != self._faults:
            self._faults = self._source.faults
            log.warning("GPUs left out", source="nvml", faults=list(self._faults))
