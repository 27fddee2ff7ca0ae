"""Finding an engine's processes in a ``/proc``, made up and real."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proc_tree import (
    ANY,
    CONNECTED,
    CONTAINER_A,
    CONTAINER_B,
    EXPORTER_PID,
    POD,
    POD_SLICE,
    SERVE,
    ProcTree,
)
from vllm_capacity.observe.engine_process import EngineOnHost
from vllm_capacity.sources.processes import Processes

URL = "http://localhost:8000"


@pytest.fixture
def proc(tmp_path: Path) -> ProcTree:
    return ProcTree(tmp_path / "proc").host()


def search(proc: ProcTree, url: str = URL, **options: object) -> EngineOnHost:
    return Processes(str(proc.root)).engine_of(url, **options)  # type: ignore[arg-type]


def pids(found: EngineOnHost) -> tuple[int, ...]:
    return tuple(process.pid for process in found.processes)


def served(proc: ProcTree, pid: int = 100, port: int = 8000, **options: object) -> ProcTree:
    """vLLM on one GPU: server, engine core, and a process of Python's own."""
    proc.process(pid, SERVE, sockets=[pid * 7], **options)  # type: ignore[arg-type]
    proc.process(pid + 1, ("python3", "-c", "from multiprocessing.resource_tracker"), parent=pid)
    proc.process(pid + 2, ("VLLM::EngineCore",), parent=pid, gpu=True)
    return proc.listen(ANY, port, pid * 7)


def test_the_engine_is_who_listens_and_all_its_descendants(proc: ProcTree) -> None:
    served(proc)
    proc.process(500, ("python3", "train.py"), gpu=True)
    found = search(proc)
    assert pids(found) == (100, 101, 102)
    assert found.local is True
    assert found.numbers_agree is True
    assert [p.uses_gpu for p in found.processes] == [False, False, True]


@pytest.mark.parametrize(
    ("bound", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        (ANY, "http://user:pw@localhost:8000/metrics"),
        ("::", "localhost:8000"),
        ("::1", "http://[::1]:8000"),
        ("10.1.2.3", "http://10.1.2.3:8000/prefix"),
        (ANY, "http://10.1.2.3:8000"),
    ],
)
def test_an_address_of_this_machine_is_recognised_however_it_is_written(
    proc: ProcTree, bound: str, url: str
) -> None:
    proc.local_addresses("127.0.0.1", "10.1.2.3")
    proc.process(100, SERVE, sockets=[7]).listen(bound, 8000, 7)
    assert pids(search(proc, url)) == (100,)


@pytest.mark.parametrize("url", ["http://10.9.9.9:8000", "http://localhost:8001"])
def test_another_machine_or_port_is_another_engine(proc: ProcTree, url: str) -> None:
    assert pids(search(served(proc), url)) == ()


def test_who_is_bound_to_the_address_answers_before_who_is_bound_to_all(proc: ProcTree) -> None:
    served(proc)
    proc.process(300, SERVE, sockets=[9]).listen("127.0.0.1", 8000, 9)
    assert pids(search(proc, "http://127.0.0.1:8000")) == (300,)


def test_a_listener_that_is_no_vllm_is_not_taken_for_one(proc: ProcTree) -> None:
    proc.process(100, ("nginx: master process",), sockets=[7]).listen(ANY, 8000, 7)
    proc.process(101, ("nginx: worker process",), parent=100, sockets=[7])
    proc.process(200, (*SERVE, "--port", "9000"), sockets=[8]).listen(ANY, 9000, 8)
    assert pids(search(proc)) == ()


def test_one_socket_of_several_api_servers_leads_to_the_one_above_them(proc: ProcTree) -> None:
    proc.process(100, SERVE, sockets=[7]).listen(ANY, 8000, 7)
    for i, title in enumerate(("APIServer_0", "APIServer_1")):
        proc.process(101 + i, (f"VLLM::{title}",), parent=100, sockets=[7])
    proc.process(110, ("VLLM::EngineCore_DP0",), parent=100, gpu=True)
    proc.process(111, ("VLLM::EngineCore_DP1",), parent=100, gpu=True)
    proc.process(112, ("VLLM::Worker_TP0",), parent=111, gpu=True)
    found = search(proc)
    assert pids(found) == (100, 101, 102, 110, 111, 112)
    assert [p.data_parallel_rank for p in found.processes[3:]] == [0, 1, 1]


