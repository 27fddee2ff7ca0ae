"""Metrics of one engine: capacity, occupancy, headroom, outlook, ledger, prediction errors."""

from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.compare.binding_limit import BINDING_LIMITS
from vllm_capacity.compare.engine_state import ENGINE_STATES
from vllm_capacity.export.metric import PREFIX, Metric, of_engine, of_engine_by
from vllm_capacity.observe.ledger import LEDGER_STATES
from vllm_capacity.observe.recent_history import SHARE_WINDOW


def _error(a: EngineAssessment, unit_quantities: tuple[str, ...]) -> dict[str, float | None]:
    return {q: a.errors[q].difference for q in unit_quantities if q in a.errors}


def _limit(a: EngineAssessment, name: str, value: int | None) -> dict[str, float | None]:
    return {} if value is None else {a.limits.origins.get(name, "flag"): value}


CAPACITY = (
    of_engine(
        "kv_cache_blocks",
        "KV cache blocks that requests can hold; vLLM's null block is not counted.",
        "vLLM's page: num_gpu_blocks of vllm:cache_config_info, less the null block",
        lambda a: a.reported.blocks,
    ),
    of_engine(
        "kv_cache_block_size_tokens",
        "Tokens a block.",
        "vLLM's page: block_size of vllm:cache_config_info",
        lambda a: a.snapshot.block_size_tokens,
    ),
    of_engine_by(
        "kv_cache_capacity_tokens",
        "KV cache capacity in tokens, aware of layer groups; reported by vLLM (0.25 and newer) "
        "or derived from its blocks.",
        "vLLM's page: kv_cache_size_tokens of vllm:cache_config_info, or its blocks in tokens",
        "source",
        lambda a: {"reported": a.reported.tokens, "derived": a.derived.tokens},
    ),
    of_engine_by(
        "kv_cache_capacity_bytes",
        "Bytes of the KV cache on the fullest GPU, derived from reported blocks and the "
        "model's bytes per block.",
        "vLLM's page: num_gpu_blocks of vllm:cache_config_info; config.json: bytes per block",
        "source",
        lambda a: {"derived": a.derived.bytes_per_gpu},
    ),
    of_engine_by(
        "full_length_concurrency",
        "Requests of max_model_len tokens that fit into the KV cache; reported by vLLM (0.25 and "
        "newer) or derived from its blocks.",
        "vLLM's page: kv_cache_max_concurrency of vllm:cache_config_info, or from its blocks",
        "source",
        lambda a: {
            "reported": a.reported.full_length_concurrency,
            "derived": a.derived.full_length_concurrency,
        },
    ),
    of_engine(
        "reported_inconsistency_tokens",
        "Blocks times block size less vLLM's own capacity in tokens; large for hybrid caches, "
        "where blocks times block size misleads.",
        "vLLM's page: labels of vllm:cache_config_info against each other",
        lambda a: (
            a.snapshot.num_gpu_blocks * a.snapshot.block_size_tokens - a.reported.tokens
            if a.snapshot.num_gpu_blocks is not None
            and a.snapshot.block_size_tokens is not None
            and a.reported.tokens is not None
            else None
        ),
    ),
    of_engine_by(
        "max_model_len_tokens",
        "Longest request in tokens, by where the value came from.",
        "vLLM's /v1/models, else its arguments, else predicted: config.json",
        "source",
        lambda a: _limit(a, "max_model_len", a.limits.max_model_len),
    ),
    of_engine_by(
        "max_sequences",
        "Most requests in one batch (max_num_seqs), by where the value came from.",
        "vLLM's arguments, else predicted: its default for the GPU",
        "source",
        lambda a: _limit(a, "max_num_seqs", a.limits.max_num_seqs),
    ),
    of_engine_by(
        "max_batched_tokens",
        "Most tokens in one step (max_num_batched_tokens), by where the value came from.",
        "vLLM's arguments, else predicted: its default for the GPU",
        "source",
        lambda a: _limit(a, "max_num_batched_tokens", a.limits.max_num_batched_tokens),
    ),
)


