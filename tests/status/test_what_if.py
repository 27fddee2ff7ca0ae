"""What other arguments would give: laws, vLLM's own numbers, and words that a shell takes."""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "compare"))
sys.path.insert(0, str(Path(__file__).parent.parent / "predict"))

from engines import engine
from recorded import DATA, LLAMA_8B, MOE, QWEN3_14B, QWEN3_14B_FP8, deployment, gpu_of, rows
from recordings import assessed

from vllm_capacity.compare.assessment import EngineAssessment, EngineAssessor
from vllm_capacity.compare.headroom import Headroom, Limits
from vllm_capacity.errors import EngineArgsError
from vllm_capacity.observe.request_footprint import RequestFootprint, TokenLengths
from vllm_capacity.predict import Deployment, EngineArgs, ModelConfig, VllmVersion, predict
from vllm_capacity.predict.command_line import flags_of
from vllm_capacity.predict.memory.budget import Estimate
from vllm_capacity.predict.memory.calibration import Calibration
from vllm_capacity.status.question import read_question
from vllm_capacity.status.what_if import answer, explore
from vllm_capacity.units import GIB, Bytes

DEPLOYED = deployment(LLAMA_8B, max_model_len=8192)
#: As the recordings were made, but for the limits that no page tells.
RECORDED = deployment(
    json.loads((DATA / "models" / "small-llama" / "config.json").read_bytes()),
    gpu=None,
    max_model_len=2048,
    block_size=32,
    num_gpu_blocks_override=350,
)
NOTHING = {"blocks": 0, "capacity_tokens": 0, "full_length_concurrency": 0.0}
CONFIGS = st.sampled_from([LLAMA_8B, QWEN3_14B, QWEN3_14B_FP8, MOE])


def text_of(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(value)
    return json.dumps(value) if isinstance(value, Mapping) else str(value)


def ask(
    deployed: Deployment = DEPLOYED, seen: EngineAssessment | None = None, **asked: Any
) -> dict[str, Any]:
    question = read_question({name: text_of(value) for name, value in asked.items()}, seen)
    today = predict(deployed)
    return answer(today, explore(deployed, today, question), question, seen)


def at_work(
    *,
    running: int | None = 10,
    waiting: int = 0,
    headroom: int | None = None,
    prompt: float = 1500.4,
    output: float = 400.4,
    shared: float = 0.0,
) -> EngineAssessment:
    """An engine whose finished requests had these sizes."""
    bare = EngineAssessor().assess(engine(running=running, waiting=waiting), None, Limits())
    return replace(
        bare,
        footprint=RequestFootprint(
            mean_tokens=prompt + output,
            p95_tokens=None,
            requests=100,
            window_seconds=60.0,
            prompt=TokenLengths(mean_tokens=prompt, p95_tokens=None),
            output=TokenLengths(mean_tokens=output, p95_tokens=None),
        ),
        demand=replace(bare.demand, shared_prompt_tokens=shared),
        headroom=Headroom(
            blocks=None,
            tokens=None,
            queued_demand_tokens=None,
            running_requests_limit={},
            requests={} if headroom is None else {"observed_mean": headroom},
        ),
    )


@given(CONFIGS, st.floats(0.3, 0.95), st.integers(1, 512), st.sampled_from([1, 2, 4]))
def test_asking_for_todays_own_arguments_changes_nothing(
    config: dict[str, Any], utilisation: float, sequences: int, size: int
) -> None:
    deployed = deployment(
        config,
        gpu_memory_utilization=utilisation,
        max_num_seqs=sequences,
        tensor_parallel_size=size,
    )
    own = {name: v for name, v in ask(deployed)["today"]["arguments"].items() if v is not None}
    found = ask(deployed, at_work(), **own)
    assert found["changed"] == found["today"]
    assert found["flags"] == ""
    if found["today"]["starts"]:
        zeros = {"requests": {"full_length": 0, "mean": 0}, "headroom_requests": 0}
        assert found["difference"] == NOTHING | zeros


@given(CONFIGS, st.floats(0.3, 0.95), st.integers(256, 40960))
def test_an_fp8_cache_never_holds_fewer_tokens(
    config: dict[str, Any], utilisation: float, length: int
) -> None:
    deployed = deployment(config, gpu_memory_utilization=utilisation, max_model_len=length)
    found = ask(deployed, kv_cache_dtype="fp8")
    if found["today"]["starts"]:
        assert found["changed"]["starts"]
        assert found["difference"]["capacity_tokens"] > 0
        assert found["difference"]["requests"]["full_length"] >= 0


@given(CONFIGS, st.floats(0.2, 1.0), st.floats(0.2, 1.0))
def test_more_utilisation_never_gives_fewer_blocks(
    config: dict[str, Any], first: float, second: float
) -> None:
    low, high = sorted((first, second))
    deployed = deployment(config, gpu_memory_utilization=low, max_model_len=2048)
    found = ask(deployed, gpu_memory_utilization=high)
    assert not found["today"]["starts"] or found["changed"]["starts"]
    assert (found["difference"]["blocks"] or 0) >= 0


@given(CONFIGS, st.integers(1, 30000), st.integers(1, 4000), st.integers(0, 500))
def test_headroom_is_what_fits_less_what_is_in_the_engine_and_never_negative(
    config: dict[str, Any], prompt: int, output: int, running: int
) -> None:
    found = ask(
        deployment(config),
        at_work(running=running, waiting=3),
        mean_prompt_tokens=prompt,
        mean_output_tokens=output,
    )
    for outcome in (found["today"], found["changed"]):
        fitting = outcome["requests"]["mean"]
        assert outcome["headroom_requests"] == max(0, fitting - running - 3)


def cases() -> list[dict[str, Any]]:
    """vLLM's answers for deployments that a question can describe, for one number of bytes."""
    return [
        case
        for case in rows("oracle")
        if all(isinstance(r["available_memory"], int) for r in case["expected"]["results"])
        and not EngineArgs.from_mapping(case["engine_args"]).not_covered
    ]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["id"])
