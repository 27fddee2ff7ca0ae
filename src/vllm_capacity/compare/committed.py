"""Blocks that requests will want at once, before they do: a preemption is seen coming.

Every request past its prompt takes a slot for each token, all at about the same speed, and leaves
when its output ends. So the blocks expected after x more tokens are a sum over the requests in
flight: the chance that one is still there (``output_lengths``) times the blocks that it then holds.
Requests that keep coming add theirs. The largest of that over x is the committed demand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vllm_capacity.compare.load_history import Arrivals
from vllm_capacity.compare.output_lengths import OutputLengths

# Blocks of a request of so many tokens, on average over where it stands in its last block.
BlocksHeld = Callable[[float], float]

# The sum changes little within so many tokens.
_LEAST_STEP_TOKENS = 15.0
_WIDE_STEP = 1.8
# Requests of like age are taken together: the cost does not grow with the load.
_MOST_GROUPS = 6


class Requests(NamedTuple):
    """Requests of like size; tokens are those of a mean one, shared ones not counted."""

    requests: float
    prompt_tokens: float
    generated_tokens: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CommittedDemand:
    """What the requests of one engine are expected to hold at their joint peak.

    Attributes:
        admitted_blocks: those in the engine, its queue included.
        blocks: the same with those that keep coming meanwhile.
        seconds_to_exhaustion: when ``blocks`` first exceed the pool; None if they do not.
    """

    admitted_blocks: float
    blocks: float
    seconds_to_exhaustion: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What a committed demand follows from.

    Attributes:
        requests: in the engine.
        arrivals: several accounts of those to come; the one that wants most counts.
        prompt_tokens: of a request to come, without shared ones.
        tokens_per_second: of one running request.
        lengths: of outputs.
        blocks_held: blocks of a request by tokens.
    """

    requests: Sequence[Requests]
    arrivals: Sequence[Arrivals]
    prompt_tokens: float
    tokens_per_second: float
    lengths: OutputLengths
    blocks_held: BlocksHeld


def committed_demand(load: Load, total_blocks: float) -> CommittedDemand:
    """The joint peak of one engine's requests."""
    ahead = _ahead(load.lengths)
    admitted = _expected(load, ahead)
    expected = admitted
    speed = load.tokens_per_second
    if speed > 0 and load.arrivals:
        each = _arrivals_of_one_a_token(load, ahead)
        streams = [
            [
                a.requests_per_second / speed * (each[i] - _at(ahead, each, x - a.seconds * speed))
                for i, x in enumerate(ahead)
            ]
            for a in load.arrivals
            if a.requests_per_second > 0
        ]
        expected = [
            blocks + max((stream[i] for stream in streams), default=0.0)
            for i, blocks in enumerate(admitted)
        ]
    return CommittedDemand(
        admitted_blocks=max(admitted),
        blocks=max(expected),
        seconds_to_exhaustion=_first_above(ahead, expected, total_blocks, speed),
    )


def grouped(requests: Sequence[Requests]) -> list[Requests]:
    """The same requests in few groups, neighbours taken together."""
    total = sum(each.requests for each in requests)
    groups: list[Requests] = []
    for each in requests:
        if groups and groups[-1].requests + each.requests <= total / _MOST_GROUPS:
            groups[-1] = _together(groups[-1], each)
        else:
            groups.append(each)
    return groups


def _together(a: Requests, b: Requests) -> Requests:
    both = a.requests + b.requests
    return Requests(
        both,
        (a.requests * a.prompt_tokens + b.requests * b.prompt_tokens) / both,
        (a.requests * a.generated_tokens + b.requests * b.generated_tokens) / both,
    )


def _ahead(lengths: OutputLengths) -> list[float]:
    """Tokens ahead at which the sum is looked at: where the line of lengths bends, and between."""
    ahead = [0.0]
    for tokens in lengths.tokens:
        if tokens > _LEAST_STEP_TOKENS:
            if tokens > _WIDE_STEP * ahead[-1]:
                ahead.append((ahead[-1] + tokens) / 2)
            ahead.append(tokens)
    return ahead


def _expected(load: Load, ahead: Sequence[float]) -> list[float]:
    """Blocks of the requests in the engine after so many more tokens of each."""
    lengths, held = load.lengths, load.blocks_held
    sums = [0.0] * len(ahead)
    for requests, prompt, generated in load.requests:
        reached = lengths.share_beyond(generated)
        if reached <= 0:  # at the longest: it ends now
            sums[0] += requests * held(prompt + generated)
            continue
        for i, more in enumerate(ahead):
            tokens = generated + more
            share = lengths.share_beyond(tokens)
            if share <= 0:
                break
            sums[i] += requests * share / reached * held(prompt + tokens)
    return sums


def _arrivals_of_one_a_token(load: Load, ahead: Sequence[float]) -> list[float]:
    """Blocks of those who came within x tokens, one at every token: an integral over their age."""
    total, before, sums = 0.0, 0.0, []
    last = 0.0
    for age in ahead:
        now = load.lengths.share_beyond(age) * load.blocks_held(load.prompt_tokens + age)
        total += (age - last) * (now + before) / 2
        sums.append(total)
        last, before = age, now
    return sums


def _at(points: Sequence[float], values: Sequence[float], point: float) -> float:
    """A value between points, by linear interpolation; 0 before the first."""
    for i in range(len(points) - 1):
        if points[i] <= point < points[i + 1]:
            part = (point - points[i]) / (points[i + 1] - points[i])
            return values[i] + (values[i + 1] - values[i]) * part
    return values[-1] if point >= points[-1] else 0.0


def _first_above(
    ahead: Sequence[float], expected: Sequence[float], limit: float, speed: float
) -> float | None:
    """Seconds until a sum first exceeds a limit; None if it does not, or nothing moves."""
    if expected[0] > limit:
        return 0.0
    if speed <= 0:
        return None
    for i in range(1, len(ahead)):
        if expected[i] > limit:
            part = (limit - expected[i - 1]) / (expected[i] - expected[i - 1])
            return (ahead[i - 1] + (ahead[i] - ahead[i - 1]) * part) / speed
    return None