OCCUPANCY = (
    of_engine(
        "kv_cache_used_blocks",
        "KV cache blocks held by requests.",
        "vLLM's page: vllm:kv_cache_usage_perc times the blocks of the pool",
        lambda a: a.snapshot.used_blocks,
    ),
    of_engine(
        "kv_cache_free_blocks",
        "KV cache blocks that a request can take, cached ones that nobody holds included.",
        "vLLM's page: blocks of the pool less used ones",
        lambda a: a.snapshot.free_blocks,
    ),
    of_engine(
        "kv_cache_used_tokens",
        "Held blocks in tokens, whole blocks.",
        "vLLM's page: used blocks times tokens a block",
        lambda a: a.used_tokens,
    ),
    of_engine(
        "kv_cache_free_tokens",
        "Free blocks in tokens, whole blocks.",
        "vLLM's page: free blocks times tokens a block",
        lambda a: a.free_tokens,
    ),
    of_engine(
        "kv_cache_used_bytes",
        "Held blocks in bytes on the fullest GPU; needs the model's config.json.",
        "vLLM's page: used blocks; config.json: bytes per block",
        lambda a: (
            a.derived.bytes_per_gpu * a.snapshot.used_blocks / a.snapshot.num_gpu_blocks
            if a.derived.bytes_per_gpu is not None
            and a.snapshot.used_blocks is not None
            and a.snapshot.num_gpu_blocks
            else None
        ),
    ),
    of_engine(
        "kv_cache_usage_ratio",
        "Share of the KV cache in use at the last collection, 0 to 1.",
        "vLLM's page: vllm:kv_cache_usage_perc",
        lambda a: a.snapshot.kv_cache_usage_ratio,
    ),
    of_engine_by(
        "kv_cache_usage_peak_ratio",
        "Largest share of the KV cache in use at any collection within the window, 0 to 1.",
        "vLLM's page: the largest vllm:kv_cache_usage_perc that was seen",
        "window",
        lambda a: dict(a.recent.usage_peak_ratio),
    ),
    of_engine(
        "running_requests",
        "Requests in the batch at the last collection.",
        "vLLM's page: vllm:num_requests_running",
        lambda a: a.snapshot.running,
    ),
    of_engine_by(
        "waiting_requests",
        "Requests queued at the last collection, by reason; unknown before vLLM 0.21.",
        "vLLM's page: vllm:num_requests_waiting_by_reason, else vllm:num_requests_waiting",
        "reason",
        lambda a: (
            dict(a.snapshot.waiting_by_reason)
            if a.snapshot.waiting_by_reason
            else {"unknown": a.snapshot.waiting}
        ),
    ),
    of_engine_by(
        "preempted_requests_ratio",
        "Preemptions for each request that got its first token within the window.",
        "vLLM's page: vllm:num_preemptions_total over vllm:time_to_first_token_seconds_count",
        "window",
        lambda a: {SHARE_WINDOW: a.recent.preempted_requests_ratio},
    ),
)

HEADROOM = (
    of_engine(
        "headroom_blocks",
        "Free blocks less those that queued requests will take; negative when the queue wants "
        "more than is free.",
        "vLLM's page: free blocks; queued requests times their mean footprint",
        lambda a: a.headroom.blocks,
    ),
    of_engine(
        "headroom_tokens",
        "Free tokens less those that queued requests will take.",
        "vLLM's page: free tokens; queued requests times their mean footprint",
        lambda a: a.headroom.tokens,
    ),
    of_engine_by(
        "headroom_requests",
        "Additional requests before the KV cache or the sequence limit binds, for requests of "
        "the observed mean or 95th percentile size, or of full length.",
        "computed: blocks that nobody in the engine will need, over those of one more request",
        "basis",
        lambda a: dict(a.headroom.requests),
    ),
    of_engine_by(
        "running_requests_limit",
        "Requests of that size that can run at once: by KV cache and by max_num_seqs.",
        "computed: the pool over the blocks of a request; max_num_seqs",
        "basis",
        lambda a: dict(a.headroom.running_requests_limit),
    ),
    of_engine(
        "queued_demand_tokens",
        "Tokens that the waiting requests are expected to need.",
        "vLLM's page: vllm:num_requests_waiting times the mean footprint",
        lambda a: a.headroom.queued_demand_tokens,
    ),
)

OUTLOOK = (
    of_engine_by(
        "kv_cache_committed_blocks",
        "Blocks expected at the joint peak of the requests in the engine, its queue included "
        "(admitted), and of these with the ones that keep coming meanwhile (expected).",
        "predicted: requests in the ledger, lengths of outputs so far, arrivals",
        "requests",
        lambda a: (
            {}
            if a.demand.committed is None
            else {
                "admitted": a.demand.committed.admitted_blocks,
                "expected": a.demand.committed.blocks,
            }
        ),
    ),
    of_engine(
        "time_to_exhaustion_seconds",
        "Seconds until no KV cache block is free; +Inf while the cache does not fill.",
        "predicted: committed demand, else the trend of the used blocks",
        lambda a: a.outlook.time_to_exhaustion_seconds,
    ),
    of_engine(
        "saturation_ratio",
        "Demand over capacity of the tightest resource (KV cache, sequences), the queue and the "
        "last minute's peak included; above 1 when more is asked for than there is.",
        "vLLM's page: used blocks, running and waiting requests; max_num_seqs",
        lambda a: a.outlook.saturation_ratio,
    ),
    of_engine_by(
        "headroom_ratio",
        "Share of a resource that nobody holds or waits for, 0 to 1; gpu_memory: of the engine's "
        "fullest GPU.",
        "vLLM's page: free blocks and running requests; NVML: free memory",
        "resource",
        lambda a: {**a.outlook.headroom_ratio, "gpu_memory": a.gpu_memory_headroom_ratio},
    ),
    of_engine_by(
        "binding_limit",
        "1 for what stops the next request: none, kv_cache, sequences (max_num_seqs), "
        "batched_tokens (max_num_batched_tokens), deferred.",
        "vLLM's page: free blocks, running and waiting requests; max_num_seqs",
        "limit",
        lambda a: (
            {}
            if a.outlook.binding_limit is None
            else {limit: float(limit == a.outlook.binding_limit) for limit in BINDING_LIMITS}
        ),
    ),
    of_engine_by(
        "state",
        "1 for the state, with hysteresis: idle, ok, tight, saturated, thrashing, unknown.",
        "computed: usage, queue, preemptions and committed demand, with hysteresis",
        "state",
        lambda a: {state: float(state == a.outlook.state) for state in ENGINE_STATES},
    ),
)

