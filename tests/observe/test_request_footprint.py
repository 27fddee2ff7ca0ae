"""How large requests are."""

import json
import lzma
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_capacity.observe.engine_snapshot import EngineSnapshot, Histogram, snapshots_of_page
from vllm_capacity.observe.exposition import ExpositionParser
from vllm_capacity.observe.metric_names import WANTED_NAMES
from vllm_capacity.observe.request_footprint import (
    FootprintWindow,
    RequestFootprint,
    quantile_tokens,
)

TRACES = Path(__file__).parent.parent / "data" / "traces"
INFINITY = float("inf")
BOUNDS = [n * 10**e for e in range(6) for n in (1.0, 2.0, 5.0)] + [INFINITY]
[NOTHING] = snapshots_of_page(
    ExpositionParser(WANTED_NAMES).parse(b"vllm:num_requests_running 0\n"), taken_at_seconds=0.0
).engines


def snapshot(t: float, prompts: Histogram | None, outputs: Histogram | None) -> EngineSnapshot:
    return replace(
        NOTHING,
        taken_at_seconds=t,
        request_prompt_tokens=prompts,
        request_generation_tokens=outputs,
    )


def histogram(count: float, total: float) -> Histogram:
    return Histogram(count=count, total=total, buckets=((100.0, count), (INFINITY, count)))


def histogram_of(lengths: list[int]) -> Histogram:
    return Histogram(
        count=len(lengths),
        total=sum(lengths),
        buckets=tuple((bound, sum(n <= bound for n in lengths)) for bound in BOUNDS),
    )


def p95_of(numbers: list[int]) -> int:
    return sorted(numbers)[math.ceil(0.95 * len(numbers)) - 1]


def after(requests: list[tuple[int, int]], *, batch: int) -> RequestFootprint:
    """The footprint after so many requests finished at each of a minute's scrapes."""
    window, footprint = FootprintWindow(), None
    for done in range(0, len(requests) + 1, batch):
        prompts, outputs = [p for p, _ in requests[:done]], [g for _, g in requests[:done]]
        footprint = window.record(
            snapshot(float(done / batch), histogram_of(prompts), histogram_of(outputs))
        )
    assert footprint is not None
    return footprint


@pytest.mark.parametrize(
    ("buckets", "quantile", "expected"),
    [
        (((100.0, 10.0), (200.0, 20.0), (INFINITY, 20.0)), 0.5, 100.0),
        (((100.0, 10.0), (200.0, 20.0), (INFINITY, 20.0)), 0.95, 190.0),
        (((100.0, 0.0), (INFINITY, 20.0)), 0.95, 100.0),
        ((), 0.95, None),
    ],
)
def test_a_quantile_is_interpolated_as_promql_does(
    buckets: tuple[tuple[float, float], ...], quantile: float, expected: float | None
) -> None:
    count = buckets[-1][1] if buckets else 0.0
    measured = quantile_tokens(Histogram(count=count, total=0.0, buckets=buckets), quantile)
    assert measured == (None if expected is None else pytest.approx(expected))


def test_the_means_are_those_of_the_requests_in_the_window() -> None:
    window = FootprintWindow()
    for t, count, prompt, output in ((0.0, 100, 10_000, 5_000), (60.0, 120, 50_000, 7_000)):
        footprint = window.record(snapshot(t, histogram(count, prompt), histogram(count, output)))
    assert footprint is not None
    assert footprint.prompt is not None
    assert footprint.output is not None
    assert footprint.prompt.mean_tokens == pytest.approx(40_000 / 20)
    assert footprint.output.mean_tokens == pytest.approx(2_000 / 20)
    assert footprint.mean_tokens == pytest.approx(40_000 / 20 + 2_000 / 20)
    assert (footprint.requests, footprint.window_seconds) == (20, 60.0)


def test_requests_older_than_the_window_are_forgotten() -> None:
    window = FootprintWindow()
    for minute in range(40):
        size = 1000.0 if minute < 20 else 10.0
        done = 20 * minute
        total = 20 * 1000.0 * min(minute, 20) + 20 * size * max(0, minute - 20)
        footprint = window.record(
            snapshot(60.0 * minute, histogram(done, total), histogram(done, total))
        )
    assert footprint is not None
    assert footprint.mean_tokens == 20.0
    assert footprint.window_seconds == 900.0


def test_with_few_requests_lately_all_since_the_start_count() -> None:
    footprint = FootprintWindow().record(snapshot(0.0, histogram(4, 400), histogram(4, 40)))
    assert footprint is not None
    assert (footprint.mean_tokens, footprint.window_seconds) == (110.0, None)


