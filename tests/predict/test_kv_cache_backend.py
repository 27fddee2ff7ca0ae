"""Which attention backend, and hence which block size, vLLM takes on which GPU."""

from typing import Any

import pytest
from cached_layers import FULL, MAMBA2, WINDOW, cache_args, numbered

from vllm_capacity.predict.kv_cache.attention_backend import Wanted
from vllm_capacity.predict.kv_cache.backend_choice import choose_backend, kernels_for_mixed_heads
from vllm_capacity.predict.kv_cache.flash_attention import Heads, Kernels, flash_attention_version
from vllm_capacity.predict.kv_cache.layer_cache import (
    AttentionCache,
    IndexerCache,
    LatentCache,
    State,
    StateCache,
    StateKind,
)
from vllm_capacity.predict.kv_cache.planner import make_planner
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.units import Tokens

T4, A100, L40S, H100, B200, RTX5090 = ((7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0))
LATENT = LatentCache(head_size=576)
SPARSE = LatentCache(head_size=576, sparse=True, has_indexer=True)


def _plain(size: int = 128, **heads: Any) -> Wanted:
    return Wanted(heads=Heads(size=size, **heads), dtype="bfloat16")


def _latent(*, sparse: bool = False, **heads: Any) -> Wanted:
    return Wanted(heads=Heads(size=576, **heads), dtype="bfloat16", latent=True, sparse=sparse)


@pytest.mark.parametrize(
    ("wanted", "capability", "flashinfer", "name"),
    [
        (_plain(), H100, False, "FLASH_ATTN"),
        (_plain(), B200, False, "FLASH_ATTN"),
        (_plain(), B200, True, "FLASHINFER"),
        (_plain(), A100, True, "FLASH_ATTN"),
        (_plain(), T4, False, "TRITON_ATTN"),
        (_plain(96), B200, True, "FLASH_ATTN"),
        (_plain(512), H100, False, "TRITON_ATTN"),
        (_plain(kv_cache_dtype="fp8"), H100, False, "FLASH_ATTN"),
        (_plain(kv_cache_dtype="fp8"), L40S, False, "TRITON_ATTN"),
        (_plain(kv_cache_dtype="fp8"), L40S, True, "FLASHINFER"),
        (_plain(kv_cache_dtype="fp8"), A100, True, "FLASHINFER"),
        (_plain(kv_cache_dtype="fp8_e5m2"), H100, False, "TRITON_ATTN"),
        (_plain(kv_cache_dtype="int8_per_token_head"), H100, True, "TRITON_ATTN"),
        (_plain(kv_cache_dtype="nvfp4"), H100, True, "FLASHINFER"),
        (_plain(64, has_sink=True), H100, False, "FLASH_ATTN"),
        (_plain(64, has_sink=True), A100, False, "TRITON_ATTN"),
        (_plain(64, has_sink=True), A100, True, "TRITON_ATTN"),
        (_plain(mm_prefix=True), H100, False, "TRITON_ATTN"),
        (_plain(256, mm_prefix=True), H100, False, "TRITON_FLASH_ATTN"),
        (_plain(256, mm_prefix=True), B200, True, "TRITON_FLASHINFER"),
        (_plain(context_parallel=True), H100, False, "FLASH_ATTN"),
        (Wanted(heads=Heads(size=128), dtype="float32"), H100, False, "TRITON_ATTN"),
        (Wanted(heads=Heads(size=64), dtype="bfloat16", cross=True), B200, True, "FLASH_ATTN"),
        (_latent(), H100, False, "FLASH_ATTN_MLA"),
        (_latent(kv_cache_dtype="fp8"), H100, False, "FLASHMLA"),
        (_latent(kv_cache_dtype="fp8", block_size=16), H100, False, "TRITON_MLA"),
        (_latent(), A100, True, "TRITON_MLA"),
        (_latent(), B200, True, "FLASHINFER_MLA"),
        (_latent(), B200, False, "CUTLASS_MLA"),
        (_latent(), RTX5090, True, "TRITON_MLA"),
        (_latent(sparse=True), H100, False, "FLASH_ATTN_MLA_SPARSE"),
        (_latent(sparse=True, kv_cache_dtype="fp8"), H100, False, "FLASHMLA_SPARSE"),
        (_latent(sparse=True), B200, True, "FLASHMLA_SPARSE"),
        (_latent(sparse=True, kv_cache_dtype="fp8"), B200, True, "FLASHINFER_MLA_SPARSE"),
    ],
)
def test_the_backend_that_is_taken(
    wanted: Wanted, capability: tuple[int, int], name: str, *, flashinfer: bool
) -> None:
    kernels = Kernels(capability=capability, flashinfer=flashinfer)
    assert choose_backend(wanted, kernels).name == name


