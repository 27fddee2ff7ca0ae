"""The load: repeatable, of the asked shape, and about as heavy as it says."""

from itertools import islice, takewhile
from statistics import mean

import pytest

from vllm_capacity.errors import SettingsError
from vllm_capacity.simulate import LOAD_PATTERNS, Arrival, SimulationConfig, Workload
from vllm_capacity.units import Tokens

_CONFIG = SimulationConfig()


def first(count: int, **fields: float) -> list[Arrival]:
    return list(islice(Workload(**fields).arrivals(_CONFIG), count))


def test_equal_seeds_give_equal_arrivals_and_others_do_not() -> None:
    assert first(50, seed=3) == first(50, seed=3)
    assert first(50, seed=3) != first(50, seed=4)


@pytest.mark.parametrize("pattern", LOAD_PATTERNS)
def test_arrivals_come_in_order_and_every_one_can_be_served(pattern: str) -> None:
    arrivals = list(islice(Workload(pattern=pattern).arrivals(_CONFIG), 2000))
    times = [arrival.at_seconds for arrival in arrivals]
    assert times == sorted(times)
    for spec in (arrival.spec for arrival in arrivals):
        assert 1 <= spec.prompt_tokens < _CONFIG.max_model_len
        assert 1 <= spec.max_tokens <= _CONFIG.max_model_len - spec.prompt_tokens
        assert spec.prefix_tokens <= spec.prompt_tokens


@pytest.mark.parametrize("pattern", LOAD_PATTERNS)
def test_no_pattern_asks_for_more_than_twice_what_fits_or_less_than_nothing(pattern: str) -> None:
    levels = [LOAD_PATTERNS[pattern](second) for second in range(3600)]
    assert min(levels) > 0
    assert max(levels) <= 2


def test_lengths_have_the_asked_means() -> None:
    specs = [arrival.spec for arrival in first(5000)]
    own = [s.prompt_tokens - (s.prefix_tokens if s.prefix is not None else 0) for s in specs]
    assert mean(own) == pytest.approx(600, rel=0.1)
    assert mean(spec.stop_after_tokens or 0 for spec in specs) == pytest.approx(250, rel=0.1)


def test_shares_are_of_all_requests() -> None:
    specs = [
        a.spec for a in first(5000, shared_prefix_share=0.4, parallel_share=0.1, hang_up_share=0.2)
    ]
    leaving = [
        s.hang_up_after_tokens is not None or s.hang_up_after_seconds is not None for s in specs
    ]
    assert mean(spec.prefix is not None for spec in specs) == pytest.approx(0.4, abs=0.03)
    assert mean(spec.n == 3 for spec in specs) == pytest.approx(0.1, abs=0.03)
    assert mean(leaving) == pytest.approx(0.2, abs=0.03)


def test_a_burst_is_far_busier_than_the_quiet_before_it() -> None:
    arrivals = takewhile(lambda a: a.at_seconds < 600, Workload(pattern="burst").arrivals(_CONFIG))
    seconds = [arrival.at_seconds % 60 for arrival in arrivals]
    in_burst = sum(30 <= second < 45 for second in seconds)
    assert in_burst > len(seconds) / 2


def test_more_engines_get_more_requests() -> None:
    workload = Workload()
    one = workload.saturating_requests_per_second(_CONFIG)
    two = workload.saturating_requests_per_second(SimulationConfig(data_parallel_size=2))
    assert two == pytest.approx(2 * one)


def test_clients_that_want_several_answers_are_fewer() -> None:
    single = Workload(parallel_share=0.0).saturating_requests_per_second(_CONFIG)
    triple = Workload(parallel_share=1.0).saturating_requests_per_second(_CONFIG)
    assert triple == pytest.approx(single / 3)


def test_prompts_are_cut_to_a_short_model() -> None:
    config = SimulationConfig(max_model_len=Tokens(64))
    specs = [arrival.spec for arrival in islice(Workload().arrivals(config), 200)]
    assert max(spec.prompt_tokens for spec in specs) == 63
    assert max(spec.prompt_tokens + spec.max_tokens for spec in specs) == 64


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        Workload(pattern="tidal", hang_up_share=1.5, prompt_tokens_mean=0)
    assert [fault.key for fault in caught.value.faults] == [
        "hang_up_share",
        "prompt_tokens_mean",
        "pattern",
    ]
    assert "must be one of diurnal, steady, ramp, burst" in str(caught.value)
