"""The families of vLLM 0.32's ``/metrics``, in its order and with its words.

Source: vLLM 0.32 ``v1/metrics/loggers.py``, ``v1/metrics/buckets.py`` and ``v1/metrics/perf.py``,
and prometheus-fastapi-instrumentator 8.1 for ``http_…``; checked against a recorded page.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vllm_capacity.simulate.requests import FinishReason


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One family whose series are there from the start.

    Attributes:
        kind: its type.
        name: its name as given to the client library, which adds ``_total`` to counters.
        help: its HELP text.
        label: a label beside ``model_name`` and ``engine``; None without.
        values: the values of that label.
        per_engine: whether it carries ``engine``.
        buckets: upper bounds of a histogram.
    """

    kind: Literal["gauge", "counter", "histogram"]
    name: str
    help: str
    label: str | None = None
    values: tuple[str, ...] = ("",)
    per_engine: bool = True
    buckets: tuple[float, ...] = ()


_ITERATION_TOKENS = (1, *(2**power for power in range(3, 15)))
_PARAMS_N = (1, 2, 5, 10, 20)
_PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)
# fmt: off
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0,
                7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
_INTER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
                10.0, 20.0, 40.0, 80.0)
_LATENCY = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
            120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)
HTTP_DURATION_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0,
                         3.5, 4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0)
HTTP_DURATION_FEW_BUCKETS = (0.1, 0.5, 1.0)
# fmt: on