def test_after_a_restart_only_the_new_servers_requests_count() -> None:
    window = FootprintWindow()
    window.record(snapshot(0.0, histogram(100, 10_000), histogram(100, 1_000)))
    window.record(snapshot(10.0, histogram(150, 15_000), histogram(150, 1_500)))
    footprint = window.record(
        snapshot(20.0, histogram(200, 2_000), histogram(200, 200)), restarted=True
    )
    assert footprint is not None
    assert (footprint.mean_tokens, footprint.window_seconds) == (11.0, None)


def test_before_the_first_request_has_finished_sizes_are_unknown() -> None:
    window = FootprintWindow()
    assert window.record(snapshot(0.0, None, None)) is None
    assert window.record(snapshot(1.0, histogram(0, 0), histogram(0, 0))) is None


def uniform(rng: random.Random) -> tuple[int, int]:
    return rng.randint(50, 700), rng.randint(60, 380)


def together(rng: random.Random) -> tuple[int, int]:
    prompt = rng.randint(50, 700)
    return prompt, prompt // 2


def opposed(rng: random.Random) -> tuple[int, int]:
    prompt = rng.randint(50, 700)
    return prompt, 750 - prompt


def skewed(rng: random.Random) -> tuple[int, int]:
    return 1 + round(rng.lognormvariate(5.5, 0.8)), 1 + round(rng.expovariate(1 / 200))


def fixed(_: random.Random) -> tuple[int, int]:
    return 512, 128


@pytest.mark.parametrize("draw", [uniform, together, opposed, skewed, fixed])
@pytest.mark.parametrize("batch", [1, 7])
def test_p95_is_close_to_the_true_one_whatever_the_scrape_interval(
    draw: Callable[[random.Random], tuple[int, int]], batch: int
) -> None:
    rng = random.Random(7)  # noqa: S311 (a workload, not a secret)
    requests = [draw(rng) for _ in range(batch * 150)]
    footprint = after(requests, batch=batch)
    assert footprint.prompt is not None
    assert footprint.output is not None
    measured = (footprint.prompt.p95_tokens, footprint.output.p95_tokens, footprint.p95_tokens)
    true = (
        p95_of([p for p, _ in requests]),
        p95_of([g for _, g in requests]),
        p95_of([p + g for p, g in requests]),
    )
    assert measured == pytest.approx(true, rel=0.2)


def test_a_few_huge_requests_are_held_to_their_bucket() -> None:
    """A tenth of all are huge: a normal distribution would put the percentile far below them."""
    requests = [(15_000, 10) if i % 10 == 0 else (100, 10) for i in range(300)]
    footprint = after(requests, batch=1)
    assert footprint.prompt is not None
    assert footprint.prompt.p95_tokens == 10_000


def scrapes_of(recording: str) -> list[dict[str, Any]]:
    with lzma.open(TRACES / f"{recording}.jsonl.xz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def finished_on(recording: str) -> Iterator[tuple[int, int]]:
    """Prompt and output of each request, as the client saw it last, at most a second before."""
    before: list[list[int]] = []
    for scrape in scrapes_of(recording):
        live = scrape["truth"]["live"]
        at = 0
        for prompt, chunks, _ in before:
            if at < len(live) and live[at][0] == prompt and live[at][1] >= chunks:
                at += 1
            else:
                yield prompt, chunks
        before = live


@pytest.mark.parametrize("recording", ["steady", "burst", "prefix"])
@pytest.mark.parametrize("every", [1, 5])
def test_on_recordings_the_footprint_is_what_the_client_sent_and_got(
    recording: str, every: int
) -> None:
    parser, window, footprint = ExpositionParser(WANTED_NAMES), FootprintWindow(), None
    for scrape in scrapes_of(recording)[::every]:
        page = parser.parse(scrape["metrics"].encode())
        [engine] = snapshots_of_page(page, taken_at_seconds=scrape["t"]).engines
        footprint = window.record(engine)
    requests = list(finished_on(recording))
    assert footprint is not None
    assert footprint.prompt is not None
    mean = sum(p for p, _ in requests) / len(requests)
    assert footprint.prompt.mean_tokens == pytest.approx(mean, rel=0.05)
    assert footprint.prompt.p95_tokens == pytest.approx(p95_of([p for p, _ in requests]), rel=0.1)
    assert footprint.p95_tokens == pytest.approx(p95_of([p + g for p, g in requests]), rel=0.12)
