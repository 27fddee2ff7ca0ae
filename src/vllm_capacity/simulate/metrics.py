"""The simulated server's registry: vLLM's families, moved as vLLM moves them."""

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    generate_latest,
)

from vllm_capacity.simulate.config import SimulationConfig
from vllm_capacity.simulate.engine import StepOutcome
from vllm_capacity.simulate.frontend import FinishedRequest, IterationStats
from vllm_capacity.simulate.metric_families import (
    HTTP_DURATION_BUCKETS,
    HTTP_DURATION_FEW_BUCKETS,
    Family,
    families,
)
from vllm_capacity.simulate.process_metrics import register_process
from vllm_capacity.simulate.requests import Submission
from vllm_capacity.simulate.scheduler import SchedulerStats

_Metric = Counter | Gauge | Histogram
_FAMILY = b"# HELP "
_BYTES_PER_PROMPT_TOKEN = 4  # text of a prompt, as a client sends it


class SimulatedMetrics:
    """The page of one server with all of its engines.

    Source: vLLM 0.32 ``v1/metrics/loggers.py``, ``PrometheusStatLogger.record``.
    """

    def __init__(self, config: SimulationConfig, *, started_at: float | None = None) -> None:
        """Define every family.

        Args:
            config: the server.
            started_at: Unix time at which it started; None takes this process's own.
        """
        self._registry = CollectorRegistry()
        self._is_of_several_processes = config.num_api_servers > 1
        if not self._is_of_several_processes:
            register_process(self._registry, started_at)
        self._engines = [
            _EngineSeries(index, config.model_name) for index in range(config.data_parallel_size)
        ]
        for family in families(config.max_model_len, config.num_speculative_tokens):
            self._define(family, config.model_name)
        self._define_cache_config(config)
        self._http = _HttpSeries(self._registry)
        for engine in self._engines:
            engine.awake()

    def page(self) -> bytes:
        """The page as text, version 0.0.4."""
        page = generate_latest(self._registry)
        return _without_creation_times(page) if self._is_of_several_processes else page

    def record_step(self, engine_index: int, outcome: StepOutcome) -> None:
        """Move the series of one engine by what one step brought."""
        engine = self._engines[engine_index]
        if outcome.scheduler:
            engine.record_scheduler(outcome.scheduler)
        if outcome.iteration:
            engine.record_iteration(outcome.iteration)

    def record_response(self, submission: Submission, now: float) -> None:
        """A client has its answers, or left: one HTTP request more."""
        size = submission.spec.prompt_tokens * _BYTES_PER_PROMPT_TOKEN
        self.record_http("POST", "/v1/completions", now - submission.arrived_at, size)

    def record_http(self, method: str, handler: str, seconds: float, size_bytes: int = 0) -> None:
        """An HTTP request was answered; streamed answers have no length."""
        self._http.record(method, handler, seconds, size_bytes)

    def _define(self, family: Family, model_name: str) -> None:
        names = ["model_name"]
        names += ["engine"] if family.per_engine else []
        names += [family.label] if family.label else []
        metric = _metric(family, names, self._registry)
        if not family.per_engine:
            for value in family.values:
                metric.labels(model_name, value)
            return
        for engine in self._engines:
            engine.bind(family, metric)

    def _define_cache_config(self, config: SimulationConfig) -> None:
        labels = dict(config.cache_config_labels)
        gauge = Gauge(
            "vllm:cache_config_info",
            "Information of the LLMEngine CacheConfig",
            [*labels, "engine"],
            registry=self._registry,
        )
        for engine in self._engines:
            gauge.labels(*labels.values(), engine.index).set(1)


