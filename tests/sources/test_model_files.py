import json
import os
from pathlib import Path

import pytest

from vllm_capacity.errors import SourceError
from vllm_capacity.sources.model_files import read_model_config

CONFIG = {"model_type": "qwen3", "num_hidden_layers": 28}
COMMIT = "70d244cc86ccca08cf5af4e1e306ecf908b1ad5e"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    return home


def write_model(folder: Path, config: object = CONFIG) -> Path:
    folder.mkdir(parents=True)
    path = folder / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def write_cached(cache: Path, commit: str = COMMIT, *, ref: str | None = COMMIT) -> Path:
    model = cache / "models--Qwen--Qwen3-1.7B"
    if ref is not None:
        (model / "refs").mkdir(parents=True, exist_ok=True)
        (model / "refs" / "main").write_text(ref)
    return write_model(model / "snapshots" / commit, {**CONFIG, "commit": commit})


def test_a_file_and_its_folder_mean_the_same(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model")
    by_file, by_folder = read_model_config(str(path)), read_model_config(str(path.parent))
    assert by_file == by_folder
    assert (by_file.config, by_file.hf_quant_config, by_file.path) == (CONFIG, None, str(path))


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model").rename(tmp_path / "qwen.json")
    assert read_model_config(str(path)).config == CONFIG


def test_modelopts_quantisation_is_read_beside_the_configuration(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model")
    path.with_name("hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    read = read_model_config(str(path.parent))
    assert read.hf_quant_config == {"quantization": {"quant_algo": "FP8"}}


def test_a_broken_quantisation_file_is_named(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model")
    path.with_name("hf_quant_config.json").write_text("{")
    with pytest.raises(SourceError, match=r"hf_quant_config\.json: is not JSON at line 1"):
        read_model_config(str(path.parent))


@pytest.mark.parametrize(
    ("variable", "value", "cache"),
    [
        (None, "", "home/.cache/huggingface/hub"),
        ("HF_HUB_CACHE", "hub", "hub"),
        ("HUGGINGFACE_HUB_CACHE", "old", "old"),
        ("HF_HOME", "hf", "hf/hub"),
        ("XDG_CACHE_HOME", "xdg", "xdg/huggingface/hub"),
    ],
)
def test_a_hub_id_is_found_in_the_cache_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, value: str, cache: str
) -> None:
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / value))
    path = write_cached(tmp_path / cache)
    assert read_model_config("Qwen/Qwen3-1.7B").path == str(path)


def test_the_commit_of_main_is_taken_among_several(home: Path) -> None:
    hub = home / ".cache/huggingface/hub"
    write_cached(hub, "0000")
    write_cached(hub, COMMIT)
    assert read_model_config("Qwen/Qwen3-1.7B").config["commit"] == COMMIT


def test_without_main_the_only_snapshot_is_taken_and_of_two_none(home: Path) -> None:
    hub = home / ".cache/huggingface/hub"
    write_cached(hub, "0000", ref=None)
    assert read_model_config("Qwen/Qwen3-1.7B").config["commit"] == "0000"
    write_cached(hub, "1111", ref=None)
    with pytest.raises(SourceError, match="not in the hub cache"):
        read_model_config("Qwen/Qwen3-1.7B")


def test_a_commit_that_leads_out_of_the_cache_is_not_followed(home: Path) -> None:
    write_cached(home / ".cache/huggingface/hub", ref="../../../../..")
    write_model(home / "elsewhere")
    with pytest.raises(SourceError) as caught:
        read_model_config("Qwen/Qwen3-1.7B")
    assert caught.value.reason == "absent"


@pytest.mark.parametrize(
    "where",
    ["", "/nowhere/at/all", "Qwen/Unknown", "https://example.org/config.json", "a\0b", "~nobody/x"],
)
def test_what_is_not_here_is_absent(where: str) -> None:
    with pytest.raises(SourceError, match=r"no config\.json and no folder holding one") as caught:
        read_model_config(where)
    assert caught.value.reason == "absent"


def test_an_unknown_hub_id_is_told_where_it_was_sought(home: Path) -> None:
    with pytest.raises(SourceError, match=str(home / ".cache/huggingface/hub")):
        read_model_config("Qwen/Unknown")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON at line 1, column 1"),
        ("<html>", "is not JSON at line 1, column 1"),
        ('{"a": 1,}', "is not JSON at line 1, column"),
        ("[1]", "must hold a JSON object, not list"),
        ('{"a": {"b": 1, "b": 2}}', "gives 'b' twice"),
        ("[" * 200_000, "is nested deeper"),
        ('{"a":' * 200_000, "is nested deeper"),
        ('{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
    ],
)
def test_what_is_no_configuration_is_refused_in_one_line(
    tmp_path: Path, text: str, said: str
) -> None:
    path = write_model(tmp_path / "model", text)
    with pytest.raises(SourceError) as caught:
        read_model_config(str(path))
    assert caught.value.reason == "invalid"
    assert str(caught.value).startswith(f"{path}: {said}")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(SourceError, match="is not UTF-8 at byte 7"):
        read_model_config(str(path))


def test_a_file_of_weights_named_by_mistake_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(40 << 30)  # sparse
    with pytest.raises(SourceError, match="is longer than 8 MiB"):
        read_model_config(str(path))


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(SourceError, match="is no regular file"):
        read_model_config(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model")
    path.chmod(0)
    with pytest.raises(SourceError, match="cannot be read: Permission denied"):
        read_model_config(str(path))


@pytest.mark.parametrize("literal", ["Infinity", "-Infinity", "NaN", "1e999"])
def test_numbers_that_json_does_not_have_stay_text(tmp_path: Path, literal: str) -> None:
    path = write_model(tmp_path / "model", f'{{"time_step_limit": [0.5, {literal}]}}')
    assert read_model_config(str(path)).config == {"time_step_limit": [0.5, literal]}
