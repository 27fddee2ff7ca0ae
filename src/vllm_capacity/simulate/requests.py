"""A request: what the client asks, and what the engine knows of it while it lives."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

from vllm_capacity.simulate.block_pool import Block
from vllm_capacity.units import Tokens

_NO_TOKENS = Tokens(0)


class Status(Enum):
    """Where a request is."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


class FinishReason(Enum):
    """``finished_reason`` of ``vllm:request_success``, in vLLM 0.32's order."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    REPETITION = "repetition"


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestSpec:
    """What one client sends, and how it and the model will behave.

    Attributes:
        prompt_tokens: length of the prompt.
        max_tokens: most tokens the client wants.
        stop_after_tokens: the model ends by itself at this many tokens; None: never.
        n: answers wanted; each becomes a request of its own with the same prompt.
        prefix: name of a shared beginning; None if the prompt shares nothing.
        prefix_tokens: length of that beginning.
        hang_up_after_tokens: the client leaves when it has received this many tokens.
        hang_up_after_seconds: the client leaves if its first token takes longer.
        external_tokens: leading tokens of the prompt that a cache outside of the engine holds.
        data_parallel_rank: the engine that a router chose; None lets the server choose.
    """

    prompt_tokens: Tokens
    max_tokens: Tokens
    stop_after_tokens: Tokens | None = None
    n: int = 1
    prefix: Hashable | None = None
    prefix_tokens: Tokens = _NO_TOKENS
    hang_up_after_tokens: Tokens | None = None
    hang_up_after_seconds: float | None = None
    external_tokens: Tokens = _NO_TOKENS
    data_parallel_rank: int | None = None


@dataclass(slots=True, eq=False)
class Submission:
    """One client's request, shared by its ``n`` answers."""

    submission_id: int
    spec: RequestSpec
    arrived_at: float
    unfinished: int = field(init=False)
    longest_output_tokens: int = 0

    def __post_init__(self) -> None:
        self.unfinished = self.spec.n


@dataclass(slots=True, eq=False)
class LiveRequest:
    """One answer in the making, as scheduler and front end see it.

    Attributes:
        num_computed_tokens: tokens whose keys and values are in blocks or on the way there.
        num_output_tokens: tokens delivered.
        num_output_placeholders: tokens that steps in flight will deliver.
        num_in_flight_tokens: tokens of this request in steps in flight.
        num_stale_tokens: of those, tokens scheduled before a preemption took the blocks away.
        num_draft_tokens: tokens drafted for the next step.
        is_prefilling: whether the step planned last leaves part of the prompt to compute.
        tables: blocks in each group of layers, first to last; None for the null block.
        num_cached_blocks: leading blocks in each group that the prefix cache was told of.
        junction_tokens: end of a shared prefix that only some groups had cached; 0 if none.
        prefix_hit_tokens: prompt tokens found in the cache when first scheduled; None before.
        external_hit_tokens: prompt tokens loaded from outside when first scheduled.
        undelivered_preemptions: preemptions that the front end has not heard of yet.
    """

    request_id: str
    submission: Submission
    status: Status = Status.WAITING
    tables: list[list[Block | None]] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_output_tokens: int = 0
    num_output_placeholders: int = 0
    num_in_flight_tokens: int = 0
    num_stale_tokens: int = 0
    num_draft_tokens: int = 0
    is_prefilling: bool = False
    num_cached_blocks: list[int] = field(default_factory=list)
    junction_tokens: int = 0
    num_preemptions: int = 0
    prefix_hit_tokens: int | None = None
    external_hit_tokens: int = 0
    scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float = 0.0
    undelivered_preemptions: int = 0
    delivered_preemptions: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return self.submission.spec.prompt_tokens

    @property
    def num_tokens(self) -> int:
        """Prompt and delivered output together."""
        return self.submission.spec.prompt_tokens + self.num_output_tokens

    @property
    def ends_with_steps_in_flight(self) -> bool:
        """Whether the tokens on the way are surely the last ones wanted."""
        spec = self.submission.spec
        placeholders = self.num_output_placeholders
        return (
            placeholders > 0
            and self.num_computed_tokens + 2 - placeholders >= spec.prompt_tokens + spec.max_tokens
        )

    def accepts_draft(self, position: int, ratio: float) -> bool:
        """Whether the token drafted for that place of the output is the one that is sampled."""
        # Spread evenly over 0 to 1, and the same whenever it is asked.
        spread = (position * 0x9E3779B1 + self.prompt_tokens * 0x85EBCA6B) % 2**32
        return spread < ratio * 2**32

    def finish_reason(self, max_model_len: int) -> FinishReason | None:
        """Why the newest token is the last one; None if it is not.

        Source: vLLM 0.32 ``v1/core/sched/utils.py``, ``check_stop``.
        """
        spec = self.submission.spec
        if spec.stop_after_tokens is not None and self.num_output_tokens >= spec.stop_after_tokens:
            return FinishReason.STOP
        if self.num_tokens >= max_model_len or self.num_output_tokens >= spec.max_tokens:
            return FinishReason.LENGTH
        return None

    def content(self, index: int, block_size: int) -> Hashable:
        """What the full block at ``index`` holds, as a name.

        Two blocks hold the same exactly when all tokens up to their end are the same. Requests
        share their common prefix, the answers to one submission their prompt, and a preempted
        request finds its own output again.
        """
        spec = self.submission.spec
        end = (index + 1) * block_size
        if spec.prefix is not None and end <= spec.prefix_tokens:
            return ("prefix", spec.prefix, index)
        if end <= spec.prompt_tokens:
            return ("prompt", self.submission.submission_id, index)
        return ("output", self.request_id, index)
