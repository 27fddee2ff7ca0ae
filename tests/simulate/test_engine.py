"""One engine, step by step: who runs, who waits, who gives way, and what is counted."""

from itertools import count
from typing import Any

import pytest

from vllm_capacity.errors import InputError
from vllm_capacity.simulate import (
    RequestSpec,
    SimulatedEngine,
    SimulationConfig,
    StepOutcome,
    Submission,
)
from vllm_capacity.units import Tokens, ceil_div

_IDS = count()


def engine_of(num_usable_blocks: int = 64, **fields: Any) -> SimulatedEngine:
    """An engine with blocks of 16 tokens and requests of at most 128."""
    config = SimulationConfig(
        **{
            "num_gpu_blocks": num_usable_blocks + 1,
            "max_model_len": 128,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
        }
        | fields
    )
    return SimulatedEngine(config)


def submission(prompt_tokens: int, max_tokens: int, **fields: Any) -> Submission:
    spec = RequestSpec(prompt_tokens=Tokens(prompt_tokens), max_tokens=Tokens(max_tokens), **fields)
    return Submission(next(_IDS), spec, arrived_at=0.0)


def run(engine: SimulatedEngine, steps: int, start: int = 0) -> list[StepOutcome]:
    return [engine.step(float(start + step)) for step in range(steps)]


def run_until_idle(engine: SimulatedEngine) -> list[StepOutcome]:
    outcomes = []
    for now in range(10_000):
        outcomes.append(engine.step(float(now)))
        if engine.idle and outcomes[-1].busy_seconds is None:
            return outcomes
    pytest.fail("the engine never came to rest")


def total(outcomes: list[StepOutcome], field: str) -> int:
    """The sum of a counter over all steps, as a page would show it."""
    of_iterations = [getattr(o.iteration, field, 0) for o in outcomes if o.iteration]
    of_scheduler = [getattr(o.scheduler, field, 0) for o in outcomes if o.scheduler]
    return sum(of_iterations) + sum(of_scheduler)


def test_a_request_gets_exactly_its_tokens_and_leaves_no_block_behind() -> None:
    engine = engine_of()
    engine.add(submission(20, 7))
    outcomes = run_until_idle(engine)
    assert total(outcomes, "generation_tokens") == 7
    assert total(outcomes, "prompt_tokens") == 20
    assert engine.truth().free_blocks == 64
    assert [
        request.output_tokens for o in outcomes if o.iteration for request in o.iteration.finished
    ] == [7]


@pytest.mark.parametrize(
    ("max_tokens", "stop_after_tokens", "reason"),
    [(7, None, "length"), (7, 3, "stop"), (7, 7, "stop"), (7, 8, "length"), (500, None, "length")],
)
def test_a_request_ends_for_the_first_reason_that_holds(
    max_tokens: int, stop_after_tokens: int | None, reason: str
) -> None:
    engine = engine_of()
    engine.add(submission(20, max_tokens, stop_after_tokens=stop_after_tokens))
    finished = [f for o in run_until_idle(engine) if o.iteration for f in o.iteration.finished]
    assert [request.reason.value for request in finished] == [reason]
    assert finished[0].output_tokens == min(max_tokens, stop_after_tokens or 500, 128 - 20)


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_a_long_prompt_is_computed_in_chunks_that_take_blocks_one_by_one(
    *, async_scheduling: bool
) -> None:
    engine = engine_of(max_num_batched_tokens=32, async_scheduling=async_scheduling)
    engine.add(submission(100, 4))
    outcomes = run_until_idle(engine)
    assert total(outcomes[:3], "prompt_tokens") == 0
    first = next(o for o in outcomes if o.outputs)
    assert outcomes.index(first) == 4
    assert first.iteration is not None
    assert first.iteration.prompt_tokens == 100


@pytest.mark.parametrize(("async_scheduling", "without_block"), [(True, 0), (False, 1)])
def test_blocks_follow_the_tokens_of_a_running_request(
    *, async_scheduling: bool, without_block: int
) -> None:
    engine = engine_of(async_scheduling=async_scheduling)
    engine.add(submission(30, 40))
    engine.step(0.0)
    for now in range(1, 40):
        outcome = engine.step(float(now))
        tokens = 30 + now - without_block  # the newest token enters a block with the next step
        assert outcome.scheduler is not None
        assert round(outcome.scheduler.kv_cache_usage_ratio * 64) == ceil_div(tokens, 16)


