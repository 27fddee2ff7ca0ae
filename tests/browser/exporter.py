"""The exporter's whole web application on a port of its own, of a fleet that a test publishes."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Self

from fleets import NOW
from prometheus_client import CollectorRegistry

from vllm_capacity.export.collector import CapacityCollector
from vllm_capacity.status.history import History
from vllm_capacity.web.application import web_application
from vllm_capacity.web.documents import StatusDocuments
from vllm_capacity.web.events import StatusStreams
from vllm_capacity.web.history_api import history_route
from vllm_capacity.web.predict_api import predict_route
from vllm_capacity.web.server import WebServer, listening
from vllm_capacity.web.status_api import status_routes

if TYPE_CHECKING:
    from vllm_capacity.compare.fleet import FleetAssessment


class Exporter:
    """Serves what was published last, while its context lasts.

    Args:
        fleet: what is published first.
        port: to listen on; 0 is any.
        interval_seconds: what it says to be the scrape interval; no number is stale for three.

    Attributes:
        now: the exporter's clock, which the test moves.
    """

    def __init__(
        self, fleet: FleetAssessment, *, port: int = 0, interval_seconds: float = 60.0
    ) -> None:
        self.now = NOW
        self._port, self._fleet = port, fleet
        self._history = History(interval_seconds)
        self._documents = StatusDocuments(
            lambda: self._fleet, scrape_interval_seconds=interval_seconds, wall=lambda: self.now
        )

    def __enter__(self) -> Self:
        socket = listening(f"127.0.0.1:{self._port}")
        self._port = socket.getsockname()[1]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(socket)))
        self._started = threading.Event()
        self._thread.start()
        assert self._started.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._streams.stop)
        self._loop.call_soon_threadsafe(self._server.stop)
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    def publish(self, fleet: FleetAssessment, *, after_seconds: float = 0.0) -> int:
        """Publish something newer; the number of its document."""

        async def published() -> int:
            self.now += after_seconds
            self._fleet = fleet
            for target in fleet.targets:
                self._history.record(target, self.now)
            return self._documents.newest()

        return asyncio.run_coroutine_threadsafe(published(), self._loop).result(20)

    async def _serve(self, socket: object) -> None:
        self._loop = asyncio.get_running_loop()
        self._streams = StatusStreams(self._documents, look_seconds=0.02)
        registry = CollectorRegistry()
        with_target = len(self._fleet.targets) > 1
        registry.register(CapacityCollector(lambda: self._fleet, with_target=with_target))
        routes = [
            *status_routes(self._documents, self._streams),
            history_route(self._history, lambda: self._fleet, wall=lambda: self.now),
            predict_route(lambda: self._fleet),
        ]
        self._server = WebServer(web_application(registry, lambda: self._fleet, more_routes=routes))
        self._started.set()
        await self._server.serve(sockets=[socket])  # type: ignore[list-item]
