"""The daemon's pipeline beside a real vLLM and a client that knows the truth."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import httpx

from vllm_capacity.commands.replay import replayed
from vllm_capacity.deployment import DeploymentFacts
from vllm_capacity.monitor import Pipeline
from vllm_capacity.predict import EngineArgs

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from pathlib import Path

    from known_load import Client

SCRAPE_SECONDS = 0.5
IDLE_SCRAPES = 4


@dataclass(frozen=True, slots=True)
class Look:
    """One scrape: when, the page (None: it failed), and what `replay` says of it."""

    at: float
    page: str | None
    said: Mapping[str, Any]
    preemptions: float | None = None
    restarts: int = 0

    @property
    def is_idle(self) -> bool:
        return bool(self.said) and self.said["running"] == self.said["waiting"] == 0

    @property
    def error_ratio(self) -> float:
        """|used − predicted| as a share of the pool; all of it where nothing was predicted."""
        error = self.said["prediction_error_blocks"]
        return 1.0 if error is None else abs(error) / self.said["total_blocks"]

    @property
    def width_ratio(self) -> float:
        low, high = self._interval()
        return float(high - low) / self.said["total_blocks"]

    @property
    def is_inside(self) -> bool:
        low, high = self._interval()
        return bool(low - 1e-6 <= self.said["used_blocks"] <= high + 1e-6)

    def _interval(self) -> tuple[float, float]:
        if self.said["predicted_used_blocks"] is None:
            return 0.0, float("inf")
        return self.said["predicted_used_blocks_low"], self.said["predicted_used_blocks_high"]


class LedgerWatch:
    """Scrapes twice a second, as the daemon does, and keeps what the pipeline makes of it."""

    def __init__(self, url: str, config: Mapping[str, Any], engine_args: Mapping[str, Any]) -> None:
        self._url, self._pipeline = url, Pipeline()
        self._facts = DeploymentFacts(
            config=config, given_args=EngineArgs.from_mapping(engine_args)
        )

    async def follow(self, run: Run, traffic: Coroutine[Any, Any, None]) -> None:
        """Look once, then throughout the traffic, and until the server has been idle a while."""
        idle = 0
        async with httpx.AsyncClient(timeout=5) as http:
            run.looks.append(await self.look(http))
            busy = asyncio.create_task(traffic)
            while idle < IDLE_SCRAPES:
                await asyncio.sleep(SCRAPE_SECONDS)
                run.looks.append(await self.look(http))
                if busy.done():
                    busy.result()  # what went wrong with the traffic ends the run
                    idle = idle + 1 if run.looks[-1].is_idle else 0

    async def look(self, http: httpx.AsyncClient) -> Look:
        try:
            page = (await http.get(f"{self._url}/metrics")).raise_for_status().text
        except httpx.HTTPError:
            return Look(time.time(), None, {})
        at = time.time()
        snapshot = self._pipeline.read(page.encode(), taken_at_seconds=time.monotonic())
        facts = self._facts.with_labels(snapshot.engines[0].cache_config)
        (engine,) = self._pipeline.assess(snapshot, facts)
        return Look(at, page, replayed(engine), engine.snapshot.preemptions, engine.restarts)


@dataclass(slots=True, repr=False)
class Run:
    """A load from idle to idle: what was seen, and the client's own record."""

    client: Client
    looks: list[Look] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Run({len(self.looks)} looks)"

    @property
    def seen(self) -> list[Look]:
        """Scrapes that succeeded."""
        return [look for look in self.looks if look.said]

    @property
    def busy(self) -> list[Look]:
        return [look for look in self.seen if look.said["running"]]

    @property
    def median_error_ratio(self) -> float:
        return median(look.error_ratio for look in self.busy)

    @property
    def p95_error_ratio(self) -> float:
        errors = sorted(look.error_ratio for look in self.busy)
        return errors[int(0.95 * (len(errors) - 1))]

    @property
    def mean_width_ratio(self) -> float:
        return mean(look.width_ratio for look in self.busy)

    @property
    def preempted_times(self) -> float:
        counts = [look.preemptions for look in self.seen if look.preemptions is not None]
        return counts[-1] - counts[0]

    def write(self, path: Path) -> None:
        """Leave a recording that `vllm-capacity replay` reads, with the client's truth beside."""
        began = self.looks[0].at
        with path.open("w") as file:
            for look in self.looks:
                alive = [s for s in self.client.streams if s.alive(look.at)]
                truth = {"live": [[s.prompt_tokens, s.received(look.at), s.n] for s in alive]}
                line = {"t": look.at - began, "metrics": look.page, "truth": truth}
                file.write(json.dumps(line) + "\n")
