"""What stops the next request."""

import pytest
from engines import demand, engine

from vllm_capacity.compare.binding_limit import BINDING_LIMITS, binding_limit
from vllm_capacity.compare.demand import Demand
from vllm_capacity.compare.headroom import Limits
from vllm_capacity.observe.engine_snapshot import EngineSnapshot

EIGHT = Limits(max_num_seqs=8)


@pytest.mark.parametrize(
    ("snapshot", "limits", "asked", "limit"),
    [
        pytest.param(engine(), Limits(), demand(), "none", id="nobody is there"),
        pytest.param(engine(used=50, running=5), EIGHT, demand(), "none", id="there is room"),
        pytest.param(
            engine(used=50, running=8), EIGHT, demand(), "sequences", id="the batch is full"
        ),
        pytest.param(
            engine(used=50, running=8, waiting=3), EIGHT, demand(), "sequences", id="and they queue"
        ),
        pytest.param(
            engine(used=95, running=5), EIGHT, demand(), "kv_cache", id="no room for a mean prompt"
        ),
        pytest.param(
            engine(used=80, running=5, waiting=4),
            EIGHT,
            demand(preempted=2.0, prefilling=1.0),
            "kv_cache",
            id="those at the head of the queue were preempted",
        ),
        pytest.param(
            engine(used=40, running=5, waiting=4),
            EIGHT,
            demand(prefilling=2.0),
            "batched_tokens",
            id="a step's tokens go to others",
        ),
        pytest.param(
            engine(used=85, running=5, waiting=4),
            EIGHT,
            demand(),
            "kv_cache",
            id="nobody is prefilled: the head is longer than the mean",
        ),
        pytest.param(
            engine(used=40, running=5, waiting=4, deferred=4),
            EIGHT,
            demand(),
            "deferred",
            id="they wait for something else",
        ),
        pytest.param(engine(running=None), EIGHT, demand(), None, id="no gauge of running ones"),
        pytest.param(engine(running=1, waiting=None), EIGHT, demand(), None, id="nor of waiting"),
    ],
)
def test_the_next_request_is_stopped_by(
    snapshot: EngineSnapshot, limits: Limits, asked: Demand, limit: str | None
) -> None:
    assert binding_limit(snapshot, limits, asked) == limit
    assert limit is None or limit in BINDING_LIMITS


def test_without_a_known_sequence_limit_it_is_never_said_to_bind() -> None:
    assert binding_limit(engine(used=50, running=500), Limits(), demand()) == "none"
