"""What Kubernetes would be given: the folders of `deploy/kustomize`, as kustomize builds them."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parents[2]
KUSTOMIZE = REPOSITORY / "deploy" / "kustomize"
KUSTOMIZATIONS = sorted(path.parent for path in KUSTOMIZE.rglob("kustomization.yaml"))
CUSTOM = {"PodMonitor", "PrometheusRule", "ScaledObject"}


def kind_of(folder: Path) -> str:
    return str(yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))["kind"])


FOLDERS = [folder for folder in KUSTOMIZATIONS if kind_of(folder) == "Kustomization"]
COMPONENTS = [folder for folder in KUSTOMIZATIONS if kind_of(folder) == "Component"]


@cache
def built(folder: Path) -> tuple[dict[str, Any], ...]:
    """Every object of a folder."""
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def one(objects: tuple[dict[str, Any], ...], kind: str, name: str | None = None) -> dict[str, Any]:
    """The only object of that kind (and name)."""
    (found,) = [
        each
        for each in objects
        if each["kind"] == kind and name in (None, each["metadata"]["name"])
    ]
    return found


def overlay(
    folder: Path, resource: dict[str, Any], *components: Path
) -> tuple[dict[str, Any], ...]:
    """A user's own object with some of our components, built."""
    (folder / "resource.yaml").write_text(yaml.safe_dump(resource))
    content = {
        "resources": ["resource.yaml"],
        "components": [os.path.relpath(path, folder) for path in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return built(folder)


def pod_templates() -> Iterator[dict[str, Any]]:
    """The pods that our folders would start."""
    for folder in FOLDERS:
        for each in built(folder):
            if each["kind"] in ("Deployment", "StatefulSet"):
                yield each["spec"]["template"]


def ours(template: dict[str, Any]) -> dict[str, Any]:
    """Our container of a pod."""
    spec = template["spec"]
    (found,) = [
        container
        for container in (*spec.get("initContainers", ()), *spec["containers"])
        if container["name"] == "vllm-capacity"
    ]
    return found


def tools_python() -> Path | None:
    """The Python of `kubernetes-validate`, which has the models of custom resources too."""
    found = shutil.which("kubernetes-validate")
    return Path(found).resolve().parent / "python" if found else None
