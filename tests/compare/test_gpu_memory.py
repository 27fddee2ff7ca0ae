"""The stack of one GPU: it sums to what the driver counts, and names what is not known."""

from dataclasses import asdict, replace

import pytest
from gpus import RESERVED, TOTAL, attribution, gpu, mig, size
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.compare.gpu_attribution import GpuAttribution
from vllm_capacity.compare.gpu_memory import (
    COMPONENTS,
    GpuMemoryStack,
    Occupant,
    gpu_memory_stacks,
)
from vllm_capacity.compare.memory_terms import MemoryTerms
from vllm_capacity.observe.gpu_reading import GpuReading, MigInstance
from vllm_capacity.units import GIB, Bytes

MEASURED = MemoryTerms(
    weights_bytes=size(15.0),
    kv_cache_bytes=size(57.0),
    cuda_graph_bytes=size(1.0),
    non_torch_bytes=size(0.25),
    context_bytes=size(0.5),
    activation_peak_bytes=size(2.0),
    total_bytes=Bytes(TOTAL - RESERVED),
    requested_bytes=size(75.0),
)
FIXED = 15.0 + 57.0 + 1.0 + 0.25
SMALL = MemoryTerms(
    weights_bytes=size(3.0), kv_cache_bytes=size(5.0), activation_peak_bytes=Bytes(0)
)


def occupant(
    engine: float | None = None,
    other: float | None = None,
    *,
    target: str = "a",
    measured: MemoryTerms = MEASURED,
    is_awake: bool = True,
    **of_attribution: object,
) -> Occupant:
    return Occupant(
        target=target,
        attribution=attribution(engine, other, **of_attribution),  # type: ignore[arg-type]
        engines=("0",),
        measured=measured,
        is_awake=is_awake,
    )


def stack(reading: GpuReading, *occupants: Occupant) -> GpuMemoryStack:
    (one,) = gpu_memory_stacks(reading, occupants)
    assert sum(one.held.values()) == one.used_bytes
    return one


def gib(stack: GpuMemoryStack) -> dict[str, float]:
    """What is held, in GiB, without what is nothing."""
    return {name: round(held / GIB, 3) for name, held in stack.held.items() if held}


CERTAIN = {"weights": 15.0, "kv_cache": 57.0, "cuda_graph": 1.0, "non_torch": 0.25}


@pytest.mark.parametrize(
    ("used", "remainder"),
    [
        (FIXED + 0.3, {"context": 0.3}),
        (FIXED + 0.5 + 0.7, {"context": 0.5, "activation_peak": 0.7}),
        (FIXED + 0.5 + 2.0, {"context": 0.5, "activation_peak": 2.0}),
        (FIXED + 0.5 + 2.0 + 1.5, {"context": 0.5, "activation_peak": 2.0, "unaccounted": 1.5}),
        (FIXED - 40.0, {"unaccounted": -40.0}),
    ],
    ids=["starting", "idle", "under load", "leaking", "less than it ought to hold"],
)
def test_what_is_bounded_takes_of_the_rest_as_far_as_its_bound_and_the_remainder_is_signed(
    used: float, remainder: dict[str, float]
) -> None:
    assert gib(stack(gpu(used), occupant(used, 0.0))) == {**CERTAIN, **remainder}


@pytest.mark.parametrize("term", ["weights_bytes", "kv_cache_bytes", "activation_peak_bytes"])
def test_without_a_large_term_no_remainder_is_unaccounted_for(term: str) -> None:
    some = stack(gpu(76.0), occupant(75.0, 1.0, measured=replace(MEASURED, **{term: None})))
    assert "unaccounted" not in some.held
    assert "activation_peak" not in some.held
    assert some.held["other_processes"] == GIB
    assert some.held["unattributed"] > 0


@pytest.mark.parametrize(
    ("first_look", "others", "context"),
    [(0.5, 0.0, 0.5), (0.9, 0.4, 0.5), (30.5, 30.0, 0.5), (0.5, 30.0, 0.5), (6.5, 6.0, 0.5)],
)
def test_whoever_was_there_at_the_engines_first_look_is_not_its_context(
    first_look: float, others: float, context: float
) -> None:
    found = replace(MEASURED, kv_cache_bytes=size(20.0), context_bytes=size(first_look))
    one = stack(gpu(39.0 + others), occupant(39.0, others, measured=found))
    assert gib(one)["context"] == pytest.approx(context)


def test_what_other_processes_hold_is_theirs() -> None:
    shared = stack(gpu(FIXED + 0.5 + 3.0), occupant(FIXED + 0.5, 3.0))
    assert gib(shared) == {**CERTAIN, "context": 0.5, "other_processes": 3.0}


