"""Every name under which vLLM has exported what we read. vLLM's spellings end here.

Sources: vLLM ``engine/metrics.py`` (V0, 0.6–0.9) and ``v1/metrics/loggers.py`` (0.8–0.33).
"""

from collections.abc import Mapping
from types import MappingProxyType

# Ray Serve puts ray_ before the name and may turn ":" into "_".
_PREFIXES = ("vllm:", "vllm_", "ray_vllm:", "ray_vllm_")

# our field → vLLM's names, newest first
_GAUGES = {
    "running": ("num_requests_running",),
    "waiting": ("num_requests_waiting",),
    "swapped": ("num_requests_swapped",),
    "waiting_by_reason": ("num_requests_waiting_by_reason",),
    "kv_cache_usage_ratio": ("kv_cache_usage_perc", "gpu_cache_usage_perc"),
    "cpu_cache_usage_ratio": ("cpu_cache_usage_perc",),
    "cache_config": ("cache_config_info",),
    "sleep_state": ("engine_sleep_state",),
}
_COUNTERS = {
    "prompt_tokens": ("prompt_tokens",),
    "generation_tokens": ("generation_tokens",),
    "preemptions": ("num_preemptions",),
    "prefix_cache_queries_tokens": ("prefix_cache_queries", "gpu_prefix_cache_queries"),
    "prefix_cache_hits_tokens": ("prefix_cache_hits", "gpu_prefix_cache_hits"),
    "external_cache_hits_tokens": ("external_prefix_cache_hits",),
    "cached_prompt_tokens": ("prompt_tokens_cached",),
    "prompt_tokens_by_source": ("prompt_tokens_by_source",),
}
_HISTOGRAMS = {
    "request_prompt_tokens": ("request_prompt_tokens",),
    "request_generation_tokens": ("request_generation_tokens",),
    "request_prefill_computed_tokens": ("request_prefill_kv_computed_tokens",),
    "time_to_first_token_seconds": ("time_to_first_token_seconds",),
    "request_seconds": ("e2e_request_latency_seconds",),
    "request_params_n": ("request_params_n",),
    "step_tokens": ("iteration_tokens_total",),
}
# Only counts and sums of these are read: their buckets would be a third of all wanted samples.
_WITHOUT_BUCKETS = frozenset(
    {
        "time_to_first_token_seconds",
        "request_prefill_computed_tokens",
        "request_seconds",
        "request_params_n",
        "step_tokens",
    }
)
# The HTTP server in front counts a response when it ends, also when the client is gone
# (prometheus-fastapi-instrumentator, ``middleware.py``); one series a handler, none an engine.
_OF_THE_HTTP_SERVER = {
    "http_request_duration_seconds_sum": "closed_response_seconds",
    "http_request_size_bytes_sum": "closed_request_bytes",
    "http_requests_total": "closed_responses",
}
GENERATING_HANDLERS = frozenset(
    {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
        "/generate",
        "/inference/v1/generate",
    }
)
"""Handlers each of whose requests is one for the engine."""

PROCESS_START_TIME = "process_start_time_seconds"
SERVER_READINGS = frozenset(_OF_THE_HTTP_SERVER.values())
"""Readings of the whole server, whatever its engines."""


def _readings() -> dict[str, str]:
    readings = {}
    for field, names in (_GAUGES | _COUNTERS).items():
        for name in names:
            readings[name] = field
    for field, names in _COUNTERS.items():
        for name in names:
            readings[f"{name}_total"] = field
    for field, names in _HISTOGRAMS.items():
        parts = ("sum", "count") if field in _WITHOUT_BUCKETS else ("sum", "count", "bucket")
        for name in names:
            readings |= {f"{name}_{part}": f"{field}_{part}" for part in parts}
    return readings


_READING_OF_NAME: Mapping[str, str] = MappingProxyType(
    {prefix + name: field for prefix in _PREFIXES for name, field in _readings().items()}
    | {PROCESS_START_TIME: PROCESS_START_TIME}
    | _OF_THE_HTTP_SERVER
)

WANTED_NAMES = tuple(_READING_OF_NAME)
"""Every sample name that is read."""

# What an engine of today exports, by today's name; each is looked for under every alias.
EXPECTED_METRICS: Mapping[str, str] = MappingProxyType(
    {
        "vllm:cache_config_info": "cache_config",
        "vllm:generation_tokens_total": "generation_tokens",
        "vllm:kv_cache_usage_perc": "kv_cache_usage_ratio",
        "vllm:num_preemptions_total": "preemptions",
        "vllm:num_requests_running": "running",
        "vllm:num_requests_waiting": "waiting",
        "vllm:prompt_tokens_cached_total": "cached_prompt_tokens",
        "vllm:prompt_tokens_total": "prompt_tokens",
        "vllm:request_generation_tokens": "request_generation_tokens_sum",
        "vllm:request_prefill_kv_computed_tokens": "request_prefill_computed_tokens_sum",
        "vllm:request_prompt_tokens": "request_prompt_tokens_sum",
        "vllm:time_to_first_token_seconds": "time_to_first_token_seconds_count",
    }
)


def reading_of(name: str) -> str | None:
    """Our name for a sample, or None if nothing here reads it.

    >>> reading_of("vllm:gpu_cache_usage_perc")
    'kv_cache_usage_ratio'
    >>> reading_of("ray_vllm:prompt_tokens_total")
    'prompt_tokens'
    """
    return _READING_OF_NAME.get(name)
