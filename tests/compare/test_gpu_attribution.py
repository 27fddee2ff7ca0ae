"""Whose the memory of a GPU is, in every way that machines and containers are set up."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proc_tree import ANY, CONTAINER_A, CONTAINER_B, POD, POD_SLICE, SERVE, ProcTree
from vllm_capacity.compare.gpu_attribution import GpuAttribution, GpuClaim, attribute_gpus
from vllm_capacity.observe.engine_process import (
    Containment,
    DeviceVisibility,
    EngineOnHost,
    EngineProcess,
)
from vllm_capacity.observe.gpu_reading import GpuProcess, GpuReading, MigInstance, ProcessKind
from vllm_capacity.sources.processes import Processes
from vllm_capacity.units import GIB, Bytes

URL, OTHER_URL = "http://localhost:8000", "http://localhost:8001"
RESERVED = Bytes(GIB // 2)

Listed = tuple[int, int | None] | tuple[int, int | None, ProcessKind]


def processes(*listed: Listed) -> tuple[GpuProcess, ...]:
    """Entries of (pid, GiB, kind); None for GiB that the driver keeps to itself."""
    return tuple(
        GpuProcess(
            pid=pid,
            used_bytes=None if gib is None else Bytes(gib * GIB),
            kind=kind[0] if kind else "compute",
        )
        for pid, gib, *kind in listed
    )


def gpu(index: int, *listed: Listed, used_gib: int = 70, name: str = "NVIDIA H100") -> GpuReading:
    return GpuReading(
        index=index,
        uuid=f"GPU-{index}{index}{index}{index}-beef",
        name=name,
        total_bytes=Bytes(80 * GIB),
        used_bytes=Bytes(used_gib * GIB),
        free_bytes=None,
        reserved_bytes=RESERVED,
        compute_capability=(9, 0),
        mig_enabled=False,
        processes=processes(*listed),
    )


def mig(index: int, instance: int, *listed: Listed, used_gib: int = 30) -> MigInstance:
    return MigInstance(
        uuid=f"MIG-{index}{instance}-cafe",
        profile="3g.40gb",
        gpu_instance_id=instance,
        compute_instance_id=0,
        total_bytes=Bytes(40 * GIB),
        used_bytes=Bytes(used_gib * GIB),
        free_bytes=None,
        reserved_bytes=Bytes(0),
        processes=processes(*listed),
    )


def engine(
    proc: ProcTree, *titles: str, pid: int = 100, port: int = 8000, **options: object
) -> None:
    """vLLM: its server at ``pid``, below it a core at pid + 1, pid + 2, …"""
    proc.process(pid, SERVE, sockets=[pid], **options)  # type: ignore[arg-type]
    proc.listen(ANY, port, pid)
    for i, title in enumerate(titles, 1):
        proc.process(pid + i, (f"VLLM::{title}",), parent=pid, gpu=True, **options)  # type: ignore[arg-type]


def claim(
    proc: ProcTree, readings: tuple[GpuReading, ...], url: str = URL, **told: object
) -> GpuClaim:
    listed = [r.processes or () for r in readings]
    listed += [m.processes or () for r in readings for m in r.mig_instances]
    pids = {process.pid for group in listed for process in group}
    host = Processes(str(proc.root)).engine_of(url, gpu_pids=pids)
    return GpuClaim(**{"engines": ("0",), "host": host, **told})  # type: ignore[arg-type]


def whose(
    proc: ProcTree, *readings: GpuReading, **told: object
) -> list[tuple[str, tuple[str, ...], float | None, float | None]]:
    """Method, engines, and GiB of the engine and of others, for each GPU or instance."""
    (answer,) = attribute_gpus(readings, [claim(proc, readings, **told)])
    return [shown(one) for one in answer]


def shown(one: GpuAttribution) -> tuple[str, tuple[str, ...], float | None, float | None]:
    amounts = (one.engine_bytes, one.other_bytes)
    mine, others = (None if amount is None else amount / GIB for amount in amounts)
    return one.method, one.engines, mine, others


NOBODY_KNOWS = ("none", (), None, None)


@pytest.fixture
def bare(tmp_path: Path) -> ProcTree:
    """We run in the machine's first PID namespace, as on bare metal or with hostPID."""
    return ProcTree(tmp_path / "proc").host()


