"""``check``: one look at a server, and an exit status for scripts."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vllm_capacity.cli import main

PAGE = (Path(__file__).parent.parent / "data" / "vllm-0.32-metrics.txt").read_text()


@contextmanager
def vllm(metrics: str, **pages: object) -> Iterator[str]:
    answers = {f"/{name.replace('__', '/')}": json.dumps(page) for name, page in pages.items()}
    answers["/metrics"] = metrics

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write((body or "").encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def without(page: str, *names: str) -> str:
    return "".join(
        line
        for line in page.splitlines(keepends=True)
        if not any(name in line.split("{")[0] for name in names)
    )


def test_a_server_with_everything_is_told_in_numbers_and_gives_0(
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = {"data": [{"id": "m", "root": "/nowhere", "max_model_len": 2048}]}
    with vllm(PAGE, version={"version": "0.32.0"}, v1__models=models) as url:
        assert main(["check", url]) == 0
    said = capsys.readouterr().out
    assert "vLLM 0.32.0" in said
    assert "model m, max_model_len 2048" in said
    assert "KV cache 4 % used" in said
    assert re.search(r"Blocks used / predicted / total +13 / \w+ / 349", said)
    assert "not comparable (no_config)" in said
    assert "nothing is missing" in said


def test_a_missing_detail_is_named_with_its_cost_and_gives_0(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with vllm(without(PAGE, "prompt_tokens_cached", "num_preemptions")) as url:
        assert main(["check", url]) == 0
    said = capsys.readouterr().out
    assert "vllm:num_preemptions_total" in said
    assert "no share of preempted requests" in said


def test_a_missing_essential_gives_3(capsys: pytest.CaptureFixture[str]) -> None:
    with vllm(without(PAGE, "kv_cache_usage_perc")) as url:
        assert main(["check", url]) == 3
    assert "essential: no used or free blocks" in capsys.readouterr().out


@pytest.mark.parametrize(
    "page", ["<html></html>\n", "process_start_time_seconds 1\n", PAGE[:1000], ""]
)
def test_a_page_that_is_none_of_vllms_gives_1_and_one_line(
    page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with vllm(page) as url:
        assert main(["check", url]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_server_that_is_not_there_gives_1_and_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["check", "http://127.0.0.1:1"]) == 1
    error = capsys.readouterr().err
    assert "cannot connect" in error
    assert len(error.splitlines()) == 1


def test_the_simulated_engine_is_comparable(capsys: pytest.CaptureFixture[str]) -> None:
    from vllm_capacity.simulate import (
        SIMULATED_ENGINE_ARGS,
        SimulatedServer,
        SimulationConfig,
        Workload,
    )

    memory = SIMULATED_ENGINE_ARGS["kv_cache_memory_bytes"]

    async def look() -> int:
        server = SimulatedServer(SimulationConfig(), Workload())
        url = await server.start()
        try:
            arguments = ["check", url, "--kv-cache-memory-bytes", str(memory), "--block-size", "16"]
            return await asyncio.to_thread(main, arguments)
        finally:
            await server.stop()

    assert asyncio.run(look()) == 0
    assert "prediction: comparable (ok)" in capsys.readouterr().out
