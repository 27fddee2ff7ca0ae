"""Samples of one page → one ``EngineSnapshot`` per engine. A missing metric is None, never 0."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from vllm_capacity.observe.exposition import Sample
from vllm_capacity.observe.metric_names import (
    EXPECTED_METRICS,
    GENERATING_HANDLERS,
    PROCESS_START_TIME,
    SERVER_READINGS,
    reading_of,
)
from vllm_capacity.units import Blocks, Tokens

# usage × blocks misses an integer by rounding alone, some 1e-16 of the block count.
_INTEGER_TOLERANCE = 1e-6
# Beyond it a float no longer counts by ones, so it is no count of anything.
_MOST = 2.0**53


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """A cumulative histogram as exported, in the unit of the metric that it came from.

    Attributes:
        count: observations.
        total: their sum.
        buckets: (upper bound, observations at or below it), ascending, ``+Inf`` last; may be empty.
    """

    count: float
    total: float
    buckets: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerTotals:
    """What the server in front of all engines of a page has counted.

    A response that ended without its request having finished is a client that hung up: the engine's
    own counters never mention it (``v1/engine/output_processor.py``, ``abort_requests``).

    Attributes:
        closed_responses: successful HTTP responses of generating handlers that have ended.
        closed_response_seconds: their durations added up, from the arrival of the request.
        closed_request_bytes: the sizes of their requests' bodies added up.
        engines: engines on the page.
        finished_requests: requests that finished, of all engines.
        finished_seconds: their end-to-end latencies added up.
        finished_prompt_tokens: their prompts added up.
        finished_parents: the same with the ``n`` samples of one request taken as one.
    """

    closed_responses: float
    closed_response_seconds: float
    closed_request_bytes: float
    engines: int
    finished_requests: float
    finished_seconds: float
    finished_prompt_tokens: float
    finished_parents: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSnapshot:
    """What one engine said of itself at one moment.

    Attributes:
        engine: vLLM's ``engine`` label; "0" where an old version has none.
        model_name: the served model name, None if no series carried one.
        taken_at_seconds: when, on the caller's monotonic clock.
        process_start_time_seconds: Unix time at which the server's process started.
        running: requests in the batch.
        waiting: requests queued, preempted and deferred ones included.
        waiting_by_reason: the same by ``reason`` (capacity, deferred); empty before vLLM 0.21.
        kv_cache_usage_ratio: share of the pool in use, 0–1, as exported.
        cache_config: labels of ``cache_config_info``; every value a string; empty if absent.
        num_gpu_blocks: blocks of this engine's pool, vLLM's null block included.
        num_gpu_blocks_origin: "label"; or "label / engines", where a data-parallel server exports
            the sum of its engines' pools; or "mean over engines", where that does not divide.
        total_blocks: blocks that requests can hold: without the null block.
        used_blocks: blocks held, from the usage ratio.
        block_size_tokens: tokens a block, as vLLM finally chose it.
        kv_cache_size_tokens: vLLM's own group-aware capacity (0.25 and newer).
        max_concurrency: requests of full length that fit, by vLLM's own account (0.25 and newer).
        prompt_tokens, generation_tokens, preemptions, cached_prompt_tokens, …: counters.
        request_prompt_tokens, request_generation_tokens: histograms over finished requests.
        prefix_cache_hits_tokens, external_cache_hits_tokens: of the tokens looked up in the prefix
            cache on admission, those found in the pool, and those that a KV connector found.
        prompt_tokens_by_source: prompt tokens by where their keys and values came from
            (local_compute, local_cache_hit, external_kv_transfer); empty in old versions.
        first_tokens: requests that have received their first token, ever.
        first_token_seconds: the seconds that they waited for it, added up.
        request_seconds: end-to-end latency of finished requests, without buckets.
        request_params_n: samples asked for by finished requests, without buckets.
        steps: engine steps that gave output.
        sleep_state: "awake", "weights_offloaded" (level 1) or "discard_all" (level 2); None before
            vLLM 0.11.
        server: totals of the server that the engines of the page share; None where an engine
            does not say how long its requests took.
    """

    engine: str
    model_name: str | None
    taken_at_seconds: float
    process_start_time_seconds: float | None
    running: int | None
    waiting: int | None
    waiting_by_reason: Mapping[str, int]
    kv_cache_usage_ratio: float | None
    cache_config: Mapping[str, str]
    num_gpu_blocks: Blocks | None
    num_gpu_blocks_origin: str
    total_blocks: Blocks | None
    used_blocks: Blocks | None
    block_size_tokens: Tokens | None
    kv_cache_size_tokens: Tokens | None
    max_concurrency: float | None
    prompt_tokens: float | None
    generation_tokens: float | None
    preemptions: float | None
    prefix_cache_queries_tokens: float | None
    cached_prompt_tokens: float | None
    request_prompt_tokens: Histogram | None
    request_generation_tokens: Histogram | None
    request_prefill_computed_tokens: Histogram | None
    first_tokens: float | None
    prefix_cache_hits_tokens: float | None = None
    external_cache_hits_tokens: float | None = None
    prompt_tokens_by_source: Mapping[str, float] = field(default_factory=dict)
    first_token_seconds: float | None = None
    request_seconds: Histogram | None = None
    request_params_n: Histogram | None = None
    steps: float | None = None
    sleep_state: str | None = None
    server: ServerTotals | None = None

    @property
    def is_asleep(self) -> bool:
        """Whether weights and KV cache are off the GPU, at either level of sleep.

        Source: vLLM 0.32 ``device_allocator/cumem.py``, ``CuMemAllocator.sleep``.
        """
        return self.sleep_state in {"weights_offloaded", "discard_all"}

    @property
    def free_blocks(self) -> Blocks | None:
        """Blocks that a request can still take; cached blocks nobody holds count as free."""
        if self.total_blocks is None or self.used_blocks is None:
            return None
        return Blocks(self.total_blocks - self.used_blocks)


@dataclass(frozen=True, kw_only=True, slots=True)
class PageSnapshot:
    """Everything read from one page.

    Attributes:
        engines: one snapshot an engine, in the order of the engines' labels.
        metric_present: of each expected metric, by its newest name, whether the page has it
            under any of its names.
    """

    engines: tuple[EngineSnapshot, ...]
    metric_present: Mapping[str, bool]


@dataclass(slots=True)
class _Readings:
    """What one engine's samples add up to while a page is read."""

    model_name: str | None = None
    values: dict[str, float] = field(default_factory=dict)
    by_reason: dict[str, float] = field(default_factory=dict)
    by_source: dict[str, float] = field(default_factory=dict)
    buckets: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    cache_config: Mapping[str, str] = field(default_factory=dict)
    sleep_state: str | None = None

    def integer(self, name: str) -> int | None:
        value = self.values.get(name)
        return None if value is None else round(value)

    def histogram(self, name: str) -> Histogram | None:
        count, total = self.values.get(f"{name}_count"), self.values.get(f"{name}_sum")
        if count is None or total is None:
            return None
        buckets = tuple(sorted(self.buckets.get(f"{name}_bucket", ())))
        return Histogram(count=count, total=total, buckets=buckets)


