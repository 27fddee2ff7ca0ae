"""The start-up log of every release: what it holds is read, what it does not hold is not."""

import json
import lzma
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.observe import startup_lines
from vllm_capacity.observe.startup_log import StartupLog, StartupLogReader, read_startup_log
from vllm_capacity.units import GIB

SAMPLES = Path(__file__).parent.parent / "data" / "startup-logs"
PUBLISHED = Path(__file__).parents[2].parent / "shared" / "logs"
FACTS = (
    *("vllm_version", "model", "architecture", "attention_backend", "max_model_len"),
    *("weights_bytes", "activation_peak_bytes", "non_torch_bytes", "cuda_graph_bytes"),
    *("total_memory_bytes", "requested_memory_bytes", "kv_cache_bytes"),
    *("kv_cache_size_tokens", "num_gpu_blocks", "max_concurrency"),
)


SNAPSHOT = (
    "worker init memory snapshot: torch_peak=0.0GiB, free_memory=78.68GiB, total_memory=79.19GiB, "
    "cuda_memory=0.51GiB, torch_memory=0.0GiB, non_torch_memory=0.51GiB, auto_measure=True"
)


def gib(size: float) -> int:
    return round(size * GIB)


def sample(name: str) -> list[str]:
    return (SAMPLES / name).read_text(encoding="utf-8").splitlines()


def facts(log: StartupLog) -> dict[str, Any]:
    return {name: value for name in FACTS if (value := getattr(log, name)) is not None}


def without_places(log: StartupLog) -> StartupLog:
    ranks = tuple(replace(rank, lines={}) for rank in log.ranks)
    return replace(log, lines=dict.fromkeys(log.lines, 0), ranks=ranks)


def test_0_6_4_is_read() -> None:
    log = read_startup_log(sample("vllm-0.6.4-v0.log"))
    assert facts(log) == {
        "vllm_version": "0.6.4.post1",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "attention_backend": "FLASH_ATTN",
        "max_model_len": 20000,
        "weights_bytes": gib(14.9888),
        "non_torch_bytes": gib(0.35),
        "cuda_graph_bytes": gib(0.34),
        "total_memory_bytes": gib(23.68),
        "kv_cache_bytes": gib(3.81),
        "num_gpu_blocks": 1952,
        "max_concurrency": 1.56,
    }
    assert log.uncertainty_bytes["weights_bytes"] == 53688
    assert log.uncertainty_bytes["kv_cache_bytes"] == 5368710


def test_0_8_5_with_the_v0_engine_is_read_rank_by_rank() -> None:
    log = read_startup_log(sample("vllm-0.8.5-v0-tp2.log"))
    assert facts(log) == {
        "vllm_version": "0.8.5.post1",
        "model": "Qwen/Qwen2.5-14B-Instruct",
        "attention_backend": "FLASH_ATTN",
        "max_model_len": 32768,
        "weights_bytes": gib(13.9283),
        "activation_peak_bytes": gib(2.24),
        "non_torch_bytes": gib(0.29),
        "cuda_graph_bytes": gib(0.41),
        "total_memory_bytes": gib(23.69),
        "requested_memory_bytes": gib(21.32),
        "kv_cache_bytes": gib(4.86),
        "num_gpu_blocks": 3317,
        "max_concurrency": 1.62,
    }
    assert [(rank.name, rank.kv_cache_bytes) for rank in log.ranks] == [
        ("", gib(4.86)),
        ("VllmWorkerProcess", gib(6.6)),
    ]


def test_0_8_5_with_the_v1_engine_reports_the_smallest_cache_of_the_ranks() -> None:
    log = read_startup_log(sample("vllm-0.8.5-v1-tp2.log"))
    assert facts(log) == {
        "vllm_version": "0.8.5.post1",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "attention_backend": "FLASH_ATTN",
        "max_model_len": 131072,
        "weights_bytes": gib(7.5124),
        "cuda_graph_bytes": gib(0.53),
        "kv_cache_size_tokens": 182976,
        "max_concurrency": 1.39,
    }
    assert [rank.name for rank in log.ranks] == ["VllmWorker rank=0", "VllmWorker rank=1"]
    assert log.engine_args is None


