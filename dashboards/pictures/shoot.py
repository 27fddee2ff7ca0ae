#!/usr/bin/env python3
"""Write docs/images/*.png: the dashboards over recordings of a real vLLM.

Usage: python dashboards/pictures/shoot.py [--seconds N]

Recordings are played through exporters into a Prometheus for N seconds of real time; then
shoot.mjs draws every panel in Chromium. Needs prometheus, chromium, node and npm.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "real"))

from recorded_fleet import watched  # noqa: E402 (tests are no package)

# The engine that is looked at closely is one whose load grows until it preempts.
BOARDS = (
    "fleet",
    "instance-capacity,target=ramp,engine=0",
    "prediction-accuracy",
    "gpu-memory",
    "exporter-health",
)
NPM = (
    "npm",
    "install",
    "--no-package-lock",
    "--legacy-peer-deps",
    "--ignore-scripts",
    "--no-audit",
)


def main() -> int:
    """Run the script; the exit status is that of the drawing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=330, help="how long to watch (330)")
    seconds = parser.parse_args().seconds
    subprocess.run(NPM, cwd=HERE, check=True)  # noqa: S603 (our own words)
    with tempfile.TemporaryDirectory() as folder, watched(Path(folder)) as prometheus:
        began = time.time()
        time.sleep(seconds)
        words = (prometheus.server.url, HERE.parent, REPOSITORY / "docs" / "images")
        times = (str(int(began)), str(int(time.time())))
        command = ["node", "shoot.mjs", *(str(word) for word in words), *times, *BOARDS]
        return subprocess.run(command, cwd=HERE, check=False).returncode  # noqa: S603 (our own)


if __name__ == "__main__":
    sys.exit(main())
