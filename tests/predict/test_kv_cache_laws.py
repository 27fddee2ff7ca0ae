"""Laws of the KV cache that hold for all layers."""

import pytest
from cached_layers import FULL, MAMBA2, WINDOW, cache_args, numbered
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.predict.kv_cache.flash_attention import Kernels
from vllm_capacity.predict.kv_cache.groups import group_layers
from vllm_capacity.predict.kv_cache.layer_cache import AttentionCache, LatentCache, LayerCache
from vllm_capacity.predict.kv_cache.plan import Planner
from vllm_capacity.predict.kv_cache.planner import make_planner, make_planner_for_any_gpu
from vllm_capacity.predict.kv_cache.spec import FullAttentionSpec, KVCacheSpec, SlidingWindowSpec
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.units import GIB, Tokens

LAYERS = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from([FULL, WINDOW, MAMBA2])), min_size=1, max_size=4
).filter(lambda runs: any(kept is FULL for _, kept in runs))
BYTES = st.integers(0, 200 * GIB)


def _planner(runs: list[tuple[int, LayerCache]], **changed: object) -> Planner:
    return make_planner([numbered(*runs)], cache_args(**changed))


@given(LAYERS, BYTES, BYTES)
def test_more_bytes_never_give_fewer_blocks(
    runs: list[tuple[int, LayerCache]], first: int, second: int
) -> None:
    planner = _planner(runs)
    less, more = (planner.plan([size], "asked") for size in sorted((first, second)))
    assert (less.num_blocks or 0) <= (more.num_blocks or 0)
    assert (less.kv_cache_size_tokens or 0) <= (more.kv_cache_size_tokens or 0)
    assert more.error is None or less.error is not None


@given(LAYERS, BYTES)
def test_allocated_blocks_never_exceed_the_bytes(
    runs: list[tuple[int, LayerCache]], available: int
) -> None:
    plan = _planner(runs).plan([available], "asked")
    if plan.num_blocks is not None:
        assert plan.num_blocks * plan.bytes_per_block[0] <= available
        assert (plan.num_blocks + 1) * plan.bytes_per_block[0] > available
        assert plan.max_concurrency is not None
        assert plan.max_concurrency >= 1


@given(LAYERS)
def test_every_layer_is_in_one_group(runs: list[tuple[int, LayerCache]]) -> None:
    planner = _planner(runs)
    assert sum(group.layers for group in planner.groups) == sum(count for count, _ in runs)
    assert len({group.spec.page_size_bytes for group in planner.groups}) == 1


@given(LAYERS)
def test_no_group_is_longer_than_half_as_much_again_as_the_rarest_kind(
    runs: list[tuple[int, LayerCache]],
) -> None:
    counts: dict[LayerCache, int] = {}
    for count, kept in runs:
        counts[kept] = counts.get(kept, 0) + count
    longest = max(group.layers for group in _planner(runs).groups)
    if len(counts) > 1:
        assert longest < min(counts.values()) * 1.5 or longest == min(counts.values())


@given(LAYERS, st.integers(2, 4))
def test_pipeline_stages_conserve_layers_and_groups(
    runs: list[tuple[int, LayerCache]], stages: int
) -> None:
    whole = numbered(*(runs * stages))
    size = len(whole) // stages
    cut = [whole[start : start + size] for start in range(0, len(whole), size)]
    one = make_planner([whole], cache_args())
    many = make_planner(cut, cache_args())
    assert [group.layers for group in many.groups] == [group.layers for group in one.groups]
    assert all(sum(group.layers_per_rank) == group.layers for group in many.groups)
    sums = [sum(group.block_bytes(rank) for rank in range(stages)) for group in many.groups]
    assert sums == [group.block_bytes(0) for group in one.groups]


@given(st.integers(1, 8))
def test_tensor_parallel_ranks_of_a_stage_are_alike(ranks: int) -> None:
    planner = _planner([(4, FULL), (8, WINDOW)], tensor_parallel_size=ranks)
    assert planner.groups[0].layers_per_rank == (4,) * ranks
    assert len(set(planner.bytes_per_block())) == 1
    assert len(planner.bytes_per_block()) == ranks


