"""The pool: a null block, reference counts, and cached blocks that are free yet remembered."""

import pytest

from vllm_capacity.simulate.block_pool import BlockPool


def pool_of(num_gpu_blocks: int, *, enable_caching: bool = True) -> BlockPool:
    return BlockPool(num_gpu_blocks, enable_caching=enable_caching)


def test_the_null_block_is_never_handed_out() -> None:
    pool = pool_of(5)
    assert sorted(block.block_id for block in pool.allocate(4)) == [1, 2, 3, 4]
    assert pool.num_free_blocks == 0


@pytest.mark.parametrize(("held", "usage_ratio"), [(0, 0.0), (1, 0.25), (2, 0.5), (4, 1.0)])
def test_usage_is_of_the_usable_blocks(held: int, usage_ratio: float) -> None:
    pool = pool_of(5)
    pool.allocate(held)
    assert pool.usage_ratio == usage_ratio


def test_more_blocks_than_are_free_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"5 blocks asked, 4 blocks free"):
        pool_of(5).allocate(5)


def test_a_block_held_twice_counts_once_and_is_free_when_both_let_go() -> None:
    pool = pool_of(5)
    blocks = pool.allocate(2)
    pool.touch(blocks)
    assert pool.num_used_blocks == 2
    pool.release(blocks)
    assert pool.num_used_blocks == 2
    pool.release(blocks)
    assert pool.num_used_blocks == 0


def test_a_cached_block_is_found_while_it_is_free() -> None:
    pool = pool_of(5)
    blocks = pool.allocate(1)
    pool.remember(blocks[0], "a")
    pool.release(blocks)
    assert pool.cached("a") is blocks[0]
    assert pool.num_free_blocks == 4


def test_a_cached_block_is_forgotten_when_it_is_handed_out_again() -> None:
    pool = pool_of(3)
    blocks = pool.allocate(1)
    pool.remember(blocks[0], "a")
    pool.release(blocks)
    pool.allocate(2)
    assert pool.cached("a") is None


def test_without_caching_nothing_is_found() -> None:
    pool = pool_of(5, enable_caching=False)
    pool.remember(pool.allocate(1)[0], "a")
    assert pool.cached("a") is None


def test_blocks_without_content_go_first_and_the_end_of_a_prefix_before_its_start() -> None:
    pool = pool_of(5)
    blocks = pool.allocate(4)
    for block, content in zip(blocks[:3], ("start", "middle", "end"), strict=True):
        pool.remember(block, content)
    pool.release(blocks)
    handed_out = [pool.allocate(1)[0] for _ in range(4)]
    assert handed_out == [blocks[3], blocks[2], blocks[1], blocks[0]]


def test_the_least_recently_used_content_goes_first() -> None:
    pool = pool_of(3)
    old, new = pool.allocate(1), pool.allocate(1)
    pool.remember(old[0], "old")
    pool.remember(new[0], "new")
    pool.release(old)
    pool.release(new)
    pool.touch(old)
    pool.release(old)
    pool.allocate(1)
    assert pool.cached("new") is None
    assert pool.cached("old") is old[0]


def test_of_two_blocks_with_one_content_the_older_is_found_until_it_is_gone() -> None:
    pool = pool_of(3)
    first, second = pool.allocate(1), pool.allocate(1)
    pool.remember(first[0], "same")
    pool.remember(second[0], "same")
    assert pool.cached("same") is first[0]
    pool.release(first)
    pool.allocate(1)
    assert pool.cached("same") is second[0]