def test_0_10_2_gives_the_cache_to_the_byte() -> None:
    log = read_startup_log(sample("vllm-0.10.2-debug.log"))
    assert facts(log) == {
        "vllm_version": "0.10.2",
        "model": "Qwen/Qwen3-14B-FP8",
        "architecture": "Qwen3ForCausalLM",
        "attention_backend": "FLASHINFER",
        "max_model_len": 40960,
        "weights_bytes": gib(15.24),
        "activation_peak_bytes": gib(1.4),
        "non_torch_bytes": gib(0.06),
        "cuda_graph_bytes": gib(0.33),
        "total_memory_bytes": gib(44.31),
        "requested_memory_bytes": gib(39.88),
        "kv_cache_bytes": 24889185280,
        "kv_cache_size_tokens": 303824,
        "num_gpu_blocks": 18989,
        "max_concurrency": 7.42,
    }
    assert "kv_cache_bytes" not in log.uncertainty_bytes


def test_a_cluster_under_ray_is_read_node_by_node() -> None:
    log = read_startup_log(sample("vllm-0.25.0-ray-tp4.log"))
    assert facts(log) == {
        "vllm_version": "0.25.0",
        "model": "deepseek-ai/DeepSeek-V2-Lite",
        "architecture": "DeepseekV2ForCausalLM",
        "attention_backend": "FLASH_ATTN_MLA",
        "max_model_len": 163840,
        "weights_bytes": gib(7.41),
        "cuda_graph_bytes": gib(0.51),
        "kv_cache_bytes": gib(59.9),
        "kv_cache_size_tokens": 2068416,
        "max_concurrency": 12.62,
    }
    assert [rank.weights_bytes for rank in log.ranks] == [gib(7.4), gib(7.41)]
    # two decimals were rounded to, and one of them was a zero
    assert log.uncertainty_bytes["kv_cache_bytes"] == 5368710


def test_two_engines_of_0_28_report_the_tighter_one() -> None:
    log = read_startup_log(sample("vllm-0.28.1-dp2.log"))
    assert facts(log) == {
        "vllm_version": "0.28.1rc1.dev580+g385dce36b",
        "model": "zai-org/GLM-5.3-Flash",
        "architecture": "Glm4MoeForCausalLM",
        "attention_backend": "FLASH_ATTN",
        "max_model_len": 900000,
        "weights_bytes": gib(38.24),
        "activation_peak_bytes": gib(4.06),
        "cuda_graph_bytes": gib(1.2),
        "total_memory_bytes": gib(139.81),
        "requested_memory_bytes": gib(125.83),
        "kv_cache_bytes": gib(81.5),
        "kv_cache_size_tokens": 900304,
        "max_concurrency": 1.0,
    }
    assert log.consumed_bytes == gib(39.98)
    assert [rank.weights_bytes for rank in log.ranks] == [gib(38.24), gib(38.24)]