@pytest.fixture
def inside(tmp_path: Path) -> ProcTree:
    """We run in a container with a PID namespace of its own."""
    return ProcTree(tmp_path / "proc").exporter(7)


def test_bare_metal(bare: ProcTree) -> None:
    engine(bare, "EngineCore")
    assert whose(bare, gpu(0, (101, 65))) == [("pid", ("0",), 65, 0)]


def test_bare_metal_with_a_desktop_and_a_training_job(bare: ProcTree) -> None:
    engine(bare, "EngineCore")
    bare.process(300, ("/usr/lib/xorg/Xorg",)).process(400, ("python3", "train.py"), gpu=True)
    listed = gpu(0, (101, 65), (300, 1, "graphics"), (400, 3))
    elsewhere = gpu(1, (400, 9))
    assert whose(bare, listed, elsewhere) == [("pid", ("0",), 65, 4), ("pid", (), 0, 9)]


def test_a_container_that_shares_the_machines_pids(bare: ProcTree) -> None:
    cgroup = f"0::/system.slice/docker-{CONTAINER_A}.scope"
    engine(bare, "EngineCore", cgroup=cgroup, namespace_pids=(100, 1))
    assert whose(bare, gpu(0, (101, 65))) == [("pid", ("0",), 65, 0)]


def test_a_pod_that_shares_its_pids_and_a_driver_that_counts_as_we_do(inside: ProcTree) -> None:
    engine(inside, "EngineCore", pid=20)
    # Others may be there whom such a driver does not show.
    assert whose(inside, gpu(0, (21, 65))) == [("pid", ("0",), 65, None)]


def test_a_driver_that_cannot_look_into_a_namespace_says_nothing_not_zero(
    inside: ProcTree,
) -> None:
    engine(inside, "EngineCore", pid=20)
    assert whose(inside, gpu(0, (21, 0))) == [("none", ("0",), None, None)]
    declared = whose(inside, gpu(0, (21, 0)), exclusive=True)
    assert declared == [("exclusive", ("0",), 70, 0)]


def test_a_private_pid_namespace_and_an_exclusive_gpu(inside: ProcTree) -> None:
    assert whose(inside, gpu(0, (48213, 65))) == [("exclusive", ("0",), 65, 0)]
    assert whose(inside, gpu(0, (0, None))) == [("exclusive", ("0",), 70, 0)]


def test_a_private_pid_namespace_and_a_shared_gpu(inside: ProcTree) -> None:
    assert whose(inside, gpu(0, (48213, 65), (48999, 3))) == [NOBODY_KNOWS]
    assert whose(inside, gpu(0, (0, None), (0, None))) == [NOBODY_KNOWS]


def test_an_empty_list_in_a_private_pid_namespace_proves_nothing(inside: ProcTree) -> None:
    assert whose(inside, gpu(0)) == [NOBODY_KNOWS]
    assert whose(inside, gpu(0), exclusive=True) == [("exclusive", ("0",), 70, 0)]


def test_a_list_that_is_kept_from_us_is_no_empty_list(inside: ProcTree) -> None:
    unknown = replace(gpu(0), processes=None)
    assert whose(inside, unknown) == [NOBODY_KNOWS]
    assert whose(inside, unknown, exclusive=True) == [("exclusive", ("0",), 70, 0)]


def test_a_number_that_is_somebody_elses_here_joins_nobody(inside: ProcTree) -> None:
    engine(inside, "EngineCore", pid=20)
    inside.process(42, ("python3", "train.py"))
    # The engine is seen to use a GPU, is not in the list by our numbers: the list is the host's.
    assert whose(inside, gpu(0, (42, 65))) == [("exclusive", ("0",), 65, 0)]
    assert whose(inside, gpu(0, (42, 65), (43, 3))) == [NOBODY_KNOWS]


def test_a_number_that_is_the_servers_here_is_not_the_cores(inside: ProcTree) -> None:
    engine(inside, "EngineCore", pid=20)
    assert whose(inside, gpu(0, (20, 3), (48213, 65))) == [NOBODY_KNOWS]


