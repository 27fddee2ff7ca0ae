"""What we export is what vLLM prints, and what we predict is what it makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness import (
    Samples,
    Server,
    exporter,
    prometheus,
    wait_until,
)
from real_vllm import LoggedCapacity, TinyLlama, vllm_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.real


# ---- a pool whose size was given ----


@pytest.fixture(scope="module")
def printed(vllm: Server) -> LoggedCapacity:
    return LoggedCapacity.read(vllm.log)


def once_predicted(watcher: Server) -> Samples:
    """The exporter's page, as soon as it has read the model's config.json and ``/v1/models``."""

    def page() -> Samples:
        samples = watcher.samples()
        samples.one("vllm_capacity_predicted_kv_cache_blocks")
        told = samples.all("vllm_capacity_max_model_len_tokens")
        if not told or any(labels["source"] == "predicted" for labels, _ in told):
            raise LookupError("vLLM has not said yet how long its requests may be")
        return samples

    found: Samples = wait_until(page, seconds=20, what="a prediction")
    return found


@pytest.fixture(scope="module")
def exported(watcher: Server) -> Samples:
    return once_predicted(watcher)


def test_exported_capacity_in_tokens_equals_the_log(
    printed: LoggedCapacity, exported: Samples
) -> None:
    found = exported.one("vllm_capacity_kv_cache_capacity_tokens", source="reported")
    assert found == printed.tokens


def test_exported_full_length_concurrency_equals_the_log(
    printed: LoggedCapacity, exported: Samples
) -> None:
    found = exported.one("vllm_capacity_full_length_concurrency", source="reported")
    assert f"{found:.2f}" == f"{printed.concurrency:.2f}"


def test_exported_capacity_in_bytes_is_that_of_the_tiny_model(exported: Samples) -> None:
    # 8 layers, keys and values, 4 heads of 64 numbers of two bytes: 8,192 bytes per token.
    found = exported.one("vllm_capacity_kv_cache_capacity_bytes", source="derived")
    assert found == 400 * 32 * 8_192


def test_exported_blocks_are_those_of_the_override_without_the_null_block(
    exported: Samples,
) -> None:
    assert exported.one("vllm_capacity_kv_cache_blocks") == 399
    assert exported.one("vllm_capacity_kv_cache_block_size_tokens") == 32


def test_the_exported_limits_are_those_of_the_server(
    printed: LoggedCapacity, exported: Samples
) -> None:
    lengths = {value for _, value in exported.all("vllm_capacity_max_model_len_tokens")}
    assert lengths == {printed.max_model_len_tokens}
    assert {value for _, value in exported.all("vllm_capacity_max_sequences")} == {12}


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ("vllm_capacity_predicted_kv_cache_blocks", 399),
        ("vllm_capacity_predicted_kv_cache_capacity_tokens", 12_800),
        ("vllm_capacity_predicted_full_length_concurrency", 6.25),
    ],
)
def test_predicted_capacity_of_an_overridden_pool_equals_the_log(
    exported: Samples, predicted: str, expected: float
) -> None:
    assert exported.one(predicted) == expected


# ---- a pool that vLLM sized itself, from VLLM_CPU_KVCACHE_SPACE alone ----


@pytest.fixture(scope="module")
def unforced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Another shape, multi-query attention, with vLLM's own block size and number of blocks."""
    model = TinyLlama(layers=5, hidden=256, heads=4, kv_heads=1)
    folder = model.write(tmp_path_factory.mktemp("tiny-mqa"))
    with vllm_server(folder, tmp_path_factory.mktemp("unforced"), name="unforced") as server:
        yield server


@pytest.fixture(scope="module")
def unforced_watcher(
    unforced: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Told nothing but the address: config.json is found by the root that /v1/models names."""
    folder = tmp_path_factory.mktemp("unforced-watcher")
    with exporter(folder, "--target", unforced.url, "--scrape-interval", "1s") as server:
        yield server


def test_predicted_blocks_equal_those_that_vllm_made_from_its_memory(
    unforced: Server, unforced_watcher: Server
) -> None:
    (labels, _), *_ = unforced.samples().all("vllm:cache_config_info")
    assert labels["num_gpu_blocks_override"] == "None"
    exported = once_predicted(unforced_watcher)
    predicted = exported.one("vllm_capacity_predicted_kv_cache_blocks")
    assert predicted == int(labels["num_gpu_blocks"]) - 1
    assert predicted == exported.one("vllm_capacity_kv_cache_blocks")


def test_predicted_tokens_and_concurrency_equal_what_vllm_prints(
    unforced: Server, unforced_watcher: Server
) -> None:
    printed = LoggedCapacity.read(unforced.log)
    exported = once_predicted(unforced_watcher)
    tokens = exported.one("vllm_capacity_predicted_kv_cache_capacity_tokens")
    concurrency = exported.one("vllm_capacity_predicted_full_length_concurrency")
    assert tokens == printed.tokens
    assert f"{concurrency:.2f}" == f"{printed.concurrency:.2f}"


@pytest.mark.parametrize(
    "quantity", ["kv_cache_blocks", "kv_cache_tokens", "full_length_concurrency"]
)
def test_the_exported_error_of_an_exact_prediction_is_zero(
    unforced_watcher: Server, quantity: str
) -> None:
    exported = once_predicted(unforced_watcher)
    error = exported.one("vllm_capacity_prediction_error_ratio", quantity=quantity)
    assert error == pytest.approx(0, abs=1e-9)


# The last test of this file: it kills the server of those above.
def test_when_vllm_is_killed_its_series_disappear_and_the_alert_fires(
    unforced: Server, unforced_watcher: Server, alert_rules: list[Path], tmp_path: Path
) -> None:
    engine_series = "vllm_capacity_kv_cache_used_blocks"
    jobs = {"vllm-capacity": unforced_watcher.url}
    with prometheus(tmp_path, jobs, rules=alert_rules) as server:
        wait_until(lambda: server.query(engine_series), seconds=30, what="the engine's series")
        assert "VLLMCapacityTargetDown" not in {a["alertname"] for a in server.firing()}

        unforced.process.kill()
        firing = wait_until(
            lambda: [a for a in server.firing() if a["alertname"] == "VLLMCapacityTargetDown"],
            seconds=60,
            what="VLLMCapacityTargetDown",
        )

        assert firing
        exported = unforced_watcher.samples()
        assert engine_series not in exported.names()
        assert exported.one("vllm_capacity_source_up", source="vllm") == 0
        assert server.query(engine_series) == []
        assert unforced_watcher.process.poll() is None