def test_0_32_on_a_cpu_is_read() -> None:
    log = read_startup_log(sample("vllm-0.32.0-cpu.log"))
    assert facts(log) == {
        "vllm_version": "0.32.0",
        "model": "/models/tiny-llama",
        "architecture": "LlamaForCausalLM",
        "max_model_len": 2048,
        "total_memory_bytes": gib(11.46),
        "kv_cache_bytes": gib(1),
        "kv_cache_size_tokens": 131072,
        "num_gpu_blocks": 4096,
        "max_concurrency": 64.0,
    }
    assert log.is_started


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        (
            "Initial free memory 20.1 GiB, reserved 8.0 GiB memory for KV Cache as specified",
            *("kv_cache_bytes", gib(8)),
        ),
        ("the rest of the memory reserved for KV Cache is -7.83GiB.", "kv_cache_bytes", gib(-7.83)),
        ("Available KV cache memory: -0.5 GiB", "kv_cache_bytes", gib(-0.5)),
        ("budget; KV cache memory reduced to 3.25 GiB.", "kv_cache_bytes", gib(3.25)),
        ("Model loading took 15.1749 GB and 3.0 seconds", "weights_bytes", gib(15.1749)),
        ("Model loading took 48.5 GiB memory and 9.1 seconds", "weights_bytes", gib(48.5)),
        ("# cuda blocks: 190100, # CPU blocks: 21845", "num_gpu_blocks", 190100),
        ("# GPU blocks: 127626", "num_gpu_blocks", 127626),
        ("Using model weights format ['*.safetensors']", "attention_backend", None),
        ("# CPU blocks: 21845", "num_gpu_blocks", None),
        ("Overriding num_gpu_blocks=0 with num_gpu_blocks_override=512", "num_gpu_blocks", None),
        ("Overriding num_gpu_blocks=900 with num_gpu_blocks_override=50", "num_gpu_blocks", 50),
        ("Estimated CUDA graph memory: 0.84 GiB total", "cuda_graph_bytes", None),
        ("Estimated CUDA graph memory: 0.84 GiB total", "cuda_graph_estimate_bytes", gib(0.84)),
        ("CUDA graph pool memory: 0.89 GiB (actual), 0.84 GiB", "cuda_graph_bytes", gib(0.89)),
        (
            "free memory: 5.00 GiB, requested GPU memory: 18.00 GiB",
            *("requested_memory_bytes", gib(18)),
        ),
        (SNAPSHOT, "total_memory_bytes", gib(79.19)),
        (SNAPSHOT, "non_torch_bytes", None),
        ("Replace with `--kv-cache-memory=65088610304` (60.62 GiB)", "kv_cache_bytes", None),
        ("Auto-fit max_model_len: reduced from 40960 to 8000 to fit", "max_model_len", 8000),
        ("Resolved architecture: Qwen3ForCausalLM", "architecture", "Qwen3ForCausalLM"),
    ],
)
def test_each_wording_tells_its_field(line: str, field: str, value: object) -> None:
    log = read_startup_log([f"INFO 05-03 10:00:00 [x.py:1] {line}\n"])
    assert getattr(log, field) == value
    assert (field in log.lines) == (value is not None)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("Using Flash Attention backend on V1 engine.", "FLASH_ATTN"),
        ("Using FlashInfer backend on V1 engine by default for Blackwell GPUs.", "FLASHINFER"),
        ("Using XFormers backend.", "XFORMERS"),
        ("Using FlashMLA backend on V1 engine.", "FLASHMLA"),
        ("Using Triton backend on V1 engine.", "TRITON_ATTN"),
        ("Using IPEX attention backend.", "IPEX"),
        ("Using AttentionBackendEnum.FLASH_ATTN backend.", "FLASH_ATTN"),
        ("Using FLASHINFER attention backend out of potential backends: ['A', 'B']", "FLASHINFER"),
        ("Using ROCM_ATTN backend (selected via --attention-backend).", "ROCM_ATTN"),
        ("Using backend AttentionBackendEnum.FLASH_ATTN for vit attention", None),
        ("Using TRITON backend for Unquantized MoE", None),
        ("Using TRITON Unquantized MoE backend out of potential backends: ['A'].", None),
        ("Using 'TRITON' Mxfp4 MoE backend.", None),
        ("Using FLASH_ATTN MLA prefill backend.", None),
        ("Using OOT custom backend for compilation.", None),
        ("Using Flash Attention backend for ViT model.", None),
    ],
)
def test_the_attention_backend_has_vllms_name_and_no_other_backend_is_one(
    said: str, name: str | None
) -> None:
    assert read_startup_log([f"INFO 05-03 10:00:00 [x.py:1] {said}"]).attention_backend == name


def test_the_line_of_each_field_is_the_one_that_tells_it() -> None:
    lines = sample("vllm-0.10.2-debug.log")
    log = read_startup_log(lines)
    assert log.lines["weights_bytes"] == 7
    for field in ("kv_cache_size_tokens", "num_gpu_blocks", "max_model_len"):
        assert str(getattr(log, field)) in lines[log.lines[field] - 1].replace(",", "")


