"""What comes next, as foretold on recordings of a real vLLM."""

import math
from itertools import pairwise

import pytest
from foreseen import foreseen, preemption_times
from recordings import Moments, assessed

NEVER_PREEMPTED = ("steady", "restart")


@pytest.mark.parametrize(
    ("recording", "least_lead_seconds"),
    [("ramp", 20), ("ramp2", 10), ("mixed3", 15), ("longdecode", 40), ("aborts", 8)],
)
def test_committed_demand_passes_the_pool_well_before_the_first_preemption(
    recording: str, least_lead_seconds: float
) -> None:
    [moments] = assessed(recording).values()
    told = foreseen(moments)
    assert told.lead is not None
    assert told.lead >= least_lead_seconds
    assert told.false_alarms <= 2


def test_a_burst_out_of_nothing_is_seen_within_two_seconds_of_its_begin() -> None:
    [moments] = assessed("burst").values()
    told = foreseen(moments)
    # Ten seconds before the counter moves five requests are there, which cannot fill the pool.
    assert told.lead is not None
    assert told.lead >= 7
    assert told.false_alarms == 0


@pytest.mark.parametrize("recording", NEVER_PREEMPTED)
def test_a_quiet_server_is_never_said_to_run_full(recording: str) -> None:
    [moments] = assessed(recording).values()
    told = foreseen(moments)
    assert told.alarms == 0
    assert told.peak < 0.7
    assert {a.outlook.time_to_exhaustion_seconds for _, a in moments} == {math.inf}
    assert {a.outlook.state for _, a in moments} <= {"idle", "ok"}


@pytest.mark.parametrize("every", [2, 5, 15])
def test_a_slow_scraper_is_told_the_same(every: int) -> None:
    [ramp] = assessed("ramp", every=every).values()
    told = foreseen(ramp)
    assert told.lead is not None
    assert told.lead >= 0
    assert told.false_alarms == 0
    [steady] = assessed("steady", every=every).values()
    assert foreseen(steady).alarms == 0


def exhaustion(moments: Moments) -> list[tuple[float, float]]:
    known = [(t, a.outlook.time_to_exhaustion_seconds) for t, a in moments]
    return [(t, left) for t, left in known if left is not None and left < math.inf]


@pytest.mark.parametrize("recording", ["ramp", "burst", "longdecode", "dp-ramp", "aborts"])
def test_whoever_is_told_of_exhaustion_sees_the_cache_full_soon(recording: str) -> None:
    for moments in assessed(recording).values():
        full = [
            t
            for t, a in moments
            if (a.snapshot.used_blocks or 0) >= 0.97 * (a.snapshot.total_blocks or 1)
        ]
        told = exhaustion(moments)
        assert told
        kept = sum(1 for t, left in told if any(t - 5 < f <= t + max(60, 2 * left) for f in full))
        assert kept >= 0.95 * len(told)


def test_states_follow_the_load_and_do_not_flap() -> None:
    [moments] = assessed("ramp").values()
    states = [a.outlook.state for _, a in moments]
    first = preemption_times(moments)[0]
    before = {s for (t, _), s in zip(moments, states, strict=True) if first - 5 <= t < first}
    assert before <= {"tight", "saturated"}
    assert states.count("thrashing") > 100
    assert states[-1] == "idle"
    changes = sum(1 for a, b in pairwise(states) if a != b)
    assert changes <= 12


def test_the_cache_binds_where_it_is_full_and_nothing_else_does() -> None:
    [moments] = assessed("longdecode").values()
    for _, a in moments:
        if a.snapshot.waiting:
            assert a.outlook.binding_limit == "kv_cache"
        elif a.snapshot.running == 0:
            assert a.outlook.binding_limit == "none"


def test_requests_that_share_a_prefix_leave_more_room() -> None:
    [moments] = assessed("prefix").values()
    busy = [a for t, a in moments if 15 < t < 60 and (a.snapshot.running or 0) >= 4]
    assert busy
    # Prompts of 512 shared tokens and about a hundred of their own.
    assert all(400 < a.demand.shared_prompt_tokens < 620 for a in busy)
    limits = [a.headroom.running_requests_limit["observed_mean"] for a in busy]
    assert min(limits) > 24
