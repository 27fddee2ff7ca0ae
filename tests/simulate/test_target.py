"""Restarts, and scrapes that find nobody, come late or read half of two pages."""

import re

import pytest

from vllm_capacity.simulate import (
    Arrival,
    RequestSpec,
    Restart,
    Scraping,
    SimulatedTarget,
    SimulationConfig,
    Workload,
    scrapes,
)
from vllm_capacity.units import Blocks, Tokens

_CONFIG = SimulationConfig(num_gpu_blocks=Blocks(101), max_model_len=Tokens(1024))
_SMALLER = SimulationConfig(num_gpu_blocks=Blocks(81), max_model_len=Tokens(1024))
_RESTART = Restart(at_seconds=5.0, down_seconds=3.0, config=_SMALLER)


def value(page: bytes | None, name: str) -> float:
    assert page is not None
    found = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", page.decode(), re.MULTILINE)
    assert len(found) == 1, name
    return float(found[0])


def load(every_seconds: float = 0.5) -> list[Arrival]:
    spec = RequestSpec(prompt_tokens=Tokens(100), max_tokens=Tokens(50))
    return [Arrival(i * every_seconds, spec) for i in range(40)]


def target() -> SimulatedTarget:
    return SimulatedTarget(_CONFIG, load(), [_RESTART], started_at=1_700_000_000.0)


def test_after_a_restart_counters_start_at_zero_in_a_process_and_a_pool_of_their_own() -> None:
    one = target()
    one.advance_to(4.9)
    before = one.page()
    one.advance_to(8.1)
    after = one.page()
    assert value(before, "vllm:prompt_tokens_total") > value(after, "vllm:prompt_tokens_total")
    assert value(before, "process_start_time_seconds") == 1_700_000_000
    assert value(after, "process_start_time_seconds") == 1_700_000_008
    assert b'num_gpu_blocks="101"' in (before or b"")
    assert b'num_gpu_blocks="81"' in (after or b"")


def test_between_two_servers_nobody_answers_and_nobody_is_served() -> None:
    one = target()
    one.advance_to(6.0)
    assert one.is_down
    assert one.page() is None
    one.advance_to(1000.0)
    # 10 came before the end of the first server; 6 came while there was none.
    assert sum(engine.truth().admitted for engine in one.simulation.engines) == 40 - 10 - 6


def test_a_jump_over_a_whole_restart_is_like_many_small_steps() -> None:
    in_steps, at_once = target(), target()
    for tenth in range(200):
        in_steps.advance_to(tenth / 10)
    at_once.advance_to(19.9)
    assert [e.truth() for e in in_steps.simulation.engines] == [
        e.truth() for e in at_once.simulation.engines
    ]


@pytest.mark.parametrize(("config", "told"), [({}, True), ({"api_server_count": 2}, False)])
def test_only_a_page_of_a_single_process_tells_when_that_started(
    config: dict[str, int], *, told: bool
) -> None:
    page = SimulatedTarget(SimulationConfig(**config), []).page() or b""  # type: ignore[arg-type]
    assert (b"process_start_time_seconds" in page) is told
    assert (b"_created" in page) is told
    assert b"vllm:prompt_tokens_total{" in page


def test_scrapes_come_as_late_as_they_may_and_fail_as_often_as_they_should() -> None:
    how = Scraping(late_seconds=0.4, failing_share=0.25, seed=1)
    found = list(scrapes(SimulatedTarget(_CONFIG, []), how, until_seconds=200))
    late = [scrape.at_seconds - due for due, scrape in enumerate(found, start=1)]
    assert len(found) == 200
    assert min(late) >= 0
    assert 0.3 < max(late) <= 0.4
    assert 35 < sum(scrape.page is None for scrape in found) < 65


def test_a_torn_page_has_new_sums_below_old_gauges() -> None:
    workload = Workload(pattern="steady")
    whole, torn = (
        list(
            scrapes(
                SimulatedTarget(SimulationConfig(), workload.arrivals(SimulationConfig())),
                Scraping(torn_share=share),
                until_seconds=60,
            )
        )
        for share in (0.0, 1.0)
    )
    steps = "vllm:iteration_tokens_total_count"
    ahead = [
        value(new.page, steps) - value(old.page, steps)
        for old, new in zip(whole, torn, strict=True)
    ]
    assert min(ahead) >= 0
    assert max(ahead) >= 1
