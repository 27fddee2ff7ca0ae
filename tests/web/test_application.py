"""The pages, in process: what Prometheus and people get."""

import asyncio
import gzip
import re
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from vllm_capacity.compare.fleet import (
    FAILURE_REASONS,
    FleetAssessment,
    PredictionStatus,
    SourceHealth,
    TargetAssessment,
)
from vllm_capacity.deployment import DeploymentFacts
from vllm_capacity.export.catalogue import CATALOGUE
from vllm_capacity.export.collector import CapacityCollector
from vllm_capacity.monitor import Pipeline
from vllm_capacity.observe.gpu_reading import GpuReading
from vllm_capacity.predict import EngineArgs
from vllm_capacity.units import Bytes
from vllm_capacity.web.application import web_application

PAGE = (Path(__file__).parent.parent / "data" / "vllm-0.32-metrics.txt").read_bytes()
NO_PREDICTION = PredictionStatus(prediction=None, reason="no_config", message="no config.json")
UP = SourceHealth().succeeded(at=1_700_000_000.0, seconds=0.02)
GPU = GpuReading(
    index=0,
    uuid="GPU-1",
    name="NVIDIA H100 80GB HBM3",
    total_bytes=Bytes(80 << 30),
    used_bytes=Bytes(70 << 30),
    free_bytes=Bytes(10 << 30),
    reserved_bytes=None,
    compute_capability=(9, 0),
    mig_enabled=False,
    processes=None,
)


def target(name: str = "a:8000", page: bytes = PAGE) -> TargetAssessment:
    pipeline = Pipeline()
    snapshot = pipeline.read(page, taken_at_seconds=1.0)
    engines = pipeline.assess(snapshot, DeploymentFacts(given_args=EngineArgs.from_mapping({})))
    return TargetAssessment(
        target=name,
        url=f"http://{name}",
        engines=engines,
        prediction=NO_PREDICTION,
        vllm_version="0.32.0",
        response_bytes=Bytes(len(page)),
        metric_present=snapshot.metric_present,
        health={"vllm": UP},
    )


def fleet(*targets: TargetAssessment) -> FleetAssessment:
    return FleetAssessment(targets=targets or (target(),), gpus=(GPU,))


def get(
    path: str, published: FleetAssessment, *, with_target: bool = False, **headers: str
) -> httpx.Response:
    registry = CollectorRegistry()
    registry.register(CapacityCollector(lambda: published, with_target=with_target))
    application = web_application(registry, lambda: published)

    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app=application)
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(request())