def token_buckets(max_model_len: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, … up to ``max_model_len`` tokens.

    >>> token_buckets(12)
    (1, 2, 5, 10)
    """
    bounds = (mantissa * 10**exponent for exponent in range(20) for mantissa in (1, 2, 5))
    return tuple(bound for bound in bounds if bound <= max_model_len)


def families(max_model_len: int, num_speculative_tokens: int = 0) -> tuple[Family, ...]:
    """Every ``vllm:`` family but ``cache_config_info``; of drafts only where there are any."""
    drafts = _of_drafts(num_speculative_tokens) if num_speculative_tokens else ()
    return (*drafts, *_estimates(), *_GAUGES, *_COUNTERS, *_histograms(max_model_len))


def _of_drafts(num_speculative_tokens: int) -> Iterator[Family]:
    """Source: vLLM 0.32 ``v1/spec_decode/metrics.py``, ``SpecDecodingProm``."""
    for name, text in (
        ("num_drafts", "Number of spec decoding drafts."),
        ("num_draft_tokens", "Number of draft tokens."),
        ("num_accepted_tokens", "Number of accepted tokens."),
    ):
        yield Family(kind="counter", name=f"vllm:spec_decode_{name}", help=text)
    yield Family(
        kind="counter",
        name="vllm:spec_decode_num_accepted_tokens_per_pos",
        help="Accepted tokens per draft position.",
        label="position",
        values=tuple(map(str, range(num_speculative_tokens))),
    )


def _estimates() -> Iterator[Family]:
    for name, what in (
        ("flops", "floating point operations per GPU"),
        ("read_bytes", "bytes read from memory per GPU"),
        ("write_bytes", "bytes written to memory per GPU"),
    ):
        text = f"Estimated number of {what} (for Model Flops Utilization calculations)."
        yield Family(kind="counter", name=f"vllm:estimated_{name}_per_gpu", help=text)


_GAUGES = (
    Family(
        kind="gauge",
        name="vllm:num_requests_running",
        help="Number of requests in model execution batches.",
    ),
    Family(
        kind="gauge",
        name="vllm:num_requests_waiting",
        help="Number of requests waiting to be processed.",
    ),
    Family(
        kind="gauge",
        name="vllm:num_requests_waiting_by_reason",
        help="Number of waiting requests by reason. Reason labels: 'capacity' = waiting for "
        "scheduling capacity; 'deferred' = deferred by transient constraints (LoRA budget, "
        "KV transfer, blocked status). Sum of all reasons equals vllm:num_requests_waiting.",
        label="reason",
        values=("capacity", "deferred"),
    ),
    Family(
        kind="gauge",
        name="vllm:engine_sleep_state",
        help="Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is "
        "awake; weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.",
        label="sleep_state",
        values=("awake", "weights_offloaded", "discard_all"),
    ),
    Family(
        kind="gauge",
        name="vllm:kv_cache_usage_perc",
        help="KV-cache usage. 1 means 100 percent usage.",
    ),
)

_COUNTERS = (
    Family(
        kind="counter",
        name="vllm:prefix_cache_queries",
        help="Prefix cache queries, in terms of number of queried tokens.",
    ),
    Family(
        kind="counter",
        name="vllm:prefix_cache_hits",
        help="Prefix cache hits, in terms of number of cached tokens.",
    ),
    Family(
        kind="counter",
        name="vllm:external_prefix_cache_queries",
        help="External prefix cache queries from KV connector cross-instance cache sharing, "
        "in terms of number of queried tokens.",
    ),
    Family(
        kind="counter",
        name="vllm:external_prefix_cache_hits",
        help="External prefix cache hits from KV connector cross-instance cache sharing, "
        "in terms of number of cached tokens.",
    ),
    Family(
        kind="counter",
        name="vllm:mm_cache_queries",
        help="Multi-modal cache queries, in terms of number of queried items.",
    ),
    Family(
        kind="counter",
        name="vllm:mm_cache_hits",
        help="Multi-modal cache hits, in terms of number of cached items.",
    ),
    Family(
        kind="counter",
        name="vllm:num_preemptions",
        help="Cumulative number of preemption from the engine.",
    ),
    Family(
        kind="counter",
        name="vllm:prompt_tokens",
        help="Number of prefill tokens processed.",
    ),
    Family(
        kind="counter",
        name="vllm:prompt_tokens_by_source",
        help="Number of prompt tokens by source.",
        label="source",
        values=("local_compute", "local_cache_hit", "external_kv_transfer"),
    ),
    Family(
        kind="counter",
        name="vllm:prompt_tokens_cached",
        help="Number of cached prompt tokens (local + external).",
    ),
    Family(
        kind="counter",
        name="vllm:prompt_tokens_cached_by_source",
        help="Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), "
        "host (offloaded to DRAM), disk, p2p (transferred from another vLLM instance) or "
        "external_unspecified. Counted at admission; sums to vllm:prefix_cache_hits + "
        "vllm:external_prefix_cache_hits.",
        label="source",
        values=("device", "host", "p2p", "disk", "external_unspecified"),
    ),
    Family(
        kind="counter",
        name="vllm:generation_tokens",
        help="Number of generation tokens processed.",
    ),
    Family(
        kind="counter",
        name="vllm:request_success",
        help="Count of successfully processed requests.",
        label="finished_reason",
        values=tuple(reason.value for reason in FinishReason),
    ),
    Family(
        kind="counter",
        name="vllm:admission_rejections",
        help="Number of admission attempts rejected by a queue limit, by reason.",
        label="reason",
        values=("max_num_queued_reqs", "max_num_queued_tokens"),
        per_engine=False,
    ),
)


def _histograms(max_model_len: int) -> Iterator[Family]:
    tokens = token_buckets(max_model_len)
    rows: tuple[tuple[str, str, tuple[float, ...]], ...] = (
        ("request_prompt_tokens", "Number of prefill tokens processed.", tokens),
        ("request_generation_tokens", "Number of generation tokens processed.", tokens),
        (
            "iteration_tokens_total",
            "Histogram of number of tokens per engine_step.",
            _ITERATION_TOKENS,
        ),
        (
            "request_max_num_generation_tokens",
            "Histogram of maximum number of requested generation tokens.",
            tokens,
        ),
        ("request_params_n", "Histogram of the n request parameter.", _PARAMS_N),
        ("request_params_max_tokens", "Histogram of the max_tokens request parameter.", tokens),
        (
            "time_to_first_token_seconds",
            "Histogram of time to first token in seconds.",
            _FIRST_TOKEN,
        ),
        (
            "inter_token_latency_seconds",
            "Histogram of inter-token latency in seconds.",
            _INTER_TOKEN,
        ),
        (
            "request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            _INTER_TOKEN,
        ),
        (
            "e2e_request_latency_seconds",
            "Histogram of e2e request latency in seconds.",
            _LATENCY,
        ),
        *(
            (
                f"request_{phase}_time_seconds",
                f"Histogram of time spent in {state} phase for request.",
                _LATENCY,
            )
            for phase, state in (
                ("queue", "WAITING"),
                ("inference", "RUNNING"),
                ("prefill", "PREFILL"),
                ("decode", "DECODE"),
            )
        ),
        (
            "request_num_preemptions",
            "Histogram of the number of times a request was preempted.",
            _PREEMPTIONS,
        ),
        (
            "request_prefill_kv_computed_tokens",
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
            tokens,
        ),
    )
    for name, text, buckets in rows:
        yield Family(kind="histogram", name=f"vllm:{name}", help=text, buckets=buckets)
