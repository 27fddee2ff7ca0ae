"""The simulated server over HTTP."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from vllm_capacity.errors import SettingsError
from vllm_capacity.simulate import (
    SIMULATED_MODEL_CONFIG,
    Restart,
    SimulatedServer,
    SimulationConfig,
    Workload,
)

Visit = Callable[[httpx.AsyncClient, SimulatedServer], Awaitable[None]]


def visiting(
    visit: Visit,
    config: SimulationConfig | None = None,
    speed: float = 1.0,
    restarts: tuple[Restart, ...] = (),
) -> None:
    async def main() -> None:
        server = SimulatedServer(config or SimulationConfig(), Workload(), restarts, speed=speed)
        url = await server.start()
        try:
            async with httpx.AsyncClient(base_url=url, timeout=5) as client:
                await visit(client, server)
        finally:
            await server.stop()

    asyncio.run(main())


def sample(page: str, name: str) -> float:
    return next(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))


def test_it_answers_as_vllm_does_and_says_that_it_is_a_simulation() -> None:
    async def visit(client: httpx.AsyncClient, _: SimulatedServer) -> None:
        version = (await client.get("/version")).json()
        models = (await client.get("/v1/models")).json()
        health = await client.get("/health")
        metrics = await client.get("/metrics")
        root = await client.get("/")
        assert version["version"] == "0.32.0"
        assert "simulation" in version
        assert "simulation" in models
        assert [(m["id"], m["max_model_len"], m["parent"]) for m in models["data"]] == [
            ("simulated-llama-8b", 8192, None)
        ]
        assert (health.status_code, health.content) == (200, b"")
        assert metrics.headers["content-type"].startswith("text/plain; version=")
        assert "simulated" in root.text
        assert {r.headers["server"].split("/")[0] for r in (health, metrics, root)} == {
            "vllm-capacity-simulation"
        }

    visiting(visit)


def test_the_root_of_the_model_is_a_folder_with_its_config_until_it_stops() -> None:
    folders = []

    async def visit(client: httpx.AsyncClient, _: SimulatedServer) -> None:
        folder = Path((await client.get("/v1/models")).json()["data"][0]["root"])
        text = (folder / "config.json").read_text(encoding="utf-8")
        assert json.loads(text) == dict(SIMULATED_MODEL_CONFIG)
        folders.append(folder)

    visiting(visit)
    assert not folders[0].exists()


def test_a_given_root_is_served_as_it_is() -> None:
    async def visit(client: httpx.AsyncClient, _: SimulatedServer) -> None:
        assert (await client.get("/v1/models")).json()["data"][0]["root"] == "/models/llama"

    visiting(visit, SimulationConfig(root="/models/llama"))


def test_without_a_place_for_the_folder_the_root_is_the_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def visit(client: httpx.AsyncClient, _: SimulatedServer) -> None:
        root = (await client.get("/v1/models")).json()["data"][0]["root"]
        assert root == "simulated-llama-8b"

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    visiting(visit)


def test_the_page_moves_by_itself() -> None:
    async def visit(client: httpx.AsyncClient, _: SimulatedServer) -> None:
        before = (await client.get("/metrics")).text
        await asyncio.sleep(0.5)
        after = (await client.get("/metrics")).text
        assert sample(after, "vllm:generation_tokens_total") > sample(
            before, "vllm:generation_tokens_total"
        )

    visiting(visit, speed=50)


def test_while_it_restarts_every_page_is_refused_but_the_one_for_people() -> None:
    restart = Restart(at_seconds=0.0, down_seconds=1e6, config=SimulationConfig())

    async def visit(client: httpx.AsyncClient, _: SimulatedServer) -> None:
        await asyncio.sleep(0.2)
        for page in ("/metrics", "/v1/models", "/version", "/health"):
            assert (await client.get(page)).status_code == 503
        assert (await client.get("/")).status_code == 200

    visiting(visit, restarts=(restart,))


def test_stopping_twice_is_stopping_once_and_the_port_is_free_again() -> None:
    async def main() -> int:
        server = SimulatedServer(SimulationConfig(), Workload())
        url = await server.start()
        await server.stop()
        await server.stop()
        with pytest.raises(httpx.ConnectError):
            async with httpx.AsyncClient() as client:
                await client.get(f"{url}/health")
        return int(url.rsplit(":", 1)[1])

    port = asyncio.run(main())
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_a_port_in_use_is_one_clear_error() -> None:
    async def main(port: int) -> None:
        await SimulatedServer(SimulationConfig(), Workload(), port=port).start()

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SettingsError, match=r"cannot listen there .* choose another"):
            asyncio.run(main(taken.getsockname()[1]))


def test_an_impossible_speed_or_port_is_refused() -> None:
    with pytest.raises(SettingsError) as caught:
        SimulatedServer(SimulationConfig(), Workload(), port=70_000, speed=0)
    assert [fault.key for fault in caught.value.faults] == ["speed", "port"]
