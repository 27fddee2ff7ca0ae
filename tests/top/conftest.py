"""pytest's importlib mode adds no folder to the path; the documents lie beside the tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
