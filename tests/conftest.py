"""What all tests share."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # proc_tree and other things written for tests

# A busy machine is no fault of the code: laws are held by examples, not by a stopwatch.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