@given(st.integers(1, 131072), BYTES)
def test_a_refusal_names_the_longest_request_that_fits(length: int, available: int) -> None:
    planner = _planner([(4, FULL), (8, WINDOW)], max_model_len=Tokens(length))
    plan = planner.plan([available], "asked")
    if plan.error is None or plan.estimated_max_model_len is None:
        return
    longest = plan.estimated_max_model_len
    room = available - plan.bytes_per_block[0]
    assert plan.blocks_for_request(longest) * plan.bytes_per_block[0] <= room
    assert plan.blocks_for_request(longest + 1) * plan.bytes_per_block[0] > room


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([(32, FULL)], 32 * 4096),
        ([(4, FULL), (20, WINDOW)], 4 * 4096),
        ([(20, WINDOW)], 20 * 4096),
        ([(4, FULL), (12, MAMBA2)], 4 * 4096),
        ([(4, MAMBA2)], 0),
        ([(27, LatentCache(head_size=576))], 27 * 1152),
    ],
)
def test_bytes_of_one_more_token(runs: list[tuple[int, LayerCache]], expected: int) -> None:
    assert _planner(runs).bytes_per_token() == (expected,)


def test_without_the_hybrid_manager_a_window_keeps_every_token() -> None:
    hybrid = _planner([(4, FULL), (20, WINDOW)])
    plain = _planner([(4, FULL), (20, WINDOW)], disable_hybrid_kv_cache_manager=True)
    assert [group.layers for group in hybrid.groups] == [4] * 6
    assert [group.layers for group in plain.groups] == [24]
    assert plain.groups[0].kind == "full_attention"


def test_recurrent_layers_need_the_hybrid_manager() -> None:
    with pytest.raises(Refusal, match="hybrid"):
        _planner([(4, FULL), (20, MAMBA2)], disable_hybrid_kv_cache_manager=True)


def test_groups_take_every_few_layers_so_that_stages_hold_equally_much() -> None:
    full = FullAttentionSpec(block_size=Tokens(16), num_kv_heads=1, head_size=64, element_bytes=2)
    window = SlidingWindowSpec(
        block_size=Tokens(16),
        num_kv_heads=1,
        head_size=64,
        element_bytes=2,
        sliding_window=Tokens(128),
    )
    specs: dict[str, KVCacheSpec] = {str(n): window if n % 3 else full for n in range(9)}
    _, groups = group_layers(specs, keeps_local_attention=True, block_outermost=False)
    assert groups == [["0", "3", "6"], ["1", "4", "7"], ["2", "5", "8"]]


def test_a_model_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(Refusal, match="keeps anything"):
        make_planner([[]], cache_args())


def test_without_a_batch_limit_a_window_is_refused_and_full_attention_is_not() -> None:
    unknown = cache_args(max_in_flight_tokens=None)
    assert make_planner([numbered((4, FULL))], unknown).block_size == 16
    window = make_planner([numbered((4, WINDOW))], unknown)
    assert [group.kind for group in window.groups] == ["sliding_window"]
    with pytest.raises(Refusal, match="max_num_batched_tokens"):
        window.plan([GIB], "asked")


def test_an_unknown_gpu_matters_only_where_block_sizes_differ() -> None:
    unknown = cache_args(kernels=Kernels(capability=None, flashinfer=True))
    plain = [numbered((4, FULL))]
    assert make_planner_for_any_gpu(plain, unknown) == make_planner(
        plain, cache_args(kernels=Kernels(capability=(9, 0), flashinfer=True))
    )
    with pytest.raises(Refusal, match="compute capability"):
        make_planner_for_any_gpu([numbered((4, LatentCache(head_size=576)))], unknown)


def test_window_pages_that_do_not_divide_are_padded() -> None:
    odd = AttentionCache(num_kv_heads=3, head_size=96, head_size_v=96, sliding_window=512)
    even = AttentionCache(num_kv_heads=2, head_size=128, head_size_v=128)
    planner = _planner([(4, even), (4, odd)], num_kv_heads=2, head_size=128)
    pages = [group.spec.page_size_bytes for group in planner.groups]
    assert len(set(pages)) == 1
    padded = [g.spec.page_size_padded for g in planner.groups if g.kind == "full_attention"]
    assert padded == [pages[0]]