def snapshots_of_page(samples: Iterable[Sample], *, taken_at_seconds: float) -> PageSnapshot:
    """Every engine on a page, of any vLLM from 0.6 to 0.33.

    Args:
        samples: as ``ExpositionParser`` gives them.
        taken_at_seconds: monotonic time at which the page was taken.
    """
    engines: dict[str, _Readings] = {}
    started: float | None = None
    seen: set[str] = set()
    shared_config: Mapping[str, str] = {}
    of_the_server: dict[str, float] = {}
    for (name, labels), value in samples:
        reading = reading_of(name)
        if reading is None or not _is_a_number(value):
            continue
        seen.add(reading)
        if reading == PROCESS_START_TIME:
            started = value
        elif reading in SERVER_READINGS:
            _add_server_reading(of_the_server, reading, labels, value)
        elif reading == "cache_config" and "engine" not in labels:
            shared_config = labels
        else:
            engine = _engine_of(labels)
            if engine not in engines:
                engines[engine] = _Readings()
            _add(engines[engine], reading, labels, value)
    # Old versions have no engine label at all; where there is one, a series without is no engine.
    unlabelled = engines.pop("", None)
    if unlabelled is not None and not engines:
        engines["0"] = unlabelled
    for readings in engines.values():
        readings.cache_config = readings.cache_config or shared_config
    server = _server_totals(of_the_server, engines.values())
    return PageSnapshot(
        engines=tuple(
            _snapshot(engine, engines[engine], taken_at_seconds, started, len(engines), server)
            for engine in sorted(engines, key=_by_number)
        ),
        metric_present={name: reading in seen for name, reading in EXPECTED_METRICS.items()},
    )