def test_where_other_processes_are_unknown_the_remainder_is_unattributed_and_no_more() -> None:
    shared = stack(gpu(78.0), occupant(None, None, method="none"))
    assert gib(shared) == {**CERTAIN, "unattributed": 78.0 - FIXED}
    assert "other_processes" not in shared.held


def test_where_only_the_engine_is_known_its_own_remainder_is_told_from_the_rest() -> None:
    shared = stack(gpu(79.0), occupant(FIXED + 0.5 + 2.0 + 0.25, None))
    assert gib(shared) == {
        **CERTAIN,
        "context": 0.5,
        "activation_peak": 2.0,
        "unaccounted": 0.25,
        "unattributed": 3.0,
    }


def test_where_only_the_others_are_known_what_they_leave_is_the_engines() -> None:
    shared = stack(gpu(FIXED + 0.5 + 1.0 + 3.0), occupant(None, 3.0, method="none"))
    rest = {"context": 0.5, "activation_peak": 1.0, "other_processes": 3.0}
    assert gib(shared) == {**CERTAIN, **rest}


def test_a_gpu_of_no_engine_of_ours_is_unattributed_or_of_others() -> None:
    assert gib(stack(gpu(30.0))) == {"unattributed": 30.0}
    (seen,) = gpu_memory_stacks(gpu(30.0), (), (attribution(0.0, 29.0, engines=()),))
    assert gib(seen) == {"other_processes": 29.0, "unaccounted": 1.0}


@pytest.mark.parametrize("others", [0.0, 2.0])
def test_of_two_engines_on_one_gpu_neither_is_another_process(others: float) -> None:
    small = replace(MEASURED, weights_bytes=size(5.0), kv_cache_bytes=size(20.0))
    first, second = 26.25 + 0.5, 31.25 + 0.5
    wide = replace(small, kv_cache_bytes=size(25.0))
    both = stack(
        gpu(first + second + others),
        occupant(first, second + others, measured=small),
        occupant(
            second,
            first + others,
            target="b",
            measured=replace(wide, context_bytes=size(0.5 + first)),  # it came second
        ),
    )
    expected = {"weights": 10.0, "kv_cache": 45.0, "cuda_graph": 2.0, "non_torch": 0.5}
    rest = {"other_processes": others} if others else {}
    assert gib(both) == {**expected, "context": 1.0, **rest}
    assert both.budget_bytes == 2 * 75 * GIB
    assert both.engines == (("a", "0"), ("b", "0"))


def test_of_two_engines_with_one_that_is_not_known_others_cannot_be_told() -> None:
    both = stack(
        gpu(79.0),
        occupant(40.0, 39.0, measured=MemoryTerms()),
        occupant(None, None, measured=MemoryTerms(), target="b", method="none"),
    )
    assert gib(both) == {"unattributed": 79.0}


def test_a_sleeping_engine_has_neither_weights_nor_cache_on_the_gpu() -> None:
    asleep = stack(gpu(1.75), occupant(1.75, 0.0, is_awake=False))
    assert gib(asleep) == {"cuda_graph": 1.0, "non_torch": 0.25, "context": 0.5}


def test_an_older_driver_counts_its_reserve_as_used_and_it_is_told_where_cuda_tells_the_total() -> (
    None
):
    old = stack(gpu(FIXED + 0.5, old=True), occupant(FIXED + 0.5, 0.0))
    assert gib(old) == {**CERTAIN, "context": 0.5, "reserved": round(RESERVED / GIB, 3)}
    untold = replace(MEASURED, total_bytes=None)
    old = stack(gpu(FIXED + 2.5, old=True), occupant(FIXED + 2.5, 0.0, measured=untold))
    assert gib(old)["unaccounted"] == round(RESERVED / GIB, 3)


def test_measured_terms_stand_before_predicted_ones_and_those_before_nothing() -> None:
    predicted = replace(MEASURED, weights_bytes=size(14.0), cuda_graph_bytes=size(0.8))
    measured = MemoryTerms(weights_bytes=size(16.0))
    one = replace(occupant(75.0, 0.0, measured=measured), predicted=predicted)
    built = stack(gpu(75.0), one)
    rest = {"context": 0.5, "activation_peak": 0.45}
    assert gib(built) == {**CERTAIN, "weights": 16.0, "cuda_graph": 0.8, **rest}
    assert (built.reported, built.predicted) == (
        measured.by_component(),
        predicted.by_component(),
    )


