"""The files of `deploy/compose` as a container would see them, without any container."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
COMPOSE = REPOSITORY / "deploy" / "compose"


def load(name: str) -> dict[str, Any]:
    """A YAML file of the folder."""
    content: dict[str, Any] = yaml.safe_load((COMPOSE / name).read_text("utf-8"))
    return content


SERVICES: dict[str, dict[str, Any]] = load("compose.yaml")["services"]


def words(service: str) -> list[str]:
    """What a service of ours runs after its image's name, its variables at their defaults."""
    return [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in SERVICES[service]["command"]]


def binds(service: str) -> dict[str, Path]:
    """Files and folders of this repository that a service sees, by where it sees them."""
    described = SERVICES[service]
    volumes = list(described.get("volumes", ()))
    if extended := described.get("extends"):
        volumes += load(extended["file"])["services"][extended["service"]]["volumes"]
    mounted = [volume.split(":") for volume in volumes if volume.startswith(".")]
    return {inside: (COMPOSE / outside).resolve() for outside, inside, _ in mounted}


def laid_out(service: str, folder: Path) -> Path:
    """A folder that stands for the root of the service's container, with copies of its mounts."""
    root = folder / service
    for inside, outside in binds(service).items():
        place = root / inside.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if outside.is_dir():
            shutil.copytree(outside, place)
        else:
            shutil.copy(outside, place)
    return root
