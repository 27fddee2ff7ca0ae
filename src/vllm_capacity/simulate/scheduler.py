"""Continuous batching over a pool of blocks, first come, first served."""

from collections import deque
from dataclasses import dataclass, field

from vllm_capacity.simulate.config import SimulationConfig
from vllm_capacity.simulate.kv_cache import KVCache
from vllm_capacity.simulate.prefix_cache import PrefixHit
from vllm_capacity.simulate.requests import FinishReason, LiveRequest, Status


@dataclass(slots=True)
class Batch:
    """One step: the tokens of each request in it, drafts among them, and who samples in it.

    Drafts of ``padded`` requests are none: they only make all of the step alike.
    """

    num_scheduled_tokens: dict[LiveRequest, int] = field(default_factory=dict)
    num_draft_tokens: dict[LiveRequest, int] = field(default_factory=dict)
    padded: set[LiveRequest] = field(default_factory=set)
    has_running: bool = False
    has_prefill: bool = False
    sampling: set[LiveRequest] = field(default_factory=set)
    preempted: list[LiveRequest] = field(default_factory=list)

    @property
    def total_num_scheduled_tokens(self) -> int:
        """Tokens of the whole step."""
        return sum(self.num_scheduled_tokens.values())


@dataclass(frozen=True, slots=True)
class Output:
    """Tokens delivered to one request: the accepted drafts and one more."""

    request: LiveRequest
    num_tokens: int
    finish_reason: FinishReason | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerStats:
    """What one step tells of the scheduler; cache figures are since the step before.

    ``drafts`` has for each request whose drafts were verified how many there were, and how many
    were accepted.

    Source: vLLM 0.32 ``v1/metrics/stats.py``, ``SchedulerStats``.
    """

    num_running: int
    num_waiting: int
    kv_cache_usage_ratio: float
    prefix_cache_queries_tokens: int
    prefix_cache_hits_tokens: int
    external_queries_tokens: int = 0
    external_hits_tokens: int = 0
    drafts: tuple[tuple[int, int], ...] = ()