def test_numbers_that_fit_only_some_ranks_fit_none(inside: ProcTree) -> None:
    engine(inside, "Worker_TP0", "Worker_TP1", pid=20)
    listed = gpu(0, (21, 65)), gpu(1, (48213, 65))
    assert whose(inside, *listed, min_ranks=2) == [NOBODY_KNOWS] * 2


@pytest.mark.parametrize("number", [2021, 21])
def test_the_machines_proc_mounted_beside_ours_knows_both_numbers(
    tmp_path: Path, number: int
) -> None:
    proc = ProcTree(tmp_path / "proc").process(2, (), name="kthreadd")
    proc.exporter(2007, namespace_pids=(2007, 7))
    proc.process(2020, SERVE, sockets=[1], namespace_pids=(2020, 20)).listen("::", 8000, 1)
    core = ("VLLM::EngineCore",)
    proc.process(2021, core, parent=2020, gpu=True, namespace_pids=(2021, 21))
    assert whose(proc, gpu(0, (number, 65))) == [("pid", ("0",), 65, None)]


@pytest.mark.parametrize("numbers", [(101, 102), (102, 101)])
def test_tensor_parallel_over_two_gpus(bare: ProcTree, numbers: tuple[int, int]) -> None:
    engine(bare, "Worker_TP0", "Worker_TP1")
    listed = gpu(0, (numbers[0], 65)), gpu(1, (numbers[1], 64)), gpu(2, used_gib=0)
    assert whose(bare, *listed, min_ranks=2) == [
        ("pid", ("0",), 65, 0),
        ("pid", ("0",), 64, 0),
        ("pid", (), 0, 0),
    ]


def test_a_rank_that_is_not_there_yet_leaves_the_other_gpus_unknown(bare: ProcTree) -> None:
    engine(bare, "Worker_TP0", "Worker_TP1")
    listed = gpu(0, (101, 65)), gpu(1, used_gib=0)
    assert whose(bare, *listed, min_ranks=2) == [("pid", ("0",), 65, 0), ("none", (), None, 0)]


def test_data_parallel_over_two_gpus(bare: ProcTree) -> None:
    engine(bare, "EngineCore_DP0", "EngineCore_DP1")
    listed = gpu(0, (102, 65)), gpu(1, (101, 64))
    assert whose(bare, *listed, engines=("0", "1"), min_ranks=2) == [
        ("pid", ("1",), 65, 0),
        ("pid", ("0",), 64, 0),
    ]


def test_data_parallel_in_a_private_pid_namespace_goes_by_the_given_order(
    inside: ProcTree,
) -> None:
    listed = gpu(0, (48213, 65)), gpu(1, (48214, 64)), gpu(2, used_gib=0)
    told = {"engines": ("0", "1"), "min_ranks": 2}
    assert whose(inside, *listed, **told) == [
        ("exclusive", (), 65, 0),
        ("exclusive", (), 64, 0),
        ("exclusive", (), 0, 0),
    ]
    assert whose(inside, *listed, **told, devices=("1", "0")) == [
        ("exclusive", ("1",), 65, 0),
        ("exclusive", ("0",), 64, 0),
        ("exclusive", (), 0, 0),
    ]


def test_a_process_too_small_for_the_kv_cache_is_not_the_engine(inside: ProcTree) -> None:
    small = gpu(0, (48213, 30)), gpu(1, used_gib=0)
    assert whose(inside, *small, min_bytes=Bytes(40 * GIB)) == [NOBODY_KNOWS] * 2
    assert whose(inside, *small, min_bytes=Bytes(29 * GIB))[0] == ("exclusive", ("0",), 30, 0)


def test_more_processes_than_ranks_are_not_shared_out(inside: ProcTree) -> None:
    listed = gpu(0, (48213, 65)), gpu(1, (48214, 64))
    assert whose(inside, *listed) == [NOBODY_KNOWS] * 2


def test_what_the_engine_may_see_narrows_down_where_it_is(inside: ProcTree) -> None:
    environ = {"NVIDIA_VISIBLE_DEVICES": "GPU-1111-beef"}
    inside.process(20, SERVE, sockets=[20], environ=environ).listen("::", 8000, 20)
    inside.process(21, ("VLLM::EngineCore",), parent=20, gpu=True)
    listed = gpu(0, (48213, 65)), gpu(1, (48214, 64))
    assert whose(inside, *listed) == [("exclusive", (), 0, 65), ("exclusive", ("0",), 64, 0)]


