"""A real Prometheus scrapes over TLS, with a password and a certificate of its own."""

from __future__ import annotations

import json
import re
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import yaml
from harness import Prometheus, free_port, program, running, wait_until

from pki import HASH, PASSWORD, Authority

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.real

DOCUMENTED = Path(__file__).parent.parent.parent / "docs" / "web.md"


@contextmanager
def scraping(folder: Path, port: int, *, password: str) -> Iterator[Prometheus]:
    """A Prometheus with the scrape configuration of docs/web.md, its target put in."""
    blocks = re.findall(r"```yaml\n(.*?)```", DOCUMENTED.read_text(), re.DOTALL)
    [config] = [yaml.safe_load(block) for block in blocks if "scrape_configs" in block]
    [job] = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    config["global"] = {"scrape_interval": "500ms"}
    (folder / "password").write_text(password)
    (folder / "prometheus.yml").write_text(json.dumps(config))
    own_port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{own_port}",
    ]
    url = f"http://127.0.0.1:{own_port}"
    with running("prometheus", command, url=url, folder=folder) as server:
        server.wait_ready("/-/ready", seconds=60)
        yield Prometheus(server)


def up(prometheus: Prometheus, value: int) -> bool:
    return bool(prometheus.query(f'up{{job="vllm-capacity"}} == {value}'))


def half_open(port: int, number: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", port)) for _ in range(number)]


def test_prometheus_scrapes_with_password_and_certificate_beside_500_half_open_connections(
    tmp_path: Path,
) -> None:
    authority = Authority.new(tmp_path)
    authority.signs("server")
    authority.signs("client", "prometheus.example.org")
    config = tmp_path / "web.yml"
    config.write_text(
        "tls_server_config:\n  cert_file: server.pem\n  key_file: server-key.pem\n"
        "  client_ca_file: ca.pem\n  client_auth_type: RequireAndVerifyClientCert\n"
        "  client_allowed_sans: [prometheus.example.org]\n"
        f"basic_auth_users: {{prometheus: {HASH}}}\n"
    )
    port = free_port()
    command = [
        *(program(), "serve", "--simulate", "--no-nvml", "--scrape-interval", "1s"),
        *("--web.listen-address", f"127.0.0.1:{port}", "--web.config.file", config),
    ]
    url = f"https://127.0.0.1:{port}"
    with running("exporter", command, url=url, folder=tmp_path):
        wait_until(lambda: listens(port), seconds=20, what="the exporter")
        opened = half_open(port, 500)
        with scraping(tmp_path, port, password=PASSWORD) as prometheus:
            wait_until(lambda: up(prometheus, 1), seconds=20, what="a scrape")
            seconds = prometheus.one('scrape_duration_seconds{job="vllm-capacity"}')
            assert seconds < 5
            reloaded = "vllm_capacity_web_config_reload_success"
            assert prometheus.one(reloaded) == 1
            (tmp_path / "password").write_text("another")
            wait_until(lambda: up(prometheus, 0), seconds=20, what="a refusal")
        for one in opened:
            one.close()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError as error:
        raise httpx.ConnectError(str(error)) from None
    return True
