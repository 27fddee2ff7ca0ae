"""Laws of the ledger under every load: the whole way from the page's text to predicted blocks."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from vllm_capacity.commands.replay import replayed
from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.deployment import DeploymentFacts
from vllm_capacity.errors import ExpositionError
from vllm_capacity.monitor import Pipeline
from vllm_capacity.predict import EngineArgs
from vllm_capacity.simulate import (
    Arrival,
    EngineTruth,
    RequestSpec,
    Restart,
    Scraping,
    SimulatedTarget,
    SimulationConfig,
    Workload,
    scrapes,
)
from vllm_capacity.units import Blocks, Tokens

SMALL = SimulationConfig(
    num_gpu_blocks=Blocks(41),
    max_model_len=Tokens(256),
    max_num_seqs=12,
    max_num_batched_tokens=Tokens(200),
)
MIDDLE = SimulationConfig(
    num_gpu_blocks=Blocks(350),
    block_size=Tokens(32),
    max_model_len=Tokens(2048),
    max_num_seqs=48,
    step_base_seconds=0.06,
    step_seconds_per_token=0.0002,
    async_scheduling=False,
)
NOTHING_KNOWN = DeploymentFacts(given_args=EngineArgs.from_mapping({}))


@dataclass(frozen=True)
class Seen:
    """One engine at one scrape: what the exporter says, and what is true."""

    at_seconds: float
    assessment: EngineAssessment
    truth: EngineTruth

    @property
    def row(self) -> Mapping[str, Any]:
        return replayed(self.assessment)

    @property
    def started(self) -> list[tuple[int, int]]:
        """Prompt and output tokens of the requests past their first token."""
        live = (*self.truth.running, *self.truth.waiting)
        return [(r.prompt_tokens, r.output_tokens) for r in live if r.output_tokens]


def watch(
    target: SimulatedTarget, how: Scraping, until_seconds: float, model: SimulationConfig | None
) -> Iterator[Seen]:
    """Scrape, parse and assess; with the model's config where ``model`` is given."""
    facts = NOTHING_KNOWN
    if model is not None:
        args = EngineArgs.from_mapping(dict(model.engine_args))
        facts = replace(facts, config=dict(model.model_config), given_args=args)
    pipeline = Pipeline()
    for scrape in scrapes(target, how, until_seconds=until_seconds):
        if scrape.page is None:
            continue
        page = pipeline.read(scrape.page, taken_at_seconds=scrape.at_seconds)
        known = facts.with_labels(page.engines[0].cache_config)
        truths = [engine.truth() for engine in target.simulation.engines]
        for assessment, truth in zip(pipeline.assess(page, known), truths, strict=True):
            yield Seen(scrape.at_seconds, assessment, truth)


SIGNED = {"prediction_error_blocks"}


def assert_sane(row: Mapping[str, Any]) -> None:
    """Every number finite and not negative, the prediction inside its interval and the pool."""
    json.dumps(row, allow_nan=False)
    for name, value in row.items():
        if isinstance(value, float | int) and name not in SIGNED:
            assert value >= 0, (name, value)
    predicted, total = row["predicted_used_blocks"], row["total_blocks"]
    if predicted is not None:
        low, high = row["predicted_used_blocks_low"], row["predicted_used_blocks_high"]
        assert low - 1e-6 <= predicted <= high + 1e-6
        assert total is None or high <= total + 1e-6


specs = st.builds(
    RequestSpec,
    prompt_tokens=st.integers(41, 180).map(Tokens),
    max_tokens=st.integers(1, 70).map(Tokens),
    stop_after_tokens=st.none() | st.integers(1, 70).map(Tokens),
    n=st.sampled_from([1, 1, 1, 3]),
    prefix=st.none() | st.integers(0, 1),
    prefix_tokens=st.just(Tokens(40)),
)
leaving = st.builds(
    replace,
    specs,
    hang_up_after_tokens=st.none() | st.integers(1, 40).map(Tokens),
    hang_up_after_seconds=st.none() | st.floats(0, 3),
)


def loads(of: st.SearchStrategy[RequestSpec]) -> st.SearchStrategy[list[Arrival]]:
    return st.lists(st.builds(Arrival, st.floats(0, 12), of), min_size=1, max_size=30).map(
        lambda found: sorted(found, key=lambda arrival: arrival.at_seconds)
    )


