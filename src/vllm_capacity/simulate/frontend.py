"""What the front end counts when tokens reach it: the numbers behind the counters."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_capacity.simulate.requests import FinishReason, LiveRequest
from vllm_capacity.simulate.scheduler import Output


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedRequest:
    """One request that ended by itself; a client's hang-up never comes here.

    Source: vLLM 0.32 ``v1/metrics/stats.py``, ``update_from_finished_request``.
    """

    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    max_tokens: int
    num_preemptions: int
    e2e_seconds: float
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float

    @property
    def inference_seconds(self) -> float:
        """From the first schedule to the last token."""
        return self.prefill_seconds + self.decode_seconds

    @property
    def seconds_per_output_token(self) -> float:
        """Mean over the tokens after the first; 0 when there is only one."""
        return self.decode_seconds / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0


@dataclass(slots=True)
class IterationStats:
    """What one step's outputs add to the counters and histograms.

    Source: vLLM 0.32 ``v1/metrics/stats.py``, ``IterationStats``.
    """

    now: float
    generation_tokens: int = 0
    prompt_tokens: int = 0
    prompt_hit_tokens: int = 0
    prompt_external_tokens: int = 0
    num_preempted: int = 0
    first_token_seconds: list[float] = field(default_factory=list)
    inter_token_seconds: list[float] = field(default_factory=list)
    finished: list[FinishedRequest] = field(default_factory=list)
    finished_n: list[int] = field(default_factory=list)
    finished_longest_tokens: list[int] = field(default_factory=list)

    @property
    def computed_prompt_tokens(self) -> int:
        """Prompt tokens that no cache supplied."""
        return self.prompt_tokens - self.prompt_hit_tokens - self.prompt_external_tokens


def count_outputs(outputs: Sequence[Output], now: float) -> IterationStats:
    """The statistics of one step whose tokens arrive at ``now``."""
    stats = IterationStats(now)
    for output in outputs:
        _count_tokens(stats, output)
        if output.finish_reason:
            _count_finish(stats, output.request, output.finish_reason)
    return stats


def _count_tokens(stats: IterationStats, output: Output) -> None:
    request = output.request
    stats.generation_tokens += output.num_tokens
    # A preemption is heard of with the next token that arrives, be it seconds later.
    stats.num_preempted += request.undelivered_preemptions
    request.delivered_preemptions += request.undelivered_preemptions
    request.undelivered_preemptions = 0
    if request.first_token_at is None:
        request.first_token_at = stats.now
        stats.prompt_tokens += request.prompt_tokens
        stats.prompt_hit_tokens += request.prefix_hit_tokens or 0
        stats.prompt_external_tokens += request.external_hit_tokens
        stats.first_token_seconds.append(stats.now - request.submission.arrived_at)
    else:
        stats.inter_token_seconds.append(stats.now - request.last_token_at)
    request.last_token_at = stats.now


def _count_finish(stats: IterationStats, request: LiveRequest, reason: FinishReason) -> None:
    submission = request.submission
    stats.finished.append(_finished(request, reason, stats.now))
    submission.unfinished -= 1
    submission.longest_output_tokens = max(
        submission.longest_output_tokens, request.num_output_tokens
    )
    if submission.unfinished == 0:
        stats.finished_n.append(submission.spec.n)
        stats.finished_longest_tokens.append(submission.longest_output_tokens)


def _finished(request: LiveRequest, reason: FinishReason, now: float) -> FinishedRequest:
    arrived_at = request.submission.arrived_at
    scheduled_at = arrived_at if request.scheduled_at is None else request.scheduled_at
    first_token_at = now if request.first_token_at is None else request.first_token_at
    return FinishedRequest(
        reason=reason,
        prompt_tokens=request.prompt_tokens,
        cached_tokens=(request.prefix_hit_tokens or 0) + request.external_hit_tokens,
        output_tokens=request.num_output_tokens,
        max_tokens=request.submission.spec.max_tokens,
        num_preemptions=request.delivered_preemptions,
        e2e_seconds=now - arrived_at,
        queue_seconds=scheduled_at - arrived_at,
        prefill_seconds=first_token_at - scheduled_at,
        decode_seconds=request.last_token_at - first_token_at,
    )
