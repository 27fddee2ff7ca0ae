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
# Of a request's body, what stands around the prompt: a model's name, a few parameters.
_AROUND_A_PROMPT_BYTES = 120.0


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

    def record(self, totals: ServerTotals | None, mean_prompt_tokens: float | None) -> HangUps:
        """Hang-ups since the totals before.

        Args:
            totals: what the server has counted; None where nobody knows whose it is.
            mean_prompt_tokens: of all requests so far, those included that were hung up; None if
                unknown.

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
        return self._report(totals, mean_prompt_tokens)

    def _report(self, totals: ServerTotals, mean_prompt_tokens: float | None) -> HangUps:
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
        line = self._size.line() or _mean_line(totals, mean_prompt_tokens)
        prompts, off = None, 0.0
        if line is not None:
            sent = line.tokens(self._bytes, requests + self._finished)
            prompts = max(float(requests), sent - self._prompt_tokens)
            off = line.off_tokens + line.off_ratio * max(prompts, sent) / requests
        hung_up = HangUps(requests, self._seconds, prompts, off)
        self._reported = requests
        self.forget()
        return hung_up


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    """Bytes of a request's body by its prompt tokens, and how far a prompt told by it may be off.

    Attributes:
        request_bytes, token_bytes: of the request itself, and for each of its tokens.
        off_tokens: standard deviation of one prompt.
        off_ratio: the same as a share of all tokens that were sent together.
    """

    request_bytes: float
    token_bytes: float
    off_tokens: float
    off_ratio: float = 0.0

    def tokens(self, sent_bytes: float, requests: float) -> float:
        """Prompt tokens of so many requests with so many bytes."""
        return (sent_bytes - self.request_bytes * requests) / self.token_bytes


class _RequestSize:
    """The line through the requests that finished."""

    def __init__(self) -> None:
        self._nn = self._np = self._pp = self._nb = self._pb = 0.0
        self._misses = self._missed_squares = 0.0

    def learn(self, requests: float, prompt_tokens: float, sent_bytes: float) -> None:
        """Take into account requests that finished, of which the sums are known."""
        line = self.line()
        if line is not None:
            missed = line.tokens(sent_bytes, requests) - prompt_tokens
            self._misses += requests
            self._missed_squares += missed * missed
        self._nn += requests * requests
        self._np += requests * prompt_tokens
        self._pp += prompt_tokens * prompt_tokens
        self._nb += requests * sent_bytes
        self._pb += prompt_tokens * sent_bytes

    def line(self) -> _Line | None:
        """The line; None while too few have finished."""
        determinant = self._nn * self._pp - self._np * self._np
        if self._nn < _FEWEST_FOR_A_FIT or determinant <= 1e-6 * self._nn * self._pp:
            return None
        each = (self._nb * self._pp - self._pb * self._np) / determinant
        per_token = (self._nn * self._pb - self._np * self._nb) / determinant
        if per_token <= 0:
            return None
        off, ratio = 5.0, 0.05
        if self._misses >= _FEWEST_FOR_A_FIT:
            off, ratio = 2 + math.sqrt(self._missed_squares / self._misses), 0.0
        return _Line(request_bytes=each, token_bytes=per_token, off_tokens=off, off_ratio=ratio)


def _mean_line(totals: ServerTotals, mean_prompt_tokens: float | None) -> _Line | None:
    """The line through a request's mean bytes for its mean prompt.

    Who hangs up in the queue counts as bytes alone: the more do, the less it is worth.
    """
    if totals.closed_responses < _FEWEST_FOR_A_RATIO or not mean_prompt_tokens:
        return None
    each = totals.closed_request_bytes / totals.closed_responses
    around = min(_AROUND_A_PROMPT_BYTES, each / 2)
    per_token = (each - around) / mean_prompt_tokens
    if per_token <= 0:
        return None
    hung_up_ratio = 1 - min(1.0, totals.finished_parents / totals.closed_responses)
    return _Line(
        request_bytes=around,
        token_bytes=per_token,
        off_tokens=5 + around / per_token / 2,
        off_ratio=0.05 + 0.2 * hung_up_ratio,
    )