engines = st.builds(
    replace,
    st.just(SMALL),
    async_scheduling=st.booleans(),
    enable_prefix_caching=st.booleans(),
    data_parallel_size=st.sampled_from([1, 1, 2]),
    num_speculative_tokens=st.sampled_from([0, 0, 3]),
)
scraping = st.builds(
    Scraping,
    interval_seconds=st.sampled_from([0.25, 1.0, 2.5]),
    late_seconds=st.sampled_from([0.0, 0.2]),
    failing_share=st.sampled_from([0.0, 0.2]),
    torn_share=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 99),
)
# A failing history is long, and takes minutes to make shorter.
slow = settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)


@slow
@given(config=engines, load=loads(specs), interval_seconds=st.sampled_from([0.25, 1.0, 2.5]))
def test_requests_and_tokens_in_flight_are_those_of_the_requests_that_live(
    config: SimulationConfig, load: list[Arrival], interval_seconds: float
) -> None:
    # The first scrape finds nobody: who starts amid preemptions cannot know who is there.
    later = [replace(arrival, at_seconds=arrival.at_seconds + 3) for arrival in load]
    target = SimulatedTarget(config, later)
    how = Scraping(interval_seconds=interval_seconds)
    for seen in watch(target, how, 20, None):
        ledger = seen.assessment.ledger
        truth = seen.truth
        assert len(truth.running) + len(truth.waiting) == truth.admitted - truth.finished
        assert sum(cohort.requests for cohort in ledger.cohorts) == pytest.approx(len(seen.started))
        tokens = sum(prompt + output for prompt, output in seen.started)
        assert ledger.in_flight_tokens == pytest.approx(tokens)


@slow
@given(config=engines, load=loads(leaving), how=scraping, at=st.none() | st.floats(2, 12))
def test_an_idle_engine_is_anchored_at_nothing_whatever_it_has_been_through(
    config: SimulationConfig, load: list[Arrival], how: Scraping, at: float | None
) -> None:
    restarts = [] if at is None else [Restart(at_seconds=at, down_seconds=2.0, config=config)]
    target = SimulatedTarget(config, load, restarts)
    last: dict[str, Seen] = {}
    for seen in watch(target, how, 60, None):
        assert_sane(seen.row)
        last[seen.assessment.snapshot.engine] = seen
    assert len(last) == config.data_parallel_size
    for seen in last.values():
        assert seen.truth.running == seen.truth.waiting == ()
        assert seen.row["predicted_used_blocks"] == seen.row["used_blocks"] == 0
        assert seen.row["ledger_state"] == "anchored"


@dataclass(frozen=True)
class Errors:
    """How far off the prediction was, as shares of the pool."""

    errors: list[float]
    widths: list[float]
    inside: list[bool]

    @classmethod
    def of(cls, seen: Iterable[Seen]) -> "Errors":
        result = cls([], [], [])
        for row in (each.row for each in seen if each.at_seconds >= 15):
            if row["predicted_used_blocks"] is None:
                continue
            low, high = row["predicted_used_blocks_low"], row["predicted_used_blocks_high"]
            result.errors.append(abs(row["prediction_error_blocks"]) / row["total_blocks"])
            result.widths.append((high - low) / row["total_blocks"])
            result.inside.append(low - 1e-6 <= row["used_blocks"] <= high + 1e-6)
        return result


LIKE_THE_RECORDINGS = Workload(
    prompt_tokens_mean=350.0,
    output_tokens_mean=250.0,
    shared_prefix_share=0.0,
    parallel_share=0.0,
    hang_up_share=0.0,
)


def run(
    config: SimulationConfig, workload: Workload, how: Scraping, seconds: float = 120
) -> list[Seen]:
    target = SimulatedTarget(config, workload.arrivals(config))
    return list(watch(target, how, seconds, config if len(config.cache_groups) > 1 else None))


# What differs from the recordings' load, the engine, and the most that median and 95th percentile
# of the error may be as shares of the pool.
LOADS: Mapping[str, tuple[Mapping[str, Any], SimulationConfig, float, float]] = {
    "steady": ({"pattern": "steady"}, MIDDLE, 0.005, 0.03),
    "ramp": ({"pattern": "ramp"}, MIDDLE, 0.005, 0.03),
    "burst": ({"pattern": "burst"}, MIDDLE, 0.005, 0.03),
    "diurnal": ({"pattern": "diurnal"}, MIDDLE, 0.005, 0.03),
    "long decode": (
        {"pattern": "burst", "prompt_tokens_mean": 40.0, "output_tokens_mean": 900.0},
        MIDDLE,
        0.02,
        0.08,
    ),
    "drafts": ({"pattern": "ramp"}, replace(MIDDLE, num_speculative_tokens=3), 0.005, 0.03),
}


