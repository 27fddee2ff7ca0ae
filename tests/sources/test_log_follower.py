"""A log is followed through everything that happens to logs."""

import gzip
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


def lines_of(follower: LogFollower, max_bytes: int = 16 << 20) -> list[str]:
    return [
        line
        for block in follower.read(max_bytes)
        for line in block.decode("utf-8", "replace").removesuffix("\n").split("\n")
    ]


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_every_line_is_given_once(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "one\ntwo\n")
    assert lines_of(follower) == ["one", "two"]
    assert lines_of(follower) == []
    _append(log, "three\n")
    assert lines_of(follower) == ["three"]


def test_a_line_that_is_still_being_written_waits_for_its_end(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "on")
    assert lines_of(follower) == []
    _append(log, "e\n")
    assert lines_of(follower) == ["one"]


def test_a_file_that_is_not_there_yet_is_named_and_then_found(log: Path) -> None:
    follower = LogFollower(str(log))
    with pytest.raises(SourceError, match="not there") as caught:
        lines_of(follower)
    assert caught.value.reason == "absent"
    _append(log, "one\n")
    assert lines_of(follower) == ["one"]


def test_a_rotated_file_is_read_to_its_end_before_its_successor(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "one\n")
    lines_of(follower)
    _append(log, "two\nunfinished")
    log.rename(log.with_suffix(".1"))
    _append(log, "three\n")
    assert lines_of(follower) == ["two", "unfinished", "three"]


def test_between_a_rotation_and_its_successor_the_old_file_is_followed(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "one\n")
    lines_of(follower)
    old = log.rename(log.with_suffix(".1"))
    _append(old, "two\n")
    assert lines_of(follower) == ["two"]
    _append(log, "three\n")
    assert lines_of(follower) == ["three"]


def test_a_truncated_file_is_begun_anew(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "one\ntwo\n")
    lines_of(follower)
    log.write_text("new\n", encoding="utf-8")
    assert lines_of(follower) == ["new"]


def test_a_backlog_is_caught_up_with_in_bounded_pieces(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "".join(f"line {number}\n" for number in range(1000)))
    lines, reads = [], 0
    while new := lines_of(follower, max_bytes=1000):
        lines += new
        reads += 1
    assert lines == [f"line {number}" for number in range(1000)]
    assert reads == 9  # of 8,890 bytes


def test_a_line_without_an_end_does_not_fill_memory(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "x" * (3 << 20))
    assert lines_of(follower) == []
    _append(log, " the end\nnext\n")
    assert lines_of(follower) == ["next"]


def test_bytes_that_are_no_text_are_survived(log: Path) -> None:
    log.write_bytes(b"\xff\xfe\x00bad\nfine\n")
    assert lines_of(LogFollower(str(log)))[-1] == "fine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_named(log: Path) -> None:
    _append(log, "one\n")
    log.chmod(0)
    with pytest.raises(SourceError) as caught:
        lines_of(LogFollower(str(log)))
    assert caught.value.reason == "invalid"


def test_a_folder_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        lines_of(LogFollower(str(tmp_path)))
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
        lines += lines_of(follower, max_bytes=5)
    while new := lines_of(follower):
        lines += new
    follower.close()
    assert lines == "".join(pieces).split("\n")[:-1]


def test_a_file_cut_and_grown_beyond_what_was_read_is_begun_anew(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "one\ntwo\n")
    lines_of(follower)
    log.write_text("three\nfour\nfive\n", encoding="utf-8")  # the same inode, and longer
    assert lines_of(follower) == ["three", "four", "five"]


def test_a_file_cut_and_grown_to_the_very_size_that_was_read_is_begun_anew(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "one\n")
    lines_of(follower)
    log.write_text("two\n", encoding="utf-8")
    assert lines_of(follower) == ["two"]


def test_copytruncate_under_a_writer_that_keeps_its_place_leaves_a_hole_to_pass_over(
    log: Path,
) -> None:
    follower = LogFollower(str(log))
    with log.open("wb", buffering=0) as writer:
        writer.write(b"old line\n" * 100_000)
        assert len(lines_of(follower)) == 100_000
        os.truncate(log, 0)
        writer.write(b"new line\n")
        assert log.stat().st_size == 900_009
        assert lines_of(follower) == ["new line"]
        writer.write(b"next\n")
    assert lines_of(follower) == ["next"]


def test_a_writer_that_did_not_notice_the_rotation_is_followed_while_the_new_file_is_empty(
    log: Path,
) -> None:
    follower = LogFollower(str(log))
    with log.open("a", encoding="utf-8") as writer:
        writer.write("one\n")
        writer.flush()
        lines_of(follower)
        log.rename(log.with_suffix(".1"))
        log.touch()
        writer.write("two\n")
    assert lines_of(follower) == ["two"]
    _append(log, "three\n")
    assert lines_of(follower) == ["three"]


def test_what_was_read_before_an_unreadable_successor_is_not_lost(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "one\n")
    lines_of(follower)
    _append(log, "two\n")
    log.rename(log.with_suffix(".1"))
    log.mkdir()  # cannot be read as a file, also by root
    blocks = follower.read()
    assert next(blocks) == b"two\n"
    with pytest.raises(SourceError) as caught:
        next(blocks)
    assert caught.value.reason == "invalid"
    log.rmdir()
    _append(log, "three\n")
    assert lines_of(follower) == ["three"]


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(SourceError, match="no regular file"):
        lines_of(LogFollower(str(pipe)))


def test_compressed_predecessors_beside_the_log_are_not_read(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "one\n")
    assert lines_of(follower) == ["one"]
    log.rename(log.with_suffix(".log.1"))
    log.with_suffix(".log.1.gz").write_bytes(gzip.compress(b"old\n"))
    log.with_suffix(".log.1").unlink()
    _append(log, "two\n")
    assert lines_of(follower) == ["two"]


def test_it_says_whether_a_part_of_the_log_was_left_for_the_next_call(log: Path) -> None:
    follower = LogFollower(str(log))
    _append(log, "one\ntwo\n")
    assert lines_of(follower, max_bytes=4) == ["one"]
    assert follower.is_behind
    assert lines_of(follower, max_bytes=5) == ["two"]
    assert not follower.is_behind


def test_no_descriptor_is_kept_of_files_that_were_left_behind(log: Path) -> None:
    follower = LogFollower(str(log))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(50):
        _append(log, f"{number}\n")
        assert lines_of(follower) == [str(number)]
        log.rename(log.with_suffix(".1"))
    follower.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


#: What may happen to a log between two looks at it.
EVENTS = st.lists(st.sampled_from(("append", "rename", "cut", "read")), max_size=30)


@given(EVENTS)
def test_whatever_happens_no_line_is_given_twice_and_without_cuts_none_is_lost(
    tmp_path_factory: pytest.TempPathFactory, events: list[str]
) -> None:
    log = tmp_path_factory.mktemp("events") / "vllm.log"
    follower, found, written = LogFollower(str(log)), [], []
    for number, event in enumerate([*events, "read"]):
        if event == "append":
            written.append(f"line {number}")
            _append(log, written[-1] + "\n")
        elif event == "rename" and log.exists():
            found += lines_of(follower)  # two rotations between two looks hide a file
            log.rename(log.with_suffix(f".{number}"))
        elif event == "cut" and log.exists():
            found += lines_of(follower)
            os.truncate(log, 0)
        elif event == "read" and log.exists():
            found += lines_of(follower)
    follower.close()
    assert found == written
