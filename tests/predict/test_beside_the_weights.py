"""LoRA slots, offloaded weights and drafting, as far as they move memory."""

from typing import Any

import pytest
from recorded import LLAMA_8B, MOE, deployment

from vllm_capacity.predict import MemoryBudget, predict
from vllm_capacity.units import GIB


def _budget(config: dict[str, Any], **engine_args: Any) -> MemoryBudget:
    budget = predict(deployment(config, max_model_len=8192, **engine_args)).budget
    assert budget is not None
    return budget


def test_lora_slots_of_every_linear_layer_are_counted() -> None:
    plain = _budget(LLAMA_8B)
    slots = _budget(LLAMA_8B, enable_lora=True, max_loras=2, max_lora_rank=16)
    layer = 3 * 4096 + (4096 + 2 * 1024)  # q, k, v
    layer += 4096 + 4096  # o
    layer += 2 * 4096 + 2 * 14336  # gate, up
    layer += 14336 + 4096  # down
    vocabulary = 2 * (128256 + 4096)
    expected = 2 * 2 * 16 * (32 * layer + vocabulary)
    assert slots.weights_bytes - plain.weights_bytes == expected
    assert "2 LoRA slots of rank 16" in slots.origins["weights"]


def test_slots_of_experts_are_counted_for_every_expert() -> None:
    gained = _budget(MOE, enable_lora=True).weights_bytes - _budget(MOE).weights_bytes
    experts = 48 * 128 * 3 * (2048 + 768) * 16 * 2
    assert gained > experts


def test_fully_sharded_slots_are_smaller() -> None:
    halves = [
        _budget(LLAMA_8B, enable_lora=True, tensor_parallel_size=2, fully_sharded_loras=sharded)
        for sharded in (False, True)
    ]
    assert halves[1].weights_bytes < halves[0].weights_bytes


def test_offloaded_weights_leave_the_gpu_but_not_the_model() -> None:
    plain, offloaded = _budget(LLAMA_8B), _budget(LLAMA_8B, cpu_offload_gb=4)
    assert plain.weights_bytes - offloaded.weights_bytes == 4 * GIB
    assert offloaded.kv_cache_bytes - plain.kv_cache_bytes == 4 * GIB
    whole = predict(deployment(LLAMA_8B, cpu_offload_gb=4)).weights_bytes
    assert whole == predict(deployment(LLAMA_8B)).weights_bytes


def test_no_more_is_offloaded_than_there_is() -> None:
    assert _budget(LLAMA_8B, cpu_offload_gb=1000).weights_bytes >= 0


@pytest.mark.parametrize(("method", "in_flight"), [("ngram", 8192), ("ngram_gpu", 16384)])
def test_drafting_without_a_model_may_forbid_overlapping_steps(method: str, in_flight: int) -> None:
    spoken = {"method": method, "num_speculative_tokens": 4}
    resolved = predict(deployment(LLAMA_8B, speculative_config=spoken)).resolved
    assert resolved is not None
    assert resolved.max_in_flight_tokens == in_flight


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"method": "ngram"}, "num_speculative_tokens"),
        ({"num_speculative_tokens": 2}, "method"),
        ({"method": "eagle", "model": "some/draft", "num_speculative_tokens": 2}, "config.json"),
        ({"method": 3, "num_speculative_tokens": 2}, "method"),
    ],
)
def test_drafting_that_cannot_be_told_is_refused(config: dict[str, Any], word: str) -> None:
    prediction = predict(deployment(LLAMA_8B, speculative_config=config))
    assert not prediction.supported
    assert word in (prediction.reason or "")