@pytest.mark.parametrize(
    ("wanted", "kernels"),
    [
        (_latent(sparse=True), Kernels(capability=A100)),
        (_plain(block_size=20), Kernels(capability=H100)),
        (_plain(kv_cache_dtype="nvfp4"), Kernels(capability=H100)),
        (_plain(mm_prefix=True), Kernels(capability=H100, backend="FLASHINFER", flashinfer=True)),
        (_plain(), Kernels(capability=H100, backend="ROCM_ATTN")),
        (_plain(96, kv_cache_dtype="fp8"), Kernels(capability=A100, flashinfer=True)),
        (_latent(), Kernels(capability=None)),
    ],
)
def test_what_no_backend_takes_is_refused(wanted: Wanted, kernels: Kernels) -> None:
    with pytest.raises(Refusal):
        choose_backend(wanted, kernels)


@pytest.mark.parametrize(
    ("heads", "kernels", "version"),
    [
        (Heads(size=128), Kernels(capability=H100), 3),
        (Heads(size=512), Kernels(capability=H100, flash_attention_4=True), 4),
        (Heads(size=512), Kernels(capability=H100), 3),
        (Heads(size=128), Kernels(capability=B200, flash_attention_4=True), 4),
        (Heads(size=256), Kernels(capability=B200, flash_attention_4=True), 4),
        (Heads(size=256, soft_cap=True), Kernels(capability=B200, flash_attention_4=True), 2),
        (Heads(size=96), Kernels(capability=A100, flash_attention_4=True), 2),
        (
            Heads(size=192, size_v=128, has_sink=True),
            Kernels(capability=H100, flash_attention_4=True),
            4,
        ),
    ],
)
def test_the_generation_of_flash_attention(heads: Heads, kernels: Kernels, version: int) -> None:
    assert flash_attention_version(heads, kernels) == version


@pytest.mark.parametrize(
    ("installed", "kv_cache_dtype", "block_size"),
    [(False, "auto", 16), (True, "auto", 16), (False, "fp8", 16), (True, "fp8", 64)],
)
def test_heads_of_256_and_512_in_one_model_on_hopper(
    kv_cache_dtype: str, block_size: int, *, installed: bool
) -> None:
    kernels = Kernels(capability=H100, flash_attention_4=installed)
    window = AttentionCache(num_kv_heads=8, head_size=256, head_size_v=256, sliding_window=1024)
    full = AttentionCache(num_kv_heads=2, head_size=512, head_size_v=512)
    args = cache_args(
        kernels=kernels_for_mixed_heads(kernels, kv_cache_dtype),
        kv_cache_dtype=kv_cache_dtype,
        num_kv_heads=8,
        head_size=512,
        mm_prefix=True,
    )
    planner = make_planner([numbered((25, window), (5, full))], args)
    assert planner.block_size == block_size
    assert [group.layers for group in planner.groups] == [5] * 6


@pytest.mark.parametrize(
    ("layers", "changed", "block_size"),
    [
        ([(4, FULL)], {}, 16),
        ([(4, FULL)], {"block_size": 64}, 64),
        ([(4, FULL)], {"kernels": Kernels(capability=None)}, 128),
        ([(4, LATENT)], {}, 16),
        ([(4, LATENT)], {"kv_cache_dtype": "fp8"}, 64),
        ([(4, LATENT)], {"kernels": Kernels(capability=B200, flashinfer=True)}, 32),
        ([(4, LATENT)], {"kernels": Kernels(capability=B200)}, 128),
        ([(4, SPARSE), (4, IndexerCache(head_size=132))], {}, 64),
        ([(4, FULL), (4, MAMBA2)], {}, 272),
        ([(4, FULL), (4, MAMBA2)], {"kv_cache_dtype": "fp8"}, 528),
        ([(4, FULL), (4, MAMBA2)], {"block_size": 64}, 320),
        ([(4, LATENT), (4, MAMBA2)], {}, 1024),
        ([(4, MAMBA2)], {}, 16),
        ([(4, FULL)], {"kv_cache_dtype": "fp8", "kv_cache_dtype_skip_layers": {"0"}}, 32),
        ([(4, FULL)], {"kv_cache_dtype_skip_layers": {"0"}}, 16),
    ],
)
def test_tokens_of_a_block(layers: list[Any], changed: dict[str, Any], block_size: int) -> None:
    if "kv_cache_dtype_skip_layers" in changed:
        skipped = frozenset(changed["kv_cache_dtype_skip_layers"])
        changed = changed | {"kv_cache_dtype_skip_layers": skipped}
    assert make_planner([numbered(*layers)], cache_args(**changed)).block_size == block_size


