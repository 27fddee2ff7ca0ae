"""A recording on disk: what a crash leaves of it can be read, and is continued."""

import gzip
import json
import lzma
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_capacity.errors import RecordingError, TornRecordingError
from vllm_capacity.sources.recording import read_recording
from vllm_capacity.sources.recording_file import RecordingFile

HEADER = {"recording": {"started_timestamp_seconds": 1000.0}}
FORMS = pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz"])


def opened(path: Path, max_bytes: int = 10**9) -> RecordingFile:
    return RecordingFile(path, max_bytes=max_bytes)


def record(path: Path, times: range, lines_a_part: int = 3) -> None:
    with opened(path) as file:
        for t in times:
            page = f"vllm:a {random.Random(t).random()}\n"  # noqa: S311 (no secret)
            file.append({"t": float(t), "metrics": page} | (HEADER if t == times.start else {}))
            if t % lines_a_part == 0:
                file.flush()


def times_of(path: Path) -> list[float]:
    """The moments that can be read, however the recording ends."""
    times: list[float] = []
    with suppress(TornRecordingError):
        times.extend(scrape.t for scrape in read_recording(path))
    return times


@FORMS
def test_what_is_appended_is_read_and_continued(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    record(path, range(7))
    with opened(path) as file:
        assert (file.started_timestamp_seconds, file.last_t) == (1000.0, 6.0)
    record(path, range(7, 20))
    assert times_of(path) == list(range(20))


@pytest.mark.parametrize(
    ("name", "magic"), [("a", b'{"'), ("a.GZ", b"\x1f\x8b"), ("a.xz", b"\xfd7zXZ")]
)
def test_the_suffix_of_a_new_file_says_its_form(tmp_path: Path, name: str, magic: bytes) -> None:
    record(tmp_path / name, range(3))
    assert (tmp_path / name).read_bytes().startswith(magic)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress])
def test_a_file_goes_on_in_the_form_that_it_has(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "misnamed.gz"
    path.write_bytes(compress(json.dumps({"t": 0, "metrics": None} | HEADER).encode()))
    record(path, range(1, 4))
    assert times_of(path) == [0, 1, 2, 3]


@FORMS
def test_cut_at_every_byte_it_is_read_up_to_there_and_continued(tmp_path: Path, name: str) -> None:
    whole = tmp_path / name
    record(whole, range(5), lines_a_part=2)
    data, path = whole.read_bytes(), tmp_path / f"cut-{name}"
    readable = 0
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        times = times_of(path)
        assert times == list(range(len(times)))
        assert len(times) >= readable, f"{length} bytes tell less than {length - 1}"
        readable = len(times)
        record(path, range(readable, readable + 2))
        assert times_of(path) == list(range(readable + 2))
        assert [scrape.t for scrape in read_recording(path)] == times_of(path)
    assert readable == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, path.name])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    form=st.sampled_from([gzip.compress, lzma.compress]),
    lines=st.integers(1, 400),
    kept=st.floats(0, 1),
)
def test_of_one_torn_archive_made_elsewhere_no_whole_line_is_lost(
    tmp_path: Path, form: Callable[[bytes], bytes], lines: int, kept: float
) -> None:
    text = [{"t": t, "metrics": f"a {t * 7919}\n" * 20} | HEADER for t in range(lines)]
    data = form(b"".join(json.dumps(line).encode() + b"\n" for line in text))
    path = tmp_path / "recording"
    path.write_bytes(data[: int(len(data) * kept)])
    before = times_of(path)
    record(path, range(1000, 1002))
    assert times_of(path) == [*before, 1000, 1001]


def test_other_keys_of_a_torn_recording_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = json.dumps({"t": 0, "metrics": None, "truth": {"live": []}} | HEADER) + "\n"
    path.write_text(line + line[:20])
    record(path, range(1, 3))
    assert path.read_text().startswith(line + '{"t": 1.0')


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"t": 0, "metrics": null}\n', "does not say when it began"),
        (b"hello\n", "is not JSON"),
        (b'{"t": 0}\n', "metrics: is missing"),
    ],
)
def test_a_file_that_is_no_recording_of_ours_is_left_alone(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=problem):
        opened(path)
    assert path.read_bytes() == content


def test_a_damaged_recording_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.xz"
    record(path, range(60), lines_a_part=20)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(RecordingError, match="cut or damaged"):
        opened(path)
    assert path.read_bytes() == data


@FORMS
def test_it_never_grows_beyond_its_limit(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with opened(path, max_bytes=2000) as file:
        while not file.is_full:
            file.append({"t": 0.0, "metrics": "x" * 50} | HEADER)
            file.flush()
    assert 1500 < path.stat().st_size <= 2000
    assert len(times_of(path)) > 5
    with pytest.raises(RecordingError, match="allow more or name another"):
        opened(path, max_bytes=path.stat().st_size)


def test_two_cannot_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with opened(path), pytest.raises(RecordingError, match="written by another process"):
        opened(path)


@pytest.mark.parametrize("where", ["no/such/folder/a.jsonl", "."])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, where: str) -> None:
    with pytest.raises(RecordingError, match="cannot be written"):
        opened(tmp_path / where)


def test_a_full_disk_is_said_and_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    record(path, range(6))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = opened(path)
    file.append({"t": 6.0, "metrics": "y" * 50})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
        with pytest.raises(RecordingError, match="cannot be written: File too large"), file:
            file.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [scrape.t for scrape in read_recording(path)] == list(range(6))


def test_reading_takes_the_same_memory_however_long_the_recording() -> None:
    """In a process of its own: 40 MB of lines must not show in its peak."""
    script = """
import gzip, json, resource, sys, tempfile
from vllm_capacity.sources.recording import read_recording
with tempfile.NamedTemporaryFile() as file:
    line = json.dumps({"t": 0, "metrics": "x" * 40_000}).encode() + b"\\n"
    for part in range(1000):
        file.write(gzip.compress(line, 1))
    file.flush()
    for _ in zip(range(100), read_recording(file.name)): pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in read_recording(file.name)) == 1000
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 4096
