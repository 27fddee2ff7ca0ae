"""The daemon, a followed start-up log and a driver that shows the memory which the log tells of."""

import lzma
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllm_capacity.settings import SETTINGS
from vllm_capacity.units import GIB, MIB

PAGE = (Path(__file__).parent / "data" / "vllm-0.32-metrics.txt").read_bytes()
PUBLISHED = Path(__file__).parents[1].parent / "shared" / "logs"
TOTAL, RESERVED = 81_559 * MIB, 474 * MIB

pytestmark = [
    pytest.mark.skipif(
        not PUBLISHED.is_dir(), reason="the published logs are not beside the clone"
    ),
    pytest.mark.skipif(
        "exclusive-gpus" not in {setting.name for setting in SETTINGS},
        reason="whose GPUs are cannot be said yet",
    ),
]

Sample = tuple[str, Mapping[str, str], float]
PRINTED = {
    "weights": r"Actual usage is ([\d.]+) GiB for weight",
    "activation_peak": r"([\d.]+) GiB for peak activation",
    "non_torch": r"([\d.]+) GiB for non-torch memory",
    "cuda_graph": r"([\d.]+) GiB for CUDAGraph memory",
    "kv_cache": r"Current kv cache memory in use is ([\d.]+) GiB",
}


def log_named(mark: str) -> str:
    (path,) = [p for p in PUBLISHED.glob(f"*{mark}*") if "FAILED" not in p.name]
    return lzma.decompress(path.read_bytes()).decode(errors="replace")


def terms_of(log: str) -> list[dict[str, float]]:
    """Of each rank what the log prints, and the context that stood before."""
    columns = {name: re.findall(pattern, log) for name, pattern in PRINTED.items()}
    free = re.findall(r"Free memory on device \(([\d.]+)/79.19", log)
    ranks = zip(*columns.values(), free, strict=True)
    return [
        {
            **dict(zip(columns, map(float, values), strict=False)),
            "context": 79.19 - float(values[-1]),
        }
        for values in ranks
    ]


def gpu_script(number: int, terms: Mapping[str, float], kept: float) -> str:
    """A GPU that holds what the log tells, and of the activation peak the share ``kept``."""
    held = sum(size * (kept if name == "activation_peak" else 1) for name, size in terms.items())
    used = round(held * GIB)
    memory = f"  memory {TOTAL} {RESERVED} {TOTAL - RESERVED - used} {used}\n"
    return (
        f"gpu GPU-{number} NVIDIA H100 80GB HBM3\n{memory}  capability 9 0\n"
        f"  process {900_000 + number} -\n"
    )


@contextmanager
def engine() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(PAGE)))
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()


class Exporter:
    """The daemon as a process, over the stand-in for the driver."""

    def __init__(self, library: Path, script: Path, *arguments: str) -> None:
        said = script.with_suffix(".log")
        with said.open("w") as stderr:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "vllm_capacity.cli", "serve"),
                    *("--scrape-interval", "0.2s", "--web.listen-address", "127.0.0.1:0"),
                    *arguments,
                ],
                stderr=stderr,
                env={
                    **{k: v for k, v in os.environ.items() if not k.startswith("VLLM_CAPACITY_")},
                    "LD_LIBRARY_PATH": str(library.parent),
                    "NVML_STUB": str(script),
                },
            )
        self.wait_for(lambda: "serving" in said.read_text())
        (self.url,) = re.findall(r"http://127\.0\.0\.1:\d+", said.read_text())

    def samples(self) -> list[Sample]:
        text = httpx.get(f"{self.url}/metrics", timeout=5.0, trust_env=False).text
        return [
            (sample.name.removeprefix("vllm_capacity_"), sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def components(self, source: str, gpu: int) -> dict[str, int]:
        where = {"gpu": str(gpu), "source": source}
        return {
            labels["component"]: int(value)
            for name, labels, value in self.samples()
            if name == "gpu_memory_component_bytes" and where.items() <= labels.items()
        }

    def used(self, gpu: int) -> int:
        return next(
            int(value)
            for name, labels, value in self.samples()
            if name == "gpu_memory_used_bytes" and labels["gpu"] == str(gpu)
        )

    def wait_for(self, what: Callable[[], bool], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None
            assert time.monotonic() < end, "did not come true"
            time.sleep(0.1)


@contextmanager
def exporter(library: Path, script: Path, *arguments: str) -> Iterator[Exporter]:
    running = Exporter(library, script, *arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def replace_text(path: Path, text: str) -> None:
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.rename(path)


@pytest.mark.parametrize("mark", ["google-gemma-3-4b", "5-7b-instruct--h100-80gb--tp2", "pp2"])
def test_a_followed_log_accounts_for_what_the_driver_shows(
    mark: str, built_nvml_stub: Callable[..., Path], tmp_path: Path
) -> None:
    log, script, followed = log_named(mark), tmp_path / "driver", tmp_path / "vllm.log"
    ranks = terms_of(log)
    if mark == "pp2":  # the last stage prints first
        ranks.reverse()
    replace_text(script, "".join(gpu_script(i, one, 0.0) for i, one in enumerate(ranks)))
    with (
        engine() as url,
        exporter(
            built_nvml_stub(),
            script,
            *("--target", url, "--vllm-log", str(followed), "--exclusive-gpus"),
            *("--gpu-devices", ",".join(map(str, range(len(ranks))))),
        ) as running,
    ):
        lines = log.splitlines(keepends=True)
        with followed.open("w") as file:
            for start in range(0, len(lines), 200):
                file.writelines(lines[start : start + 200])
                file.flush()
                time.sleep(0.01)
        last = len(ranks) - 1
        running.wait_for(lambda: "cuda_graph" in running.components("reported", last))
        for kept in (0.0, 0.6, 1.0):
            replace_text(script, "".join(gpu_script(i, one, kept) for i, one in enumerate(ranks)))
            held = sum(n * (kept if k == "activation_peak" else 1) for k, n in ranks[0].items())
            running.wait_for(lambda held=held: abs(running.used(0) - held * GIB) < 2)
            for i, terms in enumerate(ranks):
                reported = running.components("reported", i)
                assert {k: round(n / GIB, 2) for k, n in reported.items()} == pytest.approx(terms)
                stack = running.components("nvml", i)
                assert sum(stack.values()) == running.used(i)
                assert abs(stack["unaccounted"]) < 0.001 * TOTAL
                assert stack["other_processes"] == 0


def test_a_restart_with_other_arguments_is_another_account(
    built_nvml_stub: Callable[..., Path], tmp_path: Path
) -> None:
    script, followed = tmp_path / "driver", tmp_path / "vllm.log"
    first, second = log_named("qwen-qwen3-8b"), log_named("codellama-codellama-7b")
    (before,), (after,) = terms_of(first), terms_of(second)
    replace_text(script, gpu_script(0, before, 1.0))
    followed.write_text(first)
    flags = ("--vllm-log", str(followed), "--exclusive-gpus", "--gpu-devices", "0")
    with (
        engine() as url,
        exporter(built_nvml_stub(), script, "--target", url, *flags) as running,
    ):

        def weights(gib: float) -> bool:
            return running.components("nvml", 0).get("weights") == round(gib * GIB)

        running.wait_for(lambda: weights(before["weights"]))
        followed.rename(tmp_path / "vllm.log.1")
        followed.write_text(second)
        replace_text(script, gpu_script(0, after, 1.0))
        running.wait_for(lambda: weights(after["weights"]))
        running.wait_for(lambda: abs(running.components("nvml", 0)["unaccounted"]) < 0.01 * GIB)
