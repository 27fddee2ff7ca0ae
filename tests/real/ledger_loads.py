"""Loads under which a plain count of tokens goes wrong, and how far the ledger may be off."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from known_load import Request

if TYPE_CHECKING:
    from collections.abc import Callable

Draw = random.Random
PREFIX = [k * k % 251 for k in range(512)]


def _prompt(lengths: Draw, least: int, most: int) -> list[int]:
    return [lengths.randrange(256) for _ in range(lengths.randint(least, most))]


def plain(lengths: Draw) -> Request:
    return Request(prompt=_prompt(lengths, 40, 400), output_tokens=lengths.randint(50, 150))


def short(lengths: Draw) -> Request:
    return Request(prompt=_prompt(lengths, 40, 400), output_tokens=lengths.randint(5, 30))


def with_hang_ups(lengths: Draw) -> Request:
    """Four in ten hang up: some at once, some in a prefill of several steps, some amid output."""
    prompt, output_tokens = _prompt(lengths, 40, 400), lengths.randint(60, 250)
    kind = lengths.random()
    if kind < 0.15:
        hang_up_seconds = lengths.uniform(0.01, 0.2)
        return Request(
            prompt=prompt + _prompt(lengths, 900, 1400),
            output_tokens=output_tokens,
            hang_up_seconds=hang_up_seconds,
        )
    hang_up_tokens = lengths.randint(1, output_tokens - 10) if kind < 0.4 else None
    return Request(prompt=prompt, output_tokens=output_tokens, hang_up_tokens=hang_up_tokens)


def with_a_shared_prefix(lengths: Draw) -> Request:
    """Seven in ten begin alike; the first of them find nothing in the cache yet."""
    prefix = PREFIX if lengths.random() < 0.7 else []
    prompt = prefix + _prompt(lengths, 20, 200)
    return Request(prompt=prompt, output_tokens=lengths.randint(50, 180))


def of_four_answers(lengths: Draw) -> Request:
    return Request(prompt=_prompt(lengths, 60, 500), output_tokens=lengths.randint(40, 150), n=4)


def too_long_for_all(lengths: Draw) -> Request:
    """Sixteen fit when they are admitted, and not when half of their output has come."""
    return Request(prompt=_prompt(lengths, 540, 720), output_tokens=lengths.randint(120, 300))


def beyond_the_window(lengths: Draw) -> Request:
    return Request(prompt=_prompt(lengths, 40, 700), output_tokens=lengths.randint(60, 180))


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Requests, how many at a time, and the limits of the ledger as shares of the pool.

    Attributes:
        draw: makes a request.
        seed: of the lengths; no two loads share one, or they would share prompts.
        median_ratio, p95_ratio: |used − predicted|. Recordings of the same kind are held to half of
            it; here some thirty scrapes of a cold engine share the cores with everything else.
        in_flight_ratio: how far the tokens in flight may be from those of the client, at the
            median; 0 where the counters alone tell.
        width_ratio: of the interval, on average.
        warm_up: what the ledger has seen before, if anything.
        held_ratio: of the scrapes, those whose interval holds the used blocks. One prompt of those
            that hang up is a tenth of the pool: a single wrong guess is seen for seconds.
    """

    draw: Callable[[Draw], Request]
    workers: int
    seed: int
    median_ratio: float
    p95_ratio: float
    in_flight_ratio: float = 0.0
    width_ratio: float = 0.16
    held_ratio: float = 0.4
    warm_up: Load | None = None
    seconds: float = 16.0


# As much as an exporter has seen that has been there for more than a moment: how many bytes a
# prompt token has is learned from requests that finished.
WARM_UP = Load(draw=short, workers=4, seed=7, median_ratio=0.06, p95_ratio=0.16, seconds=6.0)

LOADS = {
    "aborts": Load(
        draw=with_hang_ups,
        workers=14,
        seed=1,
        median_ratio=0.1,
        p95_ratio=0.2,
        in_flight_ratio=0.1,
        width_ratio=0.25,
        held_ratio=0.3,
        warm_up=WARM_UP,
    ),
    "prefix": Load(
        draw=with_a_shared_prefix, workers=14, seed=2, median_ratio=0.06, p95_ratio=0.16
    ),
    "parallel": Load(draw=of_four_answers, workers=4, seed=3, median_ratio=0.06, p95_ratio=0.16),
    "preemption": Load(
        draw=too_long_for_all, workers=16, seed=4, median_ratio=0.06, p95_ratio=0.16
    ),
    "sliding-window": Load(
        draw=beyond_the_window, workers=6, seed=5, median_ratio=0.06, p95_ratio=0.16
    ),
    "restart": Load(draw=plain, workers=12, seed=6, median_ratio=0.06, p95_ratio=0.16),
}