def test_what_a_case_of_vllms_asks_for_gives_vllms_own_numbers(case: dict[str, Any]) -> None:
    deployed = Deployment(
        model=ModelConfig.from_dict(case["config"], hf_quant_config=case.get("hf_quant_config")),
        engine_args=EngineArgs(),
        gpu=gpu_of(case),
        vllm_version=VllmVersion.parse(case["vllm_version"]),
        env=case["env"],
        flashinfer=case["flashinfer"],
    )
    arguments = EngineArgs.from_mapping(case["engine_args"]).given
    expected = case["expected"]
    for result in expected["results"]:
        bytes_asked = {"kv_cache_memory_bytes": result["available_memory"]}
        found = ask(
            deployed, **({} if "num_gpu_blocks_override" in arguments else bytes_asked), **arguments
        )["changed"]
        assert found["starts"] is not result["refuses"]
        blocks = result["num_blocks"]
        assert found["blocks"] == (None if blocks is None else blocks - 1)
        assert found["capacity_tokens"] == result["kv_cache_tokens"]
        assert found["full_length_concurrency"] == result["max_concurrency"]
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            assert found["arguments"][name] == expected["resolved"][name]


def test_the_sizes_of_the_engines_own_requests_are_taken_where_none_are_given() -> None:
    found = ask(seen=at_work(shared=64.2))
    assert found["workload"] == {
        "mean_prompt_tokens": 1500,
        "mean_output_tokens": 400,
        "shared_prefix_tokens": 64,
        "origin": "observed",
    }
    mine = ask(seen=at_work(shared=64.2), mean_prompt_tokens=50)["workload"]
    assert mine["origin"] == "given"
    assert (mine["mean_prompt_tokens"], mine["mean_output_tokens"]) == (50, 400)
    assert mine["shared_prefix_tokens"] == 50


def test_without_sizes_only_requests_of_full_length_are_counted() -> None:
    found = ask()
    assert found["workload"] is None
    assert set(found["today"]["requests"]) == {"full_length"}
    assert found["today"]["headroom_requests"] is None


