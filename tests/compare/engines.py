"""Engines as their pages show them, for the tests of this folder."""

from vllm_capacity.compare.committed import CommittedDemand
from vllm_capacity.compare.demand import Demand
from vllm_capacity.observe.engine_snapshot import EngineSnapshot, snapshots_of_page
from vllm_capacity.observe.exposition import ExpositionParser
from vllm_capacity.observe.metric_names import WANTED_NAMES

BLOCK_SIZE = 16


def engine(
    *,
    at: float = 0.0,
    used: int = 0,
    total: int = 100,
    running: int | None = 0,
    waiting: int | None = 0,
    deferred: int | None = None,
    first_tokens: float = 0,
    generated: float = 0,
    preemptions: float = 0,
) -> EngineSnapshot:
    """One engine; ``deferred`` of those that wait do not wait for room."""
    lines = [
        f"vllm:kv_cache_usage_perc {used / total!r}",
        f'vllm:cache_config_info{{block_size="{BLOCK_SIZE}",num_gpu_blocks="{total + 1}"}} 1',
        f"vllm:time_to_first_token_seconds_count {first_tokens}",
        f"vllm:generation_tokens_total {generated}",
        f"vllm:num_preemptions_total {preemptions}",
    ]
    lines += [] if running is None else [f"vllm:num_requests_running {running}"]
    lines += [] if waiting is None else [f"vllm:num_requests_waiting {waiting}"]
    if deferred is not None:
        by_reason = {"capacity": (waiting or 0) - deferred, "deferred": deferred}
        lines += [
            f'vllm:num_requests_waiting_by_reason{{reason="{reason}"}} {n}'
            for reason, n in by_reason.items()
        ]
    samples = ExpositionParser(WANTED_NAMES).parse(("\n".join(lines) + "\n").encode())
    return snapshots_of_page(samples, taken_at_seconds=at).engines[0]


def demand(
    *,
    committed: float | None = None,
    seconds_to_exhaustion: float | None = None,
    prompt_blocks: float | None = 10.0,
    prefilling: float = 0.0,
    preempted: float = 0.0,
    preemptions: float = 0.0,
    begun: float = 0.0,
) -> Demand:
    """What its requests ask for."""
    return Demand(
        committed=None
        if committed is None
        else CommittedDemand(
            admitted_blocks=committed,
            blocks=committed,
            seconds_to_exhaustion=seconds_to_exhaustion,
        ),
        prompt_blocks=prompt_blocks,
        shared_prompt_tokens=0.0,
        prefilling_requests=prefilling,
        preempted_requests=preempted,
        preemptions_last_minute=preemptions,
        begun_last_minute=begun,
    )
