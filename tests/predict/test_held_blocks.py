"""What running requests hold: vLLM's own manager asked, and the mean over where they stand."""

import json
import lzma
from collections.abc import Iterator
from statistics import NormalDist, fmean, pstdev
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import DATA

from vllm_capacity.predict.kv_cache.held import (
    KVCacheLayout,
    Slots,
    deviation_of_kept_blocks,
    held_blocks,
    mean_filled_blocks,
    mean_returned_blocks,
)
from vllm_capacity.predict.kv_cache.spec import (
    ChunkedLocalAttentionSpec,
    CrossAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeSpecs,
)
from vllm_capacity.predict.speculative import Speculative, slots_ahead
from vllm_capacity.units import Blocks, Tokens

RECORDED = json.loads(lzma.decompress((DATA / "vllm-0.32-held-blocks.json.xz").read_bytes()))
HEADS: dict[str, Any] = {"num_kv_heads": 1, "head_size": 1, "element_bytes": 4}
WINDOW = SlidingWindowSpec(**HEADS, block_size=Tokens(16), sliding_window=Tokens(100))
FULL = FullAttentionSpec(**HEADS, block_size=Tokens(16))
CHUNK = ChunkedLocalAttentionSpec(**HEADS, block_size=Tokens(16), attention_chunk_size=Tokens(128))


class Step(NamedTuple):
    """One step of one request, as vLLM's manager took it."""

    case: dict[str, Any]
    request: dict[str, Any]
    slots: Slots
    held: list[int]

    @property
    def is_past_its_prompt(self) -> bool:
        return self.slots.settled_tokens > self.request["prompt_tokens"]


def steps(case: dict[str, Any]) -> Iterator[Step]:
    for request in case["requests"]:
        for tokens, settled, *held in request["steps"]:
            slots = Slots(
                tokens=Tokens(tokens),
                settled_tokens=Tokens(settled),
                lookahead_tokens=Tokens(case["lookahead"]),
            )
            yield Step(case, request, slots, held)


def spec_of(group: dict[str, Any], step: Step) -> KVCacheSpec:
    kept = {name: value for name, value in group.items() if name not in {"kind", "mode"}}
    drafts = step.case["drafts"]
    match group["kind"]:
        case "full":
            parallel = step.case.get("context_parallel_size", 1)
            return FullAttentionSpec(**HEADS, **kept, context_parallel_size=parallel)
        case "latent":
            return MLAAttentionSpec(head_size=1, element_bytes=4, **kept)
        case "window":
            return SlidingWindowSpec(**HEADS, **kept)
        case "chunk":
            return ChunkedLocalAttentionSpec(**HEADS, **kept)
        case "cross":
            tokens = Tokens(step.request["encoder_tokens"])
            return CrossAttentionSpec(
                **HEADS, **kept, encoder_tokens=Tokens(8192), input_tokens=tokens
            )
    return MambaSpec(
        **kept,
        states=(((1,), 4),),
        mamba_type="mamba2",
        blocks_per_request=Blocks((2 if group["mode"] == "align" else 1) + drafts),
        num_speculative_blocks=drafts,
    )


@pytest.mark.parametrize(
    "case",
    RECORDED,
    ids=lambda case: (
        "+".join(group["kind"] for group in case["groups"])
        + f"-{case['drafts']}-drafts-{case['lookahead']}-ahead"
        + "-overlapping" * case["overlap"]
    ),
)
def test_a_request_holds_what_vllm_lets_it_hold(case: dict[str, Any]) -> None:
    for step in steps(case):
        for group, held in zip(case["groups"], step.held, strict=True):
            ours = held_blocks(spec_of(group, step), step.slots)
            if group["kind"] == "mamba" and not step.is_past_its_prompt:
                assert held <= ours
            else:
                assert ours == held


def test_the_groups_of_a_layout_add_up() -> None:
    slots = Slots(tokens=Tokens(500), settled_tokens=Tokens(498))
    layout = KVCacheLayout(specs=(FULL, WINDOW, WINDOW))
    # ⌈500 / 16⌉, and of the window all but ⌊(498 + 1 - 100) / 16⌋ of them.
    assert layout.held_blocks(slots) == 32 + 2 * (32 - 24)
    assert layout.distinct_specs == ((FULL, 1), (WINDOW, 2))


