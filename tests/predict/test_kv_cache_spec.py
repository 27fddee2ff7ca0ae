"""Pages and blocks of every attention kind."""

import pytest
from cached_layers import MAMBA2, cache_args

from vllm_capacity.predict.kv_cache.format import attention_format, latent_format
from vllm_capacity.predict.kv_cache.layer_cache import State, StateCache, StateKind
from vllm_capacity.predict.kv_cache.recurrent_state import mamba_spec, state_bytes
from vllm_capacity.predict.kv_cache.spec import (
    ChunkedLocalAttentionSpec,
    CrossAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MLAAttentionSpec,
    Request,
    SlidingWindowSpec,
    UniformTypeSpecs,
)
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.units import Bytes, Tokens

SIXTEEN = Tokens(16)
FULL = FullAttentionSpec(block_size=SIXTEEN, num_kv_heads=8, head_size=128, element_bytes=2)
LATENT = MLAAttentionSpec(block_size=SIXTEEN, head_size=576, element_bytes=2)
INDEXER = MLAAttentionSpec(block_size=SIXTEEN, head_size=132, element_bytes=1, role="indexer")
WINDOW = SlidingWindowSpec(
    block_size=SIXTEEN,
    num_kv_heads=8,
    head_size=128,
    element_bytes=2,
    sliding_window=Tokens(1024),
)
CHUNK = ChunkedLocalAttentionSpec(
    block_size=SIXTEEN,
    num_kv_heads=8,
    head_size=128,
    element_bytes=2,
    attention_chunk_size=Tokens(8192),
)
CROSS = CrossAttentionSpec(
    block_size=SIXTEEN,
    num_kv_heads=20,
    head_size=64,
    element_bytes=2,
    encoder_tokens=Tokens(8192),
)
REQUEST = Request(tokens=Tokens(32768), in_flight_tokens=Tokens(4096))


@pytest.mark.parametrize(
    ("spec", "page", "blocks"),
    [
        (FULL, 65536, 2048),
        (LATENT, 18432, 2048),
        (INDEXER, 2112, 2048),
        (WINDOW, 65536, 321),
        (CHUNK, 65536, 768),
        (CROSS, 81920, 512),
        (UniformTypeSpecs(block_size=SIXTEEN, members=((LATENT, 2), (INDEXER, 1))), 38976, 2048),
    ],
    ids=lambda value: getattr(value, "kind", str(value)),
)
def test_a_page_and_the_blocks_of_a_request(spec: KVCacheSpec, page: int, blocks: int) -> None:
    assert spec.page_size_bytes == page
    assert spec.blocks_for(REQUEST) == blocks


@pytest.mark.parametrize(
    ("kv_cache_dtype", "bytes_per_token"),
    [
        ("auto", 512),
        ("bfloat16", 512),
        ("fp8", 256),
        ("fp8_e5m2", 256),
        ("int8_per_token_head", 264),
        ("fp8_per_token_head", 264),
        ("int4_per_token_head", 136),
        ("nvfp4", 144),
    ],
)
def test_bytes_of_a_token_in_one_head_of_128(kv_cache_dtype: str, bytes_per_token: int) -> None:
    kept = attention_format(kv_cache_dtype, "bfloat16", 128, 128)
    spec = FullAttentionSpec(
        block_size=Tokens(1),
        num_kv_heads=1,
        head_size=128,
        element_bytes=kept.element_bytes,
        content_bytes=kept.content_bytes,
        slots_per_head=kept.slots_per_head,
    )
    assert spec.page_size_bytes == bytes_per_token


@pytest.mark.parametrize(
    ("kv_cache_dtype", "bytes_per_token"),
    [("auto", 1152), ("fp8", 576), ("fp8_ds_mla", 656), ("nvfp4_ds_mla", 352)],
)
def test_bytes_of_a_latent_vector(kv_cache_dtype: str, bytes_per_token: int) -> None:
    kept = latent_format(kv_cache_dtype, "bfloat16")
    spec = MLAAttentionSpec(
        block_size=Tokens(1),
        head_size=576,
        element_bytes=kept.element_bytes,
        content_bytes=kept.content_bytes,
    )
    assert spec.page_size_bytes == bytes_per_token


