"""Blocks that requests hold by their tokens, as the committed demand asks for them."""

import pytest
from engines import BLOCK_SIZE, engine
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.compare.demand import blocks_held, tabulated


def test_a_request_holds_its_blocks_and_on_average_half_a_one() -> None:
    held = blocks_held(engine())
    assert held is not None
    every_length = [-(-tokens // BLOCK_SIZE) for tokens in range(1601, 1601 + BLOCK_SIZE)]
    mean_length = 1600 + (BLOCK_SIZE + 1) / 2
    assert held(mean_length) == pytest.approx(sum(every_length) / BLOCK_SIZE)


@given(tokens=st.floats(0, 200_000), window=st.floats(128, 8192))
def test_a_table_is_close_to_what_it_stands_for(tokens: float, window: float) -> None:
    def held(tokens: float) -> float:
        return tokens / 16 + 5 * min(tokens, window) / 16

    assert tabulated(held, 131_072.0)(tokens) == pytest.approx(held(tokens), rel=0.1, abs=0.5)
