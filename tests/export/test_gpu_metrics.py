"""GPU memory as it is exported: read back from the text, for every way of sharing GPUs."""

import json
import lzma
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

# pytest's importlib mode adds no folder to the path.
sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))

from engines import engine
from gpus import RESERVED, TOTAL, attribution, gpu, mig

from vllm_capacity.calibrate import calibration_from
from vllm_capacity.compare.assessment import EngineAssessor
from vllm_capacity.compare.fleet import FleetAssessment, PredictionStatus, TargetAssessment
from vllm_capacity.compare.gpu_attribution import GpuAttribution
from vllm_capacity.compare.gpu_watch import GpuWatch
from vllm_capacity.compare.headroom import Limits
from vllm_capacity.deployment import DeploymentFacts, predict_deployment
from vllm_capacity.export.collector import CapacityCollector
from vllm_capacity.observe.gpu_reading import GpuReading
from vllm_capacity.observe.measured_memory import measured_memory
from vllm_capacity.observe.startup_log import StartupLog, read_startup_log
from vllm_capacity.predict import EngineArgs
from vllm_capacity.units import GIB

DATA = Path(__file__).parents[1] / "data"
PUBLISHED = Path(__file__).parents[2].parent / "shared" / "logs"
NO_PREDICTION = PredictionStatus(prediction=None, reason="no_config", message="none")
MEMORY = """\
Initial free memory: {free} GiB; Requested memory: 0.950000 (util), 75.23 GiB
torch peak memory increase: {peak}GiB; non-torch forward increase memory: 0.25GiB; \
weights memory: {weights}GiB.
Available KV cache memory: {kv} GiB
Graph capturing finished in 4 secs, took 1.0 GiB
Free memory on device ({free}/79.19 GiB) on startup. \
Desired GPU memory utilization is (0.95, 75.23 GiB)."""
FIXED = 15.0 + 57.0 + 1.0 + 0.25 + 0.51


def log(*processes: str, **values: float) -> StartupLog:
    """A start-up of processes that all measure the same; 73.25 GiB and 0.51 before it."""
    numbers = {"weights": 15.0, "kv": 57.0, "free": 78.68, "peak": 2.2, **values}
    return read_startup_log(
        f"({name} pid={40 + i}) DEBUG 04-22 15:13:20 [gpu_worker.py:435] {line.format(**numbers)}"
        for line in MEMORY.splitlines()
        for i, name in enumerate(processes)
    )


def target(
    *attributions: GpuAttribution,
    engines: tuple[str, ...] = ("0",),
    started: StartupLog | None = None,
    prediction: PredictionStatus = NO_PREDICTION,
    name: str = "a",
) -> TargetAssessment:
    assessed = [
        EngineAssessor().assess(replace(engine(), engine=label), None, Limits())
        for label in engines
    ]
    return TargetAssessment(
        target=name,
        url="http://engine:8000",
        engines=tuple(assessed),
        prediction=prediction,
        measured=None if started is None else measured_memory(started),
        gpus=attributions,
    )


Series = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def exported(gpus: tuple[GpuReading, ...], *targets: TargetAssessment) -> Series:
    return series_of(GpuWatch().assessed(targets, gpus))


