"""How many more requests fit."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.compare.headroom import Headroom, Limits, headroom
from vllm_capacity.observe.engine_snapshot import EngineSnapshot, snapshots_of_page
from vllm_capacity.observe.exposition import ExpositionParser
from vllm_capacity.observe.metric_names import WANTED_NAMES
from vllm_capacity.observe.request_footprint import RequestFootprint

BLOCK_SIZE = 16


def engine(
    *, used: int = 0, total: int = 100, running: int | None = 0, waiting: int | None = 0
) -> EngineSnapshot:
    lines = [
        f"vllm:kv_cache_usage_perc {used / total!r}",
        f'vllm:cache_config_info{{block_size="{BLOCK_SIZE}",num_gpu_blocks="{total + 1}"}} 1',
    ]
    lines += [] if running is None else [f"vllm:num_requests_running {running}"]
    lines += [] if waiting is None else [f"vllm:num_requests_waiting {waiting}"]
    samples = ExpositionParser(WANTED_NAMES).parse(("\n".join(lines) + "\n").encode())
    return snapshots_of_page(samples, taken_at_seconds=0.0).engines[0]


def footprint(mean: float, p95: float | None = None) -> RequestFootprint:
    return RequestFootprint(mean_tokens=mean, p95_tokens=p95, requests=100, window_seconds=60.0)


def room(
    snapshot: EngineSnapshot,
    size: RequestFootprint | None = None,
    *,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
) -> Headroom:
    limits = Limits(max_model_len=max_model_len, max_num_seqs=max_num_seqs)
    return headroom(snapshot, size, limits, None)


def test_an_idle_engine_holds_as_many_requests_as_their_whole_blocks_fit() -> None:
    left = room(engine(), footprint(mean=150, p95=300), max_model_len=800)
    assert left.requests == {"observed_mean": 10, "observed_p95": 5, "full_length": 2}
    assert left.running_requests_limit == left.requests
    assert (left.blocks, left.tokens) == (100, 1600)


def test_every_request_in_the_engine_is_first_granted_its_mean_footprint() -> None:
    left = room(engine(used=4, running=4), footprint(mean=160))
    assert left.requests["observed_mean"] == 6


def test_requests_that_hold_more_than_their_mean_count_with_what_they_hold() -> None:
    left = room(engine(used=60, running=4), footprint(mean=160))
    assert left.requests["observed_mean"] == 4


def test_the_queue_is_served_first() -> None:
    left = room(engine(used=50, running=5, waiting=3), footprint(mean=160))
    assert left.requests["observed_mean"] == 2
    assert (left.blocks, left.queued_demand_tokens) == (20, 480)


def test_a_queue_that_wants_more_than_is_free_leaves_negative_blocks_and_no_room() -> None:
    left = room(engine(used=90, running=9, waiting=5), footprint(mean=160))
    assert left.blocks == -40
    assert left.requests["observed_mean"] == 0


def test_the_sequence_limit_binds_where_it_is_tighter() -> None:
    left = room(engine(running=3), footprint(mean=16), max_num_seqs=8)
    assert left.requests["observed_mean"] == 5
    assert left.running_requests_limit["observed_mean"] == 8


def test_no_request_is_longer_than_the_longest() -> None:
    left = room(engine(), footprint(mean=150, p95=9000), max_model_len=800)
    assert left.requests["observed_p95"] == left.requests["full_length"] == 2


def test_without_finished_requests_only_full_length_is_known() -> None:
    left = room(engine(used=50, running=2), max_model_len=160)
    assert left.requests == {"full_length": 5}


@pytest.mark.parametrize(
    "snapshot", [engine(running=None), engine(running=2, waiting=None)], ids=["running", "waiting"]
)
def test_what_is_not_exported_leaves_the_room_unknown(snapshot: EngineSnapshot) -> None:
    assert room(snapshot, footprint(mean=160)).requests == {}


def test_a_queue_of_requests_of_unknown_size_leaves_the_room_unknown() -> None:
    left = room(engine(used=10, running=1, waiting=4), max_model_len=160)
    assert left.requests == {}
    assert (left.blocks, left.queued_demand_tokens) == (None, None)


@given(
    used=st.integers(0, 100),
    running=st.integers(0, 50),
    waiting=st.integers(0, 50),
    mean=st.floats(1, 2000),
)
def test_what_is_promised_fits_beside_everything_that_was_granted(
    used: int, running: int, waiting: int, mean: float
) -> None:
    left = room(engine(used=used, running=running, waiting=waiting), footprint(mean=mean))
    each = math.ceil(round(mean) / BLOCK_SIZE)
    granted = max(used + waiting * each, (running + waiting) * each)
    more = left.requests["observed_mean"]
    assert more >= 0
    assert more == 0 or granted + more * each <= 100
    assert granted + (more + 1) * each > 100


def test_what_requests_share_is_taken_once() -> None:
    alone = headroom(engine(), footprint(mean=160), Limits(), None)
    sharing = headroom(engine(), footprint(mean=160), Limits(), None, shared_tokens=128.0)
    assert alone.requests["observed_mean"] == 10
    assert sharing.requests["observed_mean"] == (100 - 8) // 2
    assert sharing.running_requests_limit["observed_mean"] == (100 - 8) // 2


def test_requests_of_full_length_are_taken_to_share_nothing() -> None:
    limits = Limits(max_model_len=800)
    sharing = headroom(engine(), footprint(mean=160), limits, None, shared_tokens=128.0)
    assert sharing.running_requests_limit["full_length"] == 2


def test_admitted_requests_that_will_grow_beyond_the_mean_leave_less_room() -> None:
    four = engine(used=40, running=4)
    assert headroom(four, footprint(mean=160), Limits(), None).requests["observed_mean"] == 6
    grown = headroom(four, footprint(mean=160), Limits(), None, admitted_blocks=75.0)
    assert grown.requests["observed_mean"] == 2
    full = headroom(four, footprint(mean=160), Limits(), None, admitted_blocks=175.0)
    assert full.requests["observed_mean"] == 0


@given(
    counts=st.tuples(st.integers(0, 100), st.integers(0, 50), st.integers(0, 50)),
    mean=st.floats(1, 2000),
    shared_ratio=st.floats(0, 1),
    max_num_seqs=st.one_of(st.none(), st.integers(1, 60)),
)
def test_running_queued_and_further_requests_together_stay_within_the_limit(
    counts: tuple[int, int, int], mean: float, shared_ratio: float, max_num_seqs: int | None
) -> None:
    used, running, waiting = counts
    left = headroom(
        engine(used=used, running=running, waiting=waiting),
        footprint(mean=mean),
        Limits(max_num_seqs=max_num_seqs),
        None,
        shared_tokens=shared_ratio * mean,
    )
    more = left.requests["observed_mean"]
    limit = left.running_requests_limit["observed_mean"]
    assert more == 0 or running + waiting + more <= limit
