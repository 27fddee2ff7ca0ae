"""The predicted blocks beside the used ones of a real vLLM, which they never look at."""

import pytest
from recordings import RECORDINGS, Accuracy, accuracy, assessed

# Most of |used − predicted| as a share of the pool: in the median, and at 95 of 100 scrapes.
# ``mixed3`` was made to be as harsh as can be: hang-ups, shared prefixes and preemption at once.
LIMITS = {
    "aborts": (0.02, 0.08),
    "burst": (0.005, 0.02),
    "dp-ramp": (0.005, 0.02),
    "longdecode": (0.005, 0.02),
    "mixed3": (0.04, 0.12),
    "prefix": (0.005, 0.015),
    "ramp": (0.005, 0.02),
    "ramp2": (0.005, 0.02),
    "restart": (0.002, 0.005),
    "steady": (0.002, 0.005),
    "swa-ramp": (0.015, 0.06),
}
TOLD = [name for name in RECORDINGS if name != "mixed3"]


def of_engines(recording: str, *, every: int = 1) -> list[Accuracy]:
    return [accuracy(moments) for moments in assessed(recording, every=every).values()]


@pytest.mark.parametrize("recording", RECORDINGS)
def test_the_predicted_blocks_follow_the_used_blocks_of_a_real_vllm(recording: str) -> None:
    most_median, most_p95 = LIMITS[recording]
    for engine in of_engines(recording):
        assert engine.scrapes > 90
        assert engine.median <= most_median
        assert engine.p95 <= most_p95


@pytest.mark.parametrize("recording", TOLD)
def test_the_interval_holds_the_used_blocks_and_is_narrow(recording: str) -> None:
    for engine in of_engines(recording):
        assert engine.held >= 0.95
        assert engine.width <= 0.1


@pytest.mark.parametrize("recording", [name for name in TOLD if name != "swa-ramp"])
def test_an_anchored_ledger_is_never_far_off(recording: str) -> None:
    for engine in of_engines(recording):
        assert engine.anchored > 0.01
        assert engine.largest_anchored <= 0.05


@pytest.mark.parametrize("recording", RECORDINGS)
def test_after_the_last_request_the_prediction_is_back_within_a_block(recording: str) -> None:
    for engine in of_engines(recording):
        assert engine.left_blocks <= 1


@pytest.mark.parametrize(
    ("recording", "most_median"), [("steady", 0.005), ("ramp", 0.01), ("aborts", 0.03)]
)
def test_a_scrape_every_five_seconds_does_as_well(recording: str, most_median: float) -> None:
    for engine in of_engines(recording, every=5):
        assert engine.median <= most_median