def test_what_the_operator_says_narrows_down_where_it_is(inside: ProcTree) -> None:
    listed = gpu(0, (48213, 65)), gpu(1, (48214, 64))
    for names in (("1",), ("GPU-1111",)):
        told = whose(inside, *listed, devices=names)
        assert told == [("exclusive", (), 0, 65), ("exclusive", ("0",), 64, 0)]
    assert whose(inside, *listed, devices=("GPU-",)) == [NOBODY_KNOWS] * 2
    assert whose(inside, *listed, devices=("7",)) == [NOBODY_KNOWS] * 2


def test_an_engine_that_uses_no_gpu_takes_nobodys(inside: ProcTree) -> None:
    inside.process(20, SERVE, sockets=[20]).listen("::", 8000, 20)
    assert whose(inside, gpu(0, (48213, 65))) == [NOBODY_KNOWS]


def test_an_engine_that_is_seen_without_a_gpu_has_what_it_was_given(inside: ProcTree) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "1"}
    inside.process(20, SERVE, sockets=[20], environ=environ).listen("::", 8000, 20)
    listed = gpu(0), gpu(1, (48213, 65))
    assert whose(inside, *listed)[1] == ("exclusive", ("0",), 65, 0)


def test_the_operators_word_goes_before_what_is_seen(inside: ProcTree) -> None:
    inside.process(20, SERVE, sockets=[20]).listen("::", 8000, 20)
    assert whose(inside, gpu(0), exclusive=True) == [("exclusive", ("0",), 70, 0)]


def test_an_engine_on_another_machine_has_none_of_our_gpus(bare: ProcTree) -> None:
    readings = (gpu(0, (48213, 65)),)
    far = claim(bare, readings, "http://10.9.9.9:8000")
    assert [shown(one) for one in attribute_gpus(readings, [far])[0]] == [NOBODY_KNOWS]


def test_a_visible_stranger_alone_on_the_gpu_is_not_the_engine(bare: ProcTree) -> None:
    bare.process(400, ("python3", "train.py"), gpu=True)
    assert whose(bare, gpu(0, (400, 65))) == [NOBODY_KNOWS]


def test_two_engines_on_one_gpu(bare: ProcTree) -> None:
    engine(bare, "EngineCore")
    engine(bare, "EngineCore", pid=200, port=8001)
    readings = (gpu(0, (101, 40), (201, 25)),)
    claims = [claim(bare, readings), claim(bare, readings, OTHER_URL)]
    first, second = attribute_gpus(readings, claims)
    assert [shown(one) for one in first] == [("pid", ("0",), 40, 25)]
    assert [shown(one) for one in second] == [("pid", ("0",), 25, 40)]


def test_what_two_engines_would_both_have_alone_is_nobodys(inside: ProcTree) -> None:
    readings = (gpu(0, (48213, 65)),)
    both = [claim(inside, readings), claim(inside, readings, OTHER_URL)]
    for answer in attribute_gpus(readings, both):
        assert [shown(one) for one in answer] == [NOBODY_KNOWS]
    declared = [replace(one, exclusive=True) for one in both]
    for answer in attribute_gpus(readings, declared):
        assert [shown(one) for one in answer] == [NOBODY_KNOWS]


def test_mig_instances_are_told_apart(bare: ProcTree) -> None:
    engine(bare, "EngineCore")
    bare.process(400, ("python3", "train.py"), gpu=True)
    divided = replace(
        gpu(0), mig_instances=(mig(0, 1, (400, 9)), mig(0, 2, (101, 29))), mig_enabled=True
    )
    (answer,) = attribute_gpus((divided,), [claim(bare, (divided,))])
    assert [one.mig_uuid for one in answer] == ["MIG-01-cafe", "MIG-02-cafe"]
    assert [shown(one) for one in answer] == [("pid", (), 0, 9), ("pid", ("0",), 29, 0)]


