#!/usr/bin/env python3
"""Write what `deploy` repeats of rules and dashboards; ``--check`` says which files differ.

Kustomize neither wraps a file into an object nor expands a glob, and Compose mounts no glob.

Usage: python deploy/build.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parent
ROOT = DEPLOY.parent
DASHBOARDS = sorted(ROOT.glob("dashboards/*.json"))
RULES = sorted(ROOT.glob("alerts/*.rules.yml"))
#: Where the provider in `compose/grafana/dashboards` looks.
GRAFANA_FOLDER = "/etc/grafana/dashboards"


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such, and lists indented."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        super().increase_indent(flow, indentless=False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def prometheus_rule() -> dict[str, Any]:
    """All rule files as one object of the Prometheus operator."""
    files = [yaml.safe_load(path.read_text("utf-8")) for path in RULES]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "vllm-capacity"},
        "spec": {"groups": [group for file in files for group in file["groups"]]},
    }


def dashboard_config_maps() -> dict[str, Any]:
    """A ConfigMap for each dashboard, with the label that Grafana's sidecar looks for."""
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "generatorOptions": {
            "labels": {"grafana_dashboard": "1"},
            # With a suffix every change would leave the board of before behind.
            "disableNameSuffixHash": True,
        },
        "configMapGenerator": [
            {"name": f"vllm-capacity-dashboard-{path.stem}", "files": [path.name]}
            for path in DASHBOARDS
        ],
    }


def dashboard_mounts() -> dict[str, Any]:
    """The service that `compose.yaml` extends by a mount for each dashboard."""
    mounts = [
        f"../../dashboards/{path.name}:{GRAFANA_FOLDER}/{path.name}:ro" for path in DASHBOARDS
    ]
    return {"services": {"grafana": {"volumes": mounts}}}


def files() -> dict[Path, str]:
    """Text of every generated file by its path."""
    contents = {
        ROOT / "dashboards" / "kustomization.yaml": dashboard_config_maps(),
        DEPLOY / "compose" / "dashboards.yaml": dashboard_mounts(),
        DEPLOY / "kustomize" / "monitoring" / "prometheus-rule.yaml": prometheus_rule(),
    }
    head = "# Written by deploy/build.py; do not edit.\n"
    return {
        path: head
        + yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
        for path, content in contents.items()
    }


def main() -> int:
    """Run the script; 1 if ``--check`` found a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    stale = {
        path: text
        for path, text in files().items()
        if not path.exists() or path.read_text("utf-8") != text
    }
    for path, text in stale.items():
        if not check:
            path.write_text(text, "utf-8")
        found = "differs from its source" if check else "written"
        sys.stdout.write(f"{path.relative_to(ROOT)}: {found}\n")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
