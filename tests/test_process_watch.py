"""What is watched of an engine's processes, and what it makes of a target."""

import asyncio
from collections.abc import Collection
from pathlib import Path

from structlog.testing import capture_logs

from vllm_capacity.compare.fleet import TargetAssessment
from vllm_capacity.compare.gpu_attribution import GpuClaim
from vllm_capacity.deployment import DeploymentFacts
from vllm_capacity.monitor import Pipeline
from vllm_capacity.observe.engine_process import EngineOnHost, EngineProcess
from vllm_capacity.observe.gpu_reading import GpuProcess, GpuReading, MigInstance
from vllm_capacity.predict import EngineArgs
from vllm_capacity.process_watch import ProcessWatch
from vllm_capacity.target_settings import TargetSettings

PAGE = Path(__file__).parent / "data" / "vllm-0.32-metrics.txt"
URL = "http://localhost:8000"
FOUND = EngineOnHost(local=True, processes=(EngineProcess(pid=100), EngineProcess(pid=101)))


def reading(*pids: int, instances: tuple[MigInstance, ...] = ()) -> GpuReading:
    return GpuReading(
        index=0,
        uuid="GPU-1",
        name="NVIDIA H100",
        total_bytes=None,
        used_bytes=None,
        free_bytes=None,
        reserved_bytes=None,
        compute_capability=None,
        mig_enabled=None,
        processes=tuple(GpuProcess(pid=pid, used_bytes=None) for pid in pids),
        mig_instances=instances,
    )


INSTANCE = MigInstance(
    uuid="MIG-1",
    profile=None,
    gpu_instance_id=1,
    compute_instance_id=0,
    total_bytes=None,
    used_bytes=None,
    free_bytes=None,
    reserved_bytes=None,
    processes=(GpuProcess(pid=300, used_bytes=None),),
)


class FakeProcesses:
    def __init__(self) -> None:
        self.answer = EngineOnHost()
        self.asked: list[tuple[str, tuple[int, ...], frozenset[int]]] = []

    def engine_of(
        self, url: str, *, pids: tuple[int, ...] = (), gpu_pids: Collection[int] = ()
    ) -> EngineOnHost:
        self.asked.append((url, pids, frozenset(gpu_pids)))
        return self.answer


def watch(source: FakeProcesses, *readings: GpuReading, **settings: object) -> ProcessWatch:
    known = TargetSettings(url=URL, **settings)  # type: ignore[arg-type]
    return ProcessWatch("here", known, source, lambda: readings)


def target(page: bytes | None = None) -> TargetAssessment:
    facts = DeploymentFacts(given_args=EngineArgs.from_mapping({}))
    pipeline = Pipeline()
    engines = pipeline.assess(pipeline.read(page, taken_at_seconds=0.0), facts) if page else ()
    status, _ = pipeline.predicted(facts)
    return TargetAssessment(target="here", url=URL, engines=engines, prediction=status)


def test_the_source_is_told_every_process_that_nvml_lists_under_a_number() -> None:
    source = FakeProcesses()
    asyncio.run(watch(source, reading(0, 7, instances=(INSTANCE,)), engine_pids=(5,)).collect())
    assert source.asked == [(URL, (5,), frozenset({7, 300}))]


def test_processes_that_are_found_and_lost_are_said_once_each() -> None:
    source = FakeProcesses()
    watched = watch(source)
    with capture_logs() as logs:
        for answer in (EngineOnHost(), FOUND, FOUND, EngineOnHost(), EngineOnHost()):
            source.answer = answer
            asyncio.run(watched.collect())
    said = [(line["event"], line["pid"]) for line in logs]
    assert said == [("engine's processes found", 100), ("engine's processes lost", None)]


def test_before_anything_is_known_nothing_is_claimed() -> None:
    assert watch(FakeProcesses()).claim(target()) == GpuClaim()


def test_ranks_are_the_pages_engines_times_the_parallel_sizes() -> None:
    args = EngineArgs.from_mapping({"tensor_parallel_size": 4, "pipeline_parallel_size": 2})
    watched = watch(FakeProcesses(), engine_args=args, gpu_devices=("1",), exclusive_gpus=True)
    page = PAGE.read_bytes()
    claim = watched.claim(target(page + page.replace(b'engine="0"', b'engine="1"')))
    assert (claim.engines, claim.min_ranks) == (("0", "1"), 16)
    assert (claim.devices, claim.exclusive) == (("1",), True)