def test_a_head_of_256_on_blackwell_without_flashinfer_reads_pages_of_128_tokens() -> None:
    wide = AttentionCache(num_kv_heads=4, head_size=256, head_size_v=256)
    newest = cache_args(kernels=Kernels(capability=B200, flash_attention_4=True))
    assert make_planner([numbered((4, wide))], newest).block_size == 128


def test_skipped_windows_are_padded_to_the_page_of_the_others() -> None:
    planner = make_planner(
        [numbered((4, FULL), (8, WINDOW))],
        cache_args(kv_cache_dtype="fp8", kv_cache_dtype_skip_layers=frozenset({"sliding_window"})),
    )
    full, window, _ = planner.groups
    assert (full.spec.block_size, window.spec.block_size) == (32, 16)
    assert full.spec.page_size_bytes == window.spec.page_size_bytes == 32 * 8 * 256


def test_sparse_latent_vectors_in_eight_bits_are_packed_with_their_scales() -> None:
    planner = make_planner(
        [numbered((4, SPARSE), (4, IndexerCache(head_size=132)))],
        cache_args(kv_cache_dtype="fp8"),
    )
    assert planner.kv_cache_dtype == "fp8_ds_mla"
    assert planner.bytes_per_block() == (4 * 64 * 656 + 4 * 64 * 132,)


@pytest.mark.parametrize(("capability", "states"), [(H100, 3), (L40S, 2)])
def test_kimi_saves_states_of_a_prefill_where_its_kernel_runs(
    capability: tuple[int, int], states: int
) -> None:
    kept = StateCache(
        kind=StateKind.KIMI_DELTA,
        states=(State((6, 128, 128), "recurrent"),),
        saves_prefill_state=True,
    )
    args = cache_args(kernels=Kernels(capability=capability))
    planner = make_planner([numbered((4, LATENT), (4, kept))], args)
    assert planner.plan([1 << 34], "asked").blocks_per_max_len_request[1] == states


def test_states_are_padded_to_the_page_of_attention_and_follow_prefix_caching() -> None:
    runs = numbered((4, FULL), (4, MAMBA2))
    cached = make_planner([runs], cache_args())
    plain = make_planner([runs], cache_args(enable_prefix_caching=False))
    assert {group.spec.page_size_bytes for group in cached.groups} == {272 * 8 * 512}
    assert [group.spec.block_size for group in cached.groups] == [272, 272]
    assert [group.spec.block_size for group in plain.groups] == [272, 8192]


def test_context_parallelism_divides_tokens_of_latent_attention() -> None:
    shared = make_planner([numbered((4, LATENT))], cache_args(decode_context_parallel_size=8))
    plan = shared.plan([1 << 30], "asked")
    assert plan.blocks_per_max_len_request == (64,)
    with pytest.raises(Refusal, match="context parallelism"):
        make_planner([numbered((4, WINDOW))], cache_args(decode_context_parallel_size=2))


def test_layers_with_unequal_heads_need_the_heads_of_the_whole_model() -> None:
    other = AttentionCache(num_kv_heads=4, head_size=128, head_size_v=128, sliding_window=512)
    runs = numbered((4, FULL), (4, other), (4, MAMBA2))
    with pytest.raises(Refusal, match="own heads"):
        make_planner([runs], cache_args())
    told = cache_args(num_kv_heads=8, head_size=128, max_model_len=Tokens(4096))
    assert make_planner([runs], told).block_size == 272
