"""The numbers that the token ledger goes by, of one scrape or between two."""

from dataclasses import dataclass, fields

from vllm_capacity.observe.engine_snapshot import EngineSnapshot, Histogram

_NONE = Histogram(count=0.0, total=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerCounters:
    """Counters of one engine; their differences make the ledger.

    Attributes:
        taken_at_seconds: when, on the snapshots' clock.
        running, waiting: requests in the batch, and queued.
        first_tokens, first_token_seconds: requests past their first token, and how long they
            had waited for it.
        prompt_tokens, cached_tokens: of those requests; cached are those that the pool had.
        generated_tokens: by all requests.
        finished, finished_outputs: requests that finished, by two histograms that a page may not
            show at the same instant.
        finished_prompt_tokens, finished_cached_tokens, finished_generated_tokens,
        finished_seconds: theirs.
        external_tokens: prompt tokens from a cache elsewhere (a KV connector); they are no longer
            told apart from those of the pool when a request finishes.
        finished_clients: those all of whose samples finished; equal to ``finished`` where vLLM does
            not say.
        steps: engine steps that gave output; 0 where vLLM does not say.
        queried_tokens: prompts looked up in the prefix cache on admission; equal to
            ``prompt_tokens`` where vLLM does not say.
    """

    taken_at_seconds: float
    running: int
    waiting: int
    first_tokens: float
    first_token_seconds: float
    prompt_tokens: float
    cached_tokens: float
    generated_tokens: float
    finished: float
    finished_outputs: float
    finished_prompt_tokens: float
    finished_cached_tokens: float
    finished_generated_tokens: float
    finished_seconds: float
    external_tokens: float
    finished_clients: float
    steps: float
    queried_tokens: float

    @classmethod
    def of(cls, snapshot: EngineSnapshot) -> "LedgerCounters | None":
        """The counters of a snapshot; None if one without which there is no ledger is absent."""
        prompts, outputs = snapshot.request_prompt_tokens, snapshot.request_generation_tokens
        if (
            snapshot.running is None
            or snapshot.waiting is None
            or snapshot.prompt_tokens is None
            or snapshot.generation_tokens is None
            or snapshot.first_tokens is None
            or prompts is None
            or outputs is None
        ):
            return None
        computed = snapshot.request_prefill_computed_tokens
        cached = snapshot.cached_prompt_tokens
        external = snapshot.prompt_tokens_by_source.get("external_kv_transfer", 0.0)
        if computed is None or cached is None:
            cached, computed = 0.0, prompts
        queried = snapshot.prefix_cache_queries_tokens
        return cls(
            taken_at_seconds=snapshot.taken_at_seconds,
            running=snapshot.running,
            waiting=snapshot.waiting,
            first_tokens=snapshot.first_tokens,
            first_token_seconds=snapshot.first_token_seconds or 0.0,
            prompt_tokens=snapshot.prompt_tokens,
            cached_tokens=max(0.0, cached - external),
            external_tokens=external,
            generated_tokens=snapshot.generation_tokens,
            finished=prompts.count,
            finished_outputs=outputs.count,
            finished_prompt_tokens=prompts.total,
            finished_cached_tokens=prompts.total - computed.total,
            finished_generated_tokens=outputs.total,
            finished_seconds=(snapshot.request_seconds or _NONE).total,
            finished_clients=(snapshot.request_params_n or prompts).count,
            steps=snapshot.steps or 0.0,
            queried_tokens=snapshot.prompt_tokens if queried is None else queried,
        )

    def since(self, before: "LedgerCounters") -> "LedgerCounters":
        """What passed between two scrapes."""
        return LedgerCounters(
            **{name: getattr(self, name) - getattr(before, name) for name in _FIELDS}
        )


_FIELDS = tuple(field.name for field in fields(LedgerCounters))


def began_anew(before: LedgerCounters, now: LedgerCounters) -> bool:
    """Whether the server was restarted between the two: a counter fell."""
    return (
        now.prompt_tokens < before.prompt_tokens
        or now.generated_tokens < before.generated_tokens
        or now.first_tokens < before.first_tokens
    )
