"""The status document: everything that is known at one moment, for people and programs.

Its keys are promised by ``docs/api.md``. Numbers are those of ``/metrics``, from the same rows.
"""

from dataclasses import dataclass, replace
from typing import Any

from vllm_capacity import __version__
from vllm_capacity.compare.fleet import FleetAssessment, TargetAssessment
from vllm_capacity.status.fleet_verdict import fleet_verdict
from vllm_capacity.status.gpus import gpu_statuses
from vllm_capacity.status.targets import target_status

API_VERSION = 1
#: Collections that may be missed before a source counts as stale.
_STALE_INTERVALS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What is asked for; a kind of which nothing is named is not narrowed down.

    Attributes:
        targets: names of targets.
        engines: labels of engines.
    """

    targets: frozenset[str] = frozenset()
    engines: frozenset[str] = frozenset()

    def of(self, fleet: FleetAssessment) -> FleetAssessment:
        """The fleet without what is not asked for; of its GPUs those where the rest is."""
        if self == EVERYTHING:
            return fleet
        targets = tuple(self._narrowed(target) for target in fleet.targets if self._has(target))
        left = {target.target for target in targets}
        stacks = (s for s in fleet.gpu_memory if any(name in left for name, _ in s.engines))
        return replace(fleet, targets=targets, gpu_memory=tuple(stacks))

    def _has(self, target: TargetAssessment) -> bool:
        """Whether a target is asked for; one that does not answer may have any engine."""
        named = not self.targets or target.target in self.targets
        return named and (not target.engines or bool(self._narrowed(target).engines))

    def _narrowed(self, target: TargetAssessment) -> TargetAssessment:
        if not self.engines:
            return target
        engines = tuple(e for e in target.engines if e.snapshot.engine in self.engines)
        return replace(target, engines=engines)


EVERYTHING = Selection()


def status_document(
    fleet: FleetAssessment,
    *,
    sequence: int,
    generated_timestamp_seconds: float,
    scrape_interval_seconds: float,
    selection: Selection = EVERYTHING,
) -> dict[str, Any]:
    """Everything that is known of what is asked for.

    Args:
        fleet: as published last.
        sequence: grows with every new document.
        generated_timestamp_seconds: Unix time of now.
        scrape_interval_seconds: between collections.
        selection: what is asked for.
    """
    asked = selection.of(fleet)
    verdict = fleet_verdict(asked, now=generated_timestamp_seconds)
    return {
        "api_version": API_VERSION,
        "version": __version__,
        "sequence": sequence,
        "generated_timestamp_seconds": generated_timestamp_seconds,
        "scrape_interval_seconds": scrape_interval_seconds,
        "stale_after_seconds": _STALE_INTERVALS * scrape_interval_seconds,
        "verdict": {"severity": verdict.severity, "sentence": verdict.sentence},
        "targets": [target_status(target) for target in asked.targets],
        "gpus": list(gpu_statuses(asked)),
    }