def test_a_mig_instance_of_ones_own_in_a_private_pid_namespace(inside: ProcTree) -> None:
    divided = replace(gpu(0), mig_instances=(mig(0, 1, (48213, None)),), processes=None)
    assert whose(inside, divided) == [("exclusive", ("0",), 30, 0)]
    empty = replace(gpu(0), mig_instances=(mig(0, 1), mig(0, 2)))
    assert whose(inside, empty, devices=("MIG-02",), exclusive=True) == [
        ("exclusive", (), 0, None),
        ("exclusive", ("0",), 30, 0),
    ]


def test_compute_instances_that_share_memory_have_none_to_themselves(inside: ProcTree) -> None:
    first, second = (
        mig(0, 1, (48213, None)),
        replace(mig(0, 1), uuid="MIG-x", compute_instance_id=1),
    )
    divided = replace(gpu(0), mig_instances=(first, second))
    assert whose(inside, divided)[0][0] == "none"


def test_clients_of_the_multi_process_service_and_its_server(bare: ProcTree) -> None:
    engine(bare, "EngineCore")
    bare.process(50, ("nvidia-cuda-mps-server",), gpu=True)
    assert whose(bare, gpu(0, (50, 1), (101, 65, "mps"))) == [("pid", ("0",), 65, 1)]


def test_the_multi_process_service_in_a_private_pid_namespace(inside: ProcTree) -> None:
    one_client = gpu(0, (48000, 1), (48213, 65, "mps"))
    assert whose(inside, one_client) == [("exclusive", ("0",), 65, 1)]
    two_clients = gpu(0, (48000, 1), (48213, 40, "mps"), (48214, 25, "mps"))
    assert whose(inside, two_clients) == [NOBODY_KNOWS]


def test_a_process_that_is_listed_twice_is_counted_once(bare: ProcTree) -> None:
    engine(bare, "EngineCore")
    twice = gpu(0, (101, 65), (101, 65, "graphics"), (101, 65))
    assert whose(bare, twice) == [("pid", ("0",), 65, 0)]


def test_workers_of_ray_belong_to_the_engines_container(bare: ProcTree) -> None:
    cgroup = f"0::/system.slice/docker-{CONTAINER_A}.scope"
    bare.process(100, SERVE, sockets=[1], cgroup=cgroup).listen("::", 8000, 1)
    bare.process(150, ("raylet",), cgroup=cgroup)
    worker = ("ray::RayWorkerWrapper.execute",)
    bare.process(151, worker, parent=150, cgroup=cgroup, gpu=True)
    bare.process(400, ("train",), cgroup=cgroup.replace(CONTAINER_A, CONTAINER_B), gpu=True)
    assert whose(bare, gpu(0, (151, 60), (400, 5))) == [("cgroup", ("0",), 60, 5)]


def test_a_second_server_in_the_container_is_not_the_first(bare: ProcTree) -> None:
    cgroup = f"0::/system.slice/docker-{CONTAINER_A}.scope"
    engine(bare, "EngineCore", cgroup=cgroup)
    engine(bare, "EngineCore", pid=200, port=8001, cgroup=cgroup)
    assert whose(bare, gpu(0, (101, 40), (201, 25))) == [("pid", ("0",), 40, 25)]


def test_a_sidecar_with_the_machines_pids_knows_its_own_pod(tmp_path: Path) -> None:
    proc = ProcTree(tmp_path / "proc").process(2, (), name="kthreadd")
    proc.exporter(cgroup=f"0::{POD_SLICE}/cri-containerd-{CONTAINER_A}.scope")
    pod = f"0::{POD_SLICE}/cri-containerd-{CONTAINER_B}.scope"
    other_pod = pod.replace("0a1b2c3d", "ffffffff")
    proc.process(500, ("python3", "our_own_server.py"), cgroup=pod, gpu=True)
    proc.process(600, ("python3", "train.py"), cgroup=other_pod, gpu=True)
    assert whose(proc, gpu(0, (500, 60), (600, 5))) == [("cgroup", ("0",), 60, 5)]
    assert POD.replace("-", "_") in pod


def test_a_process_that_appeared_after_the_look_is_nobodys_yet(bare: ProcTree) -> None:
    engine(bare, "EngineCore")
    early = claim(bare, (gpu(0, (101, 60)),))
    ((later,),) = attribute_gpus((gpu(0, (101, 60), (700, 5)),), [early])
    assert shown(later) == ("pid", ("0",), 60, None)


