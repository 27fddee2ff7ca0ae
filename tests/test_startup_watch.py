"""What a growing log says of the engine that runs, restart after restart."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_capacity.errors import SourceError
from vllm_capacity.sources.log_follower import LogFollower
from vllm_capacity.startup_watch import StartupWatch
from vllm_capacity.units import GIB

HEAD = "INFO 11-21 08:00:00 [api_server.py:1] vLLM API server version 0.32.0\n"
ARGS = "INFO 11-21 08:00:00 [utils.py:1] non-default args: {'model': 'm', 'max_num_seqs': %d}\n"
LOADED = "INFO 11-21 08:00:01 [m.py:1] Model loading took %s GiB memory and 1.0 seconds\n"
SIZED = "INFO 11-21 08:00:02 [w.py:1] Available KV cache memory: 9.0 GiB\n"
STARTED = "INFO:     Application startup complete.\n"
FAILED = "Traceback (most recent call last):\nValueError: no room\n"
SERVES = 'INFO:     10.0.0.1:1 - "POST /v1/completions HTTP/1.1" 200 OK\n'


def start_up(gib: int, seqs: int = 1) -> str:
    return HEAD + ARGS % seqs + LOADED % gib + SIZED + STARTED


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "vllm.log"


def _append(log: Path, text: str) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(text)


def weights_gib(watch: StartupWatch) -> float | None:
    while True:
        watch.read()
        if not watch.is_behind:
            break
    if watch.measured is None or watch.measured.tightest.weights is None:
        return None
    return watch.measured.tightest.weights.bytes / GIB


def test_the_first_start_up_is_told_as_it_goes(log: Path) -> None:
    watch = StartupWatch(LogFollower(str(log)))
    _append(log, HEAD + ARGS % 7)
    assert weights_gib(watch) is None
    assert watch.start_up is not None
    assert watch.start_up.engine_args == {"model": "m", "max_num_seqs": 7}
    _append(log, LOADED % 5)
    assert weights_gib(watch) == 5
    assert watch.calibration is not None


def test_a_restart_replaces_the_last_start_up_once_it_has_sized_its_cache(log: Path) -> None:
    watch = StartupWatch(LogFollower(str(log)))
    _append(log, start_up(5, seqs=5) + SERVES * 1000)
    assert weights_gib(watch) == 5
    _append(log, HEAD + ARGS % 6 + LOADED % 6)
    assert weights_gib(watch) == 5
    assert watch.start_up is not None
    assert watch.start_up.engine_args == {"model": "m", "max_num_seqs": 5}
    _append(log, SIZED)
    assert weights_gib(watch) == 6
    assert watch.start_up.engine_args == {"model": "m", "max_num_seqs": 6}


def test_a_restart_that_fails_leaves_what_is_known(log: Path) -> None:
    watch = StartupWatch(LogFollower(str(log)))
    _append(log, start_up(5) + HEAD + ARGS % 1 + LOADED % 6 + FAILED)
    assert weights_gib(watch) == 5
    _append(log, start_up(7))
    assert weights_gib(watch) == 7


def test_a_backlog_changes_nothing_until_it_is_read(log: Path) -> None:
    watch = StartupWatch(LogFollower(str(log)))
    _append(log, start_up(5) + SERVES * 300_000 + start_up(6))  # more than one reading
    watch.read()
    assert watch.is_behind
    assert watch.measured is None
    assert weights_gib(watch) == 6


def test_a_rotation_in_the_midst_of_a_start_up_loses_nothing(log: Path) -> None:
    watch = StartupWatch(LogFollower(str(log)))
    _append(log, HEAD + ARGS % 3)
    watch.read()
    log.rename(log.with_suffix(".1"))
    _append(log, LOADED % 5 + SIZED + STARTED)
    assert weights_gib(watch) == 5
    assert watch.calibration is not None
    assert watch.calibration.engine_args == {"model": "m", "max_num_seqs": 3}


def _of(server: str, text: str) -> list[str]:
    return [f"{server} | {line}\n" for line in text.splitlines()]


def test_a_log_of_several_servers_is_refused_instead_of_mixed(log: Path) -> None:
    watch = StartupWatch(LogFollower(str(log)))
    one, two = _of("vllm-a-1  ", start_up(5)), _of("vllm-b-1  ", start_up(6))
    _append(log, "".join(line for pair in zip(one, two, strict=True) for line in pair))
    with pytest.raises(SourceError, match="several servers \\(vllm-a-1, vllm-b-1\\)"):
        watch.read()
    assert watch.calibration is None


def test_lines_of_a_neighbour_that_is_no_vllm_disturb_nothing(log: Path) -> None:
    watch = StartupWatch(LogFollower(str(log)))
    neighbour = _of("proxy-1  ", "GET / 200\n" + LOADED % 9)
    _append(log, "".join(neighbour + _of("vllm-a-1  ", start_up(5)) + neighbour))
    assert weights_gib(watch) == 5


class Pieces:
    """A log that comes in pieces of any size."""

    path, is_behind = "vllm.log", False

    def __init__(self, blocks: list[bytes]) -> None:
        self._blocks = blocks

    def read(self, max_bytes: int) -> Iterator[bytes]:
        del max_bytes
        yield from self._blocks


def test_what_is_passed_over_of_a_serving_engine_hides_no_restart() -> None:
    """Between any two lines of a serving engine a restart may stand."""
    for place in (0, 1, 500, 999, 1000):
        lines = [SERVES] * 1000
        lines.insert(place, start_up(6))
        text = (start_up(5) + "".join(lines)).encode()
        whole = [text[begin : begin + 4096] for begin in range(0, len(text), 4096)]
        blocks, rest = [], b""
        for piece in whole:
            cut = (rest + piece).rfind(b"\n") + 1
            blocks.append((rest + piece)[:cut])
            rest = (rest + piece)[cut:]
        assert weights_gib(StartupWatch(Pieces([*blocks, rest]))) == 6
