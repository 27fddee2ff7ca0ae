"""``top`` as a person runs it: in a terminal, in a pipe, before a daemon and before vLLM itself."""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import structlog

from vllm_capacity.cli import main

# pytest's importlib mode adds no folder to the path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "top"))

from documents import document, engine, source, target
from live_terminal import LiveTerminal, _environment

from test_daemon import daemon as daemon_process
from vllm_capacity.status.wording import percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TRACES = Path(__file__).parent.parent / "data" / "traces"
PAGE = (Path(__file__).parent.parent / "data" / "vllm-0.32-metrics.txt").read_text()


class Server(ThreadingHTTPServer):
    """A server of which a test sets the pages: the status, the body, the seconds before it."""

    daemon_threads = True

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, str]] = {}
        self.slow_seconds = 0.0
        self.asked: list[str] = []
        self.authorizations: set[str | None] = set()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(self.path)
        self.server.authorizations.add(self.headers.get("Authorization"))
        time.sleep(self.server.slow_seconds)
        status, body = self.server.pages.get(path, (404, "not found"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        with suppress(OSError):  # the client had enough
            self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(pages: dict[str, str]) -> Iterator[Server]:
    server = Server()
    server.pages = {path: (200, body) for path, body in pages.items()}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def vllm_pages(page: str = PAGE) -> dict[str, str]:
    return {"/metrics": page, "/v1/models": '{"data": []}', "/version": '{"version": "0.32.0"}'}


def fresh(*targets: dict[str, Any], age: float = 0.0, **more: Any) -> str:
    """A daemon's document made so many seconds ago."""
    return json.dumps(
        {**document(*targets, **more), "generated_timestamp_seconds": time.time() - age}
    )


@pytest.fixture
def daemon() -> Iterator[Server]:
    with serving({}) as server:
        made = time.time()
        shown = document(
            target(engine(), sources=[{**source(), "last_success_timestamp_seconds": made - 2}]),
            generated_timestamp_seconds=made,
        )
        server.pages["/api/v1/status"] = (200, json.dumps(shown))
        yield server


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def top(*words: str, **environment: str) -> Done:
    """``vllm-capacity top`` where nobody looks: its output is no terminal."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
        for name in ("NO_COLOR", "FORCE_COLOR", "LC_ALL", "LC_CTYPE", "COLUMNS"):
            patched.delenv(name, raising=False)
        for name, value in {"LANG": "C.UTF-8", "TERM": "xterm-256color", **environment}.items():
            patched.setenv(name, value)
        try:
            status = main(["top", *words])
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            structlog.reset_defaults()
    return Done(status, out.getvalue(), err.getvalue())


def top_process(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "vllm_capacity.cli", "top", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**_environment(), "TERM": "xterm-256color", **environment},
    )


# ---- once ----


def test_one_screen_of_the_simulated_engine() -> None:
    done = top("--once", "--simulate", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert "KV cache" in done.stdout
    assert "predicted" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert done.stderr == ""


def test_in_a_pipe_it_is_one_screen_without_escape_codes(daemon: Server) -> None:
    done = top(daemon.url)
    assert done.returncode == 0, done.stderr
    assert "Room for 14 more requests of the usual size" in done.stdout
    assert f"daemon {daemon.url}" in done.stdout
    assert "\x1b" not in done.stdout
    assert all(line.isprintable() for line in done.stdout.splitlines())


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_pipe_is_as_wide_as_it_is_said_to_be(daemon: Server, columns: int) -> None:
    lines = top(daemon.url, COLUMNS=str(columns)).stdout.splitlines()
    assert columns * 0.6 < max(len(line) for line in lines) <= columns


@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "iso-8859-1"}])
def test_a_terminal_without_utf_8_gets_plain_ascii(
    daemon: Server, environment: dict[str, str]
) -> None:
    done = top_process(daemon.url, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "####" in done.stdout


def test_json_is_the_daemons_document_itself(daemon: Server) -> None:
    done = top("--once", "--json", daemon.url)
    assert json.loads(done.stdout) == json.loads(daemon.pages["/api/v1/status"][1])
    assert len(done.stdout.splitlines()) == 1


def test_json_of_a_vllm_is_a_status_document_of_its_engines() -> None:
    with serving(vllm_pages()) as server:
        done = top("--once", "--json", server.url, "--max-num-seqs", "64")
    shown = json.loads(done.stdout)
    (server_shown,) = shown["targets"]
    (engine_shown,) = server_shown["engines"]
    usage = re.search(r"^vllm:kv_cache_usage_perc\{.*\} (\S+)$", PAGE, re.MULTILINE)
    assert usage is not None
    assert engine_shown["values"]["kv_cache_usage_ratio"] == float(usage[1])
    assert engine_shown["values"]["max_sequences"] == {"flag": 64}
    assert engine_shown["state"] != "unknown"


def test_two_engines_of_one_server_stand_beside_each_other() -> None:
    with lzma.open(TRACES / "dp-ramp.jsonl.xz", "rt", encoding="utf-8") as lines:
        page = json.loads(lines.readlines()[100])["metrics"]
    usage = dict(
        re.findall(r'^vllm:kv_cache_usage_perc\{engine="(\d)".*\} (\S+)$', page, re.MULTILINE)
    )
    with serving(vllm_pages(page)) as server:
        shown = json.loads(top("--once", "--json", server.url).stdout)
        lines = top("--once", server.url).stdout.splitlines()
    engines = shown["targets"][0]["engines"]
    assert {e["engine"]: e["values"]["kv_cache_usage_ratio"] for e in engines} == {
        engine: float(value) for engine, value in usage.items()
    }
    for name, value in usage.items():
        (row,) = (x for x in lines if re.match(rf"[▶ ]  \S+, engine {name} ", x))
        assert percent(float(value)) in row


def test_a_daemon_before_the_simulated_engine_and_its_screen() -> None:
    with daemon_process("--simulate", "--scrape-interval", "1s") as running:
        running.wait_for(lambda: running.get("/-/ready").status_code == 200)

        def says_the_same() -> bool:
            before = running.get("/api/v1/status").json()
            shown = json.loads(top("--once", "--json", running.url).stdout)
            return bool(before["targets"][0]["engines"]) and shown == before

        running.wait_for(says_the_same)
        done = top("--once", running.url)
    assert done.returncode == 0
    assert "simulated-llama-8b" in done.stdout
    assert "used " in done.stdout


def test_a_page_with_the_names_of_older_releases_is_read() -> None:
    old = PAGE.replace("kv_cache_usage_perc", "gpu_cache_usage_perc")
    with serving(vllm_pages(old)) as server:
        shown = json.loads(top("--once", "--json", server.url).stdout)
    (engine_shown,) = shown["targets"][0]["engines"]
    assert "kv_cache_usage_ratio" in engine_shown["values"]


def test_once_waits_until_a_bad_state_has_held_long_enough_to_be_one() -> None:
    full = re.sub(r"(?m)^(vllm:kv_cache_usage_perc\{.*\}) \S+$", r"\1 1.0", PAGE)
    full = re.sub(r"(?m)^(vllm:num_requests_running\{.*\}) \S+$", r"\1 9", full)
    full = re.sub(r"(?m)^(vllm:num_requests_waiting\{.*\}) \S+$", r"\1 5", full)
    with serving(vllm_pages(full)) as server:
        shown = json.loads(top("--once", "--json", server.url).stdout)
    assert shown["targets"][0]["engines"][0]["state"] == "saturated"


def test_daemons_and_servers_stand_in_one_screen(daemon: Server) -> None:
    with serving(vllm_pages()) as server:
        done = top("--once", daemon.url, server.url)
        lines = top("--once", "--json", daemon.url, server.url).stdout.splitlines()
    assert "2 engines" in done.stdout
    assert "a:8000, engine 0" in done.stdout
    assert f"127.0.0.1:{server.server_port}, engine 0" in done.stdout
    assert [json.loads(line)["targets"][0]["target"] for line in lines] == [
        *("a:8000", f"127.0.0.1:{server.server_port}")
    ]


def test_a_daemons_history_is_drawn(daemon: Server) -> None:
    made = json.loads(daemon.pages["/api/v1/status"][1])["generated_timestamp_seconds"]
    columns = {
        "timestamp_seconds": [made - 5 * i for i in range(30, 0, -1)],
        "kv_cache_usage_ratio": [0.5] * 30,
        "predicted_usage_ratio": [0.5] * 30,
        "preemptions": [0] * 29 + [2],
    }
    daemon.pages["/api/v1/history"] = (200, json.dumps({"columns": columns}))
    done = top("--once", daemon.url)
    assert "█" * 30 in done.stdout
    assert "p preemption" in done.stdout
    assert "/api/v1/history?target=a%3A8000&engine=0&since=0.0" in daemon.asked


# ---- who does not answer ----


def test_nobody_there_is_status_1_with_the_reason() -> None:
    with serving({}) as server:
        url = server.url
    for words in ((url,), (url, "--json"), (url, url.replace("127.0.0.1", "localhost"))):
        done = top("--once", *words)
        assert done.returncode == 1
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert "cannot connect: Connection refused" in done.stderr
        assert url in done.stderr


def test_a_server_that_hangs_is_given_up_in_time() -> None:
    with serving({"/metrics": PAGE}) as server:
        server.slow_seconds = 30.0
        began = time.monotonic()
        done = top("--once", "--scrape-timeout", "1s", server.url)
        assert time.monotonic() - began < 15
    assert done.returncode == 1
    assert "no complete answer within 1 s" in done.stderr


def test_one_that_answers_is_enough(daemon: Server) -> None:
    with serving({}) as server:
        gone = server.url
    done = top("--once", daemon.url, gone)
    assert done.returncode == 0
    assert "Room for 14 more requests" in done.stdout
    assert "Connection refused" in " ".join(done.stdout.split())


def test_something_that_is_neither_is_named() -> None:
    with serving({"/metrics": "<html>hello</html>"}) as server:
        done = top("--once", server.url)
    assert done.returncode == 1
    assert "not metrics" in done.stderr


def test_a_daemon_of_another_version_of_the_api_is_not_guessed_at() -> None:
    with serving({"/api/v1/status": fresh(target(engine()), api_version=2)}) as server:
        done = top("--once", server.url)
    assert done.returncode == 1
    assert "speaks version 2 of the API, not 1" in done.stderr


def test_without_a_url_the_usual_ones_are_asked_and_named() -> None:
    done = top("--once", "--scrape-timeout", "2s")
    if done.returncode == 1:  # nothing of ours listens on this machine
        assert "http://localhost:8935" in done.stderr
        assert "http://localhost:8000" in done.stderr


def test_without_rich_the_screen_says_what_to_install_and_json_works(
    daemon: Server, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, importlib.abc\n"
        "class Hidden(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'rich':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = top_process("--once", daemon.url, PYTHONPATH=path)
    assert done.returncode == 1
    assert "pip install 'vllm-capacity[top]'" in done.stderr
    assert "Traceback" not in done.stderr
    done = top_process("--once", "--json", daemon.url, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["api_version"] == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("ftp://x",), "http or https"),
        (("http://a:1", "http://a:1"), "given twice"),
        (("http://a:1", "--interval", "soon"), "duration"),
        (("http://a:1", "--web.listen-address", ":1"), "--web.listen-address"),
    ],
)
def test_what_is_asked_wrongly_is_status_2(words: tuple[str, ...], named: str) -> None:
    done = top("--once", *words)
    assert done.returncode == 2
    assert named in done.stderr


def test_credentials_go_to_the_daemon_and_nowhere_else(daemon: Server) -> None:
    done = top("--once", "--json", daemon.url.replace("//", "//me:Pl4nted-53cret@"))
    assert done.returncode == 0, done.stderr
    assert any(a and a.startswith("Basic ") for a in daemon.authorizations)
    assert "Pl4nted" not in done.stdout + done.stderr


def test_a_bearer_token_is_read_from_its_file(daemon: Server, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret-t0ken\n")
    assert top("--once", daemon.url, "--bearer-token-file", str(tmp_path / "token")).returncode == 0
    assert daemon.authorizations == {"Bearer s3cret-t0ken"}


def test_json_lines_go_on_until_told_to_stop(daemon: Server) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "vllm_capacity.cli",
            "top",
            "--json",
            "--interval",
            "100ms",
            daemon.url,
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(),
    )
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["sequence"] == 17
        later = {**json.loads(daemon.pages["/api/v1/status"][1]), "sequence": 18}
        daemon.pages["/api/v1/status"] = (200, json.dumps(later))
        assert json.loads(process.stdout.readline())["sequence"] == 18
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stdout.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# ---- live ----


def test_live_it_shows_the_engine_answers_keys_and_gives_the_terminal_back(daemon: Server) -> None:
    both = target(engine("0"), engine("1", headroom_requests={"observed_mean": 3}))
    daemon.pages["/api/v1/status"] = (200, fresh(both))
    with LiveTerminal("top", daemon.url, "--interval", "100ms") as terminal:
        terminal.wait_for("▶  a:8000, engine 0")
        terminal.type("j")
        terminal.wait_for("▶  a:8000, engine 1")
        terminal.type("\x1b[A")
        terminal.wait_for("▶  a:8000, engine 0")
        terminal.type("s")
        terminal.wait_for("by name")
        terminal.type("?")
        terminal.wait_for("another order")
        terminal.type("?")
        terminal.wait_for("KV cache")
        assert terminal.process.poll() is None
        terminal.type("q")
        assert terminal.end() == 0
        assert terminal.is_as_before()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(daemon: Server, number: signal.Signals) -> None:
    with LiveTerminal("top", daemon.url) as terminal:
        terminal.wait_for("Room for 14 more")
        terminal.process.send_signal(number)
        assert terminal.end() == 0
        assert terminal.is_as_before()


def test_ctrl_c_and_ctrl_z_are_typed_and_do_what_they_do(daemon: Server) -> None:
    with LiveTerminal("top", daemon.url) as terminal:
        terminal.wait_for("Room for 14 more")
        terminal.type("\x1a")
        _wait(lambda: terminal.is_as_before() and _state(terminal.process.pid) == "T")
        terminal.process.send_signal(signal.SIGCONT)
        _wait(lambda: not terminal.is_as_before())
        terminal.wait_for("Room for 14 more")
        terminal.type("\x03")
        assert terminal.end() == 0
        assert terminal.is_as_before()


def test_a_failure_within_gives_the_terminal_back_and_is_told(
    daemon: Server, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import vllm_capacity.top.screen as s\ns._Drawing.help = lambda self: 1 / 0\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    with LiveTerminal("top", daemon.url, PYTHONPATH=path, lines=50) as terminal:
        terminal.wait_for("Room for 14 more")
        terminal.type("?")
        assert terminal.end() == 1
        terminal.wait_for("ZeroDivisionError")
        assert terminal.is_as_before()
        assert terminal.written.rindex(b"\x1b[?1049l") < terminal.written.rindex(b"ZeroDivision")


def test_a_smaller_and_a_larger_window_are_filled_anew(daemon: Server) -> None:
    with LiveTerminal("top", daemon.url, columns=100, lines=40) as terminal:
        terminal.wait_for("running, waiting")
        for columns, lines in ((60, 12), (200, 50), (20, 4)):
            terminal.resize(columns, lines)
            terminal.wait_for(lambda text: "vllm-capac" in text.splitlines()[0])
            terminal.wait_for("Room for 14 mo")
        terminal.type("q")
        assert terminal.end() == 0


def test_a_daemon_that_dies_leaves_its_numbers_with_their_age_and_comes_back(
    daemon: Server,
) -> None:
    with LiveTerminal("top", daemon.url, "--interval", "200ms") as terminal:
        terminal.wait_for("Room for 14 more")
        known = daemon.pages.pop("/api/v1/status")
        daemon.pages["/api/v1/status"] = (503, "")
        text = terminal.wait_for("; below is")
        assert "Room for 14 more" in text
        assert re.search(r"what it said\s+\d+ s ago", text)
        shown = {**json.loads(known[1]), "generated_timestamp_seconds": time.time(), "sequence": 99}
        daemon.pages["/api/v1/status"] = (200, json.dumps(shown))
        terminal.wait_for(lambda text: "Room for 14" in text and "503" not in text)


def test_a_vllm_that_comes_late_and_dies_is_told() -> None:
    with serving({}) as server:
        server.pages = dict.fromkeys(vllm_pages(), (503, ""))
        with LiveTerminal("top", server.url, "--interval", "200ms", lines=40) as terminal:
            terminal.wait_for("NO ANSWER")
            terminal.wait_for("503")
            server.pages = {path: (200, body) for path, body in vllm_pages().items()}
            terminal.wait_for("KV cache ")
            server.shutdown()
            server.server_close()
            terminal.wait_for("No answer for")
            terminal.type("q")
            assert terminal.end() == 0


def test_a_server_that_hangs_is_told_and_holds_up_no_other_and_no_key(daemon: Server) -> None:
    with serving(vllm_pages()) as hung:
        hung.slow_seconds = 20.0
        words = ("--scrape-timeout", "1s", "--interval", "200ms")
        with LiveTerminal("top", daemon.url, hung.url, *words, columns=140) as terminal:
            terminal.wait_for("Room for 14 more")
            terminal.wait_for("no complete answer within 1 s")
            began = time.monotonic()
            terminal.type("q")
            assert terminal.end() == 0
            assert time.monotonic() - began < 5


def test_without_colour_no_colour_is_written(daemon: Server) -> None:
    for words, environment in ((("--no-color",), {}), ((), {"NO_COLOR": "1"})):
        with LiveTerminal("top", daemon.url, *words, **environment) as terminal:
            terminal.wait_for("running, waiting")
            terminal.type("q")
            terminal.end()
            assert not re.search(rb"\x1b\[[0-9;]*(3|4|9)[0-7]", terminal.written)
    with LiveTerminal("top", daemon.url) as terminal:
        terminal.wait_for("running, waiting")
        assert re.search(rb"\x1b\[[0-9;]*36", terminal.written)


def test_a_dumb_terminal_gets_one_screen_and_no_escape_code(daemon: Server) -> None:
    with LiveTerminal("top", daemon.url, TERM="dumb", lines=50) as terminal:
        assert terminal.process.wait(20) == 0
        terminal.wait_for("running, waiting")
        assert b"\x1b" not in terminal.written


def test_names_full_of_escape_codes_do_nothing_to_the_terminal(daemon: Server) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07[red]x[/red]\x9b1mevil"
    server = target({**engine(), "model_name": evil}, name=evil)
    daemon.pages["/api/v1/status"] = (200, fresh(server))
    with LiveTerminal("top", daemon.url, columns=120, lines=40) as terminal:
        text = terminal.wait_for("running, waiting")
        assert "[red]x[/red]" in text
        assert b"\x1b[2J" not in terminal.written
        assert b"\x1b]0;" not in terminal.written
        assert "\x9b".encode() not in terminal.written


def _wait(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _state(pid: int) -> str:
    """As in proc(5): T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
