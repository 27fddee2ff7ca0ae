"""``vllm-capacity replay``: a recording through the pipeline of the daemon, with its own clock."""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from vllm_capacity.commands.engine_flags import add_deployment_flags, deployment_facts
from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.compare.headroom import BASES
from vllm_capacity.deployment import DeploymentFacts
from vllm_capacity.errors import ExpositionError, TornRecordingError
from vllm_capacity.monitor import Pipeline
from vllm_capacity.sources.recording import RecordedScrape, read_recording

_EPILOG = """\
TRACE holds one JSON object a line, plain, .gz or .xz:
  {"t": seconds since start, "metrics": "the page as text", or null when the scrape failed}
One line is written for each: what the daemon would have known at that moment. Unknown is null.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``replay``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("trace", metavar="TRACE", help="the recording")
    parser.add_argument(
        "--jsonl", action="store_true", help="write JSON lines instead of a table to read"
    )
    add_deployment_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Replay; the exit status is 0 when every whole line of the recording could be read."""
    facts, pipeline = deployment_facts(args), Pipeline()
    write = _write_json if args.jsonl else _write_row
    try:
        for scrape in read_recording(args.trace):
            write(scrape.t, _engines(pipeline, facts, scrape))
    except TornRecordingError as error:
        print(f"vllm-capacity: the recording was cut off: {error}", file=sys.stderr)
    return 0


def _engines(
    pipeline: Pipeline, facts: DeploymentFacts, scrape: RecordedScrape
) -> tuple[EngineAssessment, ...]:
    if scrape.metrics is None:
        return ()
    try:
        page = pipeline.read(scrape.metrics.encode(), taken_at_seconds=scrape.t)
    except ExpositionError as error:
        print(f"vllm-capacity: t = {scrape.t:g}: {error}", file=sys.stderr)
        return ()
    return pipeline.assess(page, facts.with_labels(page.engines[0].cache_config))


def replayed(a: EngineAssessment) -> Mapping[str, Any]:
    """One engine as a line of ``replay --jsonl`` holds it. Unknown is None."""
    error, committed = a.errors.get("kv_cache_used_blocks"), a.demand.committed
    return {
        "running": a.snapshot.running,
        "waiting": a.snapshot.waiting,
        "used_blocks": a.snapshot.used_blocks,
        "free_blocks": a.snapshot.free_blocks,
        "total_blocks": a.snapshot.total_blocks,
        "in_flight_tokens": a.ledger.in_flight_tokens,
        "predicted_used_blocks": a.predicted_used_blocks,
        "predicted_used_blocks_low": None if a.occupancy is None else a.occupancy.low,
        "predicted_used_blocks_high": None if a.occupancy is None else a.occupancy.high,
        "prediction_error_blocks": None if error is None else error.difference,
        "ledger_state": a.ledger.state,
        "committed_blocks": None if committed is None else committed.blocks,
        "headroom_requests": {basis: a.headroom.requests.get(basis) for basis in BASES},
        "time_to_exhaustion_seconds": _finite(a.outlook.time_to_exhaustion_seconds),
        "binding_limit": a.outlook.binding_limit,
        "state": a.outlook.state,
    }


def _finite(number: float | None) -> float | None:
    return None if number is None or math.isinf(number) else number


def _write_json(t: float, engines: tuple[EngineAssessment, ...]) -> None:
    line = {"t": t, "engines": {a.snapshot.engine: replayed(a) for a in engines}}
    print(json.dumps(line, allow_nan=False), flush=True)


def _write_row(t: float, engines: tuple[EngineAssessment, ...]) -> None:
    if not engines:
        print(f"{t:9.1f}  no page")
    for a in engines:
        s = a.snapshot
        print(
            f"{t:9.1f}  engine {s.engine}  "
            f"running {_shown(s.running)}  waiting {_shown(s.waiting)}  "
            f"used {_shown(s.used_blocks)} / {_shown(s.total_blocks)} blocks  "
            f"predicted {_shown(a.predicted_used_blocks)}  ledger {a.ledger.state}  "
            f"room for {_shown(a.headroom.requests.get('observed_mean'))} more"
        )


def _shown(number: float | None) -> str:
    return "   ?" if number is None else f"{number:4.0f}"
