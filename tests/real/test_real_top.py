"""``top`` before a real vLLM, and before a daemon that watches it: the numbers of ``/metrics``."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from harness import Samples, Server, program, wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.real

PREFIX = "vllm_capacity_"
#: What moves from one moment to the next even while no request is there.
MOVING = ("per_second", "peak_ratio", "preempted", "cached_prompt")


def top(*words: str | Path) -> str:
    """What `vllm-capacity top --once` prints."""
    command = [str(word) for word in (program(), "top", "--once", *words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def asked(vllm: Server) -> None:
    """Three requests, so that there is something to count."""
    for length in (40, 80, 120):
        body = {"model": "tiny-llama", "prompt": [7] * length, "max_tokens": 16, "ignore_eos": True}
        httpx.post(f"{vllm.url}/v1/completions", json=body, timeout=60).raise_for_status()


def idle(watcher: Server) -> Samples:
    """The daemon's page once it has seen an engine that is empty and has counted everything."""
    now = time.time()

    def page() -> Samples | None:
        samples = watcher.samples()
        samples.one(f"{PREFIX}predicted_kv_cache_blocks")
        is_idle = samples.one(f"{PREFIX}state", state="idle") == 1
        seen = samples.one(f"{PREFIX}last_success_timestamp_seconds", source="vllm")
        return samples if is_idle and seen > now + 0.5 else None

    found: Samples = wait_until(page, seconds=20, what="an idle engine")
    return found


def flat(name: str, value: Any) -> dict[tuple[str, ...], float]:
    """Numbers by metric and label values, as a document nests them."""
    if isinstance(value, dict):
        found = {}
        for label, inner in value.items():
            found |= {(name, label, *more): n for (_, *more), n in flat(name, inner).items()}
        return found
    return (
        {(name,): float("inf") if value == "+Inf" else float(value)} if not _is_word(value) else {}
    )


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value != "+Inf"


def exported(samples: Samples) -> dict[tuple[str, ...], float]:
    """The same off the page."""
    of_engine = ("model_name", "engine")
    return {
        (name.removeprefix(PREFIX), *(v for k, v in labels.items() if k not in of_engine)): value
        for name, labels, value in samples.rows
        if name.startswith(PREFIX) and "engine" in labels
    }


def compared(document: dict[str, Any], page: Samples) -> int:
    """Compare every number of the engine with the page's; returns how many there were."""
    (target,) = document["targets"]
    (engine,) = target["engines"]
    shown: dict[tuple[str, ...], float] = {}
    for name, value in engine["values"].items():
        if not any(word in name for word in MOVING):
            shown |= flat(name, value)
    on_page = {(key[0], *sorted(key[1:])): n for key, n in exported(page).items()}
    shown = {(key[0], *sorted(key[1:])): n for key, n in shown.items()}
    assert {key: on_page.get(key) for key in shown} == shown
    return len(shown)


@pytest.fixture(scope="module")
def page(vllm: Server, watcher: Server) -> Samples:
    asked(vllm)
    return idle(watcher)


def test_what_a_daemon_says_is_what_its_page_says(watcher: Server, page: Samples) -> None:
    document = json.loads(top("--json", watcher.url))
    assert compared(document, page) > 40


def test_watched_straight_the_engine_has_the_same_numbers(
    vllm: Server, page: Samples, model: Path
) -> None:
    config = ("--model-config", model / "config.json", "--max-num-seqs", "12")
    document = json.loads(top("--json", vllm.url, *config))
    (target,) = document["targets"]
    (engine,) = target["engines"]
    assert engine["state"] == "idle"
    on_page = exported(page)
    for name in (
        "kv_cache_blocks",
        "kv_cache_used_blocks",
        "kv_cache_usage_ratio",
        "predicted_kv_cache_used_blocks",
        "predicted_kv_cache_blocks",
        "predicted_kv_cache_capacity_tokens",
    ):
        assert engine["values"][name] == on_page[name,]
    for basis, room in engine["values"]["headroom_requests"].items():
        assert room == on_page["headroom_requests", basis]


def test_the_screen_of_both_says_the_same_of_the_engine(
    vllm: Server, watcher: Server, page: Samples, model: Path
) -> None:
    config = ("--model-config", model / "config.json", "--max-num-seqs", "12")
    of_daemon, of_vllm = top(watcher.url), top(vllm.url, *config)
    blocks = int(page.one(f"{PREFIX}kv_cache_blocks"))
    for screen in (of_daemon, of_vllm):
        assert f"of {blocks} blocks" in screen
        assert "tiny-llama" in screen
        assert "\x1b" not in screen

    def headline(screen: str) -> str:
        return next(line for line in screen.splitlines() if line.startswith("Idle: room for"))

    assert headline(of_daemon) == headline(of_vllm)
