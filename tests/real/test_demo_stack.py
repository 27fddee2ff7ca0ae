"""The demo stack's own files, run by genuine servers: only addresses and waits are changed."""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from harness import REPOSITORY, Prometheus, Server, free_port, program, running, wait_until

sys.path.insert(0, str(REPOSITORY / "tests" / "deploy"))

from compose_stack import SERVICES, laid_out, words

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.real

WAITS = re.compile(r"(?m)^(\s*(?:for|keep_firing_for|evaluation_interval|group_wait):).*$")


@dataclass(frozen=True, slots=True)
class Stack:
    """The running demo."""

    vllm: Server
    prometheus: Prometheus
    alertmanager: Server
    alerts: Server


def localised(root: Path, addresses: dict[str, str]) -> None:
    """Put this machine's addresses for the services' names, and a second for every wait."""
    for path in root.rglob("*"):
        if path.suffix in {".yml", ".yaml"} and path.is_file():
            text = WAITS.sub(r"\1 1s", path.read_text("utf-8"))
            for name, address in addresses.items():
                text = text.replace(name, address)
            path.write_text(text, "utf-8")


def local_words(service: str, addresses: dict[str, str]) -> list[str]:
    """Our program's words for a service, at this machine's addresses."""
    found = words(service)
    for name, address in addresses.items():
        found = [word.replace(name, address) for word in found]
    if "--port" in found:
        found[found.index("--port") + 1] = addresses["vllm:8000"].partition(":")[2]
        found[found.index("--host") + 1] = "127.0.0.1"
    return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("demo")
    names = ("vllm:8000", "exporter:8935", "prometheus:9090", "alertmanager:9093", "alerts:8080")
    at = {name: f"127.0.0.1:{free_port()}" for name in names}
    roots = {name: laid_out(name, folder) for name in ("prometheus", "alertmanager", "alerts")}
    for root in roots.values():
        localised(root, at)
    script = roots["alerts"] / SERVICES["alerts"]["entrypoint"][1].lstrip("/")
    commands: dict[str, list[str | Path]] = {
        "vllm:8000": [program(), *local_words("vllm", at)],
        "exporter:8935": [
            *(program(), *local_words("exporter", at)),
            *("--web.listen-address", at["exporter:8935"]),
        ],
        "alerts:8080": [sys.executable, script, at["alerts:8080"].partition(":")[2]],
        # What follows are the images' own commands.
        "alertmanager:9093": [
            "prometheus-alertmanager",
            f"--config.file={roots['alertmanager']}/etc/alertmanager/alertmanager.yml",
            f"--storage.path={folder / 'alertmanager-data'}",
            f"--web.listen-address={at['alertmanager:9093']}",
            "--cluster.listen-address=",
        ],
        "prometheus:9090": [
            "prometheus",
            f"--config.file={roots['prometheus']}/etc/prometheus/prometheus.yml",
            f"--storage.tsdb.path={folder / 'prometheus-data'}",
            f"--web.listen-address={at['prometheus:9090']}",
        ],
    }
    with ExitStack() as started:
        servers = {
            name: started.enter_context(
                running(name.partition(":")[0], command, url=f"http://{at[name]}", folder=folder)
            )
            for name, command in commands.items()
        }
        servers["prometheus:9090"].wait_ready("/-/ready", seconds=60)
        servers["alertmanager:9093"].wait_ready("/-/ready", seconds=60)
        yield Stack(
            servers["vllm:8000"],
            Prometheus(servers["prometheus:9090"]),
            servers["alertmanager:9093"],
            servers["alerts:8080"],
        )


def test_every_target_of_the_demo_is_up(stack: Stack) -> None:
    def up() -> bool:
        return len(stack.prometheus.query("up == 1")) == 2

    wait_until(up, seconds=60, what="both targets up")
    jobs = {labels["job"] for labels, _ in stack.prometheus.query("up == 1")}
    assert jobs == {"vllm", "vllm-capacity"}


def test_the_demo_predicts_the_capacity_of_its_engine(stack: Stack) -> None:
    error = wait_until(
        lambda: stack.prometheus.query(
            'abs(vllm_capacity_prediction_error_ratio{quantity="kv_cache_tokens"})'
        ),
        seconds=60,
        what="a prediction",
    )
    assert all(value < 0.01 for _, value in error)


def test_every_rule_of_the_demo_is_evaluated(stack: Stack) -> None:
    def rules() -> list[str]:
        return [
            rule["health"] for group in stack.prometheus.rule_groups() for rule in group["rules"]
        ]

    wait_until(
        lambda: rules() and "unknown" not in rules(), seconds=60, what="every rule evaluated"
    )
    assert set(rules()) == {"ok"}


def test_somebody_is_told_when_the_engine_of_the_demo_dies(stack: Stack) -> None:
    assert stack.vllm.stop() == 0
    page = re.compile(r"(?m)^page firing \w+: .*vLLM.* https://\S+/docs/alerts\.md#\w+$")
    wait_until(lambda: page.search(stack.alerts.log), seconds=180, what="a page")
    # The last test of the module: the engine stays dead.