def in_docker(lines: Iterable[str]) -> list[str]:
    record = {"stream": "stderr", "time": "2025-05-03T10:00:00.123456789Z"}
    return [json.dumps({"log": f"{line}\n", **record}) for line in lines]


def in_docker_split(lines: Iterable[str]) -> list[str]:
    padded = [f"{line}{' ' * 40_000}" if "args:" in line else line for line in lines]
    pieces = [(line + "\n", i) for line in padded for i in range(0, len(line) + 1, 16_384)]
    return [json.dumps({"log": line[i : i + 16_384]}) for line, i in pieces]


def in_kubernetes(lines: Iterable[str]) -> list[str]:
    return [f"2025-05-03T10:00:00.123456789Z {line}" for line in lines]


def in_containerd(lines: Iterable[str]) -> list[str]:
    stamp = "2025-05-03T10:00:00.123456789+02:00 stdout"
    halves = [(line[: len(line) // 2], line[len(line) // 2 :]) for line in lines]
    return [part for a, b in halves for part in (f"{stamp} P {a}", f"{stamp} F {b}")]


WRAPPINGS: dict[str, Callable[[Iterable[str]], list[str]]] = {
    "docker": in_docker,
    "docker, split": in_docker_split,
    "kubernetes timestamps": in_kubernetes,
    "containerd, split": in_containerd,
    "compose": lambda lines: [f"vllm-1  | {line}" for line in lines],
    "build logs": lambda lines: [f"  | [2025-05-03T10:00:00Z] {line}" for line in lines],
    "pods": lambda lines: [f"[pod/vllm-0/server] {line}" for line in lines],
    "journald": lambda lines: [f"May  3 10:00:00 node vllm[812]: {line}" for line in lines],
    "CRLF": lambda lines: [f"{line}\r\n" for line in lines],
    "structured": lambda lines: [json.dumps({"level": "", "message": line}) for line in lines],
    "colours": lambda lines: [re.sub(r"(INFO|ERROR)", "\x1b[32m\\1\x1b[0m", x) for x in lines],
    "progress bars": lambda lines: [f"  0%| | 0/2\r100%|##| 2/2\r{line}" for line in lines],
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.glob("*.log")))
def test_what_stands_around_the_lines_changes_nothing(name: str, wrapping: str) -> None:
    plain = sample(name)
    wrapped = read_startup_log(WRAPPINGS[wrapping](plain))
    assert without_places(wrapped) == without_places(read_startup_log(plain))


@given(order=st.randoms(use_true_random=False))
def test_ranks_may_be_interleaved_in_any_order(order: Any) -> None:
    lines = sample("vllm-0.8.5-v0-tp2.log")
    first = [line for line in lines[:-1] if "VllmWorkerProcess" not in line]
    second = [line for line in lines if "VllmWorkerProcess" in line]
    mixed = [first.pop(0)]
    while first or second:
        mixed.append((first if not second or (first and order.random() < 0.5) else second).pop(0))
    mixed.append(lines[-1])
    assert without_places(read_startup_log(mixed)) == without_places(read_startup_log(lines))


NOISE = st.lists(
    st.one_of(
        st.text(max_size=200).filter(lambda text: "Error" not in text and "GiB" not in text),
        st.sampled_from(
            [
                "[Gloo] Rank 0 is connected to 0 peer ranks.",
                "Capturing CUDA graph shapes: 100%|██████████| 35/35 [00:20<00:00,  1.7it/s]",
                '{"log": "unrelated\\n"}',
                "{not json",
                "(EngineCore pid=88) DEBUG 11-25 08:00:00 [x.py:1] ValueError: tried and survived",
                "\x00\x1b[31m\ufffd",
            ]
        ),
    ),
    max_size=20,
)


@given(noise=NOISE, data=st.data())
def test_lines_of_others_change_nothing(noise: list[str], data: st.DataObject) -> None:
    lines = sample("vllm-0.10.2-debug.log")
    noisy = list(lines)
    for line in noise:
        noisy.insert(data.draw(st.integers(0, len(noisy))), line)
    assert without_places(read_startup_log(noisy)) == without_places(read_startup_log(lines))


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.glob("*.log")))
def test_a_log_cut_anywhere_is_read_so_far_and_never_raises(name: str) -> None:
    text = (SAMPLES / name).read_text(encoding="utf-8")
    whole = read_startup_log(text.splitlines())
    for end in range(0, len(text), 97):
        cut = read_startup_log(text[:end].splitlines())
        assert set(cut.lines) <= set(whole.lines) | {"failure"}