def test_servers_side_by_side_under_one_supervisor_are_told_apart_by_their_ports(
    proc: ProcTree,
) -> None:
    proc.process(100, SERVE)
    for rank in (0, 1):
        server = 110 + 10 * rank
        proc.process(server, (f"VLLM::APIServer_DP{rank}",), parent=100, sockets=[server])
        proc.process(server + 1, (f"VLLM::EngineCore_DP{rank}",), parent=server, gpu=True)
        proc.listen(ANY, 8000 + rank, server)
    assert pids(search(proc)) == (110, 111)
    assert pids(search(proc, "http://localhost:8001")) == (120, 121)


def test_a_container_with_a_network_of_its_own_is_found_by_its_address(proc: ProcTree) -> None:
    proc.process(100, SERVE, sockets=[7], namespace_pids=(100, 1))
    proc.listen(ANY, 8000, 7, net=proc.network_of(100, "127.0.0.1", "172.17.0.2"))
    proc.process(101, ("VLLM::EngineCore",), parent=100, namespace_pids=(101, 8), gpu=True)
    found = search(proc, "http://172.17.0.2:8000")
    assert pids(found) == (100, 101)
    assert found.processes[1].namespace_pids == (101, 8)
    assert pids(search(proc, "http://localhost:8000")) == ()


def test_a_port_that_docker_publishes_leads_into_the_container(proc: ProcTree) -> None:
    proxy = (
        "/usr/bin/docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 9000 "
        "-container-ip 172.17.0.2 -container-port 8000"
    )
    proc.process(50, proxy.split(), sockets=[5]).listen(ANY, 9000, 5)
    proc.process(100, SERVE, sockets=[7])
    proc.listen(ANY, 8000, 7, net=proc.network_of(100, "172.17.0.2"))
    assert pids(search(proc, "http://localhost:9000")) == (100,)


def test_another_users_server_is_found_by_its_command_line_if_there_is_but_one(
    proc: ProcTree,
) -> None:
    proc.listen(ANY, 8000, 7).process(100, SERVE, private=True)
    proc.process(101, ("VLLM::EngineCore",), parent=100, private=True)
    found = search(proc)
    assert pids(found) == (100, 101)
    assert [(p.uses_gpu, p.visibility) for p in found.processes] == [(None, None)] * 2
    proc.process(200, (*SERVE, "--port=8000"), private=True)
    assert pids(search(proc)) == ()


def test_another_users_container_is_found_too_and_not_mixed_up_with_our_own_network(
    proc: ProcTree,
) -> None:
    proc.process(100, SERVE, private=True)
    proc.listen(ANY, 8000, 7, net=proc.network_of(100, "172.17.0.2"))
    assert pids(search(proc, "http://172.17.0.2:8000")) == (100,)
    proc.listen(ANY, 8000, 9)  # a proxy of whom nothing is seen
    assert pids(search(proc)) == ()


def test_any_server_with_a_process_on_a_gpu_may_be_vllm_inside(proc: ProcTree) -> None:
    proc.process(100, ("python3", "serving.py"), sockets=[7]).listen(ANY, 8000, 7)
    proc.process(101, ("python3", "worker.py"), parent=100)
    assert pids(search(proc)) == ()
    assert pids(search(proc, gpu_pids=(101,))) == (100, 101)
    proc.process(102, ("python3", "worker.py"), parent=100, gpu=True)
    assert pids(search(proc)) == (100, 101, 102)


def test_given_processes_are_not_searched_for(proc: ProcTree) -> None:
    served(proc)
    assert pids(search(proc, "http://elsewhere.invalid", pids=(102,))) == (102,)
    assert pids(search(proc, pids=(4711,))) == ()


def test_zombies_hold_nothing(proc: ProcTree) -> None:
    served(proc)
    proc.process(103, (), parent=100, state="Z", name="VLLM::EngineCor")
    assert pids(search(proc)) == (100, 101, 102)


def test_a_name_with_brackets_and_blanks_does_not_mislead(proc: ProcTree) -> None:
    proc.process(100, SERVE, sockets=[7], name="a) R 1 (b c").listen(ANY, 8000, 7)
    assert pids(search(proc)) == (100,)


