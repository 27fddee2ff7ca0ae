"""What a start-up measured, term by term and rank by rank."""

from pathlib import Path

import pytest

from vllm_capacity.observe.measured_memory import MeasuredMemory, measured_memory
from vllm_capacity.observe.startup_log import RankStartup, StartupLog, read_startup_log
from vllm_capacity.units import GIB

SAMPLES = Path(__file__).parent.parent / "data" / "startup-logs"


def measured(name: str) -> MeasuredMemory:
    found = measured_memory(read_startup_log((SAMPLES / name).read_text().splitlines()))
    assert found is not None
    return found


def gib(memory: MeasuredMemory, term: str) -> list[float | None]:
    terms = [getattr(rank, term) for rank in memory.ranks]
    return [None if term is None else round(term.bytes / GIB, 2) for term in terms]


def test_each_data_parallel_engine_has_its_own_terms() -> None:
    memory = measured("vllm-0.28.1-dp2.log")
    assert [rank.data_parallel_rank for rank in memory.ranks] == [0, 1]
    assert gib(memory, "weights") == [38.24, 38.24]
    assert gib(memory, "kv_cache") == [81.79, 81.5]
    assert memory.tightest.kv_cache == memory.ranks[1].kv_cache
    assert memory.is_started


def test_ranks_of_which_the_name_tells_too_little_are_of_no_known_place() -> None:
    memory = measured("vllm-0.8.5-v1-tp2.log")
    assert [rank.name for rank in memory.ranks] == ["VllmWorker rank=0", "VllmWorker rank=1"]
    assert [rank.tensor_parallel_rank for rank in memory.ranks] == [None, None]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("Worker_DP1_PP2_TP3_EP7", (1, 2, 3)),
        ("Worker_TP1", (0, 0, 1)),
        ("EngineCore_DP3", (3, 0, 0)),
        ("EngineCore_1", (1, 0, 0)),
        ("EngineCore", (0, 0, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_the_name_of_a_process_tells_its_place(name: str, place: tuple[int, int, int]) -> None:
    rank = RankStartup(name=name, weights_bytes=1)  # type: ignore[arg-type]
    memory = measured_memory(StartupLog(ranks=(rank,)))
    assert memory is not None
    [found] = memory.ranks
    assert (
        found.data_parallel_rank,
        found.pipeline_parallel_rank,
        found.tensor_parallel_rank,
    ) == place


def test_processes_of_one_name_are_of_no_known_place() -> None:
    rank = RankStartup(name="Worker", weights_bytes=1)  # type: ignore[arg-type]
    memory = measured_memory(StartupLog(ranks=(rank, rank)))
    assert memory is not None
    assert [found.tensor_parallel_rank for found in memory.ranks] == [None, None]


def test_a_log_that_measured_nothing_has_no_terms() -> None:
    assert measured_memory(StartupLog()) is None
