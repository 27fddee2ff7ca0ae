"""From a start-up log to the measured terms of a prediction."""

from pathlib import Path

import pytest

from vllm_capacity.calibrate import calibration_from
from vllm_capacity.errors import InputError
from vllm_capacity.observe.startup_log import StartupLog, read_startup_log
from vllm_capacity.units import GIB

SAMPLES = Path(__file__).parent / "data" / "startup-logs"
V0_28 = (
    "Actual usage is 39.98 GiB for consumed memory (weights + non-torch), "
    "4.06 GiB for peak activation"
)


def log_of(*lines: str) -> StartupLog:
    return read_startup_log(lines)


def sample(name: str) -> StartupLog:
    return log_of(*(SAMPLES / name).read_text(encoding="utf-8").splitlines())


def test_printed_terms_are_taken_with_their_rounding() -> None:
    calibration = calibration_from(sample("vllm-0.10.2-debug.log"), "vllm.log")
    peak = calibration.activation_peak_bytes
    assert peak is not None
    assert (peak.low, peak.bytes, peak.high) == (
        round(1.4 * GIB) - 5368710,
        round(1.4 * GIB),
        round(1.4 * GIB) + 5368710,
    )
    assert peak.origin == "measured: start-up log, vLLM 0.10.2"
    assert calibration.model == "Qwen/Qwen3-14B-FP8"
    assert calibration.engine_args["max_model_len"] == 40960


def test_terms_come_from_the_rank_with_the_smallest_cache() -> None:
    log = log_of(
        "(Worker_PP0 pid=1) INFO 05-03 10:00:00 [x.py:1] Model loading took 9.0 GiB memory",
        "(Worker_PP1 pid=2) INFO 05-03 10:00:00 [x.py:1] Model loading took 7.0 GiB memory",
        "(Worker_PP0 pid=1) INFO 05-03 10:00:00 [x.py:1] Available KV cache memory: 60.0 GiB",
        "(Worker_PP1 pid=2) INFO 05-03 10:00:00 [x.py:1] Available KV cache memory: 58.0 GiB",
    )
    assert log.weights_bytes == 9 * GIB
    weights = calibration_from(log, "vllm.log").weights_bytes
    assert weights is not None
    assert weights.bytes == 7 * GIB


def test_since_0_28_the_terms_add_up_to_what_is_not_cache() -> None:
    lines = (SAMPLES / "vllm-0.28.1-dp2.log").read_text(encoding="utf-8").splitlines()
    log = log_of(*(line.partition("(EngineCore_DP1")[0] for line in lines))
    terms = dict(calibration_from(log, "vllm.log").terms)
    del terms["total_memory_bytes"]
    taken = sum(term.bytes for term in terms.values())
    assert log.requested_memory_bytes is not None
    assert log.kv_cache_bytes is not None
    assert taken == pytest.approx(log.requested_memory_bytes - log.kv_cache_bytes, abs=0.02 * GIB)


def test_a_peak_that_holds_an_unknown_part_for_graphs_is_not_taken() -> None:
    captured = "Graph capturing finished in 5 secs, took 0.50 GiB"
    calibration = calibration_from(log_of(V0_28, captured), "vllm.log")
    assert calibration.activation_peak_bytes is None
    without_graphs = calibration_from(log_of(V0_28), "vllm.log").activation_peak_bytes
    assert without_graphs is not None
    assert without_graphs.bytes == round(4.06 * GIB)


def test_the_debug_line_of_0_28_tells_the_peak_above_what_stays() -> None:
    profile = (
        "Total non KV cache memory: 5.0GiB; torch peak memory increase: 1.5GiB; "
        "total consumed (from mem_get_info): 4.0GiB; weights memory: 3.0GiB."
    )
    calibration = calibration_from(log_of(profile), "vllm.log")
    sizes = {name: term.bytes / GIB for name, term in calibration.terms.items()}
    assert sizes == {"weights_bytes": 3, "activation_peak_bytes": 1, "non_torch_bytes": 1}


def test_a_log_without_measurements_calibrates_nothing() -> None:
    with pytest.raises(InputError, match="holds no measured memory"):
        calibration_from(sample("vllm-0.32.0-failed-heads.log"), "vllm.log")