@pytest.mark.parametrize("kv_cache_dtype", ["ultraquant_4bit", "int3", "fp8_ds_mla"])
def test_a_format_that_is_not_described_is_refused(kv_cache_dtype: str) -> None:
    with pytest.raises(Refusal, match=kv_cache_dtype):
        attention_format(kv_cache_dtype, "bfloat16", 128, 128)


def test_unequal_keys_and_values_are_both_counted() -> None:
    spec = FullAttentionSpec(
        block_size=SIXTEEN, num_kv_heads=1, head_size=192, head_size_v=128, element_bytes=2
    )
    assert spec.page_size_bytes == 16 * 320 * 2


def test_a_padded_page_counts_its_padding() -> None:
    padded = FullAttentionSpec(
        block_size=SIXTEEN,
        num_kv_heads=8,
        head_size=128,
        element_bytes=2,
        page_size_padded=Bytes(70000),
    )
    assert padded.page_size_bytes == 70000
    assert padded.unpadded_page_size_bytes == 65536


def test_context_parallel_ranks_share_the_tokens_of_a_request() -> None:
    shared = MLAAttentionSpec(
        block_size=SIXTEEN, head_size=576, element_bytes=2, context_parallel_size=8
    )
    assert shared.blocks_for(REQUEST) == 256


def test_a_chain_of_drafters_keeps_more_of_a_window() -> None:
    chained = SlidingWindowSpec(
        block_size=SIXTEEN,
        num_kv_heads=8,
        head_size=128,
        element_bytes=2,
        sliding_window=Tokens(1024),
        extra_retained_tokens=16,
    )
    assert chained.blocks_for(REQUEST) == WINDOW.blocks_for(REQUEST) + 1


def test_only_windows_may_differ_where_layers_merge() -> None:
    windowed = FullAttentionSpec(
        block_size=SIXTEEN,
        num_kv_heads=8,
        head_size=128,
        element_bytes=2,
        sliding_window=Tokens(1024),
    )
    smaller = FullAttentionSpec(block_size=SIXTEEN, num_kv_heads=4, head_size=128, element_bytes=2)
    assert FULL.merges_with(windowed)
    assert not FULL.merges_with(smaller)
    assert not FULL.merges_with(WINDOW)


@pytest.mark.parametrize(
    ("caching", "drafts", "states"), [(False, 0, 1), (False, 2, 3), (True, 0, 3), (True, 2, 5)]
)
def test_states_that_a_request_holds(*, caching: bool, drafts: int, states: int) -> None:
    args = cache_args(enable_prefix_caching=caching, num_speculative_tokens=drafts)
    spec = mamba_spec(MAMBA2, args, block_size=SIXTEEN, page_size_padded=None)
    assert spec.blocks_for(REQUEST) == states


@pytest.mark.parametrize(
    ("kind", "dtypes", "expected"),
    [
        (StateKind.MAMBA2, {}, 3 * 64 * 2 + 64 * 64 * 2),
        (StateKind.MAMBA2, {"mamba_ssm_cache_dtype": "float32"}, 3 * 64 * 2 + 64 * 64 * 4),
        (StateKind.MAMBA2, {"mamba_cache_dtype": "float32"}, 3 * 64 * 4 + 64 * 64 * 4),
        (StateKind.KIMI_DELTA, {}, 3 * 64 * 2 + 64 * 64 * 4),
        (StateKind.LINEAR, {"mamba_ssm_cache_dtype": "float32"}, 3 * 64 * 2 + 64 * 64 * 2),
    ],
)
def test_bytes_of_a_state(kind: StateKind, dtypes: dict[str, str], expected: int) -> None:
    kept = StateCache(kind=kind, states=(State((3, 64), "conv"), State((64, 64), "recurrent")))
    assert state_bytes(kept, cache_args(**dtypes)) == expected


def test_drafts_lengthen_the_window_of_a_convolution() -> None:
    plain = state_bytes(MAMBA2, cache_args())
    drafted = state_bytes(MAMBA2, cache_args(num_speculative_tokens=2))
    assert drafted - plain == 2 * 4352 * 2


def test_kimi_delta_states_in_half_precision_are_refused() -> None:
    kept = StateCache(kind=StateKind.KIMI_DELTA, states=(State((6, 128, 128), "recurrent"),))
    with pytest.raises(Refusal, match="float16"):
        state_bytes(kept, cache_args(mamba_ssm_cache_dtype="float16"))