def test_requests_beyond_max_num_seqs_wait_in_the_order_of_their_arrival() -> None:
    engine = engine_of(max_num_seqs=2)
    requests = [engine.add(submission(10, 20)) for _ in range(4)]
    run(engine, 3)
    truth = engine.truth()
    assert [r.request_id for r in truth.running] == [r.request_id for r in requests[:2]]
    assert [r.request_id for r in truth.waiting] == [r.request_id for r in requests[2:]]


@pytest.mark.parametrize(("num_usable_blocks", "load"), [(64, 5.0), (8, 5 + 6 * 0.5 * 4)])
def test_a_queue_weighs_more_for_the_balancer_when_the_pool_is_full(
    num_usable_blocks: int, load: float
) -> None:
    engine = engine_of(num_usable_blocks, max_num_seqs=1, max_num_batched_tokens=127)
    for _ in range(5):
        engine.add(submission(120, 8))
    engine.step(0.0)
    assert engine.load == load


def test_the_step_time_grows_with_its_tokens() -> None:
    engine = engine_of(step_base_seconds=0.5, step_seconds_per_token=0.01)
    engine.add(submission(40, 4))
    assert engine.step(0.0).busy_seconds == pytest.approx(0.5 + 40 * 0.01)
    assert engine.step(1.0).busy_seconds == pytest.approx(0.5 + 1 * 0.01)


class TestPreemption:
    """A pool of 8 blocks and two requests that outgrow it."""

    def crowded(self, **fields: Any) -> tuple[SimulatedEngine, list[str]]:
        engine = engine_of(8, **fields)
        names = [engine.add(submission(40, 60)).request_id for _ in range(2)]
        return engine, names

    @pytest.mark.parametrize("async_scheduling", [True, False])
    def test_the_youngest_gives_way(self, *, async_scheduling: bool) -> None:
        engine, (oldest, youngest) = self.crowded(async_scheduling=async_scheduling)
        now = 0.0
        while not engine.step(now).num_preempted:
            now += 1
        truth = engine.truth()
        assert [request.request_id for request in truth.running] == [oldest]
        assert [request.request_id for request in truth.waiting] == [youngest]
        assert truth.waiting[0].block_ids == ()
        assert truth.waiting[0].output_tokens > 0

    def test_it_resumes_and_nothing_is_counted_twice(self) -> None:
        engine, _ = self.crowded()
        outcomes = run_until_idle(engine)
        assert sum(outcome.num_preempted for outcome in outcomes) >= 1
        assert total(outcomes, "prompt_tokens") == 80
        assert total(outcomes, "generation_tokens") == 120
        assert total(outcomes, "prefix_cache_queries_tokens") == 80
        assert engine.truth().free_blocks == 8

    @pytest.mark.parametrize("async_scheduling", [True, False])
    def test_it_is_counted_with_the_next_token_of_the_request(
        self, *, async_scheduling: bool
    ) -> None:
        engine, (_, youngest) = self.crowded(async_scheduling=async_scheduling)
        outcomes = run_until_idle(engine)
        happened = next(i for i, o in enumerate(outcomes) if o.num_preempted)
        heard = next(i for i, o in enumerate(outcomes) if o.iteration and o.iteration.num_preempted)
        next_token = next(
            i
            for i, o in enumerate(outcomes)
            if i > happened and any(out.request.request_id == youngest for out in o.outputs)
        )
        assert heard == next_token
        # A token on the way when the blocks were lost brings the news at once.
        assert (heard == happened + 1) is async_scheduling

    def test_a_preempted_request_finds_its_own_blocks_again(self) -> None:
        engine, _ = self.crowded()
        computed = [
            tokens
            for o in run_until_idle(engine)
            for tokens in [o.iteration.computed_prompt_tokens if o.iteration else 0]
        ]
        assert sum(computed) == 80


