"""Metrics of what one engine's requests are like."""

from vllm_capacity.export.metric import PREFIX, Metric, of_engine, of_engine_by
from vllm_capacity.observe.recent_history import SHARE_WINDOW
from vllm_capacity.observe.request_footprint import RequestFootprint


def _lengths(footprint: RequestFootprint) -> dict[tuple[str, ...], float | None]:
    parts = {"prompt": footprint.prompt, "output": footprint.output}
    return {
        (part, basis): value
        for part, lengths in parts.items()
        if lengths is not None
        for basis, value in (("mean", lengths.mean_tokens), ("p95", lengths.p95_tokens))
    }


def _since(footprint: RequestFootprint) -> str:
    return "start" if footprint.window_seconds is None else "window"


WORKLOAD = (
    of_engine_by(
        "request_footprint_tokens",
        "Prompt and output tokens of requests that finished in the last 15 minutes, mean and 95th "
        "percentile; with fewer than ten of them, of all since vLLM's start.",
        "vLLM's page: vllm:request_prompt_tokens and vllm:request_generation_tokens",
        "basis",
        lambda a: (
            {}
            if a.footprint is None
            else {"mean": a.footprint.mean_tokens, "p95": a.footprint.p95_tokens}
        ),
    ),
    Metric(
        PREFIX + "request_length_tokens",
        "The same for prompts and outputs separately.",
        "vLLM's page: vllm:request_prompt_tokens and vllm:request_generation_tokens",
        ("part", "basis"),
        "engine",
        lambda a: {} if a.footprint is None else _lengths(a.footprint),
    ),
    of_engine_by(
        "request_footprint_blocks",
        "Whole blocks that a request of that footprint holds at its end.",
        "computed: blocks of a request of that footprint, by the layout of the cache",
        "basis",
        lambda a: dict(a.footprint_blocks),
    ),
    of_engine_by(
        "request_footprint_requests",
        "Finished requests that the footprint rests on, by since when they count: window (the "
        "last 15 minutes) or start (of vLLM).",
        "vLLM's page: vllm:request_prompt_tokens_count",
        "since",
        lambda a: {} if a.footprint is None else {_since(a.footprint): a.footprint.requests},
    ),
    of_engine(
        "request_footprint_window_seconds",
        "How far back the footprint reaches; absent where it reaches back to vLLM's start.",
        "this exporter's clock",
        lambda a: None if a.footprint is None else a.footprint.window_seconds,
    ),
    of_engine_by(
        "arrived_requests_per_second",
        "Requests that entered the engine each second, within the window.",
        "vLLM's page: what finished, runs and waits, from one page to the next",
        "window",
        lambda a: dict(a.recent.arrived_requests_per_second),
    ),
    of_engine_by(
        "completed_requests_per_second",
        "Requests that finished each second within the window; those whose clients hung up are "
        "not counted.",
        "vLLM's page: vllm:request_prompt_tokens_count over time",
        "window",
        lambda a: dict(a.recent.completed_requests_per_second),
    ),
    Metric(
        PREFIX + "cached_prompt_tokens_ratio",
        "Share of the window's prompt tokens that were not computed, by source: local (prefix "
        "cache in the pool) or external (KV connector: LMCache, offloading, other engines).",
        "vLLM's page: vllm:prompt_tokens_by_source_total, else vllm:prefix_cache_hits_total",
        ("source", "window"),
        "engine",
        lambda a: {
            (source, SHARE_WINDOW): ratio
            for source, ratio in a.recent.cached_prompt_tokens_ratio.items()
        },
    ),
    of_engine(
        "sharing_saved_blocks",
        "Blocks that the running requests ought to hold more if none shared a prefix; from the "
        "ledger, never from the used blocks.",
        "the ledger: vllm:prompt_tokens_cached_total of the requests in flight",
        lambda a: None if a.sharing is None else a.sharing.blocks,
    ),
    of_engine(
        "sharing_saved_bytes",
        "The same in bytes on the fullest GPU; needs the model's config.json.",
        "the ledger: blocks that sharing saves; config.json: bytes per block",
        lambda a: None if a.sharing is None else a.sharing.bytes_per_gpu,
    ),
)
