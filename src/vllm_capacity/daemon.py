"""The composition root of ``serve``: what watches, the web server, and their end."""

import asyncio
import signal
import time
from contextlib import AsyncExitStack

import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from vllm_capacity.export.collector import CapacityCollector
from vllm_capacity.fleet_watch import FleetWatch
from vllm_capacity.settings import Settings
from vllm_capacity.status.history import History
from vllm_capacity.web.access import Access
from vllm_capacity.web.application import web_application
from vllm_capacity.web.documents import StatusDocuments
from vllm_capacity.web.events import StatusStreams
from vllm_capacity.web.history_api import history_route
from vllm_capacity.web.predict_api import predict_route
from vllm_capacity.web.server import WebServer, listening, url_of
from vllm_capacity.web.status_api import status_routes

log = structlog.get_logger()


class Daemon:
    """Everything that runs, from start to an orderly end.

    Args:
        settings: what to watch and where to serve.
        revision: of the source, for ``build_info``.
    """

    def __init__(self, settings: Settings, *, revision: str = "unknown") -> None:
        self._settings, self._revision = settings, revision

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; then stop the schedule, finish, and close everything.

        Raises:
            SettingsError: an address cannot be listened on, or the web configuration not be used.
        """
        access = Access(self._settings.web_config_file)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(access)
            sockets = [listening(address) for address in self._settings.web_listen_address]
            for each in sockets:
                stack.callback(each.close)
            fleet = await stack.enter_async_context(FleetWatch(self._settings))
            history = History(self._settings.scrape_interval)
            fleet.on_collected(lambda target: history.record(target, time.time()))
            fleet.start()
            for each in sockets:
                log.info("serving", address=url_of(each, tls=access.context() is not None))
            documents = self._documents(fleet)
            streams = StatusStreams(documents)
            server = WebServer(
                web_application(
                    self._registry(fleet, access),
                    fleet.published,
                    telemetry_path=self._settings.web_telemetry_path,
                    more_routes=[
                        *status_routes(documents, streams),
                        history_route(history, fleet.published),
                        predict_route(fleet.published),
                    ],
                    access=access,
                ),
                access,
            )
            _stop_on_signals(server, streams)
            await server.serve(sockets=sockets)
            log.info("stopping")

    def _documents(self, fleet: FleetWatch) -> StatusDocuments:
        return StatusDocuments(
            fleet.published, scrape_interval_seconds=self._settings.scrape_interval
        )

    def _registry(self, fleet: FleetWatch, access: Access) -> CollectorRegistry:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(
            CapacityCollector(
                fleet.published,
                with_target=fleet.has_several_targets,
                revision=self._revision,
                web_config_reloaded=lambda: access.reload_succeeded,
            )
        )
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        return registry


def _stop_on_signals(server: WebServer, streams: StatusStreams) -> None:
    def stop() -> None:
        streams.stop()
        server.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
