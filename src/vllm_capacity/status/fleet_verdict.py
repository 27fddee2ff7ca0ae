"""The whole fleet in one sentence: the hottest engine, who needs attention, who is silent."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.compare.fleet import FleetAssessment, TargetAssessment
from vllm_capacity.status.verdict import SEVERITIES, Severity, Verdict, engine_verdict
from vllm_capacity.status.wording import duration

_MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetVerdict:
    """What there is to say of all engines.

    Attributes:
        severity: the worst of any engine; at least "unknown" while a target does not answer.
        sentence: what to look at first.
    """

    severity: Severity
    sentence: str


class _Judged(NamedTuple):
    target: TargetAssessment
    engine: EngineAssessment
    verdict: Verdict

    @property
    def heat(self) -> tuple[int, float, float]:
        """Orders engines, the hottest last."""
        return (
            SEVERITIES.index(self.verdict.severity),
            self.engine.outlook.saturation_ratio or 0.0,
            self.engine.snapshot.kv_cache_usage_ratio or 0.0,
        )


def fleet_verdict(fleet: FleetAssessment, *, now: float) -> FleetVerdict:
    """What there is to say of all engines at ``now``, in Unix time."""
    judged = [
        _Judged(target, engine, engine_verdict(engine, target.prediction))
        for target in fleet.targets
        for engine in target.engines
    ]
    silent = [target for target in fleet.targets if not target.engines]
    severities: list[Severity] = [each.verdict.severity for each in judged]
    severities += ["unknown"] * bool(silent or not judged)
    parts = [
        *_engines(judged, alone=len(fleet.targets) == 1),
        *_old(fleet.targets, now),
        *_silent(silent, now),
    ]
    return FleetVerdict(
        severity=max(severities, key=SEVERITIES.index),
        sentence=("; ".join(parts) or "There is no target") + ".",
    )


def silence(target: TargetAssessment, *, now: float) -> str:
    """Since when and why a target without engines does not answer."""
    health = target.health.get("vllm")
    if health is None or health.up is None:
        return f"{target.target} has not answered yet"
    since, why = health.last_success_timestamp_seconds, health.last_error or "no reason is known"
    if since is None:
        return f"{target.target} has never answered: {why}"
    return f"{target.target} has not answered for {duration(max(0.0, now - since))}: {why}"


def _engines(judged: Sequence[_Judged], *, alone: bool) -> Iterable[str]:
    if not judged:
        return
    hottest = max(judged, key=lambda each: each.heat)
    if alone and len(judged) == 1:
        yield hottest.verdict.sentence.removesuffix(".")
        return
    bad = sum(each.verdict.severity in {"warning", "critical"} for each in judged)
    if len(judged) > 1:
        needs = "needs" if bad == 1 else "need"
        yield (
            f"{bad} of {len(judged)} engines {needs} attention"
            if bad
            else f"None of {len(judged)} engines needs attention"
        )
    name = f"{hottest.target.target}, engine {hottest.engine.snapshot.engine}"
    yield f"{'hottest is ' if len(judged) > 1 else ''}{name}: {hottest.verdict.headline}"


def _old(targets: Iterable[TargetAssessment], now: float) -> Iterable[str]:
    """Whose engines are those of an earlier page."""
    for target in targets:
        health = target.health.get("vllm")
        if target.engines and health is not None and health.up is False:
            since = health.last_success_timestamp_seconds
            age = (
                "of an earlier page" if since is None else f"{duration(max(0.0, now - since))} old"
            )
            yield f"numbers of {target.target} are {age}: {health.last_error}"


def _silent(targets: Sequence[TargetAssessment], now: float) -> Iterable[str]:
    if len(targets) <= _MOST_NAMED:
        yield from (silence(target, now=now) for target in targets)
        return
    names = ", ".join(target.target for target in targets[:_MOST_NAMED])
    yield f"{len(targets)} targets do not answer: {names} and others"
