"""Which processes of this machine are a target's engine, looked for in the background."""

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

import structlog

from vllm_capacity.compare.fleet import TargetAssessment
from vllm_capacity.compare.gpu_attribution import GpuClaim
from vllm_capacity.observe.engine_process import EngineOnHost
from vllm_capacity.observe.gpu_reading import GpuReading
from vllm_capacity.target_settings import TargetSettings

log = structlog.get_logger()


class ProcessSource(Protocol):
    """What finds processes; ``sources.processes.Processes`` is one."""

    def engine_of(  # noqa: D102
        self, url: str, *, pids: tuple[int, ...] = (), gpu_pids: Collection[int] = ()
    ) -> EngineOnHost: ...


class ProcessWatch:
    """Keeps what ``/proc`` says of one target's engine.

    Args:
        name: of the target.
        settings: what the operator says of it.
        source: finds processes.
        readings: gives what NVML said last.
    """

    def __init__(
        self,
        name: str,
        settings: TargetSettings,
        source: ProcessSource,
        readings: Callable[[], Iterable[GpuReading]],
    ) -> None:
        self.name = name
        self._settings, self._source, self._readings = settings, source, readings
        self.host: EngineOnHost | None = None

    async def collect(self) -> None:
        """Look once; the files of many processes are read, so it is done in a thread."""
        gpu_pids = _listed_pids(self._readings())
        before = self._server()
        self.host = host = await asyncio.to_thread(
            self._source.engine_of,
            self._settings.url,
            pids=self._settings.engine_pids,
            gpu_pids=gpu_pids,
        )
        server = host.processes[0].pid if host.processes else None
        if server != before:
            event = "engine's processes lost" if server is None else "engine's processes found"
            log.info(event, target=self.name, pid=server, processes=len(host.processes))

    def claim(self, target: TargetAssessment) -> GpuClaim:
        """What is known of where the target's engine is."""
        settings = self._settings
        engines = tuple(assessment.snapshot.engine for assessment in target.engines)
        pools = (assessment.derived.bytes_per_gpu for assessment in target.engines)
        return GpuClaim(
            engines=engines,
            host=self.host,
            pids=settings.engine_pids,
            devices=settings.gpu_devices,
            exclusive=settings.exclusive_gpus,
            min_ranks=max(1, len(engines)) * _ranks_of_an_engine(target, settings),
            min_bytes=max((pool for pool in pools if pool is not None), default=None),
        )

    def _server(self) -> int | None:
        return self.host.processes[0].pid if self.host and self.host.processes else None


def _listed_pids(readings: Iterable[GpuReading]) -> frozenset[int]:
    listed = [
        processes
        for reading in readings
        for processes in (reading.processes, *(m.processes for m in reading.mig_instances))
    ]
    return frozenset(one.pid for processes in listed for one in processes or () if one.pid)


def _ranks_of_an_engine(target: TargetAssessment, settings: TargetSettings) -> int:
    prediction = target.prediction.prediction
    told = settings.engine_args
    if prediction is not None and prediction.resolved is not None:
        resolved = prediction.resolved
        return resolved.tensor_parallel_size * resolved.pipeline_parallel_size
    return (told.tensor_parallel_size or 1) * (told.pipeline_parallel_size or 1)
