"""What stops the next request from starting.

The scheduler looks at its queue from the head on, and stops at the first request that it cannot
start: because ``max_num_seqs`` run, because the step's ``max_num_batched_tokens`` are spent, or
because the blocks of the whole prompt are not free (``v1/core/sched/scheduler.py``,
``Scheduler.schedule``; ``scheduler_reserve_full_isl``, 0.32). Deferred requests wait for something
else, a grammar or keys and values from elsewhere, and are skipped.
"""

from typing import Literal

from vllm_capacity.compare.demand import Demand
from vllm_capacity.compare.headroom import Limits
from vllm_capacity.observe.engine_snapshot import EngineSnapshot

BindingLimit = Literal["none", "kv_cache", "sequences", "batched_tokens", "deferred"]
BINDING_LIMITS: tuple[BindingLimit, ...] = (
    "none",
    "kv_cache",
    "sequences",
    "batched_tokens",
    "deferred",
)


def queued_for_capacity(snapshot: EngineSnapshot) -> int | None:
    """Requests that wait for room; before vLLM 0.21 all that wait."""
    if not snapshot.waiting_by_reason:
        return snapshot.waiting
    return sum(n for reason, n in snapshot.waiting_by_reason.items() if reason != "deferred")


def binding_limit(snapshot: EngineSnapshot, limits: Limits, demand: Demand) -> BindingLimit | None:
    """The limit that the next request meets; None where the page does not tell."""
    running, queued = snapshot.running, queued_for_capacity(snapshot)
    if running is None or queued is None:
        return None
    if limits.max_num_seqs is not None and running >= limits.max_num_seqs:
        return "sequences"
    free, prompt = snapshot.free_blocks, demand.prompt_blocks
    if free is not None and prompt is not None and free < prompt:
        return "kv_cache"
    if not queued:
        return "deferred" if snapshot.waiting else "none"
    if demand.preempted_requests >= 1:  # they are the head of the queue
        return "kv_cache"
    # Blocks for a mean prompt are free. Either the step's tokens are spent, and then somebody is
    # being prefilled; or the head of the queue is longer than the mean.
    return "batched_tokens" if demand.prefilling_requests >= 1 or free is None else "kv_cache"