def _is_a_number(value: float) -> bool:
    """Whether vLLM may export it here: nothing is negative, and all it counts is countable."""
    return 0 <= value <= _MOST


def _engine_of(labels: Mapping[str, str]) -> str:
    engine = labels.get("engine", "")
    replica = labels.get("ReplicaId") or labels.get("replica")  # Ray: many replicas on one page
    return f"{replica}/{engine or '0'}" if replica else engine


def _by_number(engine: str) -> tuple[int, str]:
    return (int(engine), "") if engine.isdecimal() else (1 << 62, engine)


def _add(readings: _Readings, reading: str, labels: Mapping[str, str], value: float) -> None:
    readings.model_name = readings.model_name or labels.get("model_name")
    if reading == "cache_config":
        readings.cache_config = labels
    elif reading == "sleep_state":
        if value == 1:
            readings.sleep_state = labels.get("sleep_state")
    elif reading == "waiting_by_reason":
        readings.by_reason[labels.get("reason", "unknown")] = value
    elif reading == "prompt_tokens_by_source":
        _put(readings.by_source, labels.get("source", "unknown"), value)
    elif reading.endswith("_bucket"):
        bound = _bound(labels.get("le", ""))
        if bound is not None:
            readings.buckets.setdefault(reading, []).append((bound, value))
    else:
        _put(readings.values, reading, value)


def _put(values: dict[str, float], reading: str, value: float) -> None:
    # A page with a metric under its old and its new name repeats one number; a metric with
    # further labels (LoRA, priorities) adds up. Gauges that repeat are equal, so take the larger.
    if reading.endswith(("_sum", "_count")):
        values[reading] = values.get(reading, 0.0) + value
    else:
        values[reading] = max(values.get(reading, 0.0), value)


