"""One engine: a scheduler, its pool and the steps in flight, moved by hand, without a clock."""

from collections import deque
from dataclasses import dataclass

from vllm_capacity.errors import Fault, InputError
from vllm_capacity.simulate.config import SimulationConfig
from vllm_capacity.simulate.frontend import IterationStats, count_outputs
from vllm_capacity.simulate.requests import LiveRequest, RequestSpec, Status, Submission
from vllm_capacity.simulate.scheduler import Batch, Output, Scheduler, SchedulerStats
from vllm_capacity.units import Blocks, Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestTruth:
    """What is true of one live request.

    Attributes:
        request_id: its name in this engine.
        status: where it is.
        prompt_tokens: length of its prompt.
        output_tokens: tokens delivered to the client.
        computed_tokens: tokens whose keys and values are in blocks, those in flight included.
        block_ids: the blocks that it holds, group by group, first to last.
    """

    request_id: str
    status: Status
    prompt_tokens: Tokens
    output_tokens: Tokens
    computed_tokens: Tokens
    block_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineTruth:
    """What is true of one engine, whatever its metrics say.

    Attributes:
        running: requests that hold blocks, oldest first.
        waiting: requests in the queue, next first.
        used_blocks: distinct blocks held.
        free_blocks: blocks that can be handed out.
        admitted: requests ever queued.
        finished: requests that ended by themselves.
        aborted: requests whose client left.
    """

    running: tuple[RequestTruth, ...]
    waiting: tuple[RequestTruth, ...]
    used_blocks: Blocks
    free_blocks: Blocks
    admitted: int
    finished: int
    aborted: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutcome:
    """What one turn of the engine's loop brought.

    Attributes:
        outputs: tokens delivered.
        scheduler: statistics of the scheduler; None when no step ended.
        iteration: statistics of the outputs; None when there were none.
        busy_seconds: time until the step now running ends; None when idle.
        num_preempted: requests that lost their blocks while the next steps were planned.
    """

    outputs: tuple[Output, ...]
    scheduler: SchedulerStats | None
    iteration: IterationStats | None
    busy_seconds: float | None
    num_preempted: int


class SimulatedEngine:
    """An engine core with its front end. Times are seconds on any one clock.

    Call ``step(now)`` when the running step ends (``busy_seconds`` after the step before), or
    when the engine is idle and something was added. The same calls give the same results.

    Source: vLLM 0.32 ``v1/engine/core.py``, ``step`` and ``step_with_batch_queue``.
    """

    def __init__(self, config: SimulationConfig) -> None:
        self._config = config
        self._scheduler = Scheduler(config)
        self._alive: dict[str, LiveRequest] = {}
        self._in_flight: deque[Batch] = deque()
        self._max_in_flight = 2 if config.async_scheduling else 1
        self._admitted = self._finished = self._aborted = 0
        self._leaked_blocks = 0

    @property
    def idle(self) -> bool:
        """Whether nothing lives here and nothing runs."""
        return not self._alive and not self._in_flight

    @property
    def load(self) -> float:
        """How busy a balancer thinks it: requests alive, waiting ones dearer as the pool fills.

        Source: vLLM 0.32 ``v1/engine/core_client.py``, ``get_core_engine_for_request``.
        """
        penalty = 6.0 * max(0.0, self._scheduler.pool.usage_ratio - 0.5)
        return len(self._alive) + penalty * len(self._scheduler.waiting)

    def add(self, submission: Submission, index: int = 0) -> LiveRequest:
        """Queue answer ``index`` of ``submission``.

        Raises:
            InputError: the prompt is empty or leaves no room for a token.
        """
        spec = submission.spec
        if faults := _request_faults(spec, self._config.max_model_len):
            raise InputError("request", faults)
        request = LiveRequest(f"{index}_{submission.submission_id}", submission)
        self._alive[request.request_id] = request
        self._scheduler.add(request)
        self._admitted += 1
        return request

    def abort(self, request: LiveRequest) -> bool:
        """The client left: free its blocks and count nothing. False if it had ended already."""
        if self._alive.pop(request.request_id, None) is None:
            return False
        self._scheduler.drop(request)
        self._aborted += 1
        return True

    def step(self, now: float) -> StepOutcome:
        """End the running step, if any, and plan as many as may be in flight."""
        self._leak(now)
        outputs: list[Output] = []
        stats = None
        if self._in_flight:
            outputs = self._scheduler.update(self._in_flight.popleft())
            stats = self._scheduler.take_stats()
        iteration = count_outputs(outputs, now) if outputs else None
        for output in outputs:
            if output.finish_reason:
                del self._alive[output.request.request_id]
                self._finished += 1
        num_preempted = self._fill(now)
        return StepOutcome(
            outputs=tuple(outputs),
            scheduler=stats,
            iteration=iteration,
            busy_seconds=self._step_seconds(),
            num_preempted=num_preempted,
        )

    def truth(self) -> EngineTruth:
        """The state of every live request and of the pool."""
        pool = self._scheduler.pool
        return EngineTruth(
            running=tuple(map(_truth, self._scheduler.running)),
            waiting=tuple(map(_truth, self._scheduler.waiting)),
            used_blocks=pool.num_used_blocks,
            free_blocks=pool.num_free_blocks,
            admitted=self._admitted,
            finished=self._finished,
            aborted=self._aborted,
        )

    def _leak(self, now: float) -> None:
        """Lose blocks as time goes by, but leave room for the longest request."""
        pool, config = self._scheduler.pool, self._config
        most = config.num_usable_blocks - config.blocks_per_max_len_request
        leaked = min(int(config.leaked_blocks_per_second * now), most)
        count = min(leaked - self._leaked_blocks, pool.num_free_blocks)
        if count > 0:
            pool.allocate(count)
            self._leaked_blocks += count

    def _fill(self, now: float) -> int:
        num_preempted = 0
        while len(self._in_flight) < self._max_in_flight:
            batch = self._scheduler.schedule(now)
            num_preempted += len(batch.preempted)
            if batch.num_scheduled_tokens:
                self._in_flight.append(batch)
            elif self._in_flight or not batch.preempted:
                break
            # Else the last running request gave way to nobody: plan again with the pool free.
        return num_preempted

    def _step_seconds(self) -> float | None:
        if not self._in_flight:
            return None
        tokens = self._in_flight[0].total_num_scheduled_tokens
        return self._config.step_base_seconds + tokens * self._config.step_seconds_per_token


def _request_faults(spec: RequestSpec, max_model_len: int) -> list[Fault]:
    faults = []
    if not 1 <= spec.prompt_tokens < max_model_len:
        problem = f"must be 1 to {max_model_len - 1} tokens, below max_model_len {max_model_len}"
        faults.append(Fault("prompt_tokens", spec.prompt_tokens, problem))
    if spec.max_tokens < 1:
        faults.append(Fault("max_tokens", spec.max_tokens, "must be at least 1 token"))
    if spec.n < 1:
        faults.append(Fault("n", spec.n, "must be at least 1 answer"))
    return faults


def _truth(request: LiveRequest) -> RequestTruth:
    return RequestTruth(
        request_id=request.request_id,
        status=request.status,
        prompt_tokens=Tokens(request.prompt_tokens),
        output_tokens=Tokens(request.num_output_tokens),
        computed_tokens=Tokens(request.num_computed_tokens),
        block_ids=tuple(
            block.block_id for table in request.tables for block in table if block is not None
        ),
    )