def test_a_process_that_ended_between_the_looks_leaves_the_gpu_unknown(bare: ProcTree) -> None:
    engine(bare, "EngineCore")
    early = claim(bare, (gpu(0, (101, 60)),))
    ((later,),) = attribute_gpus((gpu(0, used_gib=0),), [early])
    assert later.method == "none"


def test_a_process_that_the_operator_names_is_the_engines(inside: ProcTree) -> None:
    told = whose(inside, gpu(0, (48213, 65), (48999, 3)), pids=(48213,))
    assert told == [("pid", ("0",), 65, None)]


def test_with_memory_kept_secret_an_engine_seen_alone_has_all_that_is_used(
    bare: ProcTree,
) -> None:
    engine(bare, "EngineCore")
    assert whose(bare, gpu(0, (101, None))) == [("exclusive", ("0",), 70, 0)]
    shared = whose(bare, gpu(0, (101, None), (400, 3)))
    assert shared == [("none", ("0",), None, 3)]


def test_who_is_no_rank_is_not_joined_by_a_number_that_is_unsure(inside: ProcTree) -> None:
    engine(inside, "EngineCore", pid=20)
    assert whose(inside, gpu(0, (21, 65), (20, 3))) == [("pid", ("0",), 65, None)]


def test_numbers_of_deeper_namespaces_are_not_ours(tmp_path: Path) -> None:
    proc = ProcTree(tmp_path / "proc").exporter(2007, namespace_pids=(2007, 7))
    proc.process(2020, SERVE, sockets=[1], namespace_pids=(2020, 4, 20)).listen("::", 8000, 1)
    core = ("VLLM::EngineCore",)
    proc.process(2021, core, parent=2020, gpu=True, namespace_pids=(2021, 5, 21))
    assert whose(proc, gpu(0, (21, 65)))[0][0] != "pid"


def test_a_given_process_that_we_see_must_fit_like_any_other(inside: ProcTree) -> None:
    engine(inside, "EngineCore", pid=20)
    assert whose(inside, gpu(0, (20, 65), (48213, 3)), pids=(20,)) == [NOBODY_KNOWS]


def test_a_rank_that_is_seen_but_not_listed_yet_may_be_anywhere(bare: ProcTree) -> None:
    engine(bare, "Worker_TP0", "Worker_TP1")
    listed = gpu(0, (101, 65)), gpu(1, used_gib=0)
    assert whose(bare, *listed)[1] == ("none", (), None, 0)


def test_a_rank_that_is_told_but_not_seen_may_be_anywhere(bare: ProcTree) -> None:
    bare.process(100, SERVE, private=True).listen("::", 8000, 1)
    bare.process(101, ("VLLM::Worker_TP0",), parent=100, private=True)
    listed = gpu(0, (101, 65)), gpu(1, used_gib=0)
    assert whose(bare, *listed, min_ranks=2)[1] == ("none", (), None, 0)
    assert whose(bare, *listed, min_ranks=1)[1] == ("pid", (), 0, 0)


def test_where_the_operator_rules_out_others_there_are_none(inside: ProcTree) -> None:
    engine(inside, "EngineCore", pid=20)
    assert whose(inside, gpu(0, (21, 65)), exclusive=True) == [("pid", ("0",), 65, 0)]


def test_an_address_that_cannot_be_told_claims_nothing() -> None:
    readings = (gpu(0, (48213, 65)),)
    asked = frozenset({48213})
    unsure = (EngineOnHost(local=local, asked_pids=asked) for local in (None, False))
    for host in (None, *unsure):
        ((one,),) = attribute_gpus(readings, [GpuClaim(host=host)])
        assert shown(one) == NOBODY_KNOWS


def test_two_processes_on_one_gpu_are_not_two_ranks(inside: ProcTree) -> None:
    listed = gpu(0, (48213, 35), (48214, 30)), gpu(1, used_gib=0)
    assert whose(inside, *listed, min_ranks=2) == [NOBODY_KNOWS] * 2


