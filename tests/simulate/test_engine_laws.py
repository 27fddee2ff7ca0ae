"""What holds for every workload, at every step."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_capacity.simulate import (
    Arrival,
    EngineTruth,
    RequestSpec,
    Simulation,
    SimulationConfig,
    StepOutcome,
    Submission,
)
from vllm_capacity.units import Blocks, Tokens

_MAX_MODEL_LEN = 96

configs = st.builds(
    SimulationConfig,
    num_gpu_blocks=st.integers(8, 40).map(Blocks),
    block_size=st.just(Tokens(16)),
    max_model_len=st.just(Tokens(_MAX_MODEL_LEN)),
    max_num_seqs=st.integers(1, 12),
    max_num_batched_tokens=st.sampled_from([Tokens(1), Tokens(24), Tokens(200)]),
    data_parallel_size=st.integers(1, 3),
    enable_prefix_caching=st.booleans(),
    async_scheduling=st.booleans(),
)

specs = st.builds(
    RequestSpec,
    prompt_tokens=st.integers(1, _MAX_MODEL_LEN - 1).map(Tokens),
    max_tokens=st.integers(1, 80).map(Tokens),
    stop_after_tokens=st.none() | st.integers(1, 80).map(Tokens),
    n=st.integers(1, 3),
    prefix=st.none() | st.integers(0, 1),
    prefix_tokens=st.just(Tokens(40)),
    hang_up_after_tokens=st.none() | st.none() | st.integers(1, 40).map(Tokens),
    hang_up_after_seconds=st.none() | st.none() | st.floats(0, 3),
).map(lambda spec: replace(spec, prefix_tokens=Tokens(min(40, spec.prompt_tokens))))

arrivals = st.lists(st.builds(Arrival, st.floats(0, 4), specs), min_size=1, max_size=25).map(
    lambda found: sorted(found, key=lambda arrival: arrival.at_seconds)
)


hybrids = st.builds(
    replace,
    configs,
    num_gpu_blocks=st.integers(90, 150).map(Blocks),
    enable_prefix_caching=st.just(value=False) | st.booleans(),
    num_speculative_tokens=st.sampled_from([0, 1, 3]),
    model_config=st.sampled_from(
        [
            {"num_hidden_layers": len(kinds), "num_key_value_heads": 1, "head_dim": 1}
            | {"layer_types": kinds, "sliding_window": 20}
            for kinds in (["full_attention"], ["sliding_attention", "full_attention"])
        ]
    ),
)


class Tally:
    """Adds up what the steps report, as the counters do."""

    def __init__(self) -> None:
        self.finished = self.first_tokens = self.responses = 0
        self.finished_tokens = self.generation_tokens = self.prompt_tokens = 0
        self.preempted = self.preemptions_heard = 0

    def record_step(self, engine_index: int, outcome: StepOutcome) -> None:
        assert engine_index >= 0
        self.preempted += outcome.num_preempted
        if outcome.iteration:
            self.finished += len(outcome.iteration.finished)
            self.finished_tokens += sum(f.output_tokens for f in outcome.iteration.finished)
            self.generation_tokens += outcome.iteration.generation_tokens
            self.prompt_tokens += outcome.iteration.prompt_tokens
            self.first_tokens += len(outcome.iteration.first_token_seconds)
            self.preemptions_heard += outcome.iteration.num_preempted

    def record_response(self, submission: Submission, now: float) -> None:
        assert now >= submission.arrived_at
        self.responses += 1


def assert_blocks_add_up(truth: EngineTruth, config: SimulationConfig) -> None:
    held = {block for request in truth.running for block in request.block_ids}
    assert 0 not in held
    assert truth.used_blocks == len(held)
    assert truth.used_blocks + truth.free_blocks == config.num_usable_blocks
    for request in truth.running:
        assert request.computed_tokens < _MAX_MODEL_LEN
        assert len(set(request.block_ids)) == len(request.block_ids)
        assert len(request.block_ids) * config.block_size >= request.computed_tokens
        assert (len(request.block_ids) - 1) * config.block_size < request.computed_tokens
    assert all(request.block_ids == () for request in truth.waiting)


def assert_requests_add_up(truth: EngineTruth, config: SimulationConfig) -> None:
    in_flight = len(truth.running) + len(truth.waiting)
    assert in_flight == truth.admitted - truth.finished - truth.aborted
    assert len(truth.running) <= config.max_num_seqs


@settings(max_examples=120, deadline=None)
@given(config=configs, load=arrivals)
def test_at_every_moment_requests_and_blocks_add_up(
    config: SimulationConfig, load: list[Arrival]
) -> None:
    simulation = Simulation(config, load, Tally())
    for tick in range(60):
        simulation.advance_to(tick * 0.1)
        for engine in simulation.engines:
            assert_blocks_add_up(engine.truth(), config)
            assert_requests_add_up(engine.truth(), config)


@settings(max_examples=120, deadline=None)
@given(config=configs, load=arrivals)
def test_in_the_end_every_request_ended_every_block_is_free_and_every_token_is_counted(
    config: SimulationConfig, load: list[Arrival]
) -> None:
    tally = Tally()
    simulation = Simulation(config, load, tally)
    simulation.advance_to(1e6)
    truths = [engine.truth() for engine in simulation.engines]
    asked = sum(arrival.spec.n for arrival in load)
    assert all(engine.idle for engine in simulation.engines)
    assert all(truth.free_blocks == config.num_usable_blocks for truth in truths)
    assert sum(truth.admitted for truth in truths) == asked
    assert sum(truth.finished for truth in truths) == tally.finished
    assert sum(truth.finished + truth.aborted for truth in truths) == asked
    assert tally.responses == len(load)
    assert tally.finished_tokens <= tally.generation_tokens
    assert tally.preemptions_heard <= tally.preempted
    if all(truth.aborted == 0 for truth in truths):
        assert tally.finished_tokens == tally.generation_tokens
        assert tally.preemptions_heard == tally.preempted
        assert tally.prompt_tokens == sum(a.spec.n * a.spec.prompt_tokens for a in load)


@settings(max_examples=60, deadline=None)
@given(config=hybrids, load=arrivals)
def test_with_windows_and_drafts_blocks_add_up_and_no_request_holds_more_than_it_may(
    config: SimulationConfig, load: list[Arrival]
) -> None:
    simulation = Simulation(config, load, Tally())
    for tick in range(40):
        simulation.advance_to(tick * 0.2)
        for engine in simulation.engines:
            truth = engine.truth()
            held = {block for request in truth.running for block in request.block_ids}
            assert truth.used_blocks == len(held)
            assert truth.used_blocks + truth.free_blocks == config.num_usable_blocks
            assert_requests_add_up(truth, config)
            for request in truth.running:
                assert len(request.block_ids) <= config.blocks_per_max_len_request
    simulation.advance_to(1e6)
    assert all(engine.truth().used_blocks == 0 for engine in simulation.engines)


@settings(max_examples=30, deadline=None)
@given(config=configs, load=arrivals)
def test_the_same_arrivals_give_the_same_history(
    config: SimulationConfig, load: list[Arrival]
) -> None:
    histories = []
    for _ in range(2):
        simulation = Simulation(config, load, Tally())
        simulation.advance_to(3.0)
        histories.append([engine.truth() for engine in simulation.engines])
    assert histories[0] == histories[1]
