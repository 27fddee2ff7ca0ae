"""Saturation, headroom ratios and time to exhaustion of one engine."""

import math

import pytest
from engines import demand, engine
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.compare.demand import Demand
from vllm_capacity.compare.headroom import Limits, headroom
from vllm_capacity.compare.outlook import Outlook, OutlookWatch
from vllm_capacity.observe.engine_snapshot import EngineSnapshot
from vllm_capacity.observe.request_footprint import RequestFootprint

MEAN = RequestFootprint(mean_tokens=160, p95_tokens=None, requests=50, window_seconds=60.0)


def outlook(
    snapshot: EngineSnapshot,
    asked: Demand | None = None,
    *,
    limits: Limits | None = None,
    peak: float | None = None,
) -> Outlook:
    limits = limits or Limits()
    return OutlookWatch().record(
        snapshot,
        asked or demand(),
        headroom(snapshot, MEAN, limits, None),
        limits,
        usage_peak_ratio=peak,
        restarted=False,
    )


def test_saturation_is_the_tightest_resource_with_its_queue() -> None:
    queued = engine(used=60, running=6, waiting=3)
    assert outlook(queued).saturation_ratio == pytest.approx(0.9)
    assert outlook(queued, limits=Limits(max_num_seqs=6)).saturation_ratio == pytest.approx(1.5)
    told = outlook(queued, limits=Limits(max_num_seqs=12)).headroom_ratio
    assert told == {"kv_cache": pytest.approx(0.1), "sequences": pytest.approx(0.25)}


def test_twice_the_capacity_asked_for_reads_two_so_that_an_autoscaler_doubles() -> None:
    told = outlook(engine(used=100, running=10, waiting=10))
    assert told.saturation_ratio == pytest.approx(2.0)
    assert told.headroom_ratio == {"kv_cache": 0.0}


def test_the_peak_of_the_last_minute_holds_saturation_up() -> None:
    assert outlook(engine(used=30, running=3), peak=0.7).saturation_ratio == 0.7


def test_what_is_unknown_is_left_out() -> None:
    told = outlook(engine(running=None, waiting=None, used=20))
    assert told.state == "unknown"
    assert told.binding_limit is None
    assert told.headroom_ratio == {"kv_cache": 0.8}


@pytest.mark.parametrize(
    ("used", "asked", "seconds"),
    [
        (50, demand(committed=80.0), math.inf),
        (50, demand(committed=180.0, seconds_to_exhaustion=7.5), 7.5),
        (50, demand(), math.inf),
        (100, demand(), 0.0),
    ],
)
def test_time_to_exhaustion(used: int, asked: Demand, seconds: float) -> None:
    told = outlook(engine(used=used, running=4), asked)
    assert told.time_to_exhaustion_seconds == seconds


def test_a_pool_of_unknown_size_has_no_time_to_exhaustion() -> None:
    snapshot = engine(used=20, running=2)
    object.__setattr__(snapshot, "total_blocks", None)
    assert outlook(snapshot).time_to_exhaustion_seconds is None


loads = st.tuples(st.integers(0, 100), st.integers(0, 40), st.integers(0, 40))


@given(load=loads, more=loads, peak=st.floats(0, 1))
def test_saturation_never_falls_as_load_grows(
    load: tuple[int, int, int], more: tuple[int, int, int], peak: float
) -> None:
    def saturation(used: int, running: int, waiting: int) -> float:
        snapshot = engine(used=min(100, used), running=running, waiting=waiting)
        told = outlook(snapshot, limits=Limits(max_num_seqs=16), peak=peak)
        assert all(0 <= ratio <= 1 for ratio in told.headroom_ratio.values())
        assert told.saturation_ratio is not None
        return told.saturation_ratio

    grown = tuple(a + b for a, b in zip(load, more, strict=True))
    assert saturation(*grown) >= saturation(*load) >= peak
