"""Flags, environment and file: one table, all faults at once."""

from pathlib import Path

import pytest

from vllm_capacity.errors import SettingsError
from vllm_capacity.setting_values import duration_seconds, size_bytes
from vllm_capacity.settings import (
    SETTINGS,
    Settings,
    read_settings_file,
    resolve_settings,
)

TARGET = {"target": ["http://localhost:8000"]}


def resolved(
    flags: dict[str, object] | None = None,
    environment: dict[str, str] | None = None,
    file: dict[str, object] | None = None,
    **more: object,
) -> Settings:
    return resolve_settings(flags or {}, environment or {}, file or {}, **more)  # type: ignore[arg-type]


def faults(
    flags: dict[str, object] | None = None,
    environment: dict[str, str] | None = None,
    file: dict[str, object] | None = None,
    **more: object,
) -> list[str]:
    with pytest.raises(SettingsError) as error:
        resolved(flags, environment, file, **more)
    return [fault.key for fault in error.value.faults]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5.0), ("500ms", 0.5), ("2m", 120.0), ("1h", 3600.0), ("1.5", 1.5), (7, 7.0)],
)
def test_durations_are_read(text: object, seconds: float) -> None:
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5s", "5 apples", "s", "nan", "inf", "1e3", True])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="positive duration"):
        duration_seconds(text)


