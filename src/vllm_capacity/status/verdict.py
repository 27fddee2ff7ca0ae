"""One engine in words: how many more requests fit, how full it is, what comes next.

Whoever reads only the headline knows whether there is room. Everything here is said from an
assessment and nothing is computed anew; what is unknown is said to be, with its reason.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.compare.binding_limit import queued_for_capacity
from vllm_capacity.compare.fleet import PredictionStatus
from vllm_capacity.status.wording import about, counted, duration, percent

Severity = Literal["ok", "unknown", "warning", "critical"]
#: The mildest first.
SEVERITIES: tuple[Severity, ...] = ("ok", "unknown", "warning", "critical")
SEVERITY_OF_STATE: Mapping[str, Severity] = {
    "idle": "ok",
    "ok": "ok",
    "tight": "warning",
    "saturated": "critical",
    "thrashing": "critical",
    "unknown": "unknown",
}

#: Binding limits in vLLM's words.
LIMITS = {
    "kv_cache": "KV cache",
    "sequences": "max_num_seqs",
    "batched_tokens": "max_num_batched_tokens",
    "deferred": "none, those that wait are deferred",
}
_NOT_PREDICTED = {
    "no_config": "no config.json",
    "bad_config": "its config.json cannot be used",
    "bad_arguments": "an engine argument cannot be used",
    "unsupported": "the model is not described",
    "no_memory": "neither a GPU nor a cache size is known",
    "does_not_fit": "by its arguments it could not have started",
}
# Of what was measured: as close as two GPUs of one kind are to each other.
_SAME_RATIO = 0.005
# Of the pool: an interval wider than that is said.
_WIDE_RATIO = 0.1
_HALF_BLOCK = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What there is to say of one engine.

    Attributes:
        severity: how much attention it needs.
        headline: how many more requests fit, or why none does.
        parts: how full it is and whether that was predicted; capacity; what binds; what comes.
    """

    severity: Severity
    headline: str
    parts: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """All of it, in one sentence."""
        return "; ".join((self.headline, *self.parts)) + "."


def engine_verdict(a: EngineAssessment, prediction: PredictionStatus) -> Verdict:
    """What there is to say of one engine, and of the prediction made for it."""
    headline = _headline(a)
    spoken = (
        _usual_size(a),
        _usage(a, headline),
        _capacity(a, prediction),
        _limit(a),
        _queue(a, headline),
        _preemptions(a),
        *_ahead(a),
    )
    return Verdict(
        severity=SEVERITY_OF_STATE[a.outlook.state],
        headline=headline,
        parts=tuple(part for part in spoken if part is not None),
    )


def _headline(a: EngineAssessment) -> str:
    """How many more requests fit."""
    if a.snapshot.is_asleep:
        return "Asleep: its weights and KV cache are off the GPU"
    missing = _missing(a)
    if missing:
        return missing
    queued, limit = _queued(a), a.outlook.binding_limit
    if queued and limit in {"kv_cache", "sequences"}:
        waiting = counted(queued, "waits", "wait")
        return f"No room for another request: {waiting} for {_wanted(a, limit)}"
    found = _room(a)
    return (
        f"How many more requests fit is not known: {_no_size(a)}"
        if found is None
        else _fit(*found, is_idle=a.outlook.state == "idle")
    )


def _fit(number: int, size: str, *, is_idle: bool) -> str:
    if number == 0:
        return f"No room for another request of {size}"
    more, plural = "" if is_idle else "more ", "" if number == 1 else "s"
    return (
        f"{'Idle: room' if is_idle else 'Room'} for {about(number)} {more}request{plural} of {size}"
    )


def _missing(a: EngineAssessment) -> str | None:
    """What the page would have to say before it can be told how many more fit."""
    s = a.snapshot
    pieces = {
        "how many blocks there are": s.total_blocks,
        "how many of them are used": s.kv_cache_usage_ratio,
        "how many requests run": s.running,
        "how many requests wait": s.waiting,
    }
    unknown = [words for words, value in pieces.items() if value is None]
    if len(unknown) == len(pieces):
        return "Nothing is known of this engine: its page tells neither blocks nor requests"
    if unknown:
        pieces_missing = ", nor ".join(unknown)
        return f"How many more requests fit is not known: its page does not say {pieces_missing}"
    return None


def _queued(a: EngineAssessment) -> int:
    return queued_for_capacity(a.snapshot) or 0


def _wanted(a: EngineAssessment, limit: str | None) -> str:
    if limit != "sequences":
        return "KV cache"
    seats = a.limits.max_num_seqs
    return "a place in the batch" if seats is None else f"one of max_num_seqs = {seats} places"


def _room(a: EngineAssessment) -> tuple[int, str] | None:
    """Further requests, and of which size."""
    for basis, size in (("observed_mean", "the usual size"), ("full_length", "full length")):
        number = a.headroom.requests.get(basis)
        if number is not None:
            return number, size
    return None


