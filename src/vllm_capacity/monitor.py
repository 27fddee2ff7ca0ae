"""One target: fetch → observe → compare → publish, and how each of that went."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import structlog

from vllm_capacity.compare.assessment import EngineAssessment, EngineAssessor
from vllm_capacity.compare.fleet import PredictionStatus, SourceHealth, TargetAssessment
from vllm_capacity.compare.headroom import Limits
from vllm_capacity.compare.started_with import Denial, StartedWith, told_by_log, told_by_processes
from vllm_capacity.deployment import (
    DeploymentFacts,
    limits_of,
    predict_deployment,
    served_version,
    started_with_at_least,
)
from vllm_capacity.errors import ExpositionError, SourceError
from vllm_capacity.observe.engine_snapshot import PageSnapshot, snapshots_of_page
from vllm_capacity.observe.exposition import ExpositionParser
from vllm_capacity.observe.metric_names import WANTED_NAMES
from vllm_capacity.predict import Gpu
from vllm_capacity.source_watch import SourceWatch
from vllm_capacity.sources.model_files import ModelFiles
from vllm_capacity.sources.vllm_http import ServedModel
from vllm_capacity.startup_watch import StartupWatch
from vllm_capacity.target_settings import TargetSettings
from vllm_capacity.units import Bytes

if TYPE_CHECKING:
    from vllm_capacity.observe.startup_log import StartupLog

_IDENTITY_SECONDS = 60.0

log = structlog.get_logger()


class EngineSource(Protocol):
    """What a monitor asks of a vLLM server; ``sources.vllm_http.VllmHttp`` is one."""

    url: str

    async def metrics(self) -> bytes: ...  # noqa: D102
    async def models(self) -> tuple[ServedModel, ...]: ...  # noqa: D102
    async def version(self) -> str | None: ...  # noqa: D102


class Pipeline:
    """Pages of one target in, assessments of its engines out; for daemon and ``replay`` alike.

    Attributes:
        started_with: what the engines of the last facts were started with, by source.
    """

    def __init__(self) -> None:
        self.started_with = StartedWith()
        self._parser = ExpositionParser(WANTED_NAMES)
        self._assessors: dict[str, EngineAssessor] = {}
        self._facts: DeploymentFacts | None = None
        self._prediction: tuple[PredictionStatus, Limits] | None = None

    def read(self, page: bytes, *, taken_at_seconds: float) -> PageSnapshot:
        """Parse a page.

        Raises:
            ExpositionError: it is none, or it is one without any metric of vLLM.
        """
        samples = self._parser.parse(page)
        snapshot = snapshots_of_page(samples, taken_at_seconds=taken_at_seconds)
        if not snapshot.engines:
            raise ExpositionError(
                "a metrics page without a single vLLM metric: not vLLM, or --disable-log-stats"
            )
        return snapshot

    def assess(self, page: PageSnapshot, facts: DeploymentFacts) -> tuple[EngineAssessment, ...]:
        """Assess every engine of a page against what is known of its deployment."""
        status, limits = self.predicted(facts)
        assessors = self._assessors
        self._assessors = {
            e.engine: assessors.get(e.engine) or EngineAssessor() for e in page.engines
        }
        return tuple(
            self._assessors[snapshot.engine].assess(snapshot, status.prediction, limits)
            for snapshot in page.engines
        )

    def predicted(self, facts: DeploymentFacts) -> tuple[PredictionStatus, Limits]:
        """The prediction for these facts, made anew only when one of them has changed."""
        if self._prediction is None or facts != self._facts:
            status = predict_deployment(facts)
            self.started_with = started_with_at_least(facts)
            self._facts, self._prediction = facts, (status, limits_of(facts, status))
        return self._prediction


class Monitor:
    """Watches one target and publishes one immutable value about it.

    Args:
        name: of the target, for its label and the log.
        settings: what is known of it beforehand.
        engine: where its pages come from.
        read_config: reads a config.json; may block, so it is called in a thread.
        gpu: gives the host's first GPU, if any.
        command_lines: gives those of the engine's processes that are visible, word by word.
        start_up: follows the engine's log, if there is one.
        expiry_seconds: age at which the last values are withdrawn.
        monotonic, wall: clocks.
    """

    def __init__(
        self,
        name: str,
        settings: TargetSettings,
        *,
        engine: EngineSource,
        read_config: Callable[[str], ModelFiles],
        gpu: Callable[[], Gpu | None] = lambda: None,
        command_lines: Callable[[], Iterable[Sequence[str]]] = tuple,
        start_up: StartupWatch | None = None,
        expiry_seconds: float = 30.0,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._settings, self._engine = settings, engine
        self._read_config, self._gpu, self._start_up = read_config, gpu, start_up
        self._command_lines = command_lines
        self._expiry_seconds = expiry_seconds
        self._monotonic, self._wall = monotonic, wall
        self._pipeline = Pipeline()
        self._facts = DeploymentFacts(
            given_args=settings.engine_args, gpu=settings.gpu, vllm_version=settings.vllm_version
        )
        self._watches = {"vllm": self._watch("vllm")}
        self._start_up_known: StartupLog | None = None
        self._denials: frozenset[Denial] = frozenset()
        self._model_root: str | None = None
        self._identified_at: float | None = None
        self._taken_at: float | None = None
        self._published = TargetAssessment(
            target=name,
            url=engine.url,
            prediction=self._pipeline.predicted(self._facts)[0],
            health=self._health(),
        )

    def current(self) -> TargetAssessment:
        """The value published last, without engines once it is too old."""
        published = self._published
        if self._taken_at is None or self._monotonic() - self._taken_at <= self._expiry_seconds:
            return published
        return _withdrawn(published)

    async def collect_engine(self) -> None:
        """One collection from the target; never raises for anything the target does."""
        watch = self._watches["vllm"]
        await watch.attempt(self._collect_page)
        if watch.health.last_reason == "connect":  # nobody listens: nothing it said holds
            self._published = _withdrawn(self._published)
        self._publish()

    async def collect_identity(self) -> None:
        """Ask what is served: once a minute, and anew when the target comes back or restarts.

        Apart from the pages, which no slow answer here may delay.
        """
        now = self._monotonic()
        if self._identified_at is not None and now - self._identified_at < _IDENTITY_SECONDS:
            return
        self._identified_at = now
        await self._identify()
        self._publish()

    async def collect_config(self) -> None:
        """Read the model's config.json, if there is a place to read it from."""
        where = self._settings.model_config or self._model_root
        if where is None:
            return
        watch = self._watches.setdefault("config", self._watch("config"))
        files = await watch.attempt(lambda: asyncio.to_thread(self._read_config, where))
        self._adopt(files, watch.health.last_error)
        self._publish()

    async def collect_log(self) -> None:
        """Read what is new in the engine's start-up log, if there is one."""
        start_up = self._start_up
        if start_up is None:
            return
        watch = self._watches.setdefault("log", self._watch("log"))
        await watch.attempt(lambda: asyncio.to_thread(start_up.read))
        while start_up.is_behind:
            await watch.attempt(lambda: asyncio.to_thread(start_up.read))
        if start_up.start_up is not self._start_up_known:
            self._adopt_start_up(start_up)
        self._publish()

    def _adopt_start_up(self, watch: StartupWatch) -> None:
        known = self._start_up_known = watch.start_up
        told = None if known is None else told_by_log(known)
        self._facts = replace(self._facts, calibration=watch.calibration, log_args=told)
        self._published = replace(self._published, measured=watch.measured)

    async def _collect_page(self) -> None:
        page = await self._engine.metrics()
        taken_at = self._monotonic()
        snapshot = self._pipeline.read(page, taken_at_seconds=taken_at)
        self._facts = replace(
            self._facts,
            cache_config=snapshot.engines[0].cache_config,
            nvml_gpu=self._gpu(),
            process_args=told_by_processes(self._command_lines()),
        )
        engines = self._pipeline.assess(snapshot, self._facts)
        if self._watches["vllm"].health.up is False:  # what it said before may hold no more
            self._identified_at = None
        for restarted in (a for a in engines if a.ledger.restarted):
            self._identified_at = None
            log.info("engine restarted", target=self.name, engine=restarted.snapshot.engine)
        self._taken_at = taken_at
        self._published = replace(
            self._published,
            engines=engines,
            metric_present=snapshot.metric_present,
            response_bytes=Bytes(len(page)),
        )

    async def _identify(self) -> None:
        """Ask what is served; what does not answer stays unknown and harms nothing else."""
        try:
            models = await self._engine.models()
            version = await self._engine.version()
        except SourceError as error:
            log.debug("the target does not say what it serves", target=self.name, error=str(error))
            return
        known_root = self._model_root
        if models:
            self._model_root = models[0].root
            self._facts = replace(self._facts, max_model_len=models[0].max_model_len)
        if self._settings.vllm_version is None:
            self._facts = replace(self._facts, vllm_version=served_version(version))
        self._published = replace(self._published, vllm_version=version)
        if "config" not in self._watches or self._model_root != known_root:
            await self.collect_config()

    def _adopt(self, files: ModelFiles | None, problem: str | None) -> None:
        if files is None:
            self._facts = replace(self._facts, config_problem=problem or "no config.json")
            return
        self._facts = replace(
            self._facts,
            config=files.config,
            hf_quant_config=files.hf_quant_config,
            config_source=files.path,
            checkpoint_bytes=files.checkpoint_bytes,
        )

    def _publish(self) -> None:
        status, _ = self._pipeline.predicted(self._facts)
        started = self._pipeline.started_with
        if started is not self._published.started_with:
            self._tell_denials(started)
        self._published = replace(
            self._published, prediction=status, health=self._health(), started_with=started
        )

    def _tell_denials(self, started: StartedWith) -> None:
        """Say of each disagreement between sources once that there is one."""
        denials = started.denials()
        for denial in sorted(denials - self._denials):
            log.warning(
                "sources disagree on what the engine was started with",
                target=self.name,
                **denial._asdict(),
            )
        self._denials = denials

    def _watch(self, source: str) -> SourceWatch:
        return SourceWatch(source, target=self.name, monotonic=self._monotonic, wall=self._wall)

    def _health(self) -> dict[str, SourceHealth]:
        return {source: watch.health for source, watch in self._watches.items()}


def _withdrawn(published: TargetAssessment) -> TargetAssessment:
    """The same without what its last page said."""
    return replace(published, engines=(), metric_present={}, response_bytes=None)
