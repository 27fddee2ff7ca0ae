"""The simulation beside the real thing: vLLM 0.32's page, and vLLM 0.32's own scheduler."""

import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vllm_capacity.simulate import (
    RequestSpec,
    SimulatedEngine,
    SimulatedMetrics,
    Simulation,
    SimulationConfig,
    StepOutcome,
    Submission,
    Workload,
)
from vllm_capacity.units import Blocks, Tokens

_DATA = Path(__file__).parents[1] / "data"
# Labels whose values are vLLM's own words; the values of others belong to the server.
_OWN_WORDS = {"le", "engine", "source", "reason", "finished_reason", "sleep_state", "generation"}


@dataclass
class Family:
    """One family of a page, without the values of its samples."""

    name: str
    help: str
    type: str = ""
    series: list[tuple[str, tuple[tuple[str, str], ...]]] = field(default_factory=list)


def families_of(page: str) -> Iterator[Family]:
    family = Family("", "")
    for line in page.splitlines():
        if line.startswith("# HELP "):
            family = Family(*line.removeprefix("# HELP ").split(" ", 1))
            yield family
        elif line.startswith("# TYPE "):
            family.type = line.rsplit(" ", 1)[1]
        else:
            labels = re.findall(r'(\w+)="([^"]*)"', line)
            shown = tuple((k, v if k in _OWN_WORDS else "…") for k, v in labels)
            family.series.append((re.split(r"[ {]", line, maxsplit=1)[0], shown))


@cache
def recorded_page() -> str:
    return (_DATA / "vllm-0.32-metrics.txt").read_text(encoding="utf-8")


def simulated_page(**fields: Any) -> str:
    # The recorded server: requests of at most 2048 tokens, completions as its only requests.
    config = SimulationConfig(max_model_len=Tokens(2048), **fields)
    metrics = SimulatedMetrics(config)
    Simulation(config, Workload().arrivals(config), metrics).advance_to(30)
    return metrics.page().decode()


def test_the_simulated_page_has_the_recorded_families_in_their_order() -> None:
    recorded = [family.name for family in families_of(recorded_page())]
    assert [family.name for family in families_of(simulated_page())] == recorded
    assert len(recorded) > 90


@pytest.mark.parametrize("name", [family.name for family in families_of(recorded_page())])
def test_a_family_equals_the_recorded_one_in_help_type_names_labels_and_buckets(name: str) -> None:
    assert of_page("simulated")[name] == of_page("recorded")[name]


@cache
def of_page(which: str) -> dict[str, Family]:
    page = simulated_page() if which == "simulated" else recorded_page()
    return {family.name: family for family in families_of(page)}


def test_every_engine_of_a_data_parallel_server_has_every_series() -> None:
    families = families_of(simulated_page(data_parallel_size=3))
    for family in families:
        engines = [
            dict(labels)["engine"] for _, labels in family.series if "engine" in dict(labels)
        ]
        assert engines.count("0") == engines.count("1") == engines.count("2")


@cache
def recorded_schedules() -> list[dict[str, Any]]:
    text = lzma.decompress((_DATA / "vllm-0.32-scheduler-steps.json.xz").read_bytes())
    recordings: list[dict[str, Any]] = json.loads(text)
    return recordings


def simulated_row(outcome: StepOutcome, num_usable_blocks: Blocks) -> list[int] | None:
    """One step in the form of the recording."""
    stats, iteration = outcome.scheduler, outcome.iteration
    if stats is None:
        return None
    return [
        stats.num_running,
        stats.num_waiting,
        0,  # deferred: nothing here defers a request
        round(stats.kv_cache_usage_ratio * num_usable_blocks),
        stats.prefix_cache_queries_tokens,
        stats.prefix_cache_hits_tokens,
        iteration.num_preempted if iteration else 0,
        sum(output.num_tokens for output in outcome.outputs),
        sum(output.finish_reason is not None for output in outcome.outputs),
        sum(accepted for _, accepted in stats.drafts),
    ]


class Replay:
    """Sends a recorded workload to a simulated engine, step by step."""

    def __init__(self, recording: dict[str, Any]) -> None:
        self.config = SimulationConfig(**recording["config"])
        self.engine = SimulatedEngine(self.config)
        self.requests = recording["requests"]
        self.answers: dict[int, list[Any]] = {}

    def step(self, step: int) -> StepOutcome:
        for number, request in enumerate(self.requests):
            if request["step"] == step:
                self.add(number, request, step)
            if request["abort_step"] == step:
                for answer in self.answers[number]:
                    self.engine.abort(answer)
        return self.engine.step(float(step))

    def add(self, number: int, request: dict[str, Any], step: int) -> None:
        spec = {k: v for k, v in request.items() if k not in {"step", "abort_step"}}
        submission = Submission(number, RequestSpec(**spec), float(step))
        indices = range(request["n"])
        self.answers[number] = [self.engine.add(submission, index) for index in indices]


@pytest.mark.parametrize("case", range(40))
def test_the_simulated_scheduler_does_what_vllms_scheduler_did_at_every_step(case: int) -> None:
    recording = recorded_schedules()[case]
    replay = Replay(recording)
    for step, recorded in enumerate(recording["steps"]):
        row = simulated_row(replay.step(step), replay.config.num_usable_blocks)
        assert row == recorded, f"step {step} of {recording['config']}"


def test_the_recorded_schedules_reach_what_matters() -> None:
    rows = [row for recording in recorded_schedules() for row in recording["steps"] if row]
    totals = [sum(column) for column in zip(*rows, strict=True)]
    hits, preemptions, finished, accepted = totals[5], totals[6], totals[8], totals[9]
    assert len(rows) > 12_000
    assert accepted > 5000
    assert hits > 1000
    assert preemptions > 100
    assert finished > 500