@pytest.mark.parametrize(
    ("text", "size"), [("8MiB", 8 << 20), ("1 GB", 10**9), ("512", 512), ("1.5kib", 1536)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "8 parsecs"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="positive size"):
        size_bytes(text)


def test_defaults_hold_where_nobody_sets_anything() -> None:
    settings = resolved(TARGET)
    assert settings.scrape_interval == 5.0
    assert settings.expiry == 30.0
    assert settings.web_listen_address == (":8935",)
    assert [target.url for target in settings.targets] == ["http://localhost:8000"]


def test_a_flag_wins_over_the_environment_and_that_over_the_file() -> None:
    flags = {**TARGET, "scrape-interval": "1s"}
    environment = {"VLLM_CAPACITY_SCRAPE_INTERVAL": "2s", "VLLM_CAPACITY_SCRAPE_TIMEOUT": "20s"}
    file = {"scrape-interval": "3s", "scrape-timeout": "30s", "expiry": "90s"}
    settings = resolved(flags, environment, file)
    assert (settings.scrape_interval, settings.scrape_timeout, settings.expiry) == (1.0, 20.0, 90.0)


def test_values_expire_after_three_intervals_but_not_before_half_a_minute() -> None:
    assert resolved({**TARGET, "scrape-interval": "1m"}).expiry == 180.0


def test_several_targets_come_from_the_environment_by_commas() -> None:
    settings = resolved(environment={"VLLM_CAPACITY_TARGET": "http://a:1, http://b:2"})
    assert [target.url for target in settings.targets] == ["http://a:1", "http://b:2"]


def test_a_target_in_the_file_has_settings_of_its_own() -> None:
    settings = resolved(
        {"gpu": "H100"},
        file={
            "targets": [
                {"url": "http://a:1", "name": "a", "engine-args": {"max_num_seqs": 64}},
                {"url": "http://b:2", "gpu": "A100", "vllm-args": "serve m --max-num-seqs 32"},
            ]
        },
    )
    a, b = settings.targets
    assert a.gpu is not None
    assert b.gpu is not None
    assert (a.name, a.gpu.name, a.engine_args.max_num_seqs) == ("a", "NVIDIA H100 80GB HBM3", 64)
    assert (b.name, b.gpu.name, b.engine_args.max_num_seqs) == (None, "NVIDIA A100-SXM4-80GB", 32)


def test_vllms_own_flags_hold_for_every_target_and_win() -> None:
    settings = resolved(
        {**TARGET, "vllm-args": "--max-num-seqs 16 --max-model-len 4096"},
        engine_words=["--max-num-seqs=8"],
    )
    engine_args = settings.targets[0].engine_args
    assert (engine_args.max_num_seqs, engine_args.max_model_len) == (8, 4096)


def test_every_fault_is_told_at_once() -> None:
    keys = faults(
        {"scrape-interval": "soon", "web.listen-address": ["nowhere"], "log.level": "loud"},
        {"VLLM_CAPACITY_SCRAPE_TIMEOUT": "-1s", "VLLM_CAPACITY_TYPO": "1"},
        {"scrape-intervall": "5s", "targets": [{"name": "no url"}]},
    )
    assert {
        "--scrape-interval",
        "--web.listen-address",
        "--log.level",
        "VLLM_CAPACITY_SCRAPE_TIMEOUT",
        "VLLM_CAPACITY_TYPO",
        "scrape-intervall",
        "targets[0]",
        "target",
    } <= set(keys)


def test_what_a_kubernetes_service_of_our_name_puts_there_is_no_setting_of_ours() -> None:
    environment = {
        "VLLM_CAPACITY_SERVICE_HOST": "10.0.0.7",
        "VLLM_CAPACITY_SERVICE_PORT": "8935",
        "VLLM_CAPACITY_SERVICE_PORT_METRICS": "8935",
        "VLLM_CAPACITY_PORT": "tcp://10.0.0.7:8935",
        "VLLM_CAPACITY_PORT_8935_TCP": "tcp://10.0.0.7:8935",
        "VLLM_CAPACITY_PORT_8935_TCP_ADDR": "10.0.0.7",
    }
    assert resolved(TARGET, environment).scrape_interval == 5.0


def test_a_gpu_or_a_release_that_nobody_knows_is_a_fault_wherever_it_stands() -> None:
    assert faults({**TARGET, "gpu": "Z9000", "vllm-version": "newest"}) == [
        "--gpu",
        "--vllm-version",
    ]
    entry = {"url": "http://a:1", "gpu": "Z9000", "vllm-version": "newest"}
    assert faults(file={"targets": [entry]}) == ["targets[0].gpu", "targets[0].vllm-version"]


def test_a_target_given_twice_is_a_fault() -> None:
    assert faults({"target": ["http://a:1", "http://a:1"]}) == ["target"]


def test_without_a_target_the_message_says_what_to_do() -> None:
    with pytest.raises(SettingsError, match=r"--target URL, or use --simulate"):
        resolved()
    assert resolved({"simulate": True}).targets == ()


@pytest.mark.parametrize(
    ("content", "problem"),
    [("[1, 2]", "must be a mapping"), ("a: [", "is not YAML"), ("1: 2", "must be a mapping")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=problem):
        read_settings_file(str(path))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.yaml"):
        read_settings_file(str(tmp_path / "missing.yaml"))


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("# nothing yet\n")
    assert read_settings_file(str(path)) == {}


def test_every_setting_teaches_what_it_does() -> None:
    for setting in SETTINGS:
        assert len(setting.help) > 10
        assert setting.variable.startswith("VLLM_CAPACITY_")


@pytest.mark.parametrize("written", ["0, GPU-1a", ["0", "GPU-1a"], [0, "GPU-1a"]])
def test_gpus_and_processes_of_a_target_are_lists_or_separated_by_commas(written: object) -> None:
    target = {"url": "http://a:1", "gpu-devices": written, "engine-pid": 7, "exclusive-gpus": True}
    (read,) = resolved(file={"targets": [target]}).targets
    assert (read.gpu_devices, read.engine_pids, read.exclusive_gpus) == (
        ("0", "GPU-1a"),
        (7,),
        True,
    )


def test_gpus_and_processes_are_settings_for_all_targets_too() -> None:
    environment = {"VLLM_CAPACITY_GPU_DEVICES": "1", "VLLM_CAPACITY_ENGINE_PID": "7,8"}
    (read,) = resolved(TARGET, environment).targets
    assert (read.gpu_devices, read.engine_pids, read.exclusive_gpus) == (("1",), (7, 8), False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("engine-pid", "vllm"), ("engine-pid", "-1"), ("engine-pid", ","), ("gpu-devices", " , ")],
)
def test_what_is_no_process_or_gpu_is_a_fault(name: str, value: str) -> None:
    assert faults({**TARGET, name: value}) == [f"--{name}"]
    targets = [{"url": "http://a:1", name: value}]
    assert faults(file={"targets": targets}) == [f"targets[0].{name}"]