def series(page: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def value(page: str, name: str, **labels: str) -> float:
    return series(page)["vllm_capacity_" + name, tuple(sorted(labels.items()))]


ENGINE = {"engine": "0", "model_name": "./small-llama"}


def test_the_numbers_of_a_recorded_page_come_out_in_blocks_and_tokens() -> None:
    page = get("/metrics", fleet()).text
    assert value(page, "kv_cache_blocks", **ENGINE) == 349
    assert value(page, "kv_cache_used_blocks", **ENGINE) == 13
    assert value(page, "kv_cache_free_blocks", **ENGINE) == 336
    assert value(page, "kv_cache_used_tokens", **ENGINE) == 13 * 32
    assert value(page, "kv_cache_capacity_tokens", source="reported", **ENGINE) == 11200
    assert value(page, "full_length_concurrency", source="reported", **ENGINE) == 5.46875
    assert value(page, "gpu_memory_used_bytes", gpu="0", gpu_uuid="GPU-1") == 70 << 30
    assert value(page, "target_info", engine_count="1", vllm_version="0.32.0") == 1
    assert value(page, "prediction_supported", reason="no_config") == 0


def test_what_is_unknown_has_no_series() -> None:
    page = get("/metrics", fleet()).text
    for name in ("gpu_memory_reserved_bytes", "predicted_kv_cache_blocks", "kv_cache_used_bytes"):
        assert f"# TYPE vllm_capacity_{name} gauge" in page
        assert f"\nvllm_capacity_{name}{{" not in page
    assert "NaN" not in page


def test_a_dead_target_keeps_its_health_and_loses_everything_else() -> None:
    down = UP.failed(reason="connect", message="refused", seconds=0.1)
    dead = replace(target(), engines=(), metric_present={}, health={"vllm": down})
    page = get("/metrics", fleet(dead)).text
    assert value(page, "source_up", source="vllm") == 0
    assert value(page, "collection_errors_total", source="vllm", reason="connect") == 1
    assert value(page, "last_success_timestamp_seconds", source="vllm") == 1_700_000_000
    assert "vllm_capacity_kv_cache_used_blocks{" not in page
    assert "vllm_capacity_source_metric_present{" not in page


def test_failures_are_counted_from_zero_for_every_reason() -> None:
    page = get("/metrics", fleet()).text
    for reason in FAILURE_REASONS["vllm"]:
        assert value(page, "collection_errors_total", source="vllm", reason=reason) == 0


def test_a_row_that_breaks_costs_its_own_series_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> dict[tuple[str, ...], float]:
        raise ZeroDivisionError

    [first, *others] = CATALOGUE
    rows = (replace(first, read=broken), *others)
    monkeypatch.setattr("vllm_capacity.export.collector.CATALOGUE", rows)
    response = get("/metrics", fleet())
    assert response.status_code == 200
    assert f"{first.name}{{" not in response.text
    assert value(response.text, "kv_cache_used_blocks", **ENGINE) == 13


def test_several_targets_are_told_apart_by_a_label() -> None:
    page = get("/metrics", fleet(target("a:1"), target("b:2")), with_target=True).text
    assert value(page, "kv_cache_blocks", target="a:1", **ENGINE) == 349
    assert value(page, "kv_cache_blocks", target="b:2", **ENGINE) == 349


def test_durations_are_a_histogram() -> None:
    page = get("/metrics", fleet()).text
    assert value(page, "collection_duration_seconds_bucket", source="vllm", le="0.01") == 0
    assert value(page, "collection_duration_seconds_bucket", source="vllm", le="0.05") == 1
    assert value(page, "collection_duration_seconds_bucket", source="vllm", le="+Inf") == 1
    assert value(page, "collection_duration_seconds_sum", source="vllm") == pytest.approx(0.02)


def test_the_page_is_plain_text_open_metrics_or_compressed_as_asked() -> None:
    plain = get("/metrics", fleet(), accept="text/plain")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    modern = get("/metrics", fleet(), accept="application/openmetrics-text; version=1.0.0")
    assert modern.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert modern.text.endswith("# EOF\n")
    packed = get("/metrics", fleet(), **{"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.text == plain.text
    assert len(gzip.compress(plain.content)) < len(plain.content)


def test_names_can_be_asked_for() -> None:
    page = get("/metrics?name[]=vllm_capacity_kv_cache_blocks", fleet()).text
    assert {name for name, _ in series(page)} == {"vllm_capacity_kv_cache_blocks"}


def test_every_row_of_the_catalogue_is_a_family_of_its_type() -> None:
    page = get("/metrics", fleet()).text
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))
    for metric in CATALOGUE:
        assert types[metric.name] == metric.kind


def test_a_hostile_model_name_stays_a_label() -> None:
    hostile = '<script>alert(1)</script>\\"\\\\'
    page = PAGE.replace(b"./small-llama", hostile.encode())
    published = fleet(target(page=page))
    names = {
        dict(labels)["model_name"]
        for (name, labels) in series(get("/metrics", published).text)
        if name == "vllm_capacity_kv_cache_blocks"
    }
    assert names == {'<script>alert(1)</script>"\\'}


def test_healthy_means_alive_and_ready_means_that_somebody_answered() -> None:
    silent = replace(target(), health={"vllm": SourceHealth()})
    assert get("/-/healthy", fleet(silent)).status_code == 200
    assert get("/-/ready", fleet(silent)).status_code == 503
    assert get("/-/ready", fleet(silent, target())).status_code == 200
    assert get("/nowhere", fleet()).status_code == 404
