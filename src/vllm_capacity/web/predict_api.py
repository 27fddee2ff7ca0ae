"""``GET /api/v1/predict``: what other arguments would give a running engine."""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.compare.fleet import FleetAssessment, PredictionStatus, TargetAssessment
from vllm_capacity.errors import EngineArgsError, Fault
from vllm_capacity.predict import Deployment, Prediction
from vllm_capacity.predict.answers import Workload
from vllm_capacity.status.question import PARAMETERS, Question, read_question
from vllm_capacity.status.what_if import NO_SIZE, Explored, answer, explore
from vllm_capacity.web.json_response import json_response
from vllm_capacity.web.problems import Problem, bad_request
from vllm_capacity.web.query import engine_asked, query_parameters, target_asked

_KNOWN = frozenset({"target", "engine", *PARAMETERS})
_MOST_KEPT = 64
_MOST_WAITING = 16
# Times as long as a prediction took; so they take no more than a tenth of a core.
_REST = 9.0


class _Predicted(NamedTuple):
    """A deployment and the prediction that was published of it."""

    deployment: Deployment
    prediction: Prediction


class _Key(NamedTuple):
    """What an answer hangs on, beside the deployment."""

    target: str
    workload: Workload | None
    given: frozenset[tuple[str, str]]


def predict_route(
    published: Callable[[], FleetAssessment], *, explorer: "Explorer | None" = None
) -> Route:
    """The endpoint.

    Args:
        published: what is known now.
        explorer: finds the answers; one of its own without.
    """
    asked = Explorer() if explorer is None else explorer

    async def respond(request: Request) -> Response:
        given, faults = query_parameters(request, _KNOWN)
        target = target_asked(published(), given.pop("target", None), faults)
        engine = _engine(target, given.pop("engine", None), faults)
        question = _question(given, engine, faults)
        today = _predicted(target.prediction)
        explored = await asked.explored(target.target, today, given, question)
        _check(today.prediction, explored.changed)
        return json_response(
            request,
            {
                "target": target.target,
                "engine": None if engine is None else engine.snapshot.engine,
                **answer(today.prediction, explored, question, engine),
            },
        )

    return Route("/api/v1/predict", respond)


class Explorer:
    """Answers questions one at a time, in a thread, and keeps the last answers.

    Scrapes go first: the event loop waits for no prediction, only so many questions wait, and
    after each the thread rests, since while it works it takes turns with the loop.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(1)
        self._waiting, self._ready_at = 0, -math.inf
        self._kept: OrderedDict[_Key, tuple[Prediction, Explored]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    async def explored(
        self, target: str, today: _Predicted, given: Mapping[str, str], question: Question
    ) -> Explored:
        """What is predicted for the question, from now or from before.

        Raises:
            Problem: too many questions wait already.
        """
        key = _Key(target, question.workload, frozenset(given.items()))
        known = self._known(key, today.prediction)
        if known is not None:
            return known
        if self._waiting >= _MOST_WAITING:
            detail = "Too many predictions are asked for at once; ask again in a second."
            raise Problem(503, "Service Unavailable", detail, headers={"Retry-After": "1"})
        self._waiting += 1
        try:
            async with self._turn:
                known = self._known(key, today.prediction)  # others may have asked the same
                return known or await self._find(key, today, question)
        finally:
            self._waiting -= 1

    def _known(self, key: _Key, today: Prediction) -> Explored | None:
        kept = self._kept.get(key)
        if kept is None or kept[0] is not today:
            return None
        self._kept.move_to_end(key)
        return kept[1]

    def _alike(self, key: _Key, today: Prediction) -> Explored | None:
        """Another answer about the same deployment and workload."""
        return next(
            (
                explored
                for other, (prediction, explored) in reversed(self._kept.items())
                if prediction is today and other.workload == key.workload
            ),
            None,
        )

    async def _find(self, key: _Key, today: _Predicted, question: Question) -> Explored:
        await asyncio.sleep(self._ready_at - time.monotonic())
        began = time.monotonic()
        alike = self._alike(key, today.prediction)
        found = await asyncio.to_thread(explore, *today, question, known=alike)
        ended = time.monotonic()
        self._ready_at = ended + _REST * (ended - began)
        self._kept[key] = (today.prediction, found)
        while len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return found


def _engine(
    target: TargetAssessment, name: str | None, faults: list[Fault]
) -> EngineAssessment | None:
    """The engine asked about; None where the target shows none, and none is named."""
    if name is None and not target.engines:
        return None
    asked = engine_asked(name, (each.snapshot.engine for each in target.engines), faults)
    return next(each for each in target.engines if each.snapshot.engine == asked)


def _question(
    given: Mapping[str, str], engine: EngineAssessment | None, faults: list[Fault]
) -> Question:
    try:
        question = read_question(given, engine)
    except EngineArgsError as error:
        raise bad_request([*faults, *error.faults]) from None
    if faults:
        raise bad_request(faults)
    return question


def _predicted(status: PredictionStatus) -> _Predicted:
    if status.deployment is None or status.prediction is None:
        raise _unpredicted(409, status.message)
    return _Predicted(status.deployment, status.prediction)


def _check(today: Prediction, changed: Prediction) -> None:
    """Refuse to answer where nothing is known of either."""
    if not (today.supported or changed.supported):
        raise _unpredicted(422, today.reason or "it is not described exactly")
    if changed.supported and not (today.plans or changed.plans):
        raise _unpredicted(409, NO_SIZE)


def _unpredicted(status: int, reason: str) -> Problem:
    detail = f"Nothing is predicted for this target: {reason.rstrip('.')}."
    return Problem(status, "No prediction", detail)