class TestSharedPrefix:
    """Prompts that begin alike hold the same blocks."""

    def test_a_shared_prefix_is_counted_once(self) -> None:
        engine = engine_of()
        for _ in range(3):
            engine.add(submission(70, 5, prefix="system", prefix_tokens=Tokens(64)))
        run(engine, 4)
        truth = engine.truth()
        assert [len(request.block_ids) for request in truth.running] == [5, 5, 5]
        assert truth.used_blocks == 4 + 3

    def test_hits_and_queries_are_counted_in_tokens_at_admission(self) -> None:
        engine = engine_of()
        for _ in range(3):
            engine.add(submission(70, 5, prefix="system", prefix_tokens=Tokens(64)))
        outcomes = run_until_idle(engine)
        assert total(outcomes, "prefix_cache_queries_tokens") == 210
        assert total(outcomes, "prefix_cache_hits_tokens") == 128
        assert total(outcomes, "prompt_hit_tokens") == 128

    def test_the_last_token_of_a_prompt_is_never_a_hit(self) -> None:
        engine = engine_of()
        for _ in range(2):
            engine.add(submission(64, 2, prefix="whole", prefix_tokens=Tokens(64)))
        assert total(run_until_idle(engine), "prefix_cache_hits_tokens") == 48

    def test_without_prefix_caching_every_prompt_has_its_own_blocks(self) -> None:
        engine = engine_of(enable_prefix_caching=False, max_num_batched_tokens=512)
        for _ in range(3):
            engine.add(submission(70, 5, prefix="system", prefix_tokens=Tokens(64)))
        outcomes = run(engine, 2)
        assert engine.truth().used_blocks == 15
        assert total(outcomes, "prefix_cache_queries_tokens") == 0

    def test_the_answers_to_one_prompt_share_it_and_are_one_request_to_the_client(self) -> None:
        engine = engine_of()
        parent = submission(50, 6, n=3)
        for index in range(3):
            engine.add(parent, index)
        outcomes = run_until_idle(engine)
        assert total(outcomes, "prompt_tokens") == 150
        assert total(outcomes, "prefix_cache_hits_tokens") == 2 * 48
        iterations = [o.iteration for o in outcomes if o.iteration]
        assert sum(len(i.finished) for i in iterations) == 3
        assert [n for i in iterations for n in i.finished_n] == [3]
        assert [n for i in iterations for n in i.finished_longest_tokens] == [6]


class TestHangUp:
    """A client that leaves is forgotten, not counted."""

    def test_its_blocks_are_free_at_once_and_the_page_says_so_after_a_step(self) -> None:
        engine = engine_of()
        request = engine.add(submission(40, 50))
        run(engine, 5)
        assert engine.abort(request)
        assert engine.truth().free_blocks == 64
        outcome = engine.step(9.0)
        assert outcome.scheduler is not None
        assert outcome.scheduler.kv_cache_usage_ratio == 0.0
        assert outcome.scheduler.num_running == 0

    def test_after_its_first_token_the_prompt_stays_counted_and_no_finish_comes(self) -> None:
        engine = engine_of()
        request = engine.add(submission(40, 50))
        outcomes = run(engine, 5)
        engine.abort(request)
        outcomes += run_until_idle(engine)
        assert total(outcomes, "prompt_tokens") == 40
        assert total(outcomes, "generation_tokens") == 4
        assert [f for o in outcomes if o.iteration for f in o.iteration.finished] == []

    def test_before_its_first_token_only_the_cache_query_stays(self) -> None:
        engine = engine_of(max_num_batched_tokens=16)
        request = engine.add(submission(100, 50))
        outcomes = run(engine, 3)
        engine.abort(request)
        outcomes += run_until_idle(engine)
        assert total(outcomes, "prefix_cache_queries_tokens") == 100
        assert total(outcomes, "prompt_tokens") == 0
        assert total(outcomes, "generation_tokens") == 0

    def test_in_the_queue_leaves_no_trace(self) -> None:
        engine = engine_of(max_num_seqs=1)
        engine.add(submission(10, 3))
        waiting = engine.add(submission(10, 3))
        engine.abort(waiting)
        outcomes = run_until_idle(engine)
        assert total(outcomes, "prefix_cache_queries_tokens") == 10
        assert engine.truth().aborted == 1

    def test_twice_or_after_the_end_changes_nothing(self) -> None:
        engine = engine_of()
        request = engine.add(submission(10, 3))
        run_until_idle(engine)
        assert not engine.abort(request)
        assert engine.truth().aborted == 0


def test_a_request_that_cannot_be_served_is_refused_with_every_fault() -> None:
    with pytest.raises(InputError) as caught:
        engine_of().add(submission(128, 0, n=0))
    assert [fault.key for fault in caught.value.faults] == ["prompt_tokens", "max_tokens", "n"]
    assert "1 to 127 tokens" in str(caught.value)
