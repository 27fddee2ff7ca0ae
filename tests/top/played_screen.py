"""A recording of a real vLLM as ``top`` would have shown it at a moment."""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

from vllm_capacity.compare.fleet import FleetAssessment, SourceHealth, TargetAssessment
from vllm_capacity.deployment import DeploymentFacts
from vllm_capacity.monitor import Pipeline
from vllm_capacity.predict import EngineArgs
from vllm_capacity.status.document import status_document
from vllm_capacity.status.history import History
from vllm_capacity.top.feed import Feed
from vllm_capacity.top.moments import Moment, moments_of
from vllm_capacity.top.pen import Pen
from vllm_capacity.top.screen import Place, screen
from vllm_capacity.top.view import View

DATA = Path(__file__).parent.parent / "data"
BEGAN = 1_795_280_000.0
INTERVAL_SECONDS = 5.0


def _facts() -> DeploymentFacts:
    config = json.loads((DATA / "models" / "small-llama" / "config.json").read_bytes())
    args = EngineArgs.from_mapping({"max_num_seqs": 48})
    return DeploymentFacts(config=config, given_args=args, max_model_len=2048)


@cache
def played(trace: str, until: float) -> tuple[dict[str, Any], tuple[Moment, ...]]:
    """The status document at a moment of a recording, and the last minutes of its first engine."""
    pipeline, history, facts = Pipeline(), History(INTERVAL_SECONDS), _facts()
    target, next_at = None, 0.0
    with lzma.open(DATA / "traces" / f"{trace}.jsonl.xz", "rt", encoding="utf-8") as lines:
        scrapes = [json.loads(line) for line in lines]
    for scrape in scrapes:
        if scrape["metrics"] is None or not next_at <= scrape["t"] <= until:
            continue
        next_at = scrape["t"] + INTERVAL_SECONDS - 0.5
        page = pipeline.read(scrape["metrics"].encode(), taken_at_seconds=scrape["t"])
        told = facts.with_labels(page.engines[0].cache_config)
        target = TargetAssessment(
            target="gpu-1:8000",
            url="http://gpu-1:8000",
            engines=pipeline.assess(page, told),
            prediction=pipeline.predicted(told)[0],
            vllm_version="0.32.0",
            health={"vllm": SourceHealth().succeeded(at=BEGAN + scrape["t"], seconds=0.02)},
            started_with=pipeline.started_with,
        )
        history.record(target, BEGAN + scrape["t"])
    assert target is not None
    document = status_document(
        FleetAssessment(targets=(target,)),
        sequence=1,
        generated_timestamp_seconds=BEGAN + next_at - INTERVAL_SECONDS + 0.5,
        scrape_interval_seconds=INTERVAL_SECONDS,
    )
    columns = history.columns("gpu-1:8000", target.engines[0].snapshot.engine, since=0.0)
    return document, tuple(moments_of({"columns": columns}))


def pictured(trace: str, until: float, width: int = 80, height: int | None = None) -> list[str]:
    """The screen at that moment as text."""
    document, moments = played(trace, until)
    lines = screen(
        [Feed(origin="", document=document)],
        moments,
        View(),
        now=2.0,
        place=Place(width=width, height=height),
        pen=Pen(),
    )
    return [line.plain for line in lines]