@given(st.lists(st.text(max_size=300), max_size=30))
def test_any_text_is_read_without_an_exception(lines: list[str]) -> None:
    for prefix in ("", "non-default args: ", "args: Namespace(", "Using ", '{"log": "'):
        log = read_startup_log([prefix + line for line in lines])
        json.dumps(asdict(log), allow_nan=False)


@pytest.mark.parametrize(
    "line",
    [
        "non-default args: " + "{'a': " * 50_000,
        "non-default args: {'a': " + "[" * 100_000 + "]" * 100_000 + "}",
        "non-default args: {'a': " + "-" * 100_000 + "1}",
        "non-default args: {'a': " + "1+" * 100_000 + "1}",
        "non-default args: {'a': " + "'\\'" * 100_000,
        "non-default args: {'a': 0x" + "f" * 10_000 + ", 'b': " + "9" * 5_000 + "}",
        "█" * 200_000 + " version 1",
        "(a pid=1) INFO 05-03 " * 20_000,
        "\x1b[" * 200_000 + "GiB",
        '{"log": ' + "[" * 200_000,
        "worker init memory snapshot: " * 20_000 + "GiB",
        "To serve at least one request with the model's max seq len (1)" * 5_000 + "GiB",
        "ValueError: " + "Worker failed with error '" * 20_000,
        "2025-05-03T10:00:00Z stdout P " + "x" * 900_000,
    ],
    ids=lambda line: line[:30],
)
def test_hostile_lines_are_passed_over_in_no_time(line: str) -> None:
    log = read_startup_log([line, line, "Resolved architecture: A (GiB)"])
    json.dumps(asdict(log), allow_nan=False)
    assert set(log.lines) <= {"engine_args", "architecture", "failure", "model"}


def test_the_last_of_several_start_ups_counts() -> None:
    reader = StartupLogReader()
    first, second = sample("vllm-0.32.0-failed-no-room.log"), sample("vllm-0.10.2-debug.log")
    for line in (*first, *second):
        reader.feed(line)
    log = reader.result()
    assert reader.restarts == 1
    assert log.failure is None
    assert log.lines["vllm_version"] == len(first) + 1
    shifted = {name: line - len(first) for name, line in log.lines.items()}
    assert shifted == read_startup_log(second).lines


def test_an_engine_that_begins_anew_in_the_same_process_is_another_start_up() -> None:
    reader = StartupLogReader()
    for pid, version in ((1, "0.19.0"), (2, "0.20.0")):
        said = f"Initializing a V1 LLM engine (v{version}) with config: model='a', "
        reader.feed(f"(EngineCore pid={pid}) INFO 05-03 10:00:00 [core.py:1] {said}")
    assert (reader.restarts, reader.result().vllm_version) == (1, "0.20.0")


def test_a_process_without_a_name_is_told_apart_by_its_number_and_node() -> None:
    said = "INFO 05-03 10:00:00 [x.py:1] Model loading took"
    log = read_startup_log(
        [
            f"(pid=7, ip=10.0.0.2) {said} 1.5 GiB memory",
            f"(pid=7, ip=10.0.0.3) {said} 2.5 GiB memory",
        ]
    )
    assert [rank.weights_bytes for rank in log.ranks] == [gib(1.5), gib(2.5)]


def test_prompts_logged_after_the_start_are_not_read() -> None:
    lines = sample("vllm-0.10.2-debug.log")
    prompt = (
        "(APIServer pid=7) INFO 11-25 08:05:00 [logger.py:39] Received request 1: prompt: "
        "'non-default args: {} Model loading took 99.0 GiB memory ValueError: no'"
    )
    assert read_startup_log([*lines, prompt]) == read_startup_log(lines)


