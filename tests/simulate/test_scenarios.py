"""Each scenario shows what its text says."""

from statistics import mean

from vllm_capacity.simulate import SCENARIOS, EngineTruth, SimulatedTarget


def truths(name: str, seconds: int) -> list[list[EngineTruth]]:
    """Of every ten seconds, every engine."""
    scenario = SCENARIOS[name]
    target = SimulatedTarget(
        scenario.config, scenario.workload.arrivals(scenario.config), scenario.restarts
    )
    found = []
    for second in range(10, seconds + 1, 10):
        target.advance_to(second)
        found.append([engine.truth() for engine in target.simulation.engines])
    return found


def test_a_leak_takes_blocks_that_no_request_holds() -> None:
    for truth in truths("leak", 120)[-1]:
        held = {block for request in truth.running for block in request.block_ids}
        assert 220 <= truth.used_blocks - len(held) <= 240


def test_too_few_sequences_make_clients_wait_before_an_empty_cache() -> None:
    crowded = [engine for engines in truths("too-few-sequences", 280)[13:] for engine in engines]
    assert mean(len(truth.waiting) for truth in crowded) > 5
    assert max(truth.used_blocks / truth.free_blocks for truth in crowded) < 0.5


def test_a_flash_crowd_fills_the_cache_and_a_queue() -> None:
    (calm,), (crowded,) = truths("flash-crowd", 110)[-1], truths("flash-crowd", 290)[-1]
    assert not calm.waiting
    assert len(crowded.waiting) > 50
    assert crowded.free_blocks < 200


def test_a_restart_leaves_half_of_the_blocks() -> None:
    ends = truths("smaller-pool", 200)
    assert [e.used_blocks + e.free_blocks for (e,) in (ends[0], ends[-1])] == [2559, 1279]


def test_one_engine_of_eight_is_hot() -> None:
    *_, (hot, *others) = truths("hot-engine", 150)
    assert hot.used_blocks > 1.3 * max(engine.used_blocks for engine in others)


def test_a_slow_ramp_fills_the_cache_little_by_little() -> None:
    used = [engine.used_blocks for (engine,) in truths("slow-ramp", 480)]
    assert mean(used[:8]) < mean(used[8:24]) < mean(used[24:40]) < mean(used[40:])
