"""The pages of vLLM's API server, over HTTP, before a simulation that runs in real time."""

import asyncio
import json
import logging
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from vllm_capacity.errors import Fault, SettingsError
from vllm_capacity.simulate.config import SIMULATED_VLLM_VERSION, SimulationConfig
from vllm_capacity.simulate.target import Restart, SimulatedTarget
from vllm_capacity.simulate.workload import Workload

_Endpoint = Callable[[Request], Awaitable[Response]]
_LOG = logging.getLogger(__name__)
_PRODUCT = f"vllm-capacity-simulation/{version('vllm-capacity')}"
_TICK_SECONDS = 0.05
_MOST_SPEED = 100  # a quarter of a core for the default engine
# A machine that slept does not live through the lost time; it goes on from here.
_LONGEST_LAG_SECONDS = 1.0


class SimulatedServer:
    """A simulated vLLM server on a port of its own, in the running event loop.

    It says in every answer that it is a simulation: in the ``Server`` header, on ``/``, and by
    a key ``simulation`` beside what vLLM would answer to ``/version`` and ``/v1/models``. While a
    restart lasts every page is an error 503.
    """

    def __init__(
        self,
        config: SimulationConfig,
        workload: Workload,
        restarts: Iterable[Restart] = (),
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        speed: float = 1.0,
    ) -> None:
        """Prepare a server; nothing runs before ``start``.

        Args:
            config: the engines.
            workload: their clients.
            restarts: when the server dies and how it is started anew.
            host: address to listen on.
            port: port to listen on; 0 takes any free one.
            speed: simulated seconds that pass in a second.

        Raises:
            SettingsError: ``speed`` is not above 0 and at most 100, or ``port`` is no port.
        """
        faults = []
        if not 0 < speed <= _MOST_SPEED:
            faults.append(Fault("speed", speed, f"must be above 0 and at most {_MOST_SPEED}"))
        if not 0 <= port <= 65535:
            faults.append(Fault("port", port, "must be 0 to 65535; 0 takes any free port"))
        if faults:
            raise SettingsError("simulated server", faults)
        self._config = config
        self._host = host
        self._port = port
        self._speed = speed
        self._target = SimulatedTarget(
            config, workload.arrivals(config), restarts, started_at=time.time()
        )
        self._created = int(time.time())
        self._root = config.root or config.model_name
        self._model_folder: tempfile.TemporaryDirectory[str] | None = None
        self._http: _Uvicorn | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> str:
        """Listen, start the clock, and return the address, as in ``http://127.0.0.1:8000``.

        Raises:
            SettingsError: the address cannot be listened on.
        """
        listener = _listen(self._host, self._port)
        self._port = listener.getsockname()[1]
        self._write_model_folder()
        self._http = _Uvicorn(_uvicorn_config(self._app()))
        serving = asyncio.create_task(self._http.serve([listener]))
        self._tasks = [serving, asyncio.create_task(self._run())]
        await self._http.ready.wait()
        if serving.done():
            await serving
        _LOG.info(
            "simulated engine listens on %s: a simulation, no GPU and no model behind it", self.url
        )
        return self.url

    @property
    def url(self) -> str:
        """Where it listens; the port is known once it has started."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    async def stop(self) -> None:
        """Stop listening and stop the clock; it may be called twice."""
        if self._http:
            self._http.should_exit = True
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._model_folder:
            self._model_folder.cleanup()
            self._model_folder = None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        simulated, before = 0.0, loop.time()
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = loop.time()
            simulated += min(now - before, _LONGEST_LAG_SECONDS) * self._speed
            before = now
            self._target.advance_to(simulated)

    def _write_model_folder(self) -> None:
        """Give ``root`` a folder with the model's ``config.json``, as a local model has one."""
        if self._config.root:
            return
        try:
            self._model_folder = tempfile.TemporaryDirectory(prefix="vllm-capacity-simulation-")
            text = json.dumps(dict(self._config.model_config), indent=1)
            (Path(self._model_folder.name) / "config.json").write_text(text, encoding="utf-8")
            self._root = self._model_folder.name
        except OSError as error:
            # A read-only machine: the name alone must do.
            _LOG.info("no folder for the simulated config.json: %s", error)

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/metrics", self._unless_down(self._serve_metrics)),
                Route("/v1/models", self._unless_down(self._serve_models)),
                Route("/version", self._unless_down(self._serve_version)),
                Route("/health", self._unless_down(self._serve_health)),
                Route("/", self._serve_root),
            ]
        )

    def _unless_down(self, serve: _Endpoint) -> _Endpoint:
        async def serve_or_refuse(request: Request) -> Response:
            if self._target.is_down:
                return PlainTextResponse("restarting (simulated)\n", status_code=503)
            return await serve(request)

        return serve_or_refuse

    async def _serve_metrics(self, _: Request) -> Response:
        return Response(self._target.page(), media_type=CONTENT_TYPE_LATEST)

    async def _serve_health(self, _: Request) -> Response:
        return Response()

    async def _serve_version(self, _: Request) -> Response:
        return JSONResponse({"version": SIMULATED_VLLM_VERSION, "simulation": _PRODUCT})

    async def _serve_models(self, request: Request) -> Response:
        self._target.record_http(request.method, request.url.path, 0.0)
        model = {
            "id": self._config.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "vllm",
            "root": self._root,
            "parent": None,
            "max_model_len": self._config.max_model_len,
        }
        return JSONResponse({"object": "list", "data": [model], "simulation": _PRODUCT})

    async def _serve_root(self, _: Request) -> Response:
        return PlainTextResponse(
            f"{_PRODUCT}: a simulated vLLM {SIMULATED_VLLM_VERSION}. There is no GPU and no model "
            "behind this address.\nPages: /metrics /v1/models /version /health\n"
        )


class _Uvicorn(uvicorn.Server):
    """A server that says when it listens and leaves the signals to the program around it."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        finally:
            # Whoever waits for it must not wait for a server that could not start.
            self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        headers=[("Server", _PRODUCT)],
        timeout_graceful_shutdown=2,
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        problem = f"cannot listen there ({error.strerror}); choose another address or port"
        raise SettingsError(
            "simulated server", [Fault("host:port", f"{host}:{port}", problem)]
        ) from error
    return listener