def test_a_group_of_unequal_layers_holds_what_each_of_them_does() -> None:
    both = UniformTypeSpecs(block_size=Tokens(16), members=((WINDOW, 3),))
    slots = Slots(tokens=Tokens(700), settled_tokens=Tokens(698))
    assert held_blocks(both, slots) == held_blocks(WINDOW, slots)
    assert mean_returned_blocks(both, 698.0, 50.0) == mean_returned_blocks(WINDOW, 698.0, 50.0)


def exact_mean(spec: KVCacheSpec, low: int, high: int) -> float:
    return fmean(
        held_blocks(spec, Slots(tokens=Tokens(n), settled_tokens=Tokens(n - 2)))
        for n in range(low, high + 1)
    )


@given(st.sampled_from([FULL, WINDOW, CHUNK]), st.integers(2, 3000), st.integers(0, 500))
def test_the_mean_over_evenly_spread_lengths_is_nearly_the_mean_of_what_each_holds(
    spec: KVCacheSpec, low: int, width: int
) -> None:
    high = low + width
    mean, spread = (low + high) / 2, (width * (width + 2) / 12) ** 0.5
    held = mean_filled_blocks(spec, mean, spread) - mean_returned_blocks(spec, mean - 2, spread)
    allowed = 1.5 if spec is CHUNK else 0.5  # an even distribution is no normal one
    assert held == pytest.approx(exact_mean(spec, low, high), abs=allowed)


@given(st.sampled_from([FULL, WINDOW, CHUNK]), st.integers(2, 3000))
def test_a_length_that_is_known_holds_no_mean(spec: KVCacheSpec, tokens: int) -> None:
    held = mean_filled_blocks(spec, tokens, 0.0) - mean_returned_blocks(spec, tokens - 2, 0.0)
    slots = Slots(tokens=Tokens(tokens), settled_tokens=Tokens(tokens - 2))
    assert held == pytest.approx(held_blocks(spec, slots), abs=1e-6)


@pytest.mark.parametrize(
    ("method", "overlaps", "ahead"),
    [
        (None, False, -1.0),  # the last token is sampled, not computed
        (None, True, 0.0),  # ... and the next step has its slot already
        ("ngram", False, -1 + 2),  # four drafts, two of them accepted
        ("ngram", True, 4 + 2),
        ("eagle3", False, -1 + 2 + 4),  # and four slots for what drafts
        ("draft_model", True, 4 + 2 + 4),
        ("dflash", False, -1 + 2 + 5),
    ],
)
def test_drafts_and_overlapping_steps_take_slots_ahead(
    method: str | None, overlaps: bool, ahead: float
) -> None:
    drafting = method and Speculative(method=method, num_speculative_tokens=4, draft_config=None)
    assert slots_ahead(drafting or None, overlaps=overlaps) == ahead


@given(st.integers(40, 400), st.integers(0, 150))
def test_what_windows_keep_differs_as_much_as_lengths_do_within_the_window(
    mean: int, spread: int
) -> None:
    window = 99  # and the token itself
    normal = NormalDist(mean, max(1, spread))
    kept = [min(window, normal.inv_cdf((n + 0.5) / 2000)) for n in range(2000)]
    deviation = deviation_of_kept_blocks(WINDOW, mean, max(1, spread), least_tokens=-10_000)
    assert deviation == pytest.approx(pstdev(kept) / 16, rel=0.05, abs=0.05)


def test_requests_that_are_all_past_the_window_keep_equally_much() -> None:
    assert deviation_of_kept_blocks(WINDOW, 150.0, 200.0, least_tokens=100.0) == 0
    assert deviation_of_kept_blocks(WINDOW, 150.0, 200.0, least_tokens=50.0) > 0
    assert deviation_of_kept_blocks(FULL, 150.0, 200.0) == 0