class _EngineSeries:
    """The series of one engine, by short family name and value of the further label."""

    def __init__(self, index: int, model_name: str) -> None:
        self.index = str(index)
        self._model_name = model_name
        self._gauges: dict[tuple[str, str], Gauge] = {}
        self._counters: dict[tuple[str, str], Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def bind(self, family: Family, metric: _Metric) -> None:
        name = family.name.removeprefix("vllm:")
        for value in family.values:
            labels = (self._model_name, self.index, *((value,) if family.label else ()))
            child = metric.labels(*labels)
            if isinstance(child, Gauge):
                self._gauges[name, value] = child
            elif isinstance(child, Counter):
                self._counters[name, value] = child
            else:
                self._histograms[name] = child

    def awake(self) -> None:
        self._set("engine_sleep_state", 1, "awake")

    def record_scheduler(self, stats: SchedulerStats) -> None:
        self._set("num_requests_running", stats.num_running)
        self._set("num_requests_waiting", stats.num_waiting)
        # Nothing defers a request here: there are no adapters, grammars or KV transfers.
        self._set("num_requests_waiting_by_reason", stats.num_waiting, "capacity")
        self._set("kv_cache_usage_perc", stats.kv_cache_usage_ratio)
        self._add("prefix_cache_queries", stats.prefix_cache_queries_tokens)
        self._add("prefix_cache_hits", stats.prefix_cache_hits_tokens)
        self._add("prompt_tokens_cached_by_source", stats.prefix_cache_hits_tokens, "device")
        self._add("external_prefix_cache_queries", stats.external_queries_tokens)
        self._add("external_prefix_cache_hits", stats.external_hits_tokens)
        unspecified = "external_unspecified"
        self._add("prompt_tokens_cached_by_source", stats.external_hits_tokens, unspecified)
        for drafts, accepted in stats.drafts:
            self._add("spec_decode_num_drafts", 1)
            self._add("spec_decode_num_draft_tokens", drafts)
            self._add("spec_decode_num_accepted_tokens", accepted)
            for position in range(accepted):
                self._add("spec_decode_num_accepted_tokens_per_pos", 1, str(position))

    def record_iteration(self, stats: IterationStats) -> None:
        self._add("num_preemptions", stats.num_preempted)
        self._add("prompt_tokens", stats.prompt_tokens)
        self._add("prompt_tokens_by_source", stats.computed_prompt_tokens, "local_compute")
        self._add("prompt_tokens_by_source", stats.prompt_hit_tokens, "local_cache_hit")
        self._add("prompt_tokens_by_source", stats.prompt_external_tokens, "external_kv_transfer")
        self._add("prompt_tokens_cached", stats.prompt_hit_tokens + stats.prompt_external_tokens)
        self._add("generation_tokens", stats.generation_tokens)
        step_tokens = stats.computed_prompt_tokens + stats.generation_tokens
        self._observe("iteration_tokens_total", (step_tokens,))
        self._observe("request_max_num_generation_tokens", stats.finished_longest_tokens)
        self._observe("request_params_n", stats.finished_n)
        self._observe("time_to_first_token_seconds", stats.first_token_seconds)
        self._observe("inter_token_latency_seconds", stats.inter_token_seconds)
        for finished in stats.finished:
            self._record_finished(finished)

    def _record_finished(self, request: FinishedRequest) -> None:
        self._add("request_success", 1, request.reason.value)
        for name, value in (
            ("e2e_request_latency_seconds", request.e2e_seconds),
            ("request_queue_time_seconds", request.queue_seconds),
            ("request_prefill_time_seconds", request.prefill_seconds),
            ("request_inference_time_seconds", request.inference_seconds),
            ("request_decode_time_seconds", request.decode_seconds),
            ("request_num_preemptions", request.num_preemptions),
            (
                "request_prefill_kv_computed_tokens",
                request.prompt_tokens - request.cached_tokens,
            ),
            ("request_prompt_tokens", request.prompt_tokens),
            ("request_generation_tokens", request.output_tokens),
            ("request_time_per_output_token_seconds", request.seconds_per_output_token),
            ("request_params_max_tokens", request.max_tokens),
        ):
            self._histograms[name].observe(value)

    def _set(self, name: str, value: float, label_value: str = "") -> None:
        self._gauges[name, label_value].set(value)

    def _add(self, name: str, value: int, label_value: str = "") -> None:
        if value:
            self._counters[name, label_value].inc(value)

    def _observe(self, name: str, values: Iterable[float]) -> None:
        observe = self._histograms[name].observe
        for value in values:
            observe(value)


class _HttpSeries:
    """What the HTTP framework's middleware counts of every request."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._total = Counter(
            "http_requests",
            "Total number of requests by method, status and handler.",
            ["method", "status", "handler"],
            registry=registry,
        )
        size_help = (
            "Content length of {} by handler. Only value of header is respected. "
            "Otherwise ignored. No percentile calculated. "
        )
        self._request_size = Summary(
            "http_request_size_bytes",
            size_help.format("incoming requests"),
            ["handler"],
            registry=registry,
        )
        self._response_size = Summary(
            "http_response_size_bytes",
            size_help.format("outgoing responses"),
            ["handler"],
            registry=registry,
        )
        self._duration = Histogram(
            "http_request_duration_highr_seconds",
            "Latency with many buckets but no API specific labels. "
            "Made for more accurate percentile calculations. ",
            buckets=HTTP_DURATION_BUCKETS,
            registry=registry,
        )
        self._duration_by_handler = Histogram(
            "http_request_duration_seconds",
            "Latency with only few buckets by handler. "
            "Made to be only used if aggregation by handler is important. ",
            ["method", "handler"],
            buckets=HTTP_DURATION_FEW_BUCKETS,
            registry=registry,
        )

    def record(self, method: str, handler: str, seconds: float, size_bytes: int) -> None:
        self._total.labels(method, "2xx", handler).inc()
        self._request_size.labels(handler).observe(size_bytes)
        self._response_size.labels(handler).observe(0)
        self._duration.observe(seconds)
        self._duration_by_handler.labels(method, handler).observe(seconds)


def _without_creation_times(page: bytes) -> bytes:
    """What the client library leaves out where a page is put together from several processes."""
    families = page.split(_FAMILY)
    return _FAMILY.join(f for f in families if not f.split(b" ", 1)[0].endswith(b"_created"))


def _metric(family: Family, names: list[str], registry: CollectorRegistry) -> _Metric:
    if family.kind == "histogram":
        return Histogram(family.name, family.help, names, buckets=family.buckets, registry=registry)
    kind = Gauge if family.kind == "gauge" else Counter
    return kind(family.name, family.help, names, registry=registry)
