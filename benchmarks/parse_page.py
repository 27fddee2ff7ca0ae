"""How much faster our parser reads a recorded vLLM page than prometheus_client's.

Both read the same page in turn, in one process; the figure is the ratio of their median CPU times.
Exits with 1 if it is below the least ratio that the project promises.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from prometheus_client.parser import text_string_to_metric_families

from vllm_capacity.observe.exposition import ExpositionParser
from vllm_capacity.observe.metric_names import WANTED_NAMES

PAGE = Path(__file__).parent.parent / "tests" / "data" / "vllm-0.32-metrics.txt"
LEAST_RATIO = 50
ROUNDS = 60


def main() -> int:
    page = PAGE.read_bytes()
    text = page.decode()
    parser = ExpositionParser(WANTED_NAMES)
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(_seconds(lambda: parser.parse(page)))
        theirs.append(_seconds(lambda: list(text_string_to_metric_families(text))))
    ratio = median(theirs) / median(ours)
    print(
        f"page of {len(page)} bytes, {len(page.splitlines())} lines: {ratio:.0f} times faster "
        f"than prometheus_client ({median(ours) * 1e6:.0f} against {median(theirs) * 1e6:.0f} µs)"
    )
    return 0 if ratio >= LEAST_RATIO else 1


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())