LEDGER = (
    of_engine(
        "in_flight_tokens",
        "Prompt and generated tokens of the requests past their first token, from counters alone.",
        "the ledger: vllm:prompt_tokens_total, vllm:generation_tokens_total, less what finished",
        lambda a: a.ledger.in_flight_tokens,
    ),
    of_engine(
        "predicted_kv_cache_used_blocks",
        "Blocks that ought to be in use, from the tokens in flight; never from the used blocks.",
        "predicted: the ledger's tokens and the layout of the cache",
        lambda a: a.predicted_used_blocks,
    ),
    of_engine_by(
        "predicted_kv_cache_used_blocks_bound",
        "Bounds (low, high) that should hold the used blocks at 95 of 100 collections.",
        "predicted: the ledger's uncertainty about who holds what",
        "bound",
        lambda a: {} if a.occupancy is None else {"low": a.occupancy.low, "high": a.occupancy.high},
    ),
    of_engine_by(
        "ledger_state",
        "1 for the state of the token ledger: anchored, drifting (who hung up or was preempted is "
        "inferred), unknown.",
        "the ledger: whether counters and running requests agree",
        "state",
        lambda a: {state: float(state == a.ledger.state) for state in LEDGER_STATES},
    ),
)

PREDICTION = (
    of_engine(
        "predicted_kv_cache_blocks",
        "KV cache blocks that ought to exist, the null block not counted, from config.json, "
        "engine arguments and GPU.",
        "predicted: config.json, engine arguments, GPU",
        lambda a: a.predicted.blocks,
    ),
    of_engine(
        "predicted_kv_cache_capacity_tokens",
        "KV cache capacity in tokens that ought to exist, as vLLM counts it.",
        "predicted: config.json, engine arguments, GPU",
        lambda a: a.predicted.tokens,
    ),
    of_engine(
        "predicted_kv_cache_capacity_bytes",
        "Bytes that the KV cache ought to take on the fullest GPU.",
        "predicted: config.json, engine arguments, GPU",
        lambda a: a.predicted.bytes_per_gpu,
    ),
    of_engine(
        "predicted_full_length_concurrency",
        "Requests of max_model_len tokens that ought to fit.",
        "predicted: config.json, engine arguments, GPU",
        lambda a: a.predicted.full_length_concurrency,
    ),
    of_engine_by(
        "prediction_error_ratio",
        "(measured - predicted) / measured, signed.",
        "computed: what vLLM reports and what was predicted",
        "quantity",
        lambda a: {quantity: error.ratio for quantity, error in a.errors.items()},
    ),
    of_engine_by(
        "prediction_error_blocks",
        "measured - predicted, in blocks.",
        "computed: blocks on vLLM's page and predicted ones",
        "quantity",
        lambda a: _error(a, ("kv_cache_blocks", "kv_cache_used_blocks")),
    ),
    of_engine_by(
        "prediction_error_bytes",
        "measured - predicted of a GPU's memory, in bytes; measured as the start-up log says, "
        "predicted without it.",
        "computed: the start-up log's terms and predicted ones",
        "quantity",
        lambda a: _error(a, ("weights", "activation_peak", "non_torch", "cuda_graph")),
    ),
    of_engine_by(
        "prediction_error_tokens",
        "measured - predicted, in tokens.",
        "computed: tokens on vLLM's page and predicted ones",
        "quantity",
        lambda a: _error(a, ("kv_cache_tokens",)),
    ),
    Metric(
        PREFIX + "engine_restarts_total",
        "Restarts of the engine that this exporter saw.",
        "vLLM's page: process_start_time_seconds, and counters that begin anew",
        (),
        "engine",
        lambda a: {(): float(a.restarts)},
        "counter",
    ),
)
