"""The Dockerfile, read as text and, in the real tests, with its build steps run in a folder."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
import zipfile
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm_capacity.settings import DEFAULT_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parents[1]
ENVIRONMENT = "/opt/vllm-capacity"


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile with its argument, continuation lines joined."""
    text = (REPOSITORY / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(w[0], w[1]) for line in joined.splitlines() if (w := line.split(maxsplit=1))]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions stage by stage; what stands before the first FROM is the first element."""
    found: list[list[tuple[str, str]]] = [[]]
    for word, argument in instructions():
        if word == "FROM":
            found.append([])
        found[-1].append((word, argument))
    return found


def last(word: str) -> str:
    """Argument of the last such instruction of the image that is shipped."""
    return [argument for found, argument in stages()[-1] if found == word][-1]


def copied_into_the_build() -> list[str]:
    copies = [argument.split()[:-1] for word, argument in stages()[1] if word == "COPY"]
    return [source for sources in copies for source in sources]


def health_command() -> list[str]:
    words: list[str] = json.loads(last("HEALTHCHECK").partition("CMD")[2])
    return words


@pytest.mark.parametrize("word", ["ENTRYPOINT", "CMD"])
def test_the_container_starts_without_a_shell(word: str) -> None:
    words = json.loads(last(word))
    assert words
    assert all(isinstance(part, str) for part in words)


def test_the_health_check_needs_no_shell() -> None:
    assert health_command()[0] == "python"


def test_the_container_runs_serve() -> None:
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    entrypoint = json.loads(last("ENTRYPOINT"))
    assert entrypoint[0] in scripts
    assert json.loads(last("CMD")) == ["serve"]


def test_the_user_is_a_number_and_not_root() -> None:
    user, _, group = last("USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0


def test_the_default_port_is_exposed_and_asked_for_health() -> None:
    assert int(last("EXPOSE")) == DEFAULT_PORT
    assert f":{DEFAULT_PORT}/-/healthy" in health_command()[-1]


def test_the_base_image_has_a_tag_and_its_digest_can_be_given() -> None:
    (declared,) = [argument for word, argument in stages()[0] if word == "ARG"]
    name, _, image = declared.partition("=")
    repository, _, tag = image.partition(":")
    assert repository == "python"
    assert re.fullmatch(r"3\.\d+(\.\d+)?-slim-\w+", tag)
    bases = [stage[0][1].split()[0] for stage in stages()[1:]]
    assert set(bases) == {f"${{{name}}}"}


def test_nothing_is_installed_or_built_in_the_shipped_stage() -> None:
    assert "RUN" not in [word for word, _ in stages()[-1]]


def test_python_writes_nothing_into_the_image() -> None:
    assert "PYTHONDONTWRITEBYTECODE=1" in last("ENV").split()


def test_what_is_copied_exists_and_the_build_context_lets_it_in() -> None:
    ignore = (REPOSITORY / ".dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in ignore if line.startswith("!")]
    assert "*" in ignore
    assert copied_into_the_build()
    for source in copied_into_the_build():
        assert (REPOSITORY / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in let_in), source


# ---- the health check, asked of a server whose health we choose ----


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that answers every GET with `status`; gives its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def health_status(port: int) -> int:
    code = health_command()[-1].replace(f":{DEFAULT_PORT}/", f":{port}/")
    words = [sys.executable, *health_command()[1:-1], code]
    return subprocess.run(words, capture_output=True, check=False, timeout=20).returncode


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (404, False)])
def test_the_health_check_reports_what_the_daemon_answers(*, status: int, healthy: bool) -> None:
    with answering(status) as port:
        assert (health_status(port) == 0) == healthy


def test_the_health_check_fails_where_nobody_listens() -> None:
    with answering(200) as port:
        pass
    assert health_status(port) != 0


# ---- the build itself ----


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for the image's root, with the build stage's steps done in it."""
    root = tmp_path_factory.mktemp("image")
    (root / "build").mkdir()
    (root / "opt").mkdir()
    for source in copied_into_the_build():
        subprocess.run(["cp", "-r", REPOSITORY / source, root / "build"], check=True)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for word, step in stages()[1]:
        if word == "RUN":
            there = step.replace(ENVIRONMENT, f"{root}{ENVIRONMENT}")
            there = there.replace("/build/", f"{root}/build/")
            subprocess.run(
                ["/bin/sh", "-ec", there],
                cwd=root / "build",
                env=os.environ | {"PATH": path},
                check=True,
                timeout=300,
            )
    return root


def in_image(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the container would: the environment alone on PATH, in an empty folder."""
    empty = root / "empty"
    empty.mkdir(exist_ok=True)
    env = {"PATH": f"{root}{ENVIRONMENT}/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        words, cwd=empty, env=env, capture_output=True, text=True, check=False, timeout=60
    )


def files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


@pytest.mark.real
def test_the_built_wheel_holds_the_package_with_its_types_and_no_tests(built: Path) -> None:
    (wheel,) = (built / "build" / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "vllm_capacity/py.typed" in names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vllm_capacity"}


@pytest.mark.real
def test_the_program_of_the_image_runs_and_writes_nothing(built: Path) -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    before = files(built)
    said = in_image(built, "vllm-capacity", "--version")
    assert said.returncode == 0, said.stderr
    assert version in said.stdout
    assert in_image(built, *json.loads(last("ENTRYPOINT")), "serve", "--help").returncode == 0
    assert files(built) == before


@pytest.mark.real
def test_the_screen_of_top_is_in_the_image(built: Path) -> None:
    shown = in_image(built, *json.loads(last("ENTRYPOINT")), "top", "--once", "--simulate")
    assert shown.returncode == 0, shown.stderr
    assert "KV cache" in shown.stdout


@pytest.mark.real
def test_the_image_holds_compiled_modules_and_no_installer(built: Path) -> None:
    installed = built / ENVIRONMENT.lstrip("/")
    assert list(installed.rglob("vllm_capacity/__pycache__/*.pyc"))
    assert list(installed.rglob("pip")) == []


@pytest.mark.real
def test_the_image_holds_exactly_the_versions_of_the_constraints(built: Path) -> None:
    pinned = {
        line.partition("==")[0].lower().replace("_", "-"): line.partition("==")[2]
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    site = next((built / ENVIRONMENT.lstrip("/")).rglob("site-packages"))
    installed = {
        name.lower().replace("_", "-"): version
        for path in site.glob("*.dist-info")
        for name, _, version in [path.name.removesuffix(".dist-info").partition("-")]
    }
    del installed["vllm-capacity"]
    assert installed
    assert {name: pinned.get(name) for name in installed} == installed
