"""How long the prompts were of clients that hung up, from the bytes that they sent."""

from dataclasses import replace

import pytest

from vllm_capacity.observe.engine_snapshot import ServerTotals
from vllm_capacity.observe.ledger.hang_ups import HangUps, HangUpWatch

AROUND, TOKEN = 150.0, 4.0
SHORT, LONG = 200.0, 1300.0


def request_bytes(*prompts: float) -> float:
    return sum(AROUND + TOKEN * prompt for prompt in prompts)


def after(
    totals: ServerTotals, *, finished: list[float] | None = None, hung_up: list[float] | None = None
) -> ServerTotals:
    """The totals after requests with such prompts finished or were hung up, a second each."""
    finished, hung_up = finished or [], hung_up or []
    closed = [*finished, *hung_up]
    return replace(
        totals,
        closed_responses=totals.closed_responses + len(closed),
        closed_response_seconds=totals.closed_response_seconds + len(closed),
        closed_request_bytes=totals.closed_request_bytes + request_bytes(*closed),
        finished_requests=totals.finished_requests + len(finished),
        finished_parents=totals.finished_parents + len(finished),
        finished_seconds=totals.finished_seconds + len(finished),
        finished_prompt_tokens=totals.finished_prompt_tokens + sum(finished),
    )


NOTHING = ServerTotals(
    closed_responses=0,
    closed_response_seconds=0,
    closed_request_bytes=0,
    engines=1,
    finished_requests=0,
    finished_seconds=0,
    finished_prompt_tokens=0,
    finished_parents=0,
)


def told(history: ServerTotals, mean_prompt_tokens: float, *hung_up: float) -> HangUps:
    """What is told of these by somebody who has just begun to watch."""
    watch = HangUpWatch()
    watch.record(history, mean_prompt_tokens)
    return watch.record(after(history, hung_up=list(hung_up)), mean_prompt_tokens)


@pytest.mark.parametrize("prompt", [SHORT, 400.0, LONG])
def test_who_hung_up_before_does_not_make_prompts_seem_shorter(prompt: float) -> None:
    history = after(NOTHING, finished=[SHORT] * 80, hung_up=[LONG] * 20)
    mean = (80 * SHORT + 20 * LONG) / 100
    hung_up = told(history, mean, prompt)
    assert hung_up.prompt_tokens == pytest.approx(prompt, rel=0.1)
    assert abs((hung_up.prompt_tokens or 0) - prompt) <= 2 * hung_up.prompt_deviation_tokens


def test_the_more_were_hung_up_the_less_is_sure() -> None:
    few = after(NOTHING, finished=[SHORT] * 99, hung_up=[SHORT])
    many = after(NOTHING, finished=[SHORT] * 50, hung_up=[SHORT] * 50)
    sure, unsure = told(few, SHORT, LONG), told(many, SHORT, LONG)
    assert sure.prompt_tokens == unsure.prompt_tokens
    assert sure.prompt_deviation_tokens < unsure.prompt_deviation_tokens


def test_requests_that_finished_tell_exactly_how_many_bytes_a_token_has() -> None:
    watch, totals = HangUpWatch(), NOTHING
    watch.record(totals, None)
    for i in range(12):
        totals = after(totals, finished=[100.0 + 40 * i])
        watch.record(totals, None)
    hung_up = watch.record(after(totals, hung_up=[LONG]), None)
    assert hung_up.prompt_tokens == pytest.approx(LONG)
    assert hung_up.prompt_deviation_tokens < 5


def test_without_any_history_nothing_is_told_of_their_prompts() -> None:
    assert told(NOTHING, SHORT, LONG).prompt_tokens is None
    assert told(after(NOTHING, finished=[SHORT] * 50), 0.0, LONG).prompt_tokens is None
