#!/usr/bin/env python3
"""Write the dashboards; with ``--check`` say which of the committed files differ.

Usage: python dashboards/build.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import exporter_health
import fleet
import gpu_memory
import instance_capacity
import prediction_accuracy

HERE = Path(__file__).resolve().parent


def files() -> dict[Path, str]:
    """Text of every dashboard by its path."""
    dashboards = {
        "exporter-health.json": exporter_health.dashboard(),
        "fleet.json": fleet.dashboard(),
        "gpu-memory.json": gpu_memory.dashboard(),
        "instance-capacity.json": instance_capacity.dashboard(),
        "prediction-accuracy.json": prediction_accuracy.dashboard(),
    }
    return {
        HERE / name: json.dumps(board, indent=2, ensure_ascii=False) + "\n"
        for name, board in dashboards.items()
    }


def main() -> int:
    """Run the script; 1 if ``--check`` found a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    stale = [p for p, text in files().items() if not p.exists() or p.read_text("utf-8") != text]
    for path in stale:
        if not check:
            path.write_text(files()[path], "utf-8")
        sys.stdout.write(f"{path.name}: {'differs from its code' if check else 'written'}\n")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
