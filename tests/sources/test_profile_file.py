"""A profile on disk: whole or as it was before."""

import json
from pathlib import Path

import pytest

from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.sources.profile_file import MAX_PROFILE_BYTES, load_profile, save_profile


def test_a_saved_profile_is_loaded_again(tmp_path: Path) -> None:
    save_profile(tmp_path / "profile.json", {"a": [1, "ü"]})
    assert load_profile(tmp_path / "profile.json") == {"a": [1, "ü"]}
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]


def test_a_failed_write_leaves_the_old_profile_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "profile.json"
    save_profile(path, {"old": True})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SourceError, match="No space left on device"):
        save_profile(path, {"new": True})
    assert load_profile(path) == {"old": True}
    assert [entry.name for entry in tmp_path.iterdir()] == ["profile.json"]


def test_a_value_that_json_cannot_hold_is_never_begun(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_profile(tmp_path / "profile.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be written"):
        save_profile(tmp_path / "absent" / "profile.json", {})


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b" " * (MAX_PROFILE_BYTES + 1)]
)
def test_what_is_no_json_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_bytes(data)
    with pytest.raises(InputError):
        load_profile(tmp_path / "profile.json")


def test_an_absent_profile_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json.*No such file"):
        load_profile(tmp_path / "absent.json")


def test_a_profile_is_readable_json(tmp_path: Path) -> None:
    save_profile(tmp_path / "profile.json", {"schema": 1})
    assert json.loads((tmp_path / "profile.json").read_text()) == {"schema": 1}
