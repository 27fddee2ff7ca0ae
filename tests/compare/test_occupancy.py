"""Blocks that ought to be in use where layers hold unequally many tokens."""

from pathlib import Path
from typing import Any

import pytest
from recordings import assessed

from vllm_capacity.compare.occupancy import (
    blocks_for_request,
    predicted_occupancy,
    unknown_occupancy,
)
from vllm_capacity.observe.engine_snapshot import EngineSnapshot, snapshots_of_page
from vllm_capacity.observe.exposition import ExpositionParser
from vllm_capacity.observe.ledger import LedgerReading, RequestsInFlight
from vllm_capacity.observe.metric_names import WANTED_NAMES
from vllm_capacity.predict import KVCacheLayout, Prediction
from vllm_capacity.predict.kv_cache.spec import (
    CrossAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm_capacity.units import Blocks, Tokens

DATA = Path(__file__).parents[1] / "data"
BLOCK = Tokens(16)
HEADS: dict[str, Any] = {"num_kv_heads": 1, "head_size": 1, "element_bytes": 2}
FULL = FullAttentionSpec(block_size=BLOCK, **HEADS)
WINDOW = SlidingWindowSpec(block_size=BLOCK, sliding_window=Tokens(129), **HEADS)
CROSS = CrossAttentionSpec(
    block_size=BLOCK, encoder_tokens=Tokens(8192), input_tokens=Tokens(1500), **HEADS
)
STATE = MambaSpec(
    block_size=BLOCK,
    states=(((1,), 2),),
    mamba_type="mamba2",
    blocks_per_request=Blocks(5),
    num_speculative_blocks=2,
)
HYBRID_LABELS = {"block_size": "16", "num_gpu_blocks": "1001", "kv_cache_size_tokens": "3000"}


def engine(**labels: str) -> EngineSnapshot:
    pairs = ",".join(f'{name}="{value}"' for name, value in (HYBRID_LABELS | labels).items())
    text = f"vllm:kv_cache_usage_perc 0\nvllm:cache_config_info{{{pairs}}} 1\n"
    samples = ExpositionParser(WANTED_NAMES).parse(text.encode())
    return snapshots_of_page(samples, taken_at_seconds=0.0).engines[0]


def of_specs(*specs: KVCacheSpec, ahead: float = 0.0) -> Prediction:
    layout = KVCacheLayout(specs=specs, slots_ahead_tokens=ahead)
    return Prediction(supported=False, reason="no batch limit", layout=layout)


def one_each(*lengths: tuple[int, int]) -> tuple[RequestsInFlight, ...]:
    return tuple(RequestsInFlight(1, 1, *length, is_exact=True) for length in lengths)


def reading(
    *cohorts: RequestsInFlight, running: int | None = None, resident_tokens: float | None = None
) -> LedgerReading:
    tokens = sum(c.resident_requests * (c.prompt_tokens + c.generated_tokens) for c in cohorts)
    holders = round(sum(cohort.resident_requests for cohort in cohorts))
    return LedgerReading(
        in_flight_tokens=tokens,
        resident_tokens=tokens if resident_tokens is None else resident_tokens,
        running_requests=holders if running is None else running,
        preempted_requests=0,
        cohorts=cohorts,
        state="anchored",
        reason="",
    )


def blocks(ledger: LedgerReading, prediction: Prediction | None, **labels: str) -> float:
    occupancy = predicted_occupancy(ledger, engine(**labels), prediction)
    assert occupancy is not None
    assert occupancy.low <= occupancy.blocks <= occupancy.high
    return occupancy.blocks


@pytest.mark.parametrize(
    ("specs", "held"),
    [
        ((FULL,), 28),  # ⌈440 / 16⌉
        ((WINDOW,), 9),  # the window's 129 tokens from 310 on, less whole blocks: 28 - 19
        ((FULL, WINDOW, WINDOW), 28 + 2 * 9),
        ((FULL, STATE), 28 + 3),  # a state and two for drafts
        ((FULL, CROSS), 28 + 94),  # ⌈1500 / 16⌉
    ],
    ids=lambda value: "+".join(spec.kind for spec in value) if isinstance(value, tuple) else None,
)
def test_a_request_of_known_length_holds_what_its_layers_keep(
    specs: tuple[KVCacheSpec, ...], held: int
) -> None:
    ledger = reading(*one_each((400, 40)))
    hybrid = {} if len(specs) > 1 else {"kv_cache_size_tokens": "16016"}
    assert blocks(ledger, of_specs(*specs), **hybrid) == pytest.approx(held, abs=0.5)


def test_at_its_first_token_a_request_has_not_let_anything_go() -> None:
    first, second = (blocks(reading(*one_each((408, n))), of_specs(FULL, WINDOW)) for n in (1, 2))
    assert first == pytest.approx(2 * 26, abs=0.1)
    assert second == pytest.approx(26 + 9, abs=0.1)


def test_a_prompt_in_progress_holds_all_its_tokens_in_every_group() -> None:
    ledger = reading(*one_each((400, 40)), running=2, resident_tokens=440 + 320)
    held = blocks(ledger, of_specs(FULL, WINDOW))
    assert held == pytest.approx(28 + 9 + 2 * 20.5, abs=1)


def test_preempted_requests_hold_nothing() -> None:
    gone = RequestsInFlight(1, 0, 400, 40)
    with_it, without = (
        blocks(reading(*one_each((400, 40)), *more), of_specs(FULL, WINDOW))
        for more in ((), (gone,))
    )
    assert with_it == without


def test_a_shared_prefix_counts_once_and_not_where_the_window_let_it_go() -> None:
    four = one_each(*[(400, 40)] * 4)
    alone = blocks(reading(*four), of_specs(FULL, WINDOW))
    sharing = blocks(reading(*four, resident_tokens=4 * 440 - 3 * 160), of_specs(FULL, WINDOW))
    # 160 tokens are long out of every window: only full attention holds them once, not four times.
    assert alone - sharing == pytest.approx(3 * 10)


def test_drafts_take_slots_ahead() -> None:
    ledger = reading(*one_each((400, 40)))
    near, far = (blocks(ledger, of_specs(FULL, WINDOW, ahead=ahead)) for ahead in (0, 16))
    assert far == pytest.approx(near + 2)


def test_the_less_is_known_of_lengths_near_the_window_the_wider_the_bounds() -> None:
    exact = reading(*one_each((129, 10), (129, 10)))
    mean = reading(RequestsInFlight(2, 2, 129, 10))
    widths = []
    for ledger in (exact, mean):
        occupancy = predicted_occupancy(ledger, engine(), of_specs(FULL, *[WINDOW] * 5))
        assert occupancy is not None
        widths.append(occupancy.high - occupancy.low)
    assert widths[0] < widths[1]


def test_no_more_than_the_pool_is_held() -> None:
    many = reading(*one_each(*[(400, 40)] * 10))
    assert blocks(many, of_specs(FULL, WINDOW), num_gpu_blocks="101") == 100


def test_without_a_running_request_nothing_is_held_whatever_the_layers() -> None:
    assert blocks(reading(), None) == 0
    assert blocks(reading(), of_specs(FULL, WINDOW)) == 0


@pytest.mark.parametrize(
    ("prediction", "labels", "reason"),
    [
        (None, {}, "config.json"),
        (Prediction(supported=False, reason="not described"), {}, "not described"),
        (Prediction(supported=True), {}, "--gpu"),
        (of_specs(FULL, WINDOW), {"block_size": "32"}, "another size"),
        (of_specs(FULL, WINDOW), {"block_size": "None"}, "how many tokens a block holds"),
    ],
)
def test_an_unknown_occupancy_has_a_reason(
    prediction: Prediction | None, labels: dict[str, str], reason: str
) -> None:
    ledger, snapshot = reading(*one_each((400, 40))), engine(**labels)
    assert predicted_occupancy(ledger, snapshot, prediction) is None
    assert reason in (unknown_occupancy(ledger, snapshot, prediction) or "")


def test_a_config_of_other_blocks_is_not_asked_where_every_layer_is_alike() -> None:
    alike = {"block_size": "32", "kv_cache_size_tokens": "32032"}
    ledger = reading(*one_each((400, 40)))
    assert blocks(ledger, of_specs(FULL, WINDOW), **alike) == blocks(ledger, None, **alike)


def test_without_a_plan_the_blocks_of_a_request_are_those_that_it_holds_at_its_end() -> None:
    assert blocks_for_request(440, engine(), of_specs(FULL, WINDOW)) == 28 + 9
    assert blocks_for_request(440, engine(), None) is None


def test_a_drained_sliding_window_engine_is_back_at_nothing() -> None:
    [moments] = assessed("swa-ramp").values()
    _, last = moments[-1]
    assert (last.snapshot.used_blocks, last.predicted_used_blocks) == (0, 0.0)
    assert last.occupancy_reason is None
