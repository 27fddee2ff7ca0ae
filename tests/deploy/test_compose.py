"""The demo stack's files: valid, confined, pinned, of one mind with the program and each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from compose_stack import COMPOSE, REPOSITORY, SERVICES, binds, laid_out, load, words

from vllm_capacity.cli import _parser
from vllm_capacity.commands.engine_flags import engine_words
from vllm_capacity.settings import DEFAULT_PORT, SETTINGS, resolve_settings

FILES = sorted(COMPOSE.glob("compose*.yaml"))
OVERRIDES = [path for path in FILES if path.name != "compose.yaml"]
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]["version"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
#: Ports that their images listen on; ours are found in code and commands.
PORTS = {
    "vllm": int(words("vllm")[words("vllm").index("--port") + 1]),
    "exporter": DEFAULT_PORT,
    "prometheus": 9090,
    "alertmanager": 9093,
    "grafana": 3000,
    "alerts": int(SERVICES["alerts"]["entrypoint"][-1]),
}


def services_of(path: Path) -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = load(path.name)["services"]
    return services


def environment(service: dict[str, Any]) -> dict[str, str | None]:
    given = service.get("environment", {})
    if isinstance(given, dict):
        return given
    return {name: value or None for name, _, value in (pair.partition("=") for pair in given)}


@pytest.mark.skipif(
    not shutil.which("check-jsonschema"), reason="check-jsonschema is not installed"
)
@pytest.mark.parametrize("path", [*FILES, COMPOSE / "dashboards.yaml"], ids=lambda path: path.name)
def test_a_file_follows_the_compose_specification(path: Path) -> None:
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", OVERRIDES, ids=lambda path: path.name)
def test_an_override_changes_only_services_that_there_are(path: Path) -> None:
    assert services_of(path).keys() <= SERVICES.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    # Who reaches this machine over the network reaches none of it.
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_has_a_version(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].partition(":")
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)
    if name in OURS:
        assert (image, tag) == ("vllm-capacity", VERSION)
        assert (COMPOSE / SERVICES[name]["build"] / "Dockerfile").is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_every_file_that_is_mounted_exists_and_stays_as_it_is(name: str) -> None:
    assert all(path.exists() for path in binds(name).values())
    mounts = [volume for volume in SERVICES[name].get("volumes", ()) if volume.startswith(".")]
    assert all(mount.endswith(":ro") for mount in mounts)


def test_every_named_volume_is_declared() -> None:
    volumes = [volume for service in SERVICES.values() for volume in service.get("volumes", ())]
    named = {volume.partition(":")[0] for volume in volumes if not volume.startswith(".")}
    assert named == load("compose.yaml")["volumes"].keys()


@pytest.mark.parametrize("name", SERVICES)
def test_the_ports_are_those_that_the_service_listens_on(name: str) -> None:
    service = SERVICES[name]
    inside = [*service.get("expose", ()), *(p.rpartition(":")[2] for p in service.get("ports", ()))]
    assert [int(port) for port in inside] == [PORTS[name]]


@pytest.mark.parametrize("name", [name for name in OURS if SERVICES[name]["command"]])
def test_our_commands_are_ones_that_the_program_takes(name: str) -> None:
    given = words(name)
    args = _parser(given[0]).parse_args(given)
    if given[0] == "serve":
        settings = resolve_settings(vars(args), {}, {}, engine_words=engine_words(args))
        assert [target.url for target in settings.targets] == [f"http://vllm:{PORTS['vllm']}"]


def test_the_simulated_engine_is_described_as_it_is() -> None:
    from vllm_capacity.simulate import SIMULATED_ENGINE_ARGS

    given = _parser("serve").parse_args(words("exporter"))
    flags = dict(zip(words("exporter")[3::2], words("exporter")[4::2], strict=True))
    assert engine_words(given)
    for flag, value in flags.items():
        assert str(SIMULATED_ENGINE_ARGS[flag.removeprefix("--").replace("-", "_")]) == value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_variable_of_ours_is_a_setting(path: Path) -> None:
    known = {setting.variable for setting in SETTINGS}
    mentioned = set(re.findall(r"VLLM_CAPACITY_\w+", path.read_text("utf-8")))
    assert mentioned <= known
    set_here = {name for service in services_of(path).values() for name in environment(service)}
    assert {name for name in set_here if name.startswith("VLLM_CAPACITY_")} == mentioned


def test_every_address_in_the_configurations_is_a_service_and_its_port() -> None:
    texts = [(COMPOSE / name).read_text("utf-8") for name in ("prometheus.yml", "alertmanager.yml")]
    texts.append((COMPOSE / "grafana" / "datasources" / "prometheus.yaml").read_text("utf-8"))
    found = [
        match.groups() for text in texts for match in re.finditer(r"\b([a-z]+):(\d{4,5})\b", text)
    ]
    assert {name for name, _ in found} == SERVICES.keys() - {"grafana"}
    assert all(PORTS[name] == int(port) for name, port in found)


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_prometheus_takes_its_configuration_with_every_rule_file(tmp_path: Path) -> None:
    root = laid_out("prometheus", tmp_path)
    config = root / "etc" / "prometheus" / "prometheus.yml"
    done = subprocess.run(
        ["promtool", "check", "config", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for rules in REPOSITORY.glob("alerts/*.rules.yml"):
        assert rules.name in done.stdout
    assert ".rules.test.yml" not in done.stdout


@pytest.mark.skipif(not shutil.which("amtool"), reason="amtool is not installed")
def test_alertmanager_takes_its_configuration_and_parts_pages_from_tickets(tmp_path: Path) -> None:
    config = laid_out("alertmanager", tmp_path) / "etc" / "alertmanager" / "alertmanager.yml"
    checked = subprocess.run(
        ["amtool", "check-config", str(config)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for severity, receiver in (("page", "page"), ("ticket", "ticket"), ("info", "ticket")):
        routing = ["amtool", "config", "routes", "test", f"--config.file={config}"]
        routed = subprocess.run(
            [*routing, f"severity={severity}"], capture_output=True, text=True, check=True
        )
        assert routed.stdout.strip() == receiver


def test_grafana_finds_every_dashboard_and_nothing_else(tmp_path: Path) -> None:
    root = laid_out("grafana", tmp_path)
    provisioning = root / "etc" / "grafana" / "provisioning"
    (provider,) = yaml.safe_load(
        (provisioning / "dashboards" / "vllm-capacity.yaml").read_text("utf-8")
    )["providers"]
    found = sorted((root / provider["options"]["path"].lstrip("/")).rglob("*"))
    boards = sorted(REPOSITORY.glob("dashboards/*.json"))
    assert [path.name for path in found] == [path.name for path in boards]


def test_grafana_has_one_default_data_source_of_the_kind_that_the_dashboards_ask_for() -> None:
    (source,) = load("grafana/datasources/prometheus.yaml")["datasources"]
    assert source["isDefault"] is True
    for board in REPOSITORY.glob("dashboards/*.json"):
        variables = yaml.safe_load(board.read_text("utf-8"))["templating"]["list"]
        wanted = {v["query"] for v in variables if v["type"] == "datasource"}
        assert wanted == {source["type"]}, board.name


def test_the_printed_alert_says_who_what_and_where_to_read() -> None:
    sys.path.insert(0, str(COMPOSE))
    from print_alerts import lines

    labels = {"alertname": "VLLMPreempting"}
    annotations = {"summary": "preempts", "runbook_url": "https://example.com/#a"}
    alert = {"status": "firing", "labels": labels, "annotations": annotations}
    told = lines({"alerts": [alert, alert | {"status": "resolved", "annotations": {}}]}, "page")
    assert told[0] == "page firing VLLMPreempting: preempts https://example.com/#a"
    assert told[1].split() == ["page", "resolved", "VLLMPreempting:"]