def test_a_gpu_whose_list_is_kept_from_us_may_hold_the_engine(inside: ProcTree) -> None:
    listed = gpu(0, (48213, 65)), replace(gpu(1), processes=None)
    assert whose(inside, *listed) == [NOBODY_KNOWS] * 2


def test_a_stranger_of_our_own_namespace_tells_that_the_list_is_by_our_numbers(
    inside: ProcTree,
) -> None:
    inside.process(42, ("python3", "train.py"), gpu=True)
    assert whose(inside, gpu(0, (42, 65))) == [NOBODY_KNOWS]


def test_a_vllm_alone_on_the_gpus_is_the_one_behind_a_port_that_leads_nowhere(
    bare: ProcTree,
) -> None:
    bare.process(100, SERVE).process(101, ("VLLM::EngineCore",), parent=100, gpu=True)
    assert whose(bare, gpu(0, (101, 65))) == [("exclusive", ("0",), 65, 0)]


def test_a_desktop_is_no_rank_but_its_memory_is_anothers(inside: ProcTree) -> None:
    listed = gpu(0, (1000, 2, "graphics"), (48213, 60))
    assert whose(inside, listed) == [("exclusive", ("0",), 60, 2)]
    assert whose(inside, listed, exclusive=True) == [("exclusive", ("0",), 62, 0)]


def test_what_is_in_use_is_not_the_clients_alone_beside_a_server_of_mps(inside: ProcTree) -> None:
    listed = gpu(0, (48000, 1), (48213, None, "mps"))
    assert whose(inside, listed) == [("none", ("0",), None, None)]


def test_engines_are_placed_by_number_and_only_if_they_come_out_even(inside: ProcTree) -> None:
    readings = gpu(0), gpu(1), gpu(2)
    told = {"engines": ("10", "2"), "exclusive": True}
    even = whose(inside, *readings, **told, devices=("0", "1"))
    assert [engines for _, engines, _, _ in even] == [("2",), ("10",), ()]
    uneven = whose(inside, *readings, **told, devices=("0", "1", "2"))
    assert [engines for _, engines, _, _ in uneven] == [(), (), ()]


def test_no_engine_has_less_than_nothing(inside: ProcTree) -> None:
    idle = replace(gpu(0), used_bytes=Bytes(0))
    assert whose(inside, idle, exclusive=True) == [("exclusive", (), 0, 0)]


def test_with_other_engines_watched_a_pod_is_not_one_engines(tmp_path: Path) -> None:
    proc = ProcTree(tmp_path / "proc").process(2, (), name="kthreadd")
    pod = f"0::{POD_SLICE}/cri-containerd-{CONTAINER_B}.scope"
    proc.exporter(cgroup=pod.replace(CONTAINER_B, CONTAINER_A))
    proc.process(500, ("python3", "our_own_server.py"), cgroup=pod, gpu=True)
    readings = (gpu(0, (500, 60)),)
    here, far = claim(proc, readings), claim(proc, readings, "http://10.9.9.9:8000")
    assert [a.method for (a,) in attribute_gpus(readings, [here])] == ["cgroup"]
    assert [a.method for (a,) in attribute_gpus(readings, [far])] == ["none"]
    assert [a.method for (a,) in attribute_gpus(readings, [here, far])] == ["none", "none"]


def test_a_process_that_appeared_after_the_look(inside: ProcTree) -> None:
    readings = gpu(0, (48213, 60)), gpu(1, used_gib=0)
    early = claim(inside, (gpu(0), gpu(1)))
    assert [one.method for one in attribute_gpus(readings, [early])[0]] == ["none", "none"]


def test_a_gpu_with_a_process_not_looked_at_may_be_the_engines(bare: ProcTree) -> None:
    engine(bare, "EngineCore")
    early = claim(bare, (gpu(0, (101, 60)), gpu(1)))
    answer = attribute_gpus((gpu(0, (101, 60)), gpu(1, (700, 5))), [early])[0]
    assert shown(answer[1]) == NOBODY_KNOWS


def test_without_gpus_or_engines_there_is_nothing_to_say() -> None:
    assert attribute_gpus((), [GpuClaim()]) == ((),)
    assert attribute_gpus((gpu(0),), []) == ()