@pytest.mark.parametrize("headroom", [0, 14, 100])
def test_todays_headroom_for_observed_requests_is_the_exported_one(headroom: int) -> None:
    found = ask(seen=at_work(running=10, headroom=headroom), kv_cache_dtype="fp8")
    assert found["today"]["headroom_requests"] == headroom
    more = found["difference"]["requests"]["mean"]
    assert found["difference"]["headroom_requests"] == more > 0


@pytest.mark.parametrize("recording", ["mixed3", "prefix", "ramp2"])
def test_at_every_moment_of_a_recording_today_is_what_is_exported(recording: str) -> None:
    for moments in assessed(recording, every=20).values():
        for _, seen in moments:
            exported = seen.headroom.requests.get("observed_mean")
            plain = ask(RECORDED, seen)["today"]
            assert exported is None or plain["headroom_requests"] == exported
            assert plain["blocks"] == seen.snapshot.total_blocks


def test_a_queue_is_served_before_there_is_headroom_for_others() -> None:
    fitting = ask(seen=at_work())["today"]["requests"]["mean"]
    found = ask(seen=at_work(running=fitting, waiting=7, headroom=0), kv_cache_dtype="fp8")
    assert found["today"]["headroom_requests"] == 0
    more = found["difference"]["requests"]["mean"]
    assert found["changed"]["headroom_requests"] == more - 7


def test_where_the_requests_in_the_engine_are_unknown_so_is_the_headroom() -> None:
    assert ask(seen=at_work(running=None))["today"]["headroom_requests"] is None


def test_what_does_not_start_says_why_and_differs_in_nothing_known() -> None:
    found = ask(gpu_memory_utilization=0.1)
    assert found["changed"]["starts"] is False
    assert "memory" in found["changed"]["error"]
    assert found["changed"]["requests"] is None
    assert found["difference"]["blocks"] is found["difference"]["capacity_tokens"] is None
    refused = ask(tensor_parallel_size=3)["changed"]
    assert (refused["starts"], refused["blocks"]) == (False, None)
    assert "divisible" in refused["error"]


def test_what_is_not_described_may_or_may_not_start() -> None:
    found = ask(quantization="of-my-own")["changed"]
    assert found["starts"] is None
    assert found["error"]


def test_without_a_gpu_the_size_is_unknown_until_bytes_are_given() -> None:
    deployed = deployment(LLAMA_8B, gpu=None, max_model_len=8192)
    assert ask(deployed)["today"]["starts"] is None
    assert "unknown" in ask(deployed)["today"]["error"]
    found = ask(deployed, kv_cache_memory_bytes=1 << 34, block_size=16)
    assert found["changed"]["blocks"] == (1 << 34) // (128 * 1024 * 16) - 1
    assert found["difference"]["blocks"] is None


def test_terms_that_a_log_measured_move_with_the_arguments() -> None:
    large = Bytes(20 * GIB)
    measured = Estimate(bytes=large, low=large, high=large, origin="measured")
    calibrated = replace(
        DEPLOYED, calibration=Calibration(source="vllm.log", weights_bytes=measured)
    )
    found, plain = ask(calibrated, tensor_parallel_size=2), ask(tensor_parallel_size=2)
    for outcome in ("today", "changed"):
        assert 0 < found[outcome]["blocks"] < plain[outcome]["blocks"]
    assert ask(calibrated)["difference"]["blocks"] == 0


def test_a_length_that_was_fitted_to_memory_is_shown_as_fitted() -> None:
    deployed = deployment(LLAMA_8B, max_model_len=-1, kv_cache_memory_bytes=1 << 30)
    today = ask(deployed)["today"]
    assert today["arguments"]["max_model_len"] < 131072
    assert today["requests"]["full_length"] in {0, 1}
    assert ask(deployed, max_model_len=today["arguments"]["max_model_len"])["flags"] == ""


def test_blocks_of_unequal_size_are_not_compared() -> None:
    found = ask(block_size=64)
    assert found["difference"]["blocks"] is None
    assert found["difference"]["capacity_tokens"] is not None


def test_alternatives_are_those_of_the_engine_as_it_runs() -> None:
    found = ask(seen=at_work(), max_num_seqs=8)["alternatives"]
    assert found == ask(seen=at_work())["alternatives"]
    assert {"flags", "price", "starts", "reason", "gained_requests"} <= set(found[0])


