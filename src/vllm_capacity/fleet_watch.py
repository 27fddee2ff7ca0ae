"""Everything that watches a fleet: its sources, their monitors, the schedule, what they publish."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from typing import Self
from urllib.parse import urlsplit

import httpx
import structlog
from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from vllm_capacity.compare.fleet import FleetAssessment, TargetAssessment
from vllm_capacity.compare.gpu_attribution import attribute_gpus
from vllm_capacity.compare.gpu_watch import GpuWatch
from vllm_capacity.deployment import gpu_of_reading
from vllm_capacity.gpu_monitor import GpuMonitor
from vllm_capacity.monitor import Monitor
from vllm_capacity.observe.gpu_reading import GpuReading
from vllm_capacity.predict import Gpu
from vllm_capacity.process_watch import ProcessWatch
from vllm_capacity.settings import Settings
from vllm_capacity.sources.client_tls import TlsFiles
from vllm_capacity.sources.log_follower import LogFollower
from vllm_capacity.sources.model_files import ModelFiles, read_model_config
from vllm_capacity.sources.nvml import Nvml
from vllm_capacity.sources.processes import Processes
from vllm_capacity.sources.vllm_http import VllmHttp, new_client
from vllm_capacity.startup_watch import StartupWatch
from vllm_capacity.target_settings import TargetSettings

log = structlog.get_logger()

_CONFIG_SECONDS = 60.0
_SIMULATED = "the simulated engine's config.json"
_JITTER_SHARE = 0.1


class FleetWatch:
    """Collects from every source on a schedule, from ``start`` to the end of its context.

    Args:
        settings: what to watch.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._monitors: list[Monitor] = []
        self._processes: list[ProcessWatch] = []
        self._gpus: GpuMonitor | None = None
        self._gpu_watch = GpuWatch()
        self._listeners: list[Callable[[TargetAssessment], None]] = []

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._set_up(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def start(self) -> None:
        """Begin to collect."""
        scheduler = self._schedule()
        self._stack.callback(scheduler.shutdown, wait=False)
        scheduler.start()

    def on_collected(self, listener: Callable[[TargetAssessment], None]) -> None:
        """Tell ``listener`` of a target after each collection from it, a failed one too."""
        self._listeners.append(listener)

    @property
    def has_several_targets(self) -> bool:
        """Whether a series must say which target it is about."""
        return len(self._monitors) > 1

    def published(self) -> FleetAssessment:
        """What is known of everything, now."""
        gpus = self._gpus
        targets = [monitor.current() for monitor in self._monitors]
        if gpus is not None:
            targets = [replace(t, health={**t.health, "nvml": gpus.health}) for t in targets]
            targets = self._attributed(targets, gpus.readings)
        return self._gpu_watch.assessed(targets, () if gpus is None else gpus.readings)

    async def _collect_engine(self, monitor: Monitor) -> None:
        await monitor.collect_engine()
        for listener in self._listeners:
            listener(monitor.current())

    async def _collect_gpus(self, gpus: GpuMonitor) -> None:
        await gpus.collect()
        self._gpu_watch.record(time.monotonic(), self.published())

    def _gpu_of(self, target: str) -> Gpu | None:
        """The GPU or MIG instance that the target is on; the first GPU where that is not known."""
        device = self._gpu_watch.device_of(target)
        if device is not None:
            return gpu_of_reading(*device)
        return None if self._gpus is None else self._gpus.first_gpu()

    def _command_lines(self, target: str) -> list[tuple[str, ...]]:
        """Those of the target's processes, as far as they are seen."""
        hosts = [watch.host for watch in self._processes if watch.name == target]
        return [one.arguments for host in hosts if host for one in host.processes]

    def _attributed(
        self, targets: list[TargetAssessment], readings: tuple[GpuReading, ...]
    ) -> list[TargetAssessment]:
        """The targets with what of each GPU is theirs; all at once, since they may share one."""
        watches = {watch.name: watch for watch in self._processes}
        watched = [target for target in targets if target.target in watches]
        claims = [watches[target.target].claim(target) for target in watched]
        gpus = dict(zip((t.target for t in watched), attribute_gpus(readings, claims), strict=True))
        return [replace(target, gpus=gpus.get(target.target, ())) for target in targets]

    async def _set_up(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        if settings.nvml:
            self._gpus = GpuMonitor(
                Nvml(),
                timeout_seconds=settings.scrape_timeout,
                expiry_seconds=settings.expiry,
            )
            stack.callback(self._gpus.close)
        self._processes = [
            ProcessWatch(
                target.name or _host_and_port(target.url),
                target,
                Processes(settings.path_procfs),
                self._readings,
            )
            for target in settings.targets
        ]
        targets = settings.targets
        if settings.simulate:
            targets = (*targets, await _start_simulation(stack))
        clients = await clients_of(targets, stack)
        self._monitors = [
            Monitor(
                target.name or _host_and_port(target.url),
                target,
                engine=VllmHttp(
                    target.url,
                    client=clients[tls_files(target)],
                    timeout_seconds=settings.scrape_timeout,
                    max_body_bytes=settings.max_page_size,
                    bearer_token_file=target.bearer_token_file,
                    tls_server_name=target.tls_server_name,
                ),
                read_config=_read_config,
                start_up=_start_up(target, stack),
                gpu=partial(self._gpu_of, target.name or _host_and_port(target.url)),
                command_lines=partial(
                    self._command_lines, target.name or _host_and_port(target.url)
                ),
                expiry_seconds=settings.expiry,
            )
            for target in targets
        ]

    def _readings(self) -> tuple[GpuReading, ...]:
        return () if self._gpus is None else self._gpus.readings

    def _schedule(self) -> AsyncIOScheduler:
        interval = self._settings.scrape_interval
        scheduler = AsyncIOScheduler(
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        )
        scheduler.add_listener(_log_crash, EVENT_JOB_ERROR)
        if self._gpus is not None:
            _every(scheduler, interval, partial(self._collect_gpus, self._gpus))
        for watch in self._processes:
            _every(scheduler, interval, watch.collect)
        for monitor in self._monitors:
            _every(scheduler, interval, partial(self._collect_engine, monitor))
            _every(scheduler, interval, monitor.collect_identity)
            _every(scheduler, _CONFIG_SECONDS, monitor.collect_config)
            _every(scheduler, interval, monitor.collect_log)
        return scheduler


def tls_files(target: TargetSettings) -> TlsFiles:
    """What a server is trusted by, and what is shown to it."""
    return TlsFiles(
        ca_file=target.ca_file,
        client_cert_file=target.client_cert_file,
        client_key_file=target.client_key_file,
    )


async def clients_of(
    targets: Iterable[TargetSettings], stack: AsyncExitStack
) -> Mapping[TlsFiles, httpx.AsyncClient]:
    """One HTTP client for all targets with the same TLS.

    Raises:
        SettingsError: a file cannot be used.
    """
    grouped: dict[TlsFiles, list[TargetSettings]] = {}
    for target in targets:
        grouped.setdefault(tls_files(target), []).append(target)
    return {
        files: await stack.enter_async_context(
            new_client(tls=any(_is_https(target.url) for target in group), **asdict(files))
        )
        for files, group in grouped.items()
    }


def _is_https(url: str) -> bool:
    return url.lower().startswith("https:")


async def _start_simulation(stack: AsyncExitStack) -> TargetSettings:
    """Start the embedded engine; its clients are patient, want one answer each, share a prompt."""
    from vllm_capacity.predict import EngineArgs  # noqa: PLC0415 (only to simulate)
    from vllm_capacity.simulate import (  # noqa: PLC0415
        SIMULATED_ENGINE_ARGS,
        SimulatedServer,
        SimulationConfig,
        Workload,
    )

    server = SimulatedServer(
        SimulationConfig(), Workload(hang_up_share=0.0, parallel_share=0.0, num_shared_prefixes=1)
    )
    stack.push_async_callback(server.stop)
    url = await server.start()
    log.info("simulated engine started", url=url)
    return TargetSettings(
        url=url,
        model_config=_SIMULATED,
        engine_args=EngineArgs.from_mapping(SIMULATED_ENGINE_ARGS),
    )


def _read_config(where: str) -> ModelFiles:
    """A model's config; the simulated one's from memory, since nothing need be writable."""
    if where != _SIMULATED:
        return read_model_config(where)
    from vllm_capacity.simulate import SIMULATED_MODEL_CONFIG  # noqa: PLC0415 (only to simulate)

    return ModelFiles(config=dict(SIMULATED_MODEL_CONFIG), hf_quant_config=None, path=where)


def _start_up(target: TargetSettings, stack: AsyncExitStack) -> StartupWatch | None:
    if target.vllm_log is None:
        return None
    follower = LogFollower(target.vllm_log)
    stack.callback(follower.close)
    return StartupWatch(follower)


def _every(scheduler: AsyncIOScheduler, seconds: float, job: Callable[[], object]) -> None:
    scheduler.add_job(
        job,
        "interval",
        seconds=seconds,
        jitter=seconds * _JITTER_SHARE,
        next_run_time=datetime.now(UTC),
    )


def _log_crash(event: JobExecutionEvent) -> None:
    """A job's own failure is a fault of ours; it is said, and the next run goes on."""
    if isinstance(event.exception, asyncio.CancelledError):
        return  # cut off by the end
    log.error("collection crashed", error=repr(event.exception), traceback=str(event.traceback))


def _host_and_port(url: str) -> str:
    parts = urlsplit(url if "//" in url else f"//{url}")
    return parts.netloc.rpartition("@")[2] or url
