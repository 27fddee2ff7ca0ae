"""The Kubernetes objects: they build, are valid, confined, and of one mind with the program."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

sys.path.insert(0, str(Path(__file__).parent))

from manifests import (
    COMPONENTS,
    CUSTOM,
    FOLDERS,
    KUSTOMIZE,
    REPOSITORY,
    built,
    one,
    ours,
    overlay,
    pod_templates,
    tools_python,
)

from vllm_capacity.cli import _parser
from vllm_capacity.compare.fleet import FleetAssessment
from vllm_capacity.settings import DEFAULT_PORT, read_settings_file, resolve_settings
from vllm_capacity.web.application import web_application

pytestmark = pytest.mark.skipif(
    not shutil.which("kubectl"), reason="kubectl is not installed: the manifests are not built"
)
#: Native sidecars are on by default from the first on.
KUBERNETES = ("1.29", "1.37")
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]["version"]
needs_validators = pytest.mark.skipif(
    tools_python() is None, reason="kubernetes-validate is not installed: no schema is checked"
)


def workload(kind: str, **labels: str) -> dict[str, Any]:
    template = {
        "metadata": {"labels": {"app": "mine"}},
        "spec": {"containers": [{"name": "vllm", "image": "vllm/vllm-openai:v0.32.0"}]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": "mine", "labels": labels},
        "spec": {
            "selector": {"matchLabels": {"app": "mine"}},
            "serviceName": "mine",
            "template": template,
        },
    }


def routes() -> set[str]:
    application = web_application(CollectorRegistry(), lambda: FleetAssessment(targets=()))
    return {route.path for route in application.routes}


# ---- valid ----


@needs_validators
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field(version: str, tmp_path: Path) -> None:
    for folder in FOLDERS:
        core = [each for each in built(folder) if each["kind"] not in CUSTOM]
        (tmp_path / f"{folder.name}.yaml").write_text(yaml.safe_dump_all(core))
    files = sorted(str(path) for path in tmp_path.iterdir() if path.stat().st_size)
    command = ["kubernetes-validate", "--kubernetes-version", version, "--strict", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("passed") + done.stdout.count("passed") >= len(FOLDERS)


@needs_validators
def test_operators_know_every_field_of_their_own_objects() -> None:
    custom = [each for folder in FOLDERS for each in built(folder) if each["kind"] in CUSTOM]
    assert {each["kind"] for each in custom} == CUSTOM
    assert faults_in(custom) == ""


def faults_in(resources: list[dict[str, Any]]) -> str:
    done = subprocess.run(
        [str(tools_python()), str(Path(__file__).parent / "custom_resources.py")],
        input=json.dumps(resources),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_validators
def test_that_check_sees_a_misspelt_field_and_a_wrong_type() -> None:
    monitor = json.loads(json.dumps(one(built(KUSTOMIZE / "monitoring"), "PodMonitor")))
    monitor["spec"]["podMetricsEndpoints"][0]["intervall"] = "15s"
    assert "intervall is not known" in faults_in([monitor])
    monitor["spec"]["podMetricsEndpoints"][0] = {"port": "capacity", "interval": 15}
    assert "interval" in faults_in([monitor])


def test_what_is_generated_is_as_its_sources() -> None:
    command = [sys.executable, str(REPOSITORY / "deploy" / "build.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- our container ----


def test_our_container_is_confined_wherever_it_runs() -> None:
    templates = list(pod_templates())
    assert templates
    for template in templates:
        container = ours(template)
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        both = template["spec"].get("securityContext", {}) | container["securityContext"]
        assert both["runAsNonRoot"] is True
        assert both["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "nvidia.com/gpu" not in json.dumps(container["resources"])


def test_our_container_may_use_what_was_measured_and_half_as_much_again() -> None:
    costs = (REPOSITORY / "docs" / "costs.md").read_text("utf-8")
    (resident,) = re.findall(r"–(\d+) MB resident", costs)
    for template in pod_templates():
        resources = ours(template)["resources"]
        mebibytes = {part: int(resources[part]["memory"].removesuffix("Mi")) for part in resources}
        assert mebibytes["requests"] * 2**20 > int(resident) * 10**6
        assert mebibytes["limits"] * 2**20 > 1.5 * int(resident) * 10**6
        assert "cpu" not in resources["limits"]  # throttled, it would be late, not cheaper


def test_the_image_is_of_this_version() -> None:
    for template in pod_templates():
        name, _, tag = ours(template)["image"].rpartition(":")
        assert (name.rpartition("/")[2], tag) == ("vllm-capacity", VERSION)


def test_probes_ask_for_pages_that_there_are_on_the_port_that_we_listen_on() -> None:
    for template in pod_templates():
        container = ours(template)
        assert container["ports"] == [{"name": "capacity", "containerPort": DEFAULT_PORT}]
        for probe in ("livenessProbe", "readinessProbe"):
            if asked := container.get(probe, {}).get("httpGet"):
                assert asked["port"] == "capacity"
                assert asked["path"] in routes()
        assert container["livenessProbe"]["httpGet"]["path"] == "/-/healthy"


def test_the_central_exporter_takes_its_arguments_and_its_settings_file(tmp_path: Path) -> None:
    objects = built(KUSTOMIZE / "base")
    template = one(objects, "Deployment")["spec"]["template"]
    args = _parser("serve").parse_args(ours(template)["args"])
    (name, text), *others = one(objects, "ConfigMap")["data"].items()
    (mount,) = ours(template)["volumeMounts"]
    assert vars(args)["config.file"] == f"{mount['mountPath']}/{name}"
    assert others == []
    (tmp_path / name).write_text(text)
    settings = resolve_settings(vars(args), {}, read_settings_file(str(tmp_path / name)))
    assert len(settings.targets) == 1
    (source,) = template["spec"]["volumes"]
    assert source["configMap"]["name"] == one(objects, "ConfigMap")["metadata"]["name"]


def test_the_sidecar_takes_its_arguments_and_its_environment() -> None:
    objects = built(KUSTOMIZE / "example")
    container = ours(one(objects, "Deployment")["spec"]["template"])
    (reference,) = container["envFrom"]
    settings_map = one(objects, "ConfigMap", reference["configMapRef"]["name"])
    variables = settings_map["data"] | {each["name"]: each["value"] for each in container["env"]}
    args = _parser("serve").parse_args(container["args"])
    settings = resolve_settings(vars(args), variables, {})
    (target,) = settings.targets
    vllm = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert target.url == f"http://localhost:{vllm['ports'][0]['containerPort']}"
    assert settings_map["data"]["VLLM_CAPACITY_VLLM_ARGS"] == " ".join(["serve", *vllm["args"]])


# ---- components ----


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
def test_the_sidecar_joins_every_workload_of_vllm(kind: str, tmp_path: Path) -> None:
    labels = {"app.kubernetes.io/name": "vllm"}
    found = one(overlay(tmp_path, workload(kind, **labels), *COMPONENTS), kind)
    template = found["spec"]["template"]
    assert found["metadata"]["name"] == "mine"
    assert ours(template)["restartPolicy"] == "Always"
    assert ours(template) in template["spec"]["initContainers"]
    assert "readinessProbe" not in ours(template)
    assert [each["name"] for each in template["spec"]["containers"]] == ["vllm"]


def test_other_workloads_are_left_alone(tmp_path: Path) -> None:
    other = workload("Deployment", **{"app.kubernetes.io/name": "router"})
    assert overlay(tmp_path, other, *COMPONENTS) == (other,)


def test_gpu_memory_is_read_without_taking_a_gpu(tmp_path: Path) -> None:
    labels = {"app.kubernetes.io/name": "vllm"}
    components = (KUSTOMIZE / "sidecar", KUSTOMIZE / "gpu-memory")
    template = one(overlay(tmp_path, workload("Deployment", **labels), *components), "Deployment")[
        "spec"
    ]["template"]
    variables = {each["name"]: each["value"] for each in ours(template)["env"]}
    assert template["spec"]["runtimeClassName"] == "nvidia"
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "utility"
    assert "shareProcessNamespace" not in template["spec"]


# ---- Prometheus and Grafana ----


def test_the_rule_object_holds_every_rule_file(tmp_path: Path) -> None:
    spec = one(built(KUSTOMIZE / "monitoring"), "PrometheusRule")["spec"]
    files = sorted(REPOSITORY.glob("alerts/*.rules.yml"))
    read = [yaml.safe_load(path.read_text("utf-8")) for path in files]
    assert spec["groups"] == [group for file in read for group in file["groups"]]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(spec))
    if shutil.which("promtool"):
        command = ["promtool", "check", "rules", str(tmp_path / "rules.yml")]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_the_pod_monitor_finds_our_pods_and_their_ports() -> None:
    spec = one(built(KUSTOMIZE / "monitoring"), "PodMonitor")["spec"]
    (wanted,) = spec["selector"]["matchExpressions"]
    assert wanted["operator"] == "Exists"
    for template in pod_templates():
        assert wanted["key"] in template["metadata"]["labels"]
    pod = one(built(KUSTOMIZE / "example"), "Deployment")["spec"]["template"]["spec"]
    containers = [*pod["initContainers"], *pod["containers"]]
    ports = {port["name"] for container in containers for port in container["ports"]}
    assert {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]} == ports


def test_every_dashboard_is_a_config_map_that_grafana_finds() -> None:
    maps = [each for each in built(KUSTOMIZE / "monitoring") if each["kind"] == "ConfigMap"]
    held = {name: text for each in maps for name, text in each["data"].items()}
    boards = {path.name: path.read_text("utf-8") for path in REPOSITORY.glob("dashboards/*.json")}
    assert held == boards
    for each in maps:
        assert each["metadata"]["labels"] == {"grafana_dashboard": "1"}
        assert len(json.dumps(each)) < 1 << 20  # etcd takes no more
