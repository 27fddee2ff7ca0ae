"""Lets the tests of this folder import shared data by name."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "status"), str(HERE.parent / "compare")]