class Scheduler:
    """Decides step by step which requests advance, and gives them blocks.

    Source: vLLM 0.32 ``v1/core/sched/scheduler.py`` and ``async_scheduler.py``. Drafts
    are those of an EAGLE head: always as many as were asked for.
    """

    def __init__(self, config: SimulationConfig) -> None:
        self._config = config
        self._cache = KVCache(config)
        self.pool = self._cache.pool
        self.running: list[LiveRequest] = []
        self.waiting: deque[LiveRequest] = deque()
        self._queries_tokens = self._hits_tokens = 0
        self._external_queries_tokens = self._external_hits_tokens = 0
        self._drafts: list[tuple[int, int]] = []

    def add(self, request: LiveRequest) -> None:
        """Queue a new request."""
        self.waiting.append(request)

    def drop(self, request: LiveRequest) -> None:
        """Forget a request that is still alive; its blocks are free at once."""
        queue = self.running if request.status is Status.RUNNING else self.waiting
        queue.remove(request)
        self._finish(request)

    def schedule(self, now: float) -> Batch:
        """Plan one step: the running requests first, the waiting ones with what is left."""
        batch = Batch()
        token_budget = self._schedule_running(batch, self._config.max_num_batched_tokens)
        # Blocks were short a moment ago: nobody is let in who would take them again.
        if not batch.preempted:
            batch.has_running = bool(batch.num_scheduled_tokens)
            self._schedule_waiting(batch, token_budget, now)
        for request, num_tokens in batch.num_scheduled_tokens.items():
            self._advance(request, num_tokens, batch)
        return batch

    def update(self, batch: Batch) -> list[Output]:
        """Take in the tokens of a step that has run, in the order of the batch."""
        outputs = []
        for request, num_tokens in batch.num_scheduled_tokens.items():
            stale = request.num_stale_tokens > 0
            request.num_in_flight_tokens -= num_tokens
            if stale:
                request.num_stale_tokens -= num_tokens
            if request.status is Status.FINISHED or request not in batch.sampling:
                continue
            accepted = self._verify(request, batch, stale=stale)
            outputs.append(self._deliver(request, 1 + accepted, stale=stale))
        if any(output.finish_reason for output in outputs):
            self.running = [r for r in self.running if r.status is not Status.FINISHED]
        return outputs

    def take_stats(self) -> SchedulerStats:
        """The state of the queues and of the pool now."""
        stats = SchedulerStats(
            num_running=len(self.running),
            num_waiting=len(self.waiting),
            kv_cache_usage_ratio=self.pool.usage_ratio,
            prefix_cache_queries_tokens=self._queries_tokens,
            prefix_cache_hits_tokens=self._hits_tokens,
            external_queries_tokens=self._external_queries_tokens,
            external_hits_tokens=self._external_hits_tokens,
            drafts=tuple(self._drafts),
        )
        self._queries_tokens = self._hits_tokens = 0
        self._external_queries_tokens = self._external_hits_tokens = 0
        self._drafts.clear()
        return stats

    def _schedule_running(self, batch: Batch, token_budget: int) -> int:
        index = 0
        while index < len(self.running) and token_budget > 0:
            request = self.running[index]
            num_tokens = self._tokens_wanted(request, token_budget)
            if num_tokens > 0:
                if not self._allocate_or_preempt(request, num_tokens, batch):
                    break
                batch.num_scheduled_tokens[request] = num_tokens
                self._schedule_drafts(request, num_tokens, batch)
                batch.has_prefill |= request.is_prefilling
                token_budget -= num_tokens
            index += 1
        return token_budget

    def _tokens_wanted(self, request: LiveRequest, token_budget: int) -> int:
        if request.ends_with_steps_in_flight:
            return 0
        computed = request.num_computed_tokens
        known = request.num_tokens + request.num_draft_tokens + request.num_output_placeholders
        return min(
            known - computed,
            token_budget,
            self._config.max_model_len - computed - 1,
        )

    def _allocate_or_preempt(self, request: LiveRequest, num_tokens: int, batch: Batch) -> bool:
        while not self._cache.grow(request, num_tokens):
            victim = self.running.pop()
            self._preempt(victim)
            batch.preempted.append(victim)
            if victim is request:
                return False
        return True

    def _schedule_waiting(self, batch: Batch, token_budget: int, now: float) -> None:
        # A preempted request comes here only when its last token has arrived: the step that
        # makes it is taken in before the next one is planned.
        while self.waiting and token_budget > 0 and len(self.running) < self._config.max_num_seqs:
            request = self.waiting[0]
            num_tokens = self._admit(request, token_budget, batch)
            if num_tokens == 0:
                break
            self.waiting.popleft()
            self._start(request, now)
            batch.num_scheduled_tokens[request] = num_tokens
            token_budget -= num_tokens

    def _admit(self, request: LiveRequest, token_budget: int, batch: Batch) -> int:
        """Give the first chunk its blocks; the tokens of that chunk, 0 if blocks are short."""
        hit = self._cache.find_prefix(request)
        num_tokens = request.num_tokens - hit.num_tokens
        padding = self._padding(num_tokens, hit.num_tokens, batch)
        if num_tokens + padding > token_budget and padding:
            return 0
        num_tokens = min(num_tokens + padding, token_budget)
        if not self._cache.admit(request, hit, num_tokens):
            return 0
        request.num_computed_tokens = hit.num_tokens
        if padding:
            batch.num_draft_tokens[request] = padding
            batch.padded.add(request)
        self._record_lookup(request, hit)
        return num_tokens

    def _padding(self, num_tokens: int, hit_tokens: int, batch: Batch) -> int:
        """Drafts for a request that comes back with a single token to compute."""
        drafts = self._config.num_speculative_tokens
        fits = hit_tokens + 1 + drafts + 1 <= self._config.max_model_len
        alone = num_tokens == 1 and not batch.has_prefill
        return drafts if alone and (batch.has_running or hit_tokens) and fits else 0

    def _record_lookup(self, request: LiveRequest, hit: PrefixHit) -> None:
        if request.num_preemptions:
            return
        local_tokens = hit.num_tokens - hit.external_tokens
        request.prefix_hit_tokens = local_tokens
        request.external_hit_tokens = hit.external_tokens
        if not self._config.enable_prefix_caching:
            return
        self._queries_tokens += request.num_tokens
        self._hits_tokens += local_tokens
        if self._config.external_cache:
            self._external_queries_tokens += request.num_tokens - local_tokens
            self._external_hits_tokens += hit.external_tokens

    def _start(self, request: LiveRequest, now: float) -> None:
        request.status = Status.RUNNING
        if request.scheduled_at is None:
            request.scheduled_at = now
        self.running.append(request)

    def _schedule_drafts(self, request: LiveRequest, num_tokens: int, batch: Batch) -> None:
        known = request.num_tokens + request.num_output_placeholders
        drafts = num_tokens + request.num_computed_tokens - known
        if request.num_draft_tokens and drafts > 0:
            batch.num_draft_tokens[request] = min(drafts, request.num_draft_tokens)
        request.num_draft_tokens = 0

    def _advance(self, request: LiveRequest, num_tokens: int, batch: Batch) -> None:
        request.num_computed_tokens += num_tokens
        request.num_in_flight_tokens += num_tokens
        known = request.num_tokens + request.num_output_placeholders
        request.is_prefilling = request.num_computed_tokens < known
        if not request.is_prefilling:
            request.num_output_placeholders += 1 + batch.num_draft_tokens.get(request, 0)
            request.num_draft_tokens = self._config.num_speculative_tokens
            batch.sampling.add(request)

    def _verify(self, request: LiveRequest, batch: Batch, *, stale: bool) -> int:
        """Drafts that are accepted; the others are as if they had never been computed."""
        drafts = batch.num_draft_tokens.get(request, 0)
        ratio = 0.0 if request in batch.padded else self._config.draft_acceptance_ratio
        position, accepted = request.num_output_tokens, 0
        while accepted < drafts and request.accepts_draft(position + accepted, ratio):
            accepted += 1
        if drafts:
            self._drafts.append((drafts, accepted))
        if not stale:
            request.num_computed_tokens -= drafts - accepted
            request.num_output_placeholders -= drafts - accepted
        return accepted

    def _deliver(self, request: LiveRequest, num_tokens: int, *, stale: bool) -> Output:
        reason, delivered = None, 0
        while reason is None and delivered < num_tokens:
            request.num_output_tokens += 1
            delivered += 1
            reason = request.finish_reason(self._config.max_model_len)
        if not stale:
            request.num_output_placeholders -= delivered
        # A synchronous scheduler lets its prefix cache know when it plans the next step.
        if request.status is Status.RUNNING and self._config.async_scheduling:
            computed = request.num_computed_tokens - request.num_output_placeholders
            self._cache.remember(request, computed)
        if reason:
            if request.status is not Status.RUNNING:
                self.waiting.remove(request)
            self._finish(request)
        return Output(request, delivered, reason)

    def _preempt(self, request: LiveRequest) -> None:
        self._free(request)
        request.status = Status.PREEMPTED
        request.num_stale_tokens = request.num_in_flight_tokens
        request.num_output_placeholders = request.num_draft_tokens = 0
        request.num_preemptions += 1
        request.undelivered_preemptions += 1
        self.waiting.appendleft(request)

    def _finish(self, request: LiveRequest) -> None:
        self._free(request)
        request.status = Status.FINISHED

    def _free(self, request: LiveRequest) -> None:
        self._cache.free(request)
        request.num_computed_tokens = 0
