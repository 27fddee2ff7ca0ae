import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_capacity.errors import RecordingError, TornRecordingError
from vllm_capacity.sources.recording import RecordedScrape, read_recording

PAGE = 'vllm:num_requests_running{engine="0"} 3.0\n'
Compress = Callable[[bytes], bytes]
FORMS = pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress])


def line(t: object, metrics: object = PAGE, **other: object) -> bytes:
    return json.dumps({"t": t, "metrics": metrics, **other}).encode() + b"\n"


def written(folder: Path, data: bytes) -> Path:
    path = folder / "recording"
    path.write_bytes(data)
    return path


@FORMS
def test_every_form_of_a_recording_reads_alike(tmp_path: Path, compress: Compress) -> None:
    data = line(0.0, truth={"live": []}) + line(1.001, None) + line(2)
    assert list(read_recording(written(tmp_path, compress(data)))) == [
        RecordedScrape(t=0.0, metrics=PAGE),
        RecordedScrape(t=1.001, metrics=None),
        RecordedScrape(t=2.0, metrics=PAGE),
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    times=st.lists(st.floats(0, 1e9), min_size=1, max_size=5).map(sorted),
    page=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
)
def test_what_was_written_is_read(tmp_path: Path, times: list[float], page: str | None) -> None:
    path = written(tmp_path, gzip.compress(b"".join(line(t, page) for t in times)))
    assert list(read_recording(path)) == [RecordedScrape(t=t, metrics=page) for t in times]


def test_blank_lines_and_a_missing_last_line_end_are_no_fault(tmp_path: Path) -> None:
    path = written(tmp_path, line(1) + b"\n  \n" + line(2).strip())
    assert [scrape.t for scrape in read_recording(path)] == [1, 2]


def test_an_empty_recording_has_no_scrapes(tmp_path: Path) -> None:
    assert list(read_recording(written(tmp_path, b""))) == []


def test_two_scrapes_may_share_a_moment(tmp_path: Path) -> None:
    assert len(list(read_recording(written(tmp_path, line(1) + line(1))))) == 2


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"{'t': 2}\n", "line 2: is not JSON at column 2"),
        (line(3).strip()[:-1] + b"\n", "line 2: is not JSON"),
        (b'{"t": 2, "metrics": "\xff"}\n', "line 2: is not UTF-8 at byte 21"),
        (b'{"t": 2, "metrics": "\\ud800"}\n', "line 2: metrics: holds half a surrogate pair"),
        (b"[2]\n", "line 2: must be an object"),
        (b"[" * 100_000 + b"\n", "line 2: is no JSON of ours"),
        (b'{"t": ' + b"9" * 5000 + b', "metrics": null}\n', "line 2: is no JSON of ours"),
        (b'{"t": NaN, "metrics": null}\n', "line 2: t: must be the seconds since"),
        (b'{"t": 1e999, "metrics": null}\n', "line 2: t: must be the seconds since"),
        (b'{"t": ' + b"9" * 400 + b', "metrics": null}\n', "line 2: t: must be the seconds"),
        (line(t=True), "line 2: t: must be the seconds since the recording began (got True)"),
        (line("2"), "line 2: t: must be the seconds since the recording began (got '2')"),
        (b'{"metrics": null}\n', "line 2: t: must be the seconds since the recording began"),
        (b'{"t": 2}\n', "line 2: metrics: is missing; write null where the scrape failed"),
        (line(2, 5), "line 2: metrics: must be the page as text, or null"),
        (line(0.5), "line 2: t: goes back in time; the line before says 1 seconds (got 0.5)"),
    ],
)
def test_a_bad_line_is_named_after_the_good_ones_are_given(
    tmp_path: Path, bad: bytes, said: str
) -> None:
    scrapes = read_recording(written(tmp_path, line(1) + bad + line(9)))
    assert next(scrapes).t == 1
    with pytest.raises(RecordingError) as caught:
        next(scrapes)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 600


def test_all_faults_of_a_line_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecordingError) as caught:
        list(read_recording(written(tmp_path, b'{"t": "x", "metrics": 5}\n')))
    assert [fault.key for fault in caught.value.faults] == ["line 1: t", "line 1: metrics"]


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.999])
def test_a_cut_archive_is_an_error_not_an_end(
    tmp_path: Path, compress: Compress, kept: float
) -> None:
    data = compress(b"".join(line(t, f"{t * 7919}\n" * 50) for t in range(500)))
    path = written(tmp_path, data[: int(len(data) * kept)])
    with pytest.raises(RecordingError, match="the archive is cut or damaged here"):
        list(read_recording(path))


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_a_damaged_archive_is_an_error(tmp_path: Path, compress: Compress) -> None:
    data = bytearray(compress(b"".join(line(t, f"{t * 7919}\n" * 50) for t in range(500))))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(RecordingError, match=r"line \d+"):
        list(read_recording(written(tmp_path, bytes(data))))


@FORMS
def test_a_last_line_that_was_cut_is_told_from_one_that_is_wrong(
    tmp_path: Path, compress: Compress
) -> None:
    whole = line(1)
    with pytest.raises(TornRecordingError, match="line 2: is not JSON"):
        list(read_recording(written(tmp_path, compress(whole + whole[:20]))))
    with pytest.raises(RecordingError) as caught:
        list(read_recording(written(tmp_path, compress(whole + whole[:20] + b"\n"))))
    assert not isinstance(caught.value, TornRecordingError)


def test_a_stream_of_xz_whose_beginning_is_damaged_is_no_end(tmp_path: Path) -> None:
    first, second = lzma.compress(line(1)), bytearray(lzma.compress(line(2)))
    second[0] ^= 0xFF
    with pytest.raises(RecordingError, match="line 2: the archive is cut or damaged"):
        list(read_recording(written(tmp_path, first + bytes(second))))


@pytest.mark.parametrize("padding", [0, 4, 200_000])
def test_streams_of_xz_may_have_padding_between_them(tmp_path: Path, padding: int) -> None:
    parts = [lzma.compress(line(t)) + bytes(padding) for t in range(3)]
    path = written(tmp_path, b"".join(parts))
    assert [scrape.t for scrape in read_recording(path)] == [0, 1, 2]


def test_the_moment_at_which_it_began_is_read(tmp_path: Path) -> None:
    header = {"started_timestamp_seconds": 1.5e9, "more": 1}
    path = written(tmp_path, line(1, recording=header) + line(2) + line(3, recording="?"))
    starts = [scrape.started_timestamp_seconds for scrape in read_recording(path)]
    assert starts == [1.5e9, None, None]


def test_a_line_without_end_is_refused_before_it_fills_memory(tmp_path: Path) -> None:
    bomb = gzip.compress(b'{"metrics": "' + b" " * (65 << 20), compresslevel=1)
    with pytest.raises(RecordingError, match="line 1: is longer than 64 MiB"):
        list(read_recording(written(tmp_path, bomb)))


def test_a_recording_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.jsonl.xz"
    with pytest.raises(RecordingError, match="cannot be read: No such file") as caught:
        list(read_recording(missing))
    assert str(missing) in str(caught.value)


def test_a_folder_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="Is a directory"):
        list(read_recording(tmp_path))
