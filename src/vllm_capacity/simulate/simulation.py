"""A whole simulated server in its own time: clients, engines and what they count."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Protocol

from vllm_capacity.simulate.config import SimulationConfig
from vllm_capacity.simulate.engine import SimulatedEngine, StepOutcome
from vllm_capacity.simulate.requests import LiveRequest, Submission
from vllm_capacity.simulate.workload import Arrival


class Recorder(Protocol):
    """Who hears what the engines count."""

    def record_step(self, engine_index: int, outcome: StepOutcome) -> None:
        """A step of one engine ended."""

    def record_response(self, submission: Submission, now: float) -> None:
        """A client has all of its answers, or left."""


class Simulation:
    """Clients and engines; ``advance_to`` runs events in the order of their time, by no clock.

    A request goes to the least loaded engine, each of its answers on its own, unless it names one.
    """

    def __init__(
        self, config: SimulationConfig, arrivals: Iterable[Arrival], recorder: Recorder
    ) -> None:
        self.engines = tuple(SimulatedEngine(config) for _ in range(config.data_parallel_size))
        self._recorder = recorder
        self._arrivals: Iterator[Arrival] = iter(arrivals)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self._submission_ids = count()
        self._answers: dict[int, list[tuple[int, LiveRequest]]] = {}
        self._stepping = [False] * len(self.engines)
        self._first_choice = 0
        self._await_arrival()

    def advance_to(self, seconds: float) -> None:
        """Run everything that happens up to and including ``seconds``."""
        while self._events and self._events[0][0] <= seconds:
            at, _, event = heapq.heappop(self._events)
            event(at)

    def _at(self, seconds: float, event: Callable[[float], None]) -> None:
        # The running number keeps events of one moment in the order of their making.
        heapq.heappush(self._events, (seconds, next(self._order), event))

    def _await_arrival(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is not None:
            self._at(arrival.at_seconds, lambda now: self._arrive(arrival, now))

    def _arrive(self, arrival: Arrival, now: float) -> None:
        self._await_arrival()
        submission = Submission(next(self._submission_ids), arrival.spec, now)
        answers = [self._place(submission, index, now) for index in range(arrival.spec.n)]
        self._answers[submission.submission_id] = answers
        patience = arrival.spec.hang_up_after_seconds
        if patience is not None:
            self._at(now + patience, lambda then: self._lose_patience(submission, then))

    def _place(self, submission: Submission, index: int, now: float) -> tuple[int, LiveRequest]:
        rank = submission.spec.data_parallel_rank
        engine_index = self._least_loaded() if rank is None else rank
        request = self.engines[engine_index].add(submission, index)
        self._wake(engine_index, now)
        return engine_index, request

    def _least_loaded(self) -> int:
        size = len(self.engines)
        order = [(self._first_choice + i) % size for i in range(size)]
        # Equal engines take turns.
        self._first_choice = (self._first_choice + 1) % size
        return min(order, key=lambda i: self.engines[i].load)

    def _wake(self, engine_index: int, now: float) -> None:
        if not self._stepping[engine_index]:
            self._stepping[engine_index] = True
            self._at(now, lambda then: self._step(engine_index, then))

    def _step(self, engine_index: int, now: float) -> None:
        outcome = self.engines[engine_index].step(now)
        self._recorder.record_step(engine_index, outcome)
        busy_seconds = outcome.busy_seconds
        self._stepping[engine_index] = busy_seconds is not None
        if busy_seconds is not None:
            self._at(now + busy_seconds, lambda then: self._step(engine_index, then))
        for output in outcome.outputs:
            self._receive(output.request, now)

    def _receive(self, request: LiveRequest, now: float) -> None:
        submission = request.submission
        limit = submission.spec.hang_up_after_tokens
        if submission.unfinished == 0:
            self._close(submission, now)
        elif limit is not None and request.num_output_tokens >= limit:
            self._hang_up(submission, now)

    def _lose_patience(self, submission: Submission, now: float) -> None:
        answers = self._answers.get(submission.submission_id, ())
        if all(request.first_token_at is None for _, request in answers):
            self._hang_up(submission, now)

    def _hang_up(self, submission: Submission, now: float) -> None:
        for engine_index, request in self._answers.get(submission.submission_id, ()):
            self.engines[engine_index].abort(request)
        self._close(submission, now)

    def _close(self, submission: Submission, now: float) -> None:
        if self._answers.pop(submission.submission_id, None) is not None:
            self._recorder.record_response(submission, now)