NUMBERS = st.integers(0, 6)
AMOUNTS = st.none() | st.integers(0, 40)
KINDS = st.sampled_from(["compute", "graphics", "mps"])
ENTRIES = st.lists(st.tuples(NUMBERS, AMOUNTS, KINDS), max_size=4)


@st.composite
def machines(draw: st.DrawFn) -> tuple[tuple[GpuReading, ...], list[GpuClaim]]:
    readings = []
    for index in range(draw(st.integers(1, 3))):
        reading = gpu(index, *draw(ENTRIES), used_gib=draw(st.integers(0, 79)))
        instances = tuple(mig(index, i, *draw(ENTRIES)) for i in range(draw(st.integers(0, 2))))
        hidden = draw(st.booleans())
        readings.append(
            replace(
                reading,
                mig_instances=instances,
                processes=None if hidden else reading.processes,
                used_bytes=None if draw(st.booleans()) else reading.used_bytes,
            )
        )
    return tuple(readings), draw(st.lists(claims(), min_size=1, max_size=2))


@st.composite
def claims(draw: st.DrawFn) -> GpuClaim:
    def process(pid: int) -> EngineProcess:
        return EngineProcess(
            pid=pid,
            namespace_pids=draw(st.sampled_from([(pid,), (pid, 1 + pid % 6)])),
            is_vllm=draw(st.booleans()),
            containment=draw(st.sampled_from([Containment(), Containment(container_id="c")])),
            visibility=draw(st.sampled_from([None, DeviceVisibility(cuda_visible_devices="0,1")])),
            uses_gpu=draw(st.sampled_from([True, False, None])),
        )

    members = draw(st.sets(st.integers(1, 6)))
    strangers = draw(st.sets(st.integers(1, 6))) - members
    host = EngineOnHost(
        local=draw(st.sampled_from([True, False, None])),
        numbers_agree=draw(st.booleans()),
        processes=tuple(map(process, sorted(members))),
        listed=tuple(map(process, sorted(strangers))),
        asked_pids=frozenset(draw(st.sets(NUMBERS))) | members | strangers,
        exporter=draw(st.sampled_from([None, EngineProcess(pid=9, namespace_pids=(9, 1))])),
    )
    return GpuClaim(
        engines=draw(st.sampled_from([(), ("0",), ("0", "1")])),
        host=draw(st.sampled_from([None, host])),
        pids=tuple(draw(st.sets(NUMBERS, max_size=1))),
        devices=draw(st.sampled_from([None, ("0",), ("0", "1"), ("9",), ()])),
        exclusive=draw(st.booleans()),
        min_ranks=draw(st.integers(1, 3)),
        min_bytes=Bytes(draw(st.sampled_from([0, 20 * GIB]))),
    )


def lists(readings: tuple[GpuReading, ...]) -> list[tuple[GpuProcess, ...] | None]:
    """What is listed on each GPU or instance."""
    return [
        place.processes for reading in readings for place in reading.mig_instances or (reading,)
    ]


def held_bytes(listed: tuple[GpuProcess, ...] | None) -> int:
    """By all processes, each counted once."""
    named: dict[int, int] = {}
    for one in listed or ():
        if one.pid:
            named[one.pid] = max(named.get(one.pid, 0), one.used_bytes or 0)
    return sum(named.values()) + sum(p.used_bytes or 0 for p in listed or () if not p.pid)


@given(machines())
def test_whatever_is_said_holds_together(
    machine: tuple[tuple[GpuReading, ...], list[GpuClaim]],
) -> None:
    readings, told = machine
    answers = attribute_gpus(readings, told)
    units = sum(len(r.mig_instances) or 1 for r in readings)
    for answer in answers:
        assert len(answer) == units
        for one in answer:
            assert (one.method == "none") == (one.engine_bytes is None)
            assert not one.engines or one.engine_bytes != 0
        for one, listed in zip(answer, lists(readings), strict=True):
            if one.method in {"pid", "cgroup"} and one.other_bytes is not None:
                assert one.engine_bytes is not None
                assert one.engine_bytes + one.other_bytes == held_bytes(listed)
    for same in zip(*answers, strict=True):
        alone = [one for one in same if one.method == "exclusive" and one.engine_bytes]
        assert not alone or sum(bool(one.engine_bytes) for one in same) == 1
