"""A log is followed through everything that happens to logs."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.errors import SourceError
from vllm_capacity.sources.log_follower import LogFollower


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "vllm.log"


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_every_line_is_given_once(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "one\ntwo\n")
    assert follower.read() == ["one", "two"]
    assert follower.read() == []
    _append(log, "three\n")
    assert follower.read() == ["three"]


def test_a_line_that_is_still_being_written_waits_for_its_end(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "on")
    assert follower.read() == []
    _append(log, "e\n")
    assert follower.read() == ["one"]


def test_a_file_that_is_not_there_yet_is_named_and_then_found(log: Path) -> None:
    follower = LogFollower(str(log))
    with pytest.raises(SourceError, match="not there") as caught:
        follower.read()
    assert caught.value.reason == "absent"
    _append(log, "one\n")
    assert follower.read() == ["one"]


def test_a_rotated_file_is_read_to_its_end_before_its_successor(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "one\n")
    follower.read()
    _append(log, "two\nunfinished")
    log.rename(log.with_suffix(".1"))
    _append(log, "three\n")
    assert follower.read() == ["two", "unfinished", "three"]


def test_between_a_rotation_and_its_successor_the_old_file_is_followed(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "one\n")
    follower.read()
    old = log.rename(log.with_suffix(".1"))
    _append(old, "two\n")
    assert follower.read() == ["two"]
    _append(log, "three\n")
    assert follower.read() == ["three"]


def test_a_truncated_file_is_begun_anew(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "one\ntwo\n")
    follower.read()
    log.write_text("new\n", encoding="utf-8")
    assert follower.read() == ["new"]


def test_a_backlog_is_caught_up_with_in_bounded_pieces(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "".join(f"line {number}\n" for number in range(1000)))
    lines, reads = [], 0
    while new := follower.read(max_bytes=1000):
        lines += new
        reads += 1
    assert lines == [f"line {number}" for number in range(1000)]
    assert reads == 9  # of 8,890 bytes


def test_a_line_without_an_end_does_not_fill_memory(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "x" * (3 << 20))
    assert follower.read() == []
    _append(log, " the end\nnext\n")
    assert follower.read() == ["next"]


def test_bytes_that_are_no_text_are_survived(log: Path) -> None:
    log.write_bytes(b"\xff\xfe\x00bad\nfine\n")
    assert LogFollower(str(log)).read()[-1] == "fine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_named(log: Path) -> None:
    _append(log, "one\n")
    log.chmod(0)
    with pytest.raises(SourceError) as caught:
        LogFollower(str(log)).read()
    assert caught.value.reason == "invalid"


def test_a_folder_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        LogFollower(str(tmp_path)).read()
    assert caught.value.reason == "invalid"


@given(st.lists(st.text("ab\n", max_size=12), max_size=12))
def test_however_a_file_grows_its_lines_are_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str]
) -> None:
    log = tmp_path_factory.mktemp("grows") / "vllm.log"
    follower, lines = LogFollower(str(log)), []
    log.touch()
    for piece in pieces:
        _append(log, piece)
        lines += follower.read(max_bytes=5)
    while new := follower.read():
        lines += new
    follower.close()
    assert lines == "".join(pieces).split("\n")[:-1]
