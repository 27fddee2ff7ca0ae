"""Arguments from several sources: who is believed, who disagrees, what is no disagreement."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.compare.started_with import (
    ORDER_OF_TRUST,
    ArgumentSource,
    Denial,
    StartedWith,
    Told,
    told_by_log,
    told_by_processes,
)
from vllm_capacity.observe.startup_args import TEXT_NAMES
from vllm_capacity.observe.startup_log import StartupLog
from vllm_capacity.predict import EngineArgs
from vllm_capacity.predict.engine_flags import ENGINE_FLAGS


def started(**told: dict[str, Any]) -> StartedWith:
    return StartedWith(
        sources={source: EngineArgs.from_mapping(args) for source, args in told.items()}  # type: ignore[misc]
    )


def test_the_most_trusted_source_is_believed_and_the_others_are_not_forgotten() -> None:
    known = started(
        api={"max_model_len": 4096},
        process={"max_num_seqs": 64, "tensor_parallel_size": 2},
        log={"max_num_seqs": 128},
        flag={"max_num_seqs": 256},
    )
    assert known.engine_args.given == {
        "max_num_seqs": 256,
        "tensor_parallel_size": 2,
        "max_model_len": 4096,
    }
    assert known.source_of("max_num_seqs") == "flag"
    assert known.source_of("max_model_len") == "api"
    assert known.source_of("dtype") is None
    by_name = {argument.name: argument.told for argument in known.arguments()}
    assert by_name["max_num_seqs"] == (
        Told(source="flag", value="256"),
        Told(source="log", value="128", agrees=False),
        Told(source="process", value="64", agrees=False),
    )
    assert known.denials() == {
        Denial("max_num_seqs", "flag", "256", "log", "128"),
        Denial("max_num_seqs", "flag", "256", "process", "64"),
    }


@pytest.mark.parametrize(
    ("name", "believed", "other"),
    [
        ("max_model_len", -1, 40_960),
        ("kv_cache_dtype", "auto", "fp8"),
        ("kv_cache_dtype", "fp8", "fp8_e4m3"),
        ("kv_cache_dtype", "fp8", "fp8_ds_mla"),
        ("dtype", "half", "float16"),
        ("gpu_memory_utilization", 0.9, 0.9000000000000001),
        ("enforce_eager", False, False),
        ("limit_mm_per_prompt", {"image": 2}, {"image": 2}),
        ("speculative_config", {"method": "mtp", "x": "***"}, {"method": "mtp", "x": "y"}),
        ("kv_cache_dtype_skip_layers", ["0", "1"], ["1", "0"]),
    ],
)
def test_two_ways_to_say_the_same_are_no_disagreement(name: str, believed: Any, other: Any) -> None:
    for one, two in ((believed, other), (other, believed)):
        assert started(flag={name: one}, metrics={name: two}).denials() == set()


@pytest.mark.parametrize(
    ("name", "believed", "other"),
    [
        ("max_num_seqs", 256, 128),
        ("kv_cache_dtype", "fp8", "fp8_e5m2"),
        ("kv_cache_dtype", "fp8", "bfloat16"),
        ("enable_prefix_caching", True, False),
        ("gpu_memory_utilization", 0.9, 0.95),
        ("limit_mm_per_prompt", {"image": 2}, {"image": 2, "video": 1}),
        ("kv_cache_dtype_skip_layers", ["0"], ["0", "1"]),
    ],
)
def test_what_cannot_both_be_true_is_a_disagreement(name: str, believed: Any, other: Any) -> None:
    for one, two in ((believed, other), (other, believed)):
        [denial] = started(flag={name: one}, process={name: two}).denials()
        assert (denial.argument, denial.source, denial.denied_by) == (name, "flag", "process")


ARGUMENTS = st.dictionaries(
    st.sampled_from(("max_num_seqs", "tensor_parallel_size", "block_size")), st.integers(1, 3)
)


@given(st.dictionaries(st.sampled_from(ORDER_OF_TRUST), ARGUMENTS))
def test_what_is_in_force_is_what_the_first_source_tells_and_every_denial_differs_from_it(
    told: dict[ArgumentSource, dict[str, int]],
) -> None:
    known = started(**told)
    for argument in known.arguments():
        order = [ORDER_OF_TRUST.index(one.source) for one in argument.told]
        assert order == sorted(order)
        assert str(getattr(known.engine_args, argument.name)) == argument.told[0].value
    for denial in known.denials():
        assert denial.value != denial.denied_value


def test_a_log_without_its_arguments_still_tells_of_the_engine_s_summary() -> None:
    summary = {"tensor_parallel_size": 2, "dtype": "torch.bfloat16", "data_parallel_size": 1}
    assert told_by_log(StartupLog(engine_config=summary)).given == {"tensor_parallel_size": 2}
    both = StartupLog(engine_args={"max_num_seqs": 8}, engine_config=summary)
    assert told_by_log(both).given == {"max_num_seqs": 8, "tensor_parallel_size": 2}
    assert told_by_log(StartupLog()).given == {}


def test_of_an_engine_s_processes_the_server_tells_what_it_was_started_with() -> None:
    lines = [
        ("VLLM::EngineCore",),
        ("vllm", "serve", "m", "--max-num-seqs", "8", "--api-key", "***", "--dtype=***"),
    ]
    told = told_by_processes(lines)
    assert told is not None
    assert told.given == {"max_num_seqs": 8}
    assert told.not_covered == ("dtype",)
    assert told_by_processes(lines[:1]) is None
    assert told_by_processes([]) is None


def test_no_measurement_is_an_argument() -> None:
    labels = {"num_gpu_blocks": "8192", "kv_cache_size_tokens": "131072", "block_size": "16"}
    assert set(EngineArgs.declared_in_cache_config(labels).given) == {"block_size"}


def test_every_argument_that_is_text_may_be_kept_as_text() -> None:
    assert {flag.name for flag in ENGINE_FLAGS if flag.type in {str, tuple}} <= TEXT_NAMES