FAULTY: dict[str, tuple[dict[str, str], set[str]]] = {
    "one of each kind": (
        {
            "max_num_seqs": "many",
            "gpu_memory_utilization": "1.5",
            "enforce_eager": "maybe",
            "kv_cache_dtype": "$(reboot)",
            "mean_prompt_tokens": "0",
            "mean_output_tokens": "0",
        },
        {
            *("max_num_seqs", "gpu_memory_utilization", "enforce_eager", "kv_cache_dtype"),
            *("mean_prompt_tokens", "mean_output_tokens"),
        },
    ),
    "half a workload": ({"mean_prompt_tokens": "5"}, {"mean_output_tokens"}),
    "a p95 below the mean": (
        {"mean_prompt_tokens": "5", "mean_output_tokens": "5", "p95_output_tokens": "4"},
        {"p95_output_tokens"},
    ),
    "no number": ({"gpu_memory_utilization": "nan"}, {"gpu_memory_utilization"}),
    "an endless number": ({"max_num_seqs": "9" * 250}, {"max_num_seqs"}),
    "more GPUs than there are": (
        {"tensor_parallel_size": "4096", "pipeline_parallel_size": "4096"},
        {"tensor_parallel_size"},
    ),
    "JSON of the wrong kind": ({"speculative_config": "[[[["}, {"speculative_config"}),
    "nameless layers": ({"kv_cache_dtype_skip_layers": ",,"}, {"kv_cache_dtype_skip_layers"}),
}


@pytest.mark.parametrize("name", FAULTY)
def test_every_fault_of_a_question_is_told_at_once(name: str) -> None:
    asked, faulty = FAULTY[name]
    with pytest.raises(EngineArgsError) as caught:
        read_question(asked, None)
    assert {fault.key for fault in caught.value.faults} == faulty


def test_flags_are_spelled_as_vllm_reads_them() -> None:
    found = ask(
        kv_cache_dtype="fp8",
        max_num_seqs=128,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=-1,
        gpu_memory_utilization=0.95,
        limit_mm_per_prompt={"image": 0},
    )
    assert found["flags"] == (
        "--max-model-len=-1 --max-num-seqs 128 --gpu-memory-utilization 0.95 --kv-cache-dtype fp8 "
        "--no-enable-prefix-caching --enforce-eager --limit-mm-per-prompt '{\"image\": 0}'"
    )


NAMES = st.from_regex(r"[A-Za-z0-9][\w.+-]{0,9}", fullmatch=True)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "max_num_seqs": st.integers(1, 1 << 20),
        "max_model_len": st.integers(1, 1 << 20) | st.just(-1),
        "gpu_memory_utilization": st.floats(0.01, 1.0),
        "kv_cache_dtype": NAMES,
        "quantization": st.text(min_size=1),
        "enforce_eager": st.booleans(),
        "kv_cache_dtype_skip_layers": st.lists(NAMES, min_size=1, max_size=3),
        "limit_mm_per_prompt": st.dictionaries(st.text(), st.integers(0, 9), min_size=1),
    },
)


@given(ARGUMENTS)
def test_flags_read_back_are_the_arguments(arguments: dict[str, Any]) -> None:
    args = EngineArgs.from_mapping(arguments)
    assert EngineArgs.from_command_line(shlex.split(flags_of(args.given))) == args


@given(
    st.dictionaries(
        st.sampled_from(sorted({*EngineArgs().__slots__} - {"not_covered"})),
        st.integers(-2, 1 << 33).map(str)
        | st.floats(0, 2).map(str)
        | st.sampled_from(["true", "false", "auto", "fp8", "8k", "{}", '{"method": "ngram"}']),
        max_size=6,
    )
)
def test_any_question_gets_an_answer_or_its_faults(asked: dict[str, str]) -> None:
    try:
        question = read_question(asked, None)
    except EngineArgsError:
        return
    today = predict(DEPLOYED)
    found = answer(today, explore(DEPLOYED, today, question), question, None)
    json.dumps(found, allow_nan=False)
    changed = found["changed"]
    assert changed["starts"] or changed["error"]