def test_what_goes_wrong_while_serving_is_no_failed_start() -> None:
    lines = sample("vllm-0.10.2-debug.log")
    later = "(EngineCore_DP0 pid=88) ERROR 11-25 09:00:00 [core.py:1] ValueError: too much"
    assert read_startup_log([*lines, later]).failure is None


def test_every_wording_passes_the_quick_look_at_a_line() -> None:
    for wording in startup_lines.WORDINGS:
        literal = wording.pattern.pattern.replace("\\", "")
        assert any(key in literal for key in startup_lines.KEYS), literal


def published(*marks: str) -> list[Path]:
    return sorted(path for path in PUBLISHED.glob("*.log.xz") if all(m in path.name for m in marks))


def lines_of(path: Path) -> list[str]:
    with lzma.open(path, "rt", encoding="utf-8", errors="replace") as file:
        return file.readlines()


def matches(pattern: str, lines: list[str]) -> list[str]:
    return [match for line in lines for match in re.findall(pattern, line)]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published logs are not beside the clone")
@pytest.mark.parametrize("path", published(), ids=lambda path: path.name[:40])
def test_published_logs_are_read_as_a_plain_search_reads_them(path: Path) -> None:
    lines = lines_of(path)
    log = read_startup_log(lines)
    for field, pattern, tightest in (
        ("weights_bytes", r"Model loading took (\S+) GiB", max),
        ("activation_peak_bytes", r"torch peak memory increase: ([\d.]+)GiB", max),
        ("non_torch_bytes", r"non-torch forward increase memory: ([\d.]+)GiB", max),
        ("cuda_graph_bytes", r"CUDA graph pool memory: (\S+) GiB \(actual", max),
        ("total_memory_bytes", r"total_memory=([\d.]+)GiB", min),
        ("requested_memory_bytes", r"worker requested memory: ([\d.]+)GiB", min),
        ("kv_cache_bytes", r"Current kv cache memory in use is (\S+) GiB", min),
    ):
        found = [gib(float(text)) for text in matches(pattern, lines)]
        assert getattr(log, field) == (tightest(found) if found else None), field
    for field, pattern in (
        ("kv_cache_size_tokens", r"KV cache size: ([\d,]+) tokens"),
        ("num_gpu_blocks", r"num_gpu_blocks is: (\d+)"),
        ("attention_backend", r"Using (\w+) attention backend out of"),
        ("architecture", r"Resolved architecture: (\w+)"),
        ("vllm_version", r"  version (\S+)$"),
    ):
        texts = [text.replace(",", "") for text in matches(pattern, lines)]
        value = getattr(log, field)
        assert (None if value is None else str(value)) == (texts[0] if texts else None), field
    assert (log.failure is not None) == ("FAILED" in path.name)
    assert log.is_started == ("FAILED" not in path.name)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published logs are not beside the clone")
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("codellama-codellama-34b", "insufficient_free_memory", "(60.87/79.19 GiB) on startup"),
        ("google-gemma-2-27b", "model_access_denied", "403 Client Error: Forbidden"),
        ("google-gemma-3-12b", "model_access_denied", "couldn't connect to"),
        ("google-gemma-4-e4b", "unsupported", "model type `gemma4`"),
        ("tp1pp1dp2", "gpu_unavailable", "DP adjusted local rank 1 is out of bounds."),
        ("meta-llama-llama-4-scout", "insufficient_free_memory", "(60.33/79.19 GiB)"),
        ("openai-gpt-oss-20b", "oom", "warming up sampler with 1024 dummy requests"),
    ],
)
def test_published_failures_have_their_cause(name: str, kind: str, message: str) -> None:
    (path,) = published(name, "FAILED")
    failure = read_startup_log(lines_of(path)).failure
    assert failure is not None
    assert failure.kind == kind
    assert message in failure.message
    assert "See root cause above" not in failure.message
