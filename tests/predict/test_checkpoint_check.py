"""A checkpoint of another size than its config.json describes is told."""

import pytest
from recorded import LLAMA_8B, QWEN3_1_7B, deployment

from vllm_capacity.predict.memory.checkpoint_check import checkpoint_mismatch


@pytest.mark.parametrize(
    ("config", "checkpoint_bytes"),
    [
        (LLAMA_8B, 16_060_522_496),
        # The published file holds the tied head a second time.
        (QWEN3_1_7B, 4_063_515_640),
    ],
)
def test_a_published_checkpoint_fits_its_description(
    config: dict[str, object], checkpoint_bytes: int
) -> None:
    asked = deployment(config, tensor_parallel_size=2)
    assert checkpoint_mismatch(asked, checkpoint_bytes) is None


def test_a_quantisation_that_no_file_declares_is_told_by_the_size() -> None:
    mismatch = checkpoint_mismatch(deployment(LLAMA_8B), 9_081_297_408)
    assert mismatch is not None
    assert "14.99 GiB" in mismatch
    assert "8.46 GiB" in mismatch


def test_what_cannot_be_predicted_cannot_be_compared() -> None:
    assert checkpoint_mismatch(deployment(LLAMA_8B, some_new_argument=1), 1) is None