def series_of(fleet: FleetAssessment) -> Series:
    registry = CollectorRegistry()
    registry.register(CapacityCollector(lambda: fleet, with_target=len(fleet.targets) > 1))
    return {
        (sample.name.removeprefix("vllm_capacity_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def components(
    series: Series, source: str, *, index: int = 0, mig_uuid: str = ""
) -> dict[str, int]:
    """Bytes by component; the text holds them to the byte."""
    where = {"gpu": str(index), "mig_uuid": mig_uuid, "source": source}
    return {
        dict(labels)["component"]: int(value)
        for (name, labels), value in series.items()
        if name == "gpu_memory_component_bytes" and where.items() <= dict(labels).items()
    }


def gib(sizes: Mapping[str, int]) -> dict[str, float]:
    return {name: round(size / GIB, 2) for name, size in sizes.items() if size}


HELD = {"weights": 15.0, "kv_cache": 57.0, "cuda_graph": 1.0, "non_torch": 0.25, "context": 0.51}
ONE = log("EngineCore")
SCENARIOS = {
    "bare metal, a desktop beside it": (
        [gpu(FIXED + 1.5 + 0.4)],
        [target(attribution(FIXED + 1.5, 0.4), started=log("EngineCore", free=78.28))],
        [{**HELD, "activation_peak": 1.5, "other_processes": 0.4}],
    ),
    "shared PID namespace, by cgroup": (
        [gpu(FIXED + 1.5)],
        [target(attribution(FIXED + 1.5, 0.0, method="cgroup"), started=ONE)],
        [{**HELD, "activation_peak": 1.5}],
    ),
    "private PID namespace, an exclusive GPU": (
        [gpu(FIXED + 2.2)],
        [target(attribution(FIXED + 2.2, 0.0, method="exclusive"), started=ONE)],
        [{**HELD, "activation_peak": 2.2}],
    ),
    "private PID namespace, a shared GPU": (
        [gpu(78.0)],
        [target(attribution(None, None, method="none", engines=()), started=ONE)],
        [{"unattributed": 78.0}],
    ),
    "the same, its GPUs given by the environment": (
        [gpu(78.0)],
        [target(attribution(None, None, method="none"), started=ONE)],
        [{**{k: v for k, v in HELD.items() if k != "context"}, "unattributed": 4.75}],
    ),
    "two engines on one GPU": (
        [gpu(2 * 31.76 + 3.0)],
        [
            target(attribution(31.76, 34.76), started=log("EngineCore", kv=15), name="a"),
            target(
                attribution(31.76, 34.76), started=log("EngineCore", kv=15, free=46.92), name="b"
            ),
        ],
        [
            {
                "weights": 30.0,
                "kv_cache": 30.0,
                "cuda_graph": 2.0,
                "non_torch": 0.5,
                "context": 1.02,
                "other_processes": 3.0,
            }
        ],
    ),
    "TP over two GPUs": (
        [gpu(FIXED + 1.02), gpu(FIXED + 1.02 + 2.0, index=1), gpu(9.0, index=2)],
        [
            target(
                attribution(FIXED + 1.02, 0.0),
                attribution(FIXED + 1.02, 2.0, index=1),
                attribution(0.0, 9.0, index=2, engines=()),
                started=log("Worker_TP0", "Worker_TP1", free=77.66),
            )
        ],
        [
            {**HELD, "context": 1.53},
            {**HELD, "context": 1.53, "other_processes": 2.0},
            {"other_processes": 9.0},
        ],
    ),
    "DP over two GPUs": (
        [gpu(FIXED), gpu(FIXED + 2.2 + 0.8, index=1)],
        [
            target(
                attribution(FIXED, 0.0, engines=("0",)),
                attribution(FIXED + 3.0, 0.0, index=1, engines=("1",)),
                engines=("0", "1"),
                started=log("EngineCore_DP0", "EngineCore_DP1"),
            )
        ],
        [HELD, {**HELD, "activation_peak": 2.2, "unaccounted": 0.8}],
    ),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_gpus_stack_is_exported_and_sums_to_what_the_driver_counts(scenario: str) -> None:
    gpus, targets, expected = SCENARIOS[scenario]
    series = exported(tuple(gpus), *targets)
    for reading, stack in zip(gpus, expected, strict=True):
        held = components(series, "nvml", index=reading.index)
        where = frozenset({("gpu", str(reading.index)), ("gpu_uuid", reading.uuid)})
        assert sum(held.values()) == series["gpu_memory_used_bytes", where]
        assert gib(held) == pytest.approx(stack, abs=0.011)


def test_a_mig_instance_is_told_apart_from_its_gpu() -> None:
    reading = gpu(50.0, mig=(mig(1, 36.0), mig(2, None)))
    ours = attribution(36.0, 0.0, mig_uuid="MIG-1")
    series = exported((reading,), target(ours, started=log("EngineCore", kv=19.0)))
    held = components(series, "nvml", mig_uuid="MIG-1")
    assert gib(held) == {**HELD, "kv_cache": 19.0, "activation_peak": 0.24}
    assert sum(held.values()) == 36 * GIB
    assert components(series, "nvml") == {}
    on_gpu = {("gpu", "0"), ("gpu_uuid", "GPU-0")}
    first, second = ("mig_uuid", "MIG-1"), ("mig_uuid", "MIG-2")
    profile = ("profile", "3g.40gb")
    assert series["gpu_mig_info", frozenset({*on_gpu, first, profile, ("memory", "own")})] == 1
    assert series["gpu_mig_info", frozenset({*on_gpu, second, profile, ("memory", "parent")})] == 1
    assert series["gpu_mig_memory_used_bytes", frozenset({*on_gpu, first})] == 36 * GIB
    assert ("gpu_mig_memory_used_bytes", frozenset({*on_gpu, second})) not in series
    info = frozenset({*on_gpu, first, ("method", "pid")})
    assert series["gpu_memory_attribution_info", info] == 1


def test_what_is_not_known_of_a_gpu_is_absent() -> None:
    series = exported((gpu(78.0),), target(attribution(None, None, method="none", engines=())))
    names = {name for name, _ in series}
    assert "gpu_memory_engine_bytes" not in names
    assert "gpu_memory_budget_bytes" not in names
    assert not any("gpu_memory" in dict(labels).values() for _, labels in series)


def test_budget_and_headroom_are_told_of_a_gpu_and_of_its_engines() -> None:
    series = exported(
        (gpu(70.0), gpu(78.0, index=1)),
        target(
            attribution(70.0, 0.0),
            attribution(78.0, 0.0, index=1),
            started=log("Worker_PP0", "Worker_PP1"),
        ),
    )
    where = frozenset({("gpu", "1"), ("gpu_uuid", "GPU-1"), ("mig_uuid", "")})
    assert series["gpu_memory_budget_bytes", where] == round(75.23 * GIB)
    headroom = next(
        value
        for (name, labels), value in series.items()
        if name == "headroom_ratio" and ("resource", "gpu_memory") in labels
    )
    assert headroom == pytest.approx((TOTAL - RESERVED - 78 * GIB) / TOTAL)


def test_a_leak_is_exported_once_it_is_known_and_the_targets_gpu_is_remembered() -> None:
    watch, name = GpuWatch(), "gpu_memory_unaccounted_growth_bytes_per_second"
    where = frozenset({("gpu", "1"), ("gpu_uuid", "GPU-1"), ("mig_uuid", "")})
    seen = []
    for minute in range(10):
        used = FIXED + 2.2 + 0.5 * minute
        gpus = (gpu(1.0), gpu(used, index=1))
        ours = target(attribution(used, 0.0, index=1), started=ONE)
        fleet = watch.assessed([ours], gpus)
        seen.append(series_of(fleet).get((name, where)))
        watch.record(60.0 * minute, fleet)
        assert watch.device_of("a") == (gpus[1], None)
    assert seen == [None] * 8 + [pytest.approx(0.5 * GIB / 60)] * 2
    assert watch.device_of("b") is None


def test_a_term_is_graded_by_the_prediction_that_the_log_did_not_enter() -> None:
    started = log("EngineCore", weights=16.0, kv=50.0)
    config = json.loads((DATA / "models/small-llama/config.json").read_text())
    facts = DeploymentFacts(
        config=config,
        given_args=EngineArgs.from_mapping({}),
        calibration=calibration_from(started, "vllm.log"),
    )
    status = predict_deployment(facts)
    assert status.prediction is not None
    assert status.uncalibrated is not None
    assert status.uncalibrated.budget is not None
    assert status.prediction.weights_bytes == status.uncalibrated.weights_bytes
    series = exported(
        (gpu(70.0),), target(attribution(70.0, 0.0), started=started, prediction=status)
    )
    errors = {
        dict(labels)["quantity"]: value
        for (name, labels), value in series.items()
        if name == "prediction_error_ratio"
    }
    unaided = status.uncalibrated.budget.weights_bytes
    assert errors["weights"] == pytest.approx(1 - unaided / (16 * GIB))
    assert {"weights", "activation_peak", "non_torch"} <= errors.keys()
    assert components(series, "predicted")["weights"] == unaided
    assert components(series, "reported")["weights"] == 16 * GIB


def published() -> list[Path]:
    return [path for path in sorted(PUBLISHED.glob("*.log.xz")) if "FAILED" not in path.name]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published logs are not beside the clone")
@pytest.mark.parametrize("kept", [0.0, 1.0], ids=["cache emptied", "cache at its peak"])
@pytest.mark.parametrize("path", published(), ids=lambda path: path.name[:40])
def test_published_start_ups_are_accounted_for(path: Path, kept: float) -> None:
    with lzma.open(path, "rt", encoding="utf-8", errors="replace") as file:
        started = read_startup_log(file)
    text = lzma.decompress(path.read_bytes()).decode(errors="replace")
    printed = {
        "weights": r"Actual usage is ([\d.]+) GiB for weight",
        "activation_peak": r"([\d.]+) GiB for peak activation",
        "non_torch": r"([\d.]+) GiB for non-torch memory",
        "cuda_graph": r"([\d.]+) GiB for CUDAGraph memory",
        "kv_cache": r"Current kv cache memory in use is ([\d.]+) GiB",
    }
    found = {name: list(map(float, re.findall(one, text))) for name, one in printed.items()}
    free = float(re.findall(r"Initial free memory: ([\d.]+) GiB", text)[0])
    ranks = len(found["weights"])
    assert ranks == max(1, len(started.ranks))
    held = [
        sum(sizes[i] * (kept if name == "activation_peak" else 1) for name, sizes in found.items())
        + (79.19 - free)
        for i in range(ranks)
    ]
    if "pp2" in path.name:  # the rank that is last in the log is the first
        held.reverse()
    series = exported(
        tuple(gpu(used, index=i) for i, used in enumerate(held)),
        target(*(attribution(used, 0.0, index=i) for i, used in enumerate(held)), started=started),
    )
    for i in range(ranks):
        stack = components(series, "nvml", index=i)
        assert abs(stack["unaccounted"]) < 0.02 * TOTAL
        assert abs(stack["unaccounted"]) < 0.05 * GIB
        reported = components(series, "reported", index=i)
        for name, sizes in found.items():
            assert round(reported[name] / GIB, 2) in sizes