def test_a_mig_instance_has_a_stack_of_its_own() -> None:
    reading = gpu(60.0, mig=(mig(1, 36.0), mig(2, 20.0)))
    small = replace(MEASURED, weights_bytes=size(5.0), kv_cache_bytes=size(29.0))
    first, second = gpu_memory_stacks(
        reading, (occupant(36.0, 0.0, measured=small, mig_uuid="MIG-1"),)
    )
    assert (first.mig_uuid, second.mig_uuid) == ("MIG-1", "MIG-2")
    assert gib(first)["activation_peak"] == 0.25
    assert first.headroom_ratio == pytest.approx(3.5 / 39.5)
    assert gib(second) == {"unattributed": 20.0}


def test_compute_instances_that_share_their_memory_share_a_stack() -> None:
    halves = (mig(1, 20.0), replace(mig(2, 20.0), gpu_instance_id=1))
    first = occupant(12.0, 8.0, measured=SMALL, mig_uuid="MIG-1")
    second = occupant(8.0, 12.0, measured=SMALL, mig_uuid="MIG-2", target="b")
    (both,) = gpu_memory_stacks(gpu(20.0, mig=halves), (first, second))
    assert both.engines == (("a", "0"), ("b", "0"))
    assert gib(both) == {"weights": 6.0, "kv_cache": 10.0, "unaccounted": 4.0}
    assert both.held["other_processes"] == 0


def test_a_mig_instance_without_memory_of_its_own_is_told_by_its_parent() -> None:
    reading = gpu(40.0, mig=(mig(1, None), mig(2, None)))
    (parent,) = gpu_memory_stacks(
        reading, (occupant(30.0, 10.0, mig_uuid="MIG-1", measured=SMALL),)
    )
    assert parent.mig_uuid is None
    rest = {"unaccounted": 22.0, "other_processes": 10.0}
    assert gib(parent) == {"weights": 3.0, "kv_cache": 5.0, **rest}


def test_a_gpu_that_shares_the_hosts_memory_has_no_stack() -> None:
    assert gpu_memory_stacks(gpu(None), (occupant(1.0, 0.0),)) == ()


sizes = st.integers(0, TOTAL).map(Bytes) | st.none()
terms = st.builds(MemoryTerms, **dict.fromkeys(asdict(MEASURED), sizes))
places = st.sampled_from([None, "MIG-1", "MIG-2"])
attributions = st.builds(
    GpuAttribution,
    gpu=st.just(0),
    gpu_uuid=st.just("GPU-0"),
    mig_uuid=places,
    method=st.sampled_from(["pid", "cgroup", "exclusive", "none"]),
    engines=st.sampled_from([(), ("0",), ("0", "1")]),
    engine_bytes=sizes,
    other_bytes=sizes,
)
occupants = st.builds(
    Occupant,
    target=st.sampled_from("ab"),
    attribution=attributions,
    measured=terms,
    predicted=terms,
    is_awake=st.booleans(),
)
instances = st.lists(
    st.builds(
        lambda one, used, reserved: replace(one, used_bytes=used, reserved_bytes=reserved),
        st.sampled_from([mig(1, 1.0), mig(2, 2.0)]),
        sizes,
        sizes,
    ),
    max_size=2,
    unique_by=lambda one: one.uuid,
)


@given(
    used=sizes,
    reserved=sizes,
    mig_instances=instances,
    ours=st.lists(occupants, max_size=3),
    strangers=st.lists(attributions, max_size=2),
)
def test_every_stack_sums_to_the_drivers_used_bytes_whatever_is_known(
    used: Bytes | None,
    reserved: Bytes | None,
    mig_instances: list[MigInstance],
    ours: list[Occupant],
    strangers: list[GpuAttribution],
) -> None:
    reading = replace(
        gpu(1.0), used_bytes=used, reserved_bytes=reserved, mig_instances=tuple(mig_instances)
    )
    for one in gpu_memory_stacks(reading, ours, strangers):
        assert sum(one.held.values()) == one.used_bytes
        assert set(one.held) <= set(COMPONENTS)
        assert one.held.keys() & {"other_processes", "unattributed"}
        assert one.held.keys() & {"unaccounted", "unattributed"}
        remainders = {"unaccounted", "unattributed"}
        assert all(held >= 0 for name, held in one.held.items() if name not in remainders)
        by_place = {None if m.used_bytes is None else m.uuid: m for m in mig_instances}
        space = reading if one.mig_uuid is None else by_place[one.mig_uuid]
        assert one.used_bytes == space.used_bytes