def _no_size(a: EngineAssessment) -> str:
    if a.footprint is None and a.limits.max_model_len is None:
        return "no request has finished yet, and max_model_len is not known"
    return a.occupancy_reason or "its page does not say how many tokens a block holds"


def _usual_size(a: EngineAssessment) -> str | None:
    if a.footprint is None and "full_length" in a.headroom.requests:
        return "no request has finished yet to tell the usual size"
    return None


def _usage(a: EngineAssessment, headline: str) -> str | None:
    """How full the pool is, and whether it ought to be."""
    used, pool = a.snapshot.used_blocks, a.snapshot.total_blocks
    usage, should = a.snapshot.kv_cache_usage_ratio, a.occupancy
    if usage is None:
        return None
    said = f"KV cache {percent(usage)} used"
    if should is None:
        reason = a.occupancy_reason or ""
        return f"{said}, not predicted" + ("" if reason in headline else f": {reason}")
    if used is None or not pool:
        return said
    if should.low - _HALF_BLOCK <= used <= should.high + _HALF_BLOCK:
        return f"{said}, as predicted{_width(should.low / pool, should.high / pool)}"
    off = used - should.blocks
    blocks = counted(max(1, round(abs(off))), "block", "blocks")
    return (
        f"{said}, {percent(should.blocks / pool)} predicted: "
        f"{blocks} {'more' if off > 0 else 'fewer'} than predicted"
    )


def _width(low: float, high: float) -> str:
    if high - low <= _WIDE_RATIO:
        return ""
    return f" ({percent(low)} to {percent(high)})"


def _capacity(a: EngineAssessment, prediction: PredictionStatus) -> str | None:
    """Whether there is as much KV cache as there ought to be."""
    if prediction.reason == "override":
        return "capacity was set by hand"
    error = a.errors.get("kv_cache_tokens") or a.errors.get("kv_cache_blocks")
    if error is None or error.ratio is None:
        reason = _NOT_PREDICTED.get(prediction.reason)
        return None if reason is None else f"capacity not predicted: {reason}"
    if abs(error.ratio) < _SAME_RATIO:
        return "capacity as predicted"
    more = "more" if error.ratio > 0 else "less"
    return f"capacity {abs(error.ratio) * 100:.1f} % {more} than predicted"


def _limit(a: EngineAssessment) -> str | None:
    """What stops the next request; while nothing does, what will."""
    limit = a.outlook.binding_limit
    if limit is None:
        return None
    if limit != "none":
        return f"binding limit: {LIMITS[limit]}"
    number, seats = a.headroom.requests.get("observed_mean"), a.limits.max_num_seqs
    if number is None:
        return None
    in_engine = (a.snapshot.running or 0) + (a.snapshot.waiting or 0)
    first = "sequences" if seats is not None and number >= seats - in_engine else "kv_cache"
    return f"next limit: {LIMITS[first]}"


def _queue(a: EngineAssessment, headline: str) -> str | None:
    waiting = a.snapshot.waiting
    if not waiting or "wait" in headline:
        return None
    return f"{counted(waiting, 'request waits', 'requests wait')}"


def _preemptions(a: EngineAssessment) -> str | None:
    """Requests that lost their blocks."""
    lately, now = round(a.demand.preemptions_last_minute), round(a.demand.preempted_requests)
    if lately < 1 and now < 1:
        return None
    said = f"{counted(lately, 'preemption', 'preemptions')} in the last minute" if lately else ""
    waits = f"{counted(now, 'preempted request waits', 'preempted requests wait')}" if now else ""
    return ", ".join(part for part in (said, waits) if part)


def _ahead(a: EngineAssessment) -> Iterator[str]:
    """What comes next, if things go on as they do."""
    yield from _committed(a)
    seconds = a.outlook.time_to_exhaustion_seconds
    if a.snapshot.free_blocks == 0:
        yield "no block is free"
    elif seconds is not None and 0 < seconds < math.inf:
        yield f"full in about {duration(seconds)} at this rate"


def _committed(a: EngineAssessment) -> Iterator[str]:
    """Requests that will need more than there is."""
    pool, committed = a.snapshot.total_blocks, a.demand.committed
    if not pool or committed is None or max(committed.admitted_blocks, committed.blocks) <= pool:
        return
    if committed.admitted_blocks <= pool:
        share = percent(committed.blocks / pool)
        yield f"with the requests that keep coming {share} of the pool will be needed"
        return
    who = "running and queued requests" if _queued(a) else "the requests already admitted"
    more = "more preemption" if round(a.demand.preemptions_last_minute) else "preemption"
    share = percent(committed.admitted_blocks / pool)
    yield f"{who} will need {share} of the pool: {more} is ahead"