@pytest.mark.parametrize(
    ("cgroup", "container", "pod"),
    [
        (f"0::/system.slice/docker-{CONTAINER_A}.scope", CONTAINER_A, None),
        (f"12:memory:/docker/{CONTAINER_A}\n0::/", CONTAINER_A, None),
        (f"0::{POD_SLICE}/cri-containerd-{CONTAINER_A}.scope", CONTAINER_A, POD),
        (f"0::{POD_SLICE}/crio-{CONTAINER_A}.scope/container", CONTAINER_A, POD),
        (f"4:cpu:/kubepods/besteffort/pod{POD}/{CONTAINER_A}", CONTAINER_A, POD),
        (f"0::/machine.slice/libpod-{CONTAINER_A}.scope/container", CONTAINER_A, None),
        (f"0::/docker/{CONTAINER_B}/docker/{CONTAINER_A}", CONTAINER_A, None),
        (f"0::/../cri-containerd-{CONTAINER_A}.scope", CONTAINER_A, None),
        ("0::/", None, None),
        ("0::/user.slice/user-1000.slice/session-2.scope", None, None),
        ("", None, None),
    ],
)
def test_containers_and_pods_are_read_off_cgroups_of_every_runtime(
    proc: ProcTree, cgroup: str, container: str | None, pod: str | None
) -> None:
    containment = search(served(proc, cgroup=cgroup)).processes[0].containment
    assert (containment.container_id, containment.pod_uid) == (container, pod)


