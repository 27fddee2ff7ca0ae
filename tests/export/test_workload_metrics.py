"""The workload's series, after a recording of a real vLLM whose prompts share a prefix."""

import argparse
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from vllm_capacity.commands.engine_flags import add_deployment_flags, deployment_facts
from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.export.workload_metrics import WORKLOAD
from vllm_capacity.monitor import Pipeline

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def in_service() -> EngineAssessment:
    parser = argparse.ArgumentParser()
    add_deployment_flags(parser)
    model = str(DATA / "models" / "small-llama")
    facts = deployment_facts(parser.parse_args(["--model-config", model]))
    pipeline = Pipeline()
    with lzma.open(DATA / "traces" / "prefix.jsonl.xz", "rt", encoding="utf-8") as lines:
        scrapes = [json.loads(line) for line in lines][:100]
    for scrape in scrapes:
        page = pipeline.read(scrape["metrics"].encode(), taken_at_seconds=scrape["t"])
        [assessment] = pipeline.assess(page, facts.with_labels(page.engines[0].cache_config))
    return assessment


def test_every_series_of_the_workload_is_there_and_finite(in_service: EngineAssessment) -> None:
    labels: dict[str, Any] = {
        metric.name.removeprefix("vllm_capacity_"): set(metric.read(in_service))
        for metric in WORKLOAD
    }
    parts = {(part, basis) for part in ("prompt", "output") for basis in ("mean", "p95")}
    assert labels == {
        "request_footprint_tokens": {("mean",), ("p95",)},
        "request_length_tokens": parts,
        "request_footprint_blocks": {("mean",), ("p95",)},
        "request_footprint_requests": {("window",)},
        "request_footprint_window_seconds": {()},
        "arrived_requests_per_second": {("1m",), ("5m",)},
        "completed_requests_per_second": {("1m",), ("5m",)},
        "cached_prompt_tokens_ratio": {("local", "5m"), ("external", "5m")},
        "sharing_saved_blocks": {()},
        "sharing_saved_bytes": {()},
    }
    for metric in WORKLOAD:
        for value in metric.read(in_service).values():
            assert value is not None
            assert 0 <= value < float("inf")


def test_bytes_saved_are_blocks_saved_times_the_bytes_of_a_block(
    in_service: EngineAssessment,
) -> None:
    """12 layers × keys and values × 4 heads of 64 × 2 bytes × 32 tokens."""
    assert in_service.sharing is not None
    assert in_service.sharing.blocks > 0
    assert in_service.sharing.bytes_per_gpu == round(
        in_service.sharing.blocks * 12 * 2 * 4 * 64 * 2 * 32
    )
