"""One vLLM for the session, and what stands around it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# pytest's importlib mode adds no folder to the path; the harness lies beside the tests that use it.
sys.path.insert(0, str(Path(__file__).parent))

from harness import (
    REPOSITORY,
    Prometheus,
    Server,
    exporter,
    prometheus,
)
from real_vllm import TinyLlama, vllm_server

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_SIZE = 32
POOL_BLOCKS = 400
MAX_NUM_SEQS = 12
MAX_MODEL_LEN = 2048


@pytest.fixture(scope="session")
def alert_rules() -> list[Path]:
    """The rule files that the project ships."""
    return sorted((REPOSITORY / "alerts").glob("*.rules.yml"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyLlama().write(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def vllm(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A genuine vLLM with a pool of 400 blocks of 32 tokens that runs 12 requests at once."""
    flags = {
        "--served-model-name": "tiny-llama",
        "--block-size": BLOCK_SIZE,
        "--num-gpu-blocks-override": POOL_BLOCKS,
        "--max-num-seqs": MAX_NUM_SEQS,
        "--max-model-len": MAX_MODEL_LEN,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    with vllm_server(model, tmp_path_factory.mktemp("vllm"), *words) as server:
        yield server


@pytest.fixture(scope="session")
def watcher(
    vllm: Server, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Our daemon, looking at that vLLM once a second and told what an operator would tell it."""
    flags = {
        "--target": vllm.url,
        "--model-config": model / "config.json",
        "--max-num-seqs": MAX_NUM_SEQS,
        "--scrape-interval": "1s",
    }
    words = [str(word) for pair in flags.items() for word in pair]
    with exporter(tmp_path_factory.mktemp("watcher"), *words) as server:
        yield server


@pytest.fixture(scope="session")
def prometheus_server(
    vllm: Server,
    watcher: Server,
    alert_rules: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prometheus]:
    """A genuine Prometheus that scrapes both, with the project's rules."""
    targets = {"vllm": vllm.url, "vllm-capacity": watcher.url}
    folder = tmp_path_factory.mktemp("prometheus")
    with prometheus(folder, targets, rules=alert_rules) as server:
        yield server


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """Where measurements are left for the reader: build/real, which git ignores."""
    folder = REPOSITORY / "build" / "real"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
