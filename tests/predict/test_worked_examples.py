"""The worked examples of the documents that the project grew out of, their slips corrected."""

from typing import ClassVar

import pytest
from recorded import LLAMA_8B, QWEN3_1_7B, QWEN3_14B_FP8, deployment

from vllm_capacity.predict import Gpu, Prediction, gpu_named, predict
from vllm_capacity.units import GIB, KIB, Bytes

#: "32 GB" of the hosting guide, read as makers of GPUs print it.
GPU_32_GB = Gpu(name="", compute_capability=None, total_memory_bytes=Bytes(32 * 10**9))


def _bytes_per_token(prediction: Prediction) -> int:
    assert prediction.bytes_per_token is not None
    return prediction.bytes_per_token[0]


class TestQwen3_14BFp8HostingGuide:  # noqa: N801 (the model's name)
    """It reckons 15.77 GB of weights and overhead and 5.21 requests of 32,768 tokens."""

    ARGS: ClassVar = {
        "gpu_memory_utilization": 0.9,
        "kv_cache_dtype": "fp8",
        "max_model_len": 32768,
        "max_num_seqs": 256,
    }

    def test_a_token_takes_81920_bytes_as_the_guide_says(self) -> None:
        prediction = predict(deployment(QWEN3_14B_FP8, gpu=GPU_32_GB, **self.ARGS))
        assert _bytes_per_token(prediction) == 81_920
        # 2.5 of the guide's "GB" a request are GiB.
        assert 2.5 * GIB == 32768 * 81_920

    def test_weights_are_heavier_because_embeddings_are_not_quantised(self) -> None:
        prediction = predict(deployment(QWEN3_14B_FP8, gpu=GPU_32_GB, **self.ARGS))
        assert prediction.weights_bytes is not None
        weights = prediction.weights_bytes[0]
        # The guide takes one byte for each of 14.77 billion parameters, hence 14.77 GB.
        assert weights / GIB == pytest.approx(15.20, abs=0.02)
        assert weights > 14.77e9

    @pytest.mark.parametrize(("flashinfer", "concurrency"), [("1", 4.3), ("0", 4.0)])
    def test_between_4_0_and_4_3_requests_fit_not_5_2(
        self, flashinfer: str, concurrency: float
    ) -> None:
        prediction = predict(
            deployment(
                QWEN3_14B_FP8,
                gpu=GPU_32_GB,
                version="0.11.0",
                env={"VLLM_USE_FLASHINFER_SAMPLER": flashinfer},
                **self.ARGS,
            )
        )
        # The guide mixes GB with GiB and sets one gigabyte aside for all that is not weights.
        assert prediction.plans[0].max_concurrency == pytest.approx(concurrency, abs=0.1)


class TestQwen3_1_7BMemoryNotes:  # noqa: N801 (the model's name)
    """They multiply by the hidden size: 0.4375 MiB a token, 7 GiB for 8 × 2048 tokens."""

    def test_grouped_query_attention_and_16_bits_make_it_a_quarter(self) -> None:
        per_token = _bytes_per_token(predict(deployment(QWEN3_1_7B)))
        assert per_token == 112 * KIB
        assert 8 * 2048 * per_token == 1.75 * GIB
        hidden_size, layers, float32 = 2048, 28, 4
        notes = 2 * float32 * layers * hidden_size
        assert notes == 0.4375 * KIB * KIB
        # Twice for 4 bytes, twice for 16 heads where 8 keep keys and values.
        assert notes == 4 * per_token

    def test_eight_requests_hold_their_tokens_in_whole_blocks(self) -> None:
        plan = predict(deployment(QWEN3_1_7B)).plans[0]
        assert 8 * plan.blocks_for_request(2048) * plan.bytes_per_block[0] == 1.75 * GIB
        assert plan.blocks_for_request(2049) == 129


class TestLlamaDeploymentNotes:
    """They keep 64 of 80 GB for the cache: 12 to 13 requests of 32K tokens, 40 of 8K."""

    def _predicted(self, max_model_len: int) -> Prediction:
        return predict(
            deployment(
                LLAMA_8B,
                gpu=gpu_named("A100 80GB"),
                version="0.11.0",
                gpu_memory_utilization=0.9,
                max_model_len=max_model_len,
            )
        )

    def test_a_token_takes_128_kib_as_the_notes_say(self) -> None:
        assert _bytes_per_token(self._predicted(8192)) == 128 * KIB

    def test_less_is_left_than_the_notes_say(self) -> None:
        budget = self._predicted(8192).budget
        assert budget is not None
        assert budget.kv_cache_bytes / GIB == pytest.approx(54.9, abs=0.9)
        assert budget.kv_cache_bytes < 64e9

    @pytest.mark.parametrize(
        ("max_model_len", "requests"),
        # 8192 tokens take 1 GiB; the notes count 512 MB, which is 4096 tokens.
        [(32768, 13.6), (8192, 54.6), (4096, 109.2)],
    )
    def test_requests_that_fit(self, max_model_len: int, requests: float) -> None:
        plan = self._predicted(max_model_len).plans[0]
        assert plan.max_concurrency == pytest.approx(requests, rel=0.02)
