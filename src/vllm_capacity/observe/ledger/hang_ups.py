"""Clients that hung up, from what the HTTP server in front of the engine counts.

The engine forgets an aborted request without a word: no counter and no histogram moves
(``v1/engine/output_processor.py``, ``OutputProcessor.abort_requests``). The HTTP server counts
every response that ends, with how long it took and how large its request was
(prometheus-fastapi-instrumentator, ``middleware.py``). What is left of those sums after the
requests that finished is the number of clients that hung up, when they had come, and, as the
finished ones tell how many bytes a prompt token has, how long their prompts were.
"""

import math
from dataclasses import dataclass

from vllm_capacity.observe.engine_snapshot import ServerTotals

_FEWEST_FOR_A_FIT = 5
_FEWEST_FOR_A_RATIO = 20


@dataclass(frozen=True, slots=True)
class HangUps:
    """Clients that hung up between two scrapes, as sums over them.

    Attributes:
        requests: how many; negative: so many of those reported last had finished after all.
        seconds: for how long they had been served.
        prompt_tokens: of their prompts; None while nothing tells.
        prompt_deviation_tokens: how far each of those may be off.
    """

    requests: int
    seconds: float
    prompt_tokens: float | None
    prompt_deviation_tokens: float = 0.0


NO_HANG_UPS = HangUps(0, 0.0, None)


class HangUpWatch:
    """What was closed without having finished, on one server."""

    def __init__(self) -> None:
        self._before: ServerTotals | None = None
        self._reported = 0
        self._size = _RequestSize()
        self.forget()

    def forget(self) -> None:
        """Nothing is in flight: what was closed and what finished are even."""
        self._requests = self._seconds = self._bytes = self._prompt_tokens = self._finished = 0.0

    def record(self, totals: ServerTotals | None) -> HangUps:
        """Hang-ups since the totals before.

        A page is not written in one instant: a response can be counted as closed on a page that
        does not know yet that its request finished. The next page then takes the report back.
        """
        before, self._before = self._before, totals
        if before is None or totals is None or totals.closed_responses < before.closed_responses:
            self.forget()
            return NO_HANG_UPS
        even = self._requests == 0
        samples = totals.finished_requests - before.finished_requests
        closed = totals.closed_responses - before.closed_responses
        finished = totals.finished_parents - before.finished_parents
        # A client's response ends with its last sample; the sums are over samples.
        share = min(1.0, finished / samples) if samples else 0.0
        sent_bytes = totals.closed_request_bytes - before.closed_request_bytes
        prompts = share * (totals.finished_prompt_tokens - before.finished_prompt_tokens)
        self._requests += closed - finished
        self._seconds += (
            totals.closed_response_seconds - before.closed_response_seconds
        ) - share * (totals.finished_seconds - before.finished_seconds)
        self._bytes += sent_bytes
        self._prompt_tokens += prompts
        self._finished += finished
        if even and self._requests == 0 and samples == finished > 0:
            self._size.learn(finished, prompts, sent_bytes)
        return self._report(totals)

    def _report(self, totals: ServerTotals) -> HangUps:
        requests = round(self._requests)
        if requests == 0:
            self.forget()
            self._reported = 0
            return NO_HANG_UPS
        if requests < 0:
            taken_back = min(-requests, self._reported)
            self._reported = 0
            self._requests += taken_back
            return HangUps(-taken_back, 0.0, None)
        prompts = self._size.prompt_tokens(
            requests, self._bytes, self._finished, self._prompt_tokens, totals
        )
        off = 0.0 if prompts is None else self._size.deviation_tokens(prompts / requests)
        hung_up = HangUps(requests, self._seconds, prompts, off)
        self._reported = requests
        self.forget()
        return hung_up


class _RequestSize:
    """Bytes of a request's body as a line over its prompt tokens, from the finished ones."""

    def __init__(self) -> None:
        self._nn = self._np = self._pp = self._nb = self._pb = 0.0
        self._misses = self._missed_squares = 0.0

    def deviation_tokens(self, prompt_tokens: float) -> float:
        """How far one prompt of such a length may be off: as those that finished were."""
        if self._misses < _FEWEST_FOR_A_FIT:
            return 5 + 0.05 * prompt_tokens
        return 2 + math.sqrt(self._missed_squares / self._misses)

    def learn(self, requests: float, prompt_tokens: float, sent_bytes: float) -> None:
        """Take into account requests that finished, of which the sums are known."""
        line = self._line()
        if line is not None:
            missed = (sent_bytes - line[0] * requests) / line[1] - prompt_tokens
            self._misses += requests
            self._missed_squares += missed * missed
        self._nn += requests * requests
        self._np += requests * prompt_tokens
        self._pp += prompt_tokens * prompt_tokens
        self._nb += requests * sent_bytes
        self._pb += prompt_tokens * sent_bytes

    def prompt_tokens(
        self,
        requests: int,
        sent_bytes: float,
        finished: float,
        finished_tokens: float,
        totals: ServerTotals,
    ) -> float | None:
        """Prompt tokens of so many requests, sent together with some that finished."""
        line = self._line() or _ratio(totals)
        if line is None:
            return None
        each, per_token = line
        rest = sent_bytes - each * (requests + finished) - per_token * finished_tokens
        return max(float(requests), rest / per_token)

    def _line(self) -> tuple[float, float] | None:
        determinant = self._nn * self._pp - self._np * self._np
        if self._nn < _FEWEST_FOR_A_FIT or determinant <= 1e-6 * self._nn * self._pp:
            return None
        each = (self._nb * self._pp - self._pb * self._np) / determinant
        per_token = (self._nn * self._pb - self._np * self._nb) / determinant
        return (each, per_token) if per_token > 0 else None


def _ratio(totals: ServerTotals) -> tuple[float, float] | None:
    if min(totals.closed_responses, totals.finished_requests) < _FEWEST_FOR_A_RATIO:
        return None
    prompt = totals.finished_prompt_tokens / totals.finished_requests
    each = totals.closed_request_bytes / totals.closed_responses
    return (0.0, each / prompt) if prompt > 0 and each > 0 else None