@lru_cache(maxsize=1024)  # one number for the same bound of every bucket of every engine
def _bound(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _snapshot(  # noqa: PLR0917
    engine: str,
    readings: _Readings,
    taken_at_seconds: float,
    started: float | None,
    engine_count: int,
    server: ServerTotals | None,
) -> EngineSnapshot:
    config, values = readings.cache_config, readings.values
    usage = values.get("kv_cache_usage_ratio")
    num_gpu_blocks, origin = _num_gpu_blocks(config, usage, engine_count)
    has_null_block = not ({"swapped", "cpu_cache_usage_ratio"} & values.keys())
    block_size = _int_label(config, "block_size")
    size_tokens = _int_label(config, "kv_cache_size_tokens")
    return EngineSnapshot(
        engine=engine,
        model_name=readings.model_name,
        taken_at_seconds=taken_at_seconds,
        process_start_time_seconds=started,
        running=readings.integer("running"),
        waiting=readings.integer("waiting"),
        waiting_by_reason={reason: round(n) for reason, n in readings.by_reason.items()},
        kv_cache_usage_ratio=usage,
        cache_config=config,
        num_gpu_blocks=None if num_gpu_blocks is None else Blocks(num_gpu_blocks),
        num_gpu_blocks_origin=origin,
        total_blocks=_total_blocks(num_gpu_blocks, has_null_block=has_null_block),
        used_blocks=_used_blocks(usage, num_gpu_blocks, has_null_block=has_null_block),
        block_size_tokens=None if block_size is None else Tokens(block_size),
        kv_cache_size_tokens=None if size_tokens is None else Tokens(size_tokens),
        max_concurrency=_float_label(config, "kv_cache_max_concurrency"),
        prompt_tokens=values.get("prompt_tokens"),
        generation_tokens=values.get("generation_tokens"),
        preemptions=values.get("preemptions"),
        prefix_cache_queries_tokens=values.get("prefix_cache_queries_tokens"),
        cached_prompt_tokens=values.get("cached_prompt_tokens"),
        prefix_cache_hits_tokens=values.get("prefix_cache_hits_tokens"),
        external_cache_hits_tokens=values.get("external_cache_hits_tokens"),
        prompt_tokens_by_source=readings.by_source,
        request_prompt_tokens=readings.histogram("request_prompt_tokens"),
        request_generation_tokens=readings.histogram("request_generation_tokens"),
        request_prefill_computed_tokens=readings.histogram("request_prefill_computed_tokens"),
        first_tokens=values.get("time_to_first_token_seconds_count"),
        first_token_seconds=values.get("time_to_first_token_seconds_sum"),
        request_seconds=readings.histogram("request_seconds"),
        request_params_n=readings.histogram("request_params_n"),
        steps=values.get("step_tokens_count"),
        sleep_state=readings.sleep_state,
        server=server,
    )


def _add_server_reading(
    totals: dict[str, float], reading: str, labels: Mapping[str, str], value: float
) -> None:
    succeeded = labels.get("status", "2").startswith("2")
    if labels.get("handler") in GENERATING_HANDLERS and succeeded:
        totals[reading] = totals.get(reading, 0.0) + value


def _server_totals(
    totals: Mapping[str, float], engines: Collection[_Readings]
) -> ServerTotals | None:
    latencies, prompts, parents = [], [], []
    for readings in engines:
        latency, prompt = (
            readings.histogram("request_seconds"),
            readings.histogram("request_prompt_tokens"),
        )
        if latency is None or prompt is None:
            return None
        latencies.append(latency)
        prompts.append(prompt)
        parents.append(readings.histogram("request_params_n") or latency)
    return ServerTotals(
        closed_responses=totals.get("closed_responses", 0.0),
        closed_response_seconds=totals.get("closed_response_seconds", 0.0),
        closed_request_bytes=totals.get("closed_request_bytes", 0.0),
        engines=len(engines),
        finished_requests=sum(latency.count for latency in latencies),
        finished_seconds=sum(latency.total for latency in latencies),
        finished_prompt_tokens=sum(prompt.total for prompt in prompts),
        finished_parents=sum(params.count for params in parents),
    )


def _int_label(config: Mapping[str, str], name: str) -> int | None:
    value = _float_label(config, name)
    return None if value is None else int(value)


def _float_label(config: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(config[name])
    except (KeyError, ValueError):  # absent, or "None"
        return None
    return value if _is_a_number(value) and value > 0 else None


def _num_gpu_blocks(
    config: Mapping[str, str], usage: float | None, engine_count: int
) -> tuple[int | None, str]:
    """One engine's share of the ``num_gpu_blocks`` label.

    A server of several engines adds their pools up into one label that every engine repeats
    (``v1/engine/core_client.py``, "Sum num_gpu_blocks from all engines in DP case").
    """
    labelled = _int_label(config, "num_gpu_blocks")
    if labelled is None or engine_count == 1:
        return labelled, "label"
    if labelled < engine_count:  # no pool is that small
        return None, "label"
    share, rest = divmod(labelled, engine_count)
    if rest:
        return round(labelled / engine_count), "mean over engines"
    if usage and _is_whole(usage * (labelled - 1)) and not _is_whole(usage * (share - 1)):
        return labelled, "label"  # a version that does not add up
    return share, "label / engines"


def _total_blocks(num_gpu_blocks: int | None, *, has_null_block: bool) -> Blocks | None:
    if num_gpu_blocks is None:
        return None
    return Blocks(num_gpu_blocks - 1 if has_null_block else num_gpu_blocks)


def _used_blocks(
    usage: float | None, num_gpu_blocks: int | None, *, has_null_block: bool
) -> Blocks | None:
    """Blocks held, from the usage ratio of whichever version exported it.

    V0 divides by N. V1 keeps block 0 as the null block: up to 0.9.2 it divides by N and counts that
    block as used, since 0.10 by N − 1 (``v1/core/block_pool.py``, ``BlockPool.get_usage``). The
    division whose inverse is a whole number is the one that was made.
    """
    if usage is None or num_gpu_blocks is None or usage > 1:
        return None
    if not has_null_block:
        return Blocks(round(usage * num_gpu_blocks))
    held = usage * (num_gpu_blocks - 1)
    held_with_null_block = usage * num_gpu_blocks
    if not _is_whole(held) and _is_whole(held_with_null_block):
        return Blocks(max(0, round(held_with_null_block) - 1))
    return Blocks(round(held))


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) < _INTEGER_TOLERANCE
