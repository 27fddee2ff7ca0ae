"""One engine of the status document."""

from typing import Any

from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.compare.fleet import PredictionStatus
from vllm_capacity.status.values import values_of
from vllm_capacity.status.verdict import engine_verdict


def engine_status(a: EngineAssessment, prediction: PredictionStatus) -> dict[str, Any]:
    """What is known of one engine, in numbers and in words."""
    verdict = engine_verdict(a, prediction)
    return {
        "engine": a.snapshot.engine,
        "model_name": a.snapshot.model_name,
        "state": a.outlook.state,
        "severity": verdict.severity,
        "verdict": {
            "headline": verdict.headline,
            "parts": verdict.parts,
            "sentence": verdict.sentence,
        },
        "values": values_of("engine", a),
        "reasons": {"ledger": a.ledger.reason, "occupancy": a.occupancy_reason},
    }
