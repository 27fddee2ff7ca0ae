"""Why a start failed: the sentence of the one that failed, not of those it took with it."""

from pathlib import Path

import pytest

from vllm_capacity.observe.startup_failure import StartupFailure
from vllm_capacity.observe.startup_log import read_startup_log

SAMPLES = Path(__file__).parent.parent / "data" / "startup-logs"
TRACEBACK = "Traceback (most recent call last):"

V0_REFUSAL = (
    "ValueError: The model's max seq len (8192) is larger than the maximum number of tokens that "
    "can be stored in KV cache (4336). Try increasing `gpu_memory_utilization`"
)
V1_REFUSAL = (
    "ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV "
    "cache is needed, which is larger than the available KV cache memory (9.78 GiB). Based on the "
    "available memory, the estimated maximum model length is 80096."
)


def failure_of(*lines: str) -> StartupFailure | None:
    return read_startup_log(lines).failure


@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB.", "oom"),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.", "oom"),
        ("RuntimeError: CUDA error: out of memory", "oom"),
        ("ValueError: No available memory for the cache blocks. Try", "no_kv_cache_room"),
        (
            "ValueError: To serve at least one request with the models's max seq len (8192), (1.0",
            "max_len_too_long",
        ),
        (V0_REFUSAL, "max_len_too_long"),
        ("ValueError: Free memory on device (3.1/79.19 GiB)", "insufficient_free_memory"),
        ("OSError: You are trying to access a gated repo.", "model_access_denied"),
        ("OSError: x/y is not a local folder and is not a valid model", "model_not_found"),
        ("ValueError: Model architectures ['X'] are not supported for now.", "unsupported"),
        ("ValueError: Bfloat16 is only supported on GPUs with compute capability", "unsupported"),
        ("RuntimeError: No CUDA GPUs are available", "gpu_unavailable"),
        ("RuntimeError: Failed to infer device type", "gpu_unavailable"),
        ("OSError: [Errno 98] Address already in use", "address_in_use"),
        ("ImportError: Please install mamba_ssm", "missing_dependency"),
        ("NotImplementedError: this layer on this device", "unsupported"),
        ("ValueError: pass the argument `trust_remote_code=True`", "invalid_arguments"),
        ("RuntimeError: NCCL error: unhandled system error", "communication"),
        ("KeyError: 'layers.0.mlp'", "other"),
    ],
)
def test_each_sentence_has_its_kind(sentence: str, kind: str) -> None:
    failure = failure_of(TRACEBACK, '  File "x.py", line 1, in f', sentence)
    assert failure is not None
    assert failure.kind == kind
    assert failure.message == sentence.partition(": ")[2]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("no-room", "no_kv_cache_room", "No available memory for the cache blocks."),
        ("max-len", "max_len_too_long", "User-specified max_model_len (999999) is greater"),
        ("heads", "invalid_arguments", "heads (8) must be divisible by tensor parallel size (3)"),
        ("quantization", "unsupported", "Unknown quantization method: nonsense."),
        ("no-model", "model_not_found", "Repo id must be in the form"),
        ("flag", "invalid_arguments", "unrecognized arguments: --no-such-flag"),
    ],
)
def test_failed_starts_of_0_32_have_their_cause(name: str, kind: str, message: str) -> None:
    log = SAMPLES / f"vllm-0.32.0-failed-{name}.log"
    failure = failure_of(*log.read_text(encoding="utf-8").splitlines())
    assert failure is not None
    assert failure.kind == kind
    assert message in failure.message


def test_what_others_say_of_the_death_is_not_the_cause() -> None:
    failure = failure_of(
        "(Worker pid=2) ERROR 05-03 10:00:00 [e.py:1] " + TRACEBACK,
        "(Worker pid=2) ERROR 05-03 10:00:00 [e.py:1] BrokenPipeError: [Errno 32] Broken pipe",
        "(Worker pid=3) ERROR 05-03 10:00:00 [e.py:1] " + TRACEBACK,
        "(EngineCore pid=1) " + TRACEBACK,
        "(Worker pid=3) ERROR 05-03 10:00:00 [e.py:1] ValueError: heads do not match",
        "(EngineCore pid=1) RuntimeError: Engine core initialization failed. See root cause above.",
    )
    assert failure == StartupFailure(kind="other", message="heads do not match")


def test_a_quoted_error_is_taken_where_nothing_else_is_said() -> None:
    failure = failure_of(
        "RuntimeError: Worker failed with error 'CUDA out of memory', please check the stack trace "
        "above for the root cause"
    )
    assert failure == StartupFailure(kind="oom", message="CUDA out of memory")


def test_the_exception_that_led_to_another_is_named_as_its_cause() -> None:
    failure = failure_of(
        TRACEBACK,
        "KeyError: 'gemma9'",
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        TRACEBACK,
        "ValueError: The checkpoint has a model type that is not supported",
    )
    assert failure is not None
    assert failure.kind == "unsupported"
    assert failure.message.endswith("that is not supported (cause: KeyError: 'gemma9')")


def test_the_sentence_may_stand_on_the_next_line() -> None:
    failure = failure_of(
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
        "  Value error, max_model_len must be greater than 0 [type=value_error, input_value=Args]",
    )
    assert failure == StartupFailure(
        kind="invalid_arguments", message="max_model_len must be greater than 0"
    )


def test_an_exception_without_words_is_named() -> None:
    failure = failure_of(TRACEBACK, "AssertionError", "Process EngineCore is gone for good")
    assert failure == StartupFailure(kind="other", message="AssertionError")


@pytest.mark.parametrize(
    "lines",
    [
        ["Exception ignored in: <function f>", TRACEBACK, "TypeError: too late"],
        ["(A pid=1) DEBUG 05-03 10:00:00 [x.py:1] ValueError: tried and survived"],
        ["(A pid=1) WARNING 05-03 10:00:00 [x.py:1] ImportError: no such kernel"],
        ["frame #0: c10::Error::Error(c10::SourceLocation)"],
        ["Exception raised from recvBytes at Utils.hpp:682 (most recent call first):"],
    ],
)
def test_what_does_not_stop_the_start_is_no_failure(lines: list[str]) -> None:
    assert failure_of(*lines) is None


def test_the_numbers_of_a_refusal_are_read_too() -> None:
    log = read_startup_log([V1_REFUSAL])
    assert log.max_model_len == 131072
    assert log.kv_cache_bytes == round(9.78 * (1 << 30))
    log = read_startup_log([V0_REFUSAL])
    assert (log.max_model_len, log.kv_cache_size_tokens) == (8192, 4336)


def test_tokens_in_a_message_are_not_repeated() -> None:
    failure = failure_of("OSError: 401 Client Error for https://me:pa55@hub hf_abcdefghijklmnop")
    assert failure is not None
    assert "pa55" not in failure.message
    assert "hf_abc" not in failure.message