def test_of_the_environment_three_variables_are_read(proc: ProcTree) -> None:
    private = "hf_abcdefghijklmnop"
    environ = {"HF_TOKEN": private, "CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "all"}
    found = search(served(proc, environ=environ))
    visibility = found.processes[0].visibility
    assert visibility is not None
    assert visibility.cuda_visible_devices == ""
    assert visibility.nvidia_visible_devices == "all"
    assert visibility.cuda_device_order is None
    assert private not in repr(found)


def test_an_environment_that_a_title_was_written_over_says_nothing(proc: ProcTree) -> None:
    served(proc)
    (proc.root / "102" / "environ").write_bytes(b"\0" * 100)
    assert search(proc).processes[2].visibility is None


def test_the_command_lines_of_strangers_are_not_kept(proc: ProcTree) -> None:
    proc.process(500, ("python3", "train.py", "--wandb", "secret"), gpu=True)
    (stranger,) = search(served(proc), gpu_pids=(500, 102, 4711)).listed
    assert (stranger.pid, stranger.arguments, stranger.uses_gpu) == (500, (), True)


def test_ourselves_are_known_and_how_we_count(tmp_path: Path) -> None:
    cgroup = f"0::{POD_SLICE}/cri-containerd-{CONTAINER_A}.scope"
    proc = ProcTree(tmp_path / "proc").exporter(
        12, environ={"NVIDIA_VISIBLE_DEVICES": "all"}, cgroup=cgroup
    )
    found = search(proc)
    assert found.numbers_agree is False
    assert found.exporter is not None
    assert found.exporter.containment.pod_uid == POD
    assert found.exporter.visibility is not None


def test_the_hosts_proc_mounted_beside_our_own_does_not_make_us_the_hosts(tmp_path: Path) -> None:
    proc = ProcTree(tmp_path / "proc").process(2, (), name="kthreadd")
    assert search(proc.exporter(namespace_pids=(EXPORTER_PID, 1))).numbers_agree is False


@pytest.mark.parametrize(("name", "parent"), [("sh", 0), ("kthreadd", 1)])
def test_any_second_process_does_not_make_a_namespace_the_hosts(
    tmp_path: Path, name: str, parent: int
) -> None:
    proc = ProcTree(tmp_path / "proc").process(2, (), name=name, parent=parent).exporter()
    assert search(proc).numbers_agree is False


def test_the_number_of_a_server_that_is_no_vllm_proves_nothing_in_our_own_namespace(
    tmp_path: Path,
) -> None:
    proc = ProcTree(tmp_path / "proc").exporter()
    proc.process(100, ("nginx",), sockets=[7]).listen(ANY, 8000, 7)
    assert pids(search(proc, gpu_pids=(100,))) == ()


def test_a_vllm_whose_sockets_are_seen_is_not_guessed_to_have_another(proc: ProcTree) -> None:
    proc.listen(ANY, 8000, 7).process(50, ("haproxy",), private=True).process(100, SERVE)
    assert pids(search(proc)) == ()


def test_a_connection_from_the_port_is_not_its_listener(proc: ProcTree) -> None:
    served(proc)
    proc.process(300, SERVE, sockets=[700 + CONNECTED])
    assert pids(search(proc)) == (100, 101, 102)


def test_a_zombie_is_no_stranger_either(proc: ProcTree) -> None:
    proc.process(500, (), state="Z")
    assert search(served(proc), gpu_pids=(500,)).listed == ()


def test_no_proc_at_all_is_an_answer(tmp_path: Path) -> None:
    found = Processes(str(tmp_path / "none")).engine_of("http://127.0.0.1:8000")
    assert found == EngineOnHost(local=True)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_lives_is_not_searched_again_until_a_minute_is_over(proc: ProcTree) -> None:
    clock = Clock()
    processes = Processes(str(served(proc).root), monotonic=clock)
    assert pids(processes.engine_of(URL)) == (100, 101, 102)
    proc.process(103, ("VLLM::Worker_TP0",), parent=102)
    assert pids(processes.engine_of(URL)) == (100, 101, 102)
    clock.now = 61.0
    assert pids(processes.engine_of(URL)) == (100, 101, 102, 103)


@pytest.mark.parametrize(("url", "again_after"), [(URL, 16.0), ("http://10.9.9.9:8000", 61.0)])
def test_an_engine_that_is_not_there_is_looked_for_again(
    proc: ProcTree, url: str, again_after: float
) -> None:
    clock = Clock()
    processes = Processes(str(proc.root), monotonic=clock)
    assert pids(processes.engine_of(url)) == ()
    served(proc)
    proc.local_addresses("127.0.0.1", "10.9.9.9")
    clock.now = again_after - 2
    assert pids(processes.engine_of(url)) == ()
    clock.now = again_after
    assert pids(processes.engine_of(url)) == (100, 101, 102)


def test_a_new_process_on_a_gpu_is_looked_for_at_once(proc: ProcTree) -> None:
    processes = Processes(str(served(proc).root), monotonic=Clock())
    assert pids(processes.engine_of(URL, gpu_pids=(102,))) == (100, 101, 102)
    proc.process(103, ("VLLM::Worker_TP0",), parent=102)
    assert 103 in pids(processes.engine_of(URL, gpu_pids=(102, 103)))


def test_an_engine_that_is_gone_and_one_in_its_place_are_noticed(proc: ProcTree) -> None:
    processes = Processes(str(served(proc).root), monotonic=Clock())
    processes.engine_of(URL)
    proc.gone(102)
    assert pids(processes.engine_of(URL)) == (100, 101)
    proc.gone(100)
    assert pids(processes.engine_of(URL)) == ()


def test_a_number_that_was_given_away_again_is_not_the_same_process(proc: ProcTree) -> None:
    processes = Processes(str(served(proc).root), monotonic=Clock())
    processes.engine_of(URL)
    proc.gone(102)
    proc.process(102, ("python3", "train.py"), parent=1, start=99_999)
    assert pids(processes.engine_of(URL)) == (100, 101)


@pytest.fixture
def real_engine() -> Iterator[subprocess.Popen[str]]:
    """A process that calls itself vLLM's, listens, and has a child."""
    listening = (
        "import socket, subprocess, sys, time; s = socket.create_server(('127.0.0.1', 0)); "
        "p = subprocess.Popen(['VLLM::EngineCore', '-c', 'import time; time.sleep(60)'], "
        "executable=sys.executable); print(s.getsockname()[1], p.pid, flush=True); p.wait()"
    )
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "1,0"}
    command = [sys.executable, "-c", listening, "vllm", "serve"]
    engine = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environ, start_new_session=True
    )
    yield engine
    os.killpg(engine.pid, 9)
    engine.wait()
    assert engine.stdout is not None
    engine.stdout.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
def test_a_real_process_tree_is_found_by_its_real_socket(
    real_engine: subprocess.Popen[str],
) -> None:
    assert real_engine.stdout is not None
    port, child = real_engine.stdout.readline().split()
    processes = Processes()
    gpu_pids = (int(child),)
    found = processes.engine_of(f"http://localhost:{port}", gpu_pids=gpu_pids)
    assert pids(found) == (real_engine.pid, int(child))
    assert found.processes[1].arguments[0] == "VLLM::EngineCore"
    assert found.processes[0].visibility is not None
    assert found.processes[0].visibility.cuda_visible_devices == "1,0"
    again = processes.engine_of(f"http://localhost:{port}", gpu_pids=gpu_pids)
    assert again.processes is found.processes