@pytest.mark.parametrize("load", LOADS)
def test_the_interval_holds_what_is_true_and_is_narrow(load: str) -> None:
    fields, config, most_median, most_p95 = LOADS[load]
    every = Errors([], [], [])
    for seed in range(2):
        workload = replace(LIKE_THE_RECORDINGS, seed=seed, **fields)
        one = Errors.of(run(config, workload, Scraping(torn_share=0.15, seed=seed)))
        every.errors.extend(one.errors)
        every.widths.extend(one.widths)
        every.inside.extend(one.inside)
    assert len(every.errors) > 200
    assert mean(every.inside) >= 0.95
    assert mean(every.widths) <= 0.1
    assert sorted(every.errors)[len(every.errors) // 2] <= most_median
    assert sorted(every.errors)[len(every.errors) * 95 // 100] <= most_p95


@pytest.mark.parametrize("how", [Scraping(interval_seconds=5.0), Scraping(failing_share=0.6)])
def test_how_often_one_looks_hardly_changes_what_one_sees(how: Scraping) -> None:
    workload = replace(LIKE_THE_RECORDINGS, pattern="burst")
    often = {round(seen.at_seconds): seen.row for seen in run(MIDDLE, workload, Scraping())}
    seldom = run(MIDDLE, workload, how)
    times = [(seen.row, round(seen.at_seconds)) for seen in seldom if seen.at_seconds > 15]
    both = [(row, often[second]) for row, second in times if second in often]
    overlapping = [
        one["predicted_used_blocks_low"] <= other["predicted_used_blocks_high"] + 1
        and other["predicted_used_blocks_low"] <= one["predicted_used_blocks_high"] + 1
        for one, other in both
    ]
    assert len(both) >= 20
    assert mean(overlapping) >= 0.95


COUNTERS = (
    "prompt_tokens_total",
    "generation_tokens_total",
    "num_preemptions_total",
    "prefix_cache_queries_total",
    "prompt_tokens_cached_total",
    "request_prompt_tokens_sum",
    "request_prompt_tokens_count",
    "request_generation_tokens_sum",
    "request_generation_tokens_count",
    "request_prefill_kv_computed_tokens_sum",
    "request_prefill_kv_computed_tokens_count",
    "time_to_first_token_seconds_sum",
    "time_to_first_token_seconds_count",
    "e2e_request_latency_seconds_sum",
    "e2e_request_latency_seconds_count",
    "request_params_n_sum",
    "request_params_n_count",
    "iteration_tokens_total_count",
)
GAUGES = ("num_requests_running", "num_requests_waiting")
numbers = st.one_of(
    st.integers(0, 50),
    st.integers(0, 10**9),
    st.sampled_from([0.0, 0.5, 1e300, math.nan, math.inf, -1.0]),
)
series = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(COUNTERS + GAUGES, numbers),
        "kv_cache_usage_perc": st.floats(0, 1),
    },
)
garbage = st.lists(
    st.dictionaries(st.sampled_from(["0", "1", "7", "eins"]), series, max_size=3),
    min_size=1,
    max_size=8,
)
configs = st.dictionaries(
    st.sampled_from(["block_size", "num_gpu_blocks", "kv_cache_size_tokens"]),
    st.sampled_from(["None", "0", "1", "2", "16", "350", "1e3", "nonsense"]),
)


def page_of(by_engine: Mapping[str, Mapping[str, float]], labels: Mapping[str, str]) -> bytes:
    lines = []
    shown = "".join(f',{name}="{value}"' for name, value in labels.items())
    for engine, values in by_engine.items():
        lines += [f'vllm:{name}{{engine="{engine}"}} {value}' for name, value in values.items()]
        lines.append(f'vllm:cache_config_info{{engine="{engine}"{shown}}} 1.0')
    return "\n".join([*lines, ""]).encode()


@settings(max_examples=100, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(pages=garbage, labels=configs)
def test_no_sequence_of_pages_gives_anything_but_numbers_that_can_be(
    pages: list[dict[str, dict[str, float]]], labels: dict[str, str]
) -> None:
    pipeline = Pipeline()
    for second, by_engine in enumerate(pages):
        try:
            page = pipeline.read(page_of(by_engine, labels), taken_at_seconds=float(second))
        except ExpositionError:
            assert not by_engine
            continue
        known = NOTHING_KNOWN.with_labels(page.engines[0].cache_config)
        for assessment in pipeline.assess(page, known):
            assert_sane(replayed(assessment))
