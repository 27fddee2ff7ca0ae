"""What the requests of one engine ask of its cache, from one snapshot after another."""

import math
from dataclasses import dataclass

from vllm_capacity.compare.capacity import is_hybrid, tokens_per_block
from vllm_capacity.compare.committed import (
    BlocksHeld,
    CommittedDemand,
    Load,
    Requests,
    committed_demand,
    grouped,
)
from vllm_capacity.compare.headroom import Limits
from vllm_capacity.compare.load_history import LoadHistory
from vllm_capacity.compare.occupancy import fitting_layout
from vllm_capacity.compare.output_lengths import OutputLengthWatch
from vllm_capacity.observe.engine_snapshot import EngineSnapshot
from vllm_capacity.observe.ledger import LedgerReading
from vllm_capacity.predict import KVCacheLayout, Prediction
from vllm_capacity.predict.kv_cache.held import Slots
from vllm_capacity.units import Tokens

# With fewer requests in the batch, what they share and hold says little of others.
_FEWEST_REQUESTS = 4
# The used blocks correct what the ledger's requests would hold by no more than this factor.
_MOST_SCALE = 2.0
_TABLE_STEPS = 128
# Where max_model_len is not known.
_LONG_TOKENS = 131072.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What the requests of one engine ask for. None is unknown.

    Attributes:
        committed: blocks at their joint peak.
        prompt_blocks: what a prompt of mean length takes that shares nothing.
        shared_prompt_tokens: of a mean request, whose blocks others hold as well.
        prefilling_requests: in the batch, without a first token.
        preempted_requests: queued for blocks that they had.
        preemptions_last_minute, begun_last_minute: preemptions and first tokens of that time.
    """

    committed: CommittedDemand | None
    prompt_blocks: float | None
    shared_prompt_tokens: float
    prefilling_requests: float
    preempted_requests: float
    preemptions_last_minute: float
    begun_last_minute: float


class DemandWatch:
    """The demand on one engine."""

    def __init__(self) -> None:
        self._load = LoadHistory()
        self._lengths = OutputLengthWatch()
        self._shared_ratio = 0.0
        self._scale = 1.0
        self._prediction: Prediction | None = None
        self._held_by_layout: BlocksHeld | None = None

    def record(
        self,
        snapshot: EngineSnapshot,
        ledger: LedgerReading,
        limits: Limits,
        prediction: Prediction | None,
    ) -> Demand:
        """Take one snapshot, and the ledger as of then, into account."""
        queue = _Queue.of(snapshot, ledger)
        entered = queue.prefilling + queue.fresh
        self._load.record(snapshot, without_first_token=entered, restarted=ledger.restarted)
        if snapshot.request_generation_tokens is not None:
            self._lengths.record(snapshot.request_generation_tokens)
        held = self._blocks_held(snapshot, limits, prediction)
        prompt = _mean_prompt(snapshot, ledger)
        if held is not None:
            self._measure(snapshot, ledger, queue, held)
        preemptions, begun = self._load.preempted_requests()
        return Demand(
            committed=self._committed(snapshot, ledger, queue, limits, held),
            prompt_blocks=None if held is None else held(prompt),
            shared_prompt_tokens=self._shared_ratio * prompt,
            prefilling_requests=queue.prefilling,
            preempted_requests=queue.preempted,
            preemptions_last_minute=preemptions,
            begun_last_minute=begun,
        )

    def _blocks_held(
        self, snapshot: EngineSnapshot, limits: Limits, prediction: Prediction | None
    ) -> BlocksHeld | None:
        if prediction is None or prediction is not self._prediction:
            self._prediction = prediction
            layout = fitting_layout(prediction, snapshot)
            self._held_by_layout = _by_layout(layout, limits.max_model_len or _LONG_TOKENS)
        return self._held_by_layout or blocks_held(snapshot)

    def _measure(
        self, snapshot: EngineSnapshot, ledger: LedgerReading, queue: "_Queue", held: BlocksHeld
    ) -> None:
        """How much of their prompts requests share, and how far the ledger's blocks are off.

        While some are being prefilled the ledger does not part their tokens from what is shared.
        """
        holders = [c for c in ledger.cohorts if c.resident_requests > 0]
        requests = sum(c.resident_requests for c in holders)
        prompts = sum(c.resident_requests * c.prompt_tokens for c in holders)
        if queue.prefilling > 0.5 or requests < _FEWEST_REQUESTS or prompts <= 0:
            return
        tokens = prompts + sum(c.resident_requests * c.generated_tokens for c in holders)
        shared = (tokens - (ledger.resident_tokens or 0.0)) / prompts
        self._shared_ratio = min(1.0, max(0.0, shared))
        own = 1.0 - self._shared_ratio
        blocks = sum(
            c.resident_requests * held(own * c.prompt_tokens + c.generated_tokens) for c in holders
        )
        if snapshot.used_blocks is not None and blocks > 0:
            self._scale = min(_MOST_SCALE, max(1 / _MOST_SCALE, snapshot.used_blocks / blocks))

    def _committed(
        self,
        snapshot: EngineSnapshot,
        ledger: LedgerReading,
        queue: "_Queue",
        limits: Limits,
        held: BlocksHeld | None,
    ) -> CommittedDemand | None:
        if ledger.in_flight_tokens is None or held is None or snapshot.total_blocks is None:
            return None
        own = 1.0 - self._shared_ratio
        prompt = own * _mean_prompt(snapshot, ledger)
        waits = snapshot.waiting  # else those who hold nothing have hung up
        requests = [
            Requests(number, own * c.prompt_tokens, c.generated_tokens)
            for c in ledger.cohorts
            if (number := c.requests if waits else c.resident_requests) > 0
        ]
        new = queue.prefilling + queue.seated(limits)
        requests = grouped([*requests, Requests(new, prompt, 0.0)] if new > 0 else requests)
        longest = limits.max_model_len
        load = Load(
            requests=requests,
            arrivals=self._load.arrivals(_samples(snapshot)),
            prompt_tokens=prompt,
            tokens_per_second=self._load.tokens_per_second(),
            lengths=self._lengths.lengths(
                [(each.requests, each.generated_tokens) for each in requests],
                None if longest is None else max(1.0, longest - prompt),
            ),
            blocks_held=lambda tokens: self._scale * held(tokens),
        )
        return committed_demand(load, snapshot.total_blocks)


@dataclass(frozen=True, slots=True)
class _Queue:
    """Requests without a first token, and those that lost their blocks."""

    prefilling: float
    fresh: float
    preempted: float
    running: int

    @classmethod
    def of(cls, snapshot: EngineSnapshot, ledger: LedgerReading) -> "_Queue":
        running, waiting = snapshot.running or 0, snapshot.waiting or 0
        past = sum(cohort.requests for cohort in ledger.cohorts)
        preempted = max(0.0, past - running) if waiting else 0.0
        return cls(
            prefilling=max(0.0, running - past) if ledger.in_flight_tokens is not None else 0.0,
            fresh=max(0.0, waiting - preempted),
            preempted=preempted,
            running=running,
        )

    def seated(self, limits: Limits) -> float:
        """Queued requests for whom ``max_num_seqs`` leaves a place beside those in the batch."""
        if limits.max_num_seqs is None:
            return self.fresh
        places = limits.max_num_seqs - self.running - self.preempted
        return min(self.fresh, max(0.0, places))


def blocks_held(snapshot: EngineSnapshot) -> BlocksHeld | None:
    """Blocks that a request holds by its tokens, on average over where its last block ends.

    Of a hybrid cache as many as its tokens take of a full-length request's.
    """
    size = snapshot.block_size_tokens
    if size is None:
        return None
    if is_hybrid(snapshot):
        each = tokens_per_block(snapshot) or size
        return lambda tokens: tokens / each
    return lambda tokens: tokens / size + (size - 1) / (2 * size)


def _by_layout(layout: KVCacheLayout | None, longest_tokens: float) -> BlocksHeld | None:
    """The same by the layout of a hybrid cache; None for any other."""
    if layout is None or len(layout.specs) < 2:
        return None

    def held(tokens: float) -> float:
        whole = Tokens(round(tokens))
        return layout.held_blocks(Slots(tokens=whole, settled_tokens=whole))

    return tabulated(held, longest_tokens)


def tabulated(held: BlocksHeld, longest_tokens: float) -> BlocksHeld:
    """The same between points that lie closer for short requests: it is asked for a lot."""
    points = [longest_tokens * (i / _TABLE_STEPS) ** 2 for i in range(_TABLE_STEPS + 1)]
    blocks = [held(point) for point in points]

    def between(tokens: float) -> float:
        at = min(_TABLE_STEPS - 1, int(math.sqrt(tokens / longest_tokens) * _TABLE_STEPS))
        part = (tokens - points[at]) / (points[at + 1] - points[at])
        return blocks[at] + (blocks[at + 1] - blocks[at]) * part

    return between


def _mean_prompt(snapshot: EngineSnapshot, ledger: LedgerReading) -> float:
    """Prompt tokens of a request, of those in flight or else of all so far."""
    requests = sum(cohort.requests for cohort in ledger.cohorts)
    if requests >= 1:
        return sum(c.requests * c.prompt_tokens for c in ledger.cohorts) / requests
    return (snapshot.prompt_tokens or 0.0) / max(1.0, snapshot.first_tokens or 0.0)


def _samples(snapshot: EngineSnapshot) -> float:
    """Samples of a mean request."""
    asked = snapshot.request_params_n
    return max(1.0, asked.total / asked.count) if asked is not None and asked.count else 1.0
