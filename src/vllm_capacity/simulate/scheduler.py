"""Continuous batching over a pool of blocks, first come, first served."""

from collections import deque
from dataclasses import dataclass, field

from vllm_capacity.simulate.block_pool import Block, BlockPool
from vllm_capacity.simulate.config import SimulationConfig
from vllm_capacity.simulate.requests import FinishReason, LiveRequest, Status
from vllm_capacity.units import ceil_div


@dataclass(slots=True)
class Batch:
    """One step: the tokens of each request in it, and who will get a token from it."""

    num_scheduled_tokens: dict[LiveRequest, int] = field(default_factory=dict)
    sampling: set[LiveRequest] = field(default_factory=set)
    preempted: list[LiveRequest] = field(default_factory=list)

    @property
    def total_num_scheduled_tokens(self) -> int:
        """Tokens of the whole step."""
        return sum(self.num_scheduled_tokens.values())


@dataclass(frozen=True, slots=True)
class Output:
    """One token delivered to one request."""

    request: LiveRequest
    finish_reason: FinishReason | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerStats:
    """What one step tells of the scheduler; cache figures are since the step before.

    Source: vLLM 0.32 ``v1/metrics/stats.py``, ``SchedulerStats``.
    """

    num_running: int
    num_waiting: int
    kv_cache_usage_ratio: float
    prefix_cache_queries_tokens: int
    prefix_cache_hits_tokens: int


class Scheduler:
    """Decides step by step which requests advance, and gives them blocks.

    Source: vLLM 0.32 ``v1/core/sched/scheduler.py`` and ``async_scheduler.py``, and
    ``v1/core/kv_cache_manager.py``, ``allocate_slots``; without speculation and connectors.
    """

    def __init__(self, config: SimulationConfig) -> None:
        self._config = config
        self._block_size = config.block_size
        self.pool = BlockPool(config.num_gpu_blocks, enable_caching=config.enable_prefix_caching)
        self.running: list[LiveRequest] = []
        self.waiting: deque[LiveRequest] = deque()
        self._queries_tokens = 0
        self._hits_tokens = 0

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
            outputs.append(self._deliver(request, stale=stale))
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
        )
        self._queries_tokens = self._hits_tokens = 0
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
                token_budget -= num_tokens
            index += 1
        return token_budget

    def _tokens_wanted(self, request: LiveRequest, token_budget: int) -> int:
        if request.ends_with_steps_in_flight:
            return 0
        computed = request.num_computed_tokens
        return min(
            request.num_tokens + request.num_output_placeholders - computed,
            token_budget,
            self._config.max_model_len - computed - 1,
        )

    def _allocate_or_preempt(self, request: LiveRequest, num_tokens: int, batch: Batch) -> bool:
        while not self._allocate(request, num_tokens):
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
            num_tokens = self._admit(request, token_budget)
            if num_tokens == 0:
                break
            self.waiting.popleft()
            self._start(request, now)
            batch.num_scheduled_tokens[request] = num_tokens
            token_budget -= num_tokens

    def _admit(self, request: LiveRequest, token_budget: int) -> int:
        """Give the first chunk its blocks; the tokens of that chunk, 0 if blocks are short."""
        hits = self._cached_prefix(request)
        hit_tokens = len(hits) * self._block_size
        num_tokens = min(request.num_tokens - hit_tokens, token_budget)
        # Admission asks room for the whole sequence, not for its first chunk alone.
        whole = ceil_div(request.num_tokens, self._block_size) - len(hits)
        reclaimed = sum(block.ref_count == 0 for block in hits)
        if whole + reclaimed > self.pool.num_free_blocks:
            return 0
        self.pool.touch(hits)
        request.blocks.extend(hits)
        request.num_cached_blocks = len(hits)
        request.num_computed_tokens = hit_tokens
        self._allocate(request, num_tokens)
        self._record_lookup(request, hit_tokens)
        return num_tokens

    def _record_lookup(self, request: LiveRequest, hit_tokens: int) -> None:
        if request.num_preemptions:
            return
        request.prefix_hit_tokens = hit_tokens
        if self._config.enable_prefix_caching:
            self._queries_tokens += request.num_tokens
            self._hits_tokens += hit_tokens

    def _start(self, request: LiveRequest, now: float) -> None:
        request.status = Status.RUNNING
        if request.scheduled_at is None:
            request.scheduled_at = now
        self.running.append(request)

    def _advance(self, request: LiveRequest, num_tokens: int, batch: Batch) -> None:
        request.num_computed_tokens += num_tokens
        request.num_in_flight_tokens += num_tokens
        if request.num_computed_tokens >= request.num_tokens + request.num_output_placeholders:
            request.num_output_placeholders += 1
            batch.sampling.add(request)

    def _deliver(self, request: LiveRequest, *, stale: bool) -> Output:
        request.num_output_tokens += 1
        reason = request.finish_reason(self._config.max_model_len)
        if not stale:
            request.num_output_placeholders -= 1
        if request.status is Status.RUNNING:
            self._remember(request, request.num_computed_tokens - request.num_output_placeholders)
        if reason:
            if request.status is not Status.RUNNING:
                self.waiting.remove(request)
            self._finish(request)
        return Output(request, reason)

    def _cached_prefix(self, request: LiveRequest) -> list[Block]:
        hits: list[Block] = []
        # The last token is always computed, for its logits give the next one.
        for index in range((request.num_tokens - 1) // self._block_size):
            block = self.pool.cached(request.content(index, self._block_size))
            if block is None:
                break
            hits.append(block)
        return hits

    def _allocate(self, request: LiveRequest, num_tokens: int) -> bool:
        total = request.num_computed_tokens + num_tokens
        needed = ceil_div(total, self._block_size) - len(request.blocks)
        if needed > 0:
            if needed > self.pool.num_free_blocks:
                return False
            request.blocks.extend(self.pool.allocate(needed))
        self._remember(request, min(total, request.num_tokens))
        return True

    def _remember(self, request: LiveRequest, num_tokens: int) -> None:
        num_full = num_tokens // self._block_size
        for index in range(request.num_cached_blocks, num_full):
            content = request.content(index, self._block_size)
            self.pool.remember(request.blocks[index], content)
        request.num_cached_blocks = max(request.num_cached_blocks, num_full)

    def _preempt(self, request: LiveRequest) -> None:
        self._free(request)
        request.status = Status.PREEMPTED
        request.num_stale_tokens = request.num_in_flight_tokens
        request.num_output_placeholders = 0
        request.num_preemptions += 1
        request.undelivered_preemptions += 1
        self.waiting.appendleft(request)

    def _finish(self, request: LiveRequest) -> None:
        self._free(request)
        request.status = Status.FINISHED

    def _free(self, request: LiveRequest) -> None:
        self.pool.release(request.blocks)
        request.blocks.clear()
        request.num_computed_tokens = 0
        request.num_cached_blocks = 0
