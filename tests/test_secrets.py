"""A secret that stands wherever secrets stand is on no page, in no log line, no file, no error."""

import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import capture_logs

from vllm_capacity.calibrate import calibration_from
from vllm_capacity.commands.parse_log import as_json
from vllm_capacity.compare.fleet import FleetAssessment
from vllm_capacity.errors import CapacityError
from vllm_capacity.export.collector import CapacityCollector
from vllm_capacity.observe.startup_log import read_startup_log
from vllm_capacity.predict import EngineArgs
from vllm_capacity.settings import resolve_settings
from vllm_capacity.status.document import EVERYTHING
from vllm_capacity.status.history import History
from vllm_capacity.web.documents import StatusDocuments, described
from vllm_capacity.web.history_api import history_route
from vllm_capacity.web.predict_api import predict_route

# pytest's importlib mode adds no folder to the path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "web"))

from asked import get_all

from pki import HASH, PASSWORD, Authority
from test_daemon import daemon
from test_monitor import Watched

PAGE = (Path(__file__).parent / "data" / "vllm-0.32-metrics.txt").read_bytes()
MODEL = str(Path(__file__).parent / "data" / "models" / "small-llama")
S = "Pl4nted-53cret-9f8e7d"

#: Where a server's command line may hold one. Each is a word or two, as a shell splits them.
ON_A_COMMAND_LINE: tuple[tuple[str, ...], ...] = (
    ("--api-key", S),
    ("--api_key", S, "second-" + S),
    (f"--api-key={S}",),
    ("--hf-token", S),
    (f"--ssl-keyfile-password={S}",),
    ("--model-loader-extra-config", json.dumps({"aws": {"secret_access_key": S, "region": S}})),
    ("--model-loader-extra-config.token", S),
    ("--hf-overrides", json.dumps({"auth": [S]})),
    ("--hf-overrides", f"{{'broken {S}"),
    ("--kv-transfer-config", json.dumps({"kv_connector_extra_config": {"x": S}})),
    ("--otlp-traces-endpoint", f"https://me:{S}@traces:4317"),
    ("--download-dir", f"s3://bucket/x?X-Amz-Signature={S}"),
    ("--middleware", f"module:{S}"),
    ("--speculative-config", json.dumps({"method": "ngram", "api_key": S, "revision": S})),
    ("--speculative-config.token", S),
    ("--not-a-flag-of-vllm", S),
    ("-X", S),
    ("--max-num-seqs", "64", S),
)


def in_a_log(name: str) -> str:
    return f"""\
(APIServer pid=1) INFO 11-21 08:00:00 [api_server.py:1] vLLM API server version 0.32.0
(APIServer pid=1) INFO 11-21 08:00:00 [utils.py:1] non-default args: {{'{name}': '{S}', \
'{name}s': ['{S}'], 'extra': {{'{name}': {{'deep': '{S}'}}}}, \
'c': KVConfig(a={{'{name}': '{S}'}}), 'model': 'https://me:{S}@hub/m', 'max_num_seqs': 64}}
(EngineCore pid=2) INFO 11-21 08:00:01 [core.py:1] Initializing a V1 LLM engine (v0.32.0) with \
config: model='https://me:{S}@hub/m', {name}={S}, x=XConfig({name}='{S}'), tensor_parallel_size=1
(EngineCore pid=2) INFO 11-21 08:00:02 [m.py:1] Model loading took 5.0 GiB memory and 1.0 seconds
(EngineCore pid=2) INFO 11-21 08:00:02 [w.py:1] Available KV cache memory: 9.0 GiB
(APIServer pid=1) ValueError: cannot reach https://me:{S}@hub/m with token {S}
(APIServer pid=1) Traceback (most recent call last):
(APIServer pid=1) ValueError: cannot reach https://me:{S}@hub/m with api_key={S}
"""


@contextmanager
def engine_that_names(root: str) -> Iterator[str]:
    answers = {
        "/metrics": PAGE,
        "/v1/models": json.dumps({"data": [{"id": "m", "root": root}]}).encode(),
        "/version": b'{"version": "0.32.0"}',
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers.get(self.path, b""))

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()


@pytest.mark.parametrize("model_config", [(), ("--model-config", MODEL)])
def test_a_daemon_that_meets_secrets_everywhere_shows_none(
    tmp_path: Path, model_config: tuple[str, ...]
) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(in_a_log("api_key"))
    words = ["vllm", "serve", "m", *(word for words in ON_A_COMMAND_LINE[:8] for word in words)]
    with engine_that_names(f"https://me:{S}@hub/m") as address:
        settings_file = tmp_path / "settings.yaml"
        entry = {
            "url": f"http://me:{S}@{address}",
            "vllm-args": " ".join(f"'{word}'" for word in words),
            "vllm-log": str(log),
            "engine-args": {"api_key": S, "hf_token": S, "max_num_seqs": 32},
        }
        settings_file.write_text(json.dumps({"targets": [entry]}))
        flags = ("--scrape-interval", "1s", "--log.level", "debug", *model_config)
        with daemon("--config.file", str(settings_file), *flags) as running:
            running.wait_for(lambda: 'source="log"' in running.get("/metrics").text)
            running.wait_for(lambda: 'value="64"' in running.get("/metrics").text)
            paths = ("/metrics", "/", "/-/ready", "/api/v1/status?descriptions=true")
            pages = [running.get(path).text for path in paths]
            with running.stream("/api/v1/status") as lines:
                pages.append(next(line for line in lines if line.startswith("data: ")))
            running.process.terminate()
            said = running.process.communicate(timeout=20)[1]
    assert (
        'engine_argument_conflict{argument="max_num_seqs",other="log",source="flag"} 1.0'
        in (pages[0])
    )
    assert "sources disagree" in said
    assert S not in "\n".join([*pages, said])


BAD_SETTINGS: dict[str, tuple[list[str], dict[str, str]]] = {
    "an unknown flag": (["--api-key", S], {}),
    "an unknown flag with =": ([f"--api-key={S}"], {}),
    "an unknown variable": ([], {"VLLM_CAPACITY_API_KEY": S}),
    "a mistyped variable": ([], {"VLLM_CAPACITY_BEARER": S}),
    "an address": (["--target", f"ftp://me:{S}@host"], {}),
    "an address with a query": (["--target", f"http://host/?token={S}"], {}),
    "an unclosed quote": (["--vllm-args", f"serve m --api-key '{S}"], {}),
    "a wrong value beside it": (["--vllm-args", f"serve --api-key {S} --max-num-seqs x"], {}),
    "JSON of the wrong kind": (["--vllm-args", f"serve --eplb-config '[\"token: {S}\"]'"], {}),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_a_refusal_of_settings_repeats_no_secret(case: str) -> None:
    flags, environment = BAD_SETTINGS[case]
    done = subprocess.run(
        [sys.executable, "-m", "vllm_capacity.cli", "serve", *flags],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path), **environment},
    )
    assert done.returncode == 2
    assert S not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "text",
    [
        f"api-key: {S}",
        f"targets: [{{url: x, api_key: {S}}}]",
        f"targets: {S}",
        f"targets: [{S}]",
        f'api-key: "{S}\nscrape-interval: [',
        f"targets: [{{url: x, engine-args: {S}}}]",
    ],
)
def test_a_settings_file_that_is_refused_is_not_quoted(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vllm_capacity.cli", "serve"),
            *("--config.file", str(tmp_path / "settings.yaml")),
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert S not in done.stdout + done.stderr


PLANTED = st.lists(st.sampled_from(ON_A_COMMAND_LINE), min_size=1, max_size=5).map(
    lambda parts: [word for part in parts for word in part]
)
NAMES = st.sampled_from(
    ("api_key", "hf_token", "ssl_keyfile_password", "auth", "otlp_traces_endpoint", "anything")
)


@settings(max_examples=40, deadline=None)
@given(PLANTED, NAMES)
def test_nothing_that_is_published_or_said_holds_what_was_planted(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], name: str
) -> None:
    log = tmp_path_factory.mktemp("logs") / "vllm.log"
    log.write_text(in_a_log(name))
    with capture_logs() as said:
        watched = Watched(log=log, model_config=MODEL)
        watched.command_lines = [["VLLM::EngineCore"], ["vllm", "serve", "m", *words]]
        watched.collect()
        watched.collect()
    current = watched.monitor.current()
    registry = CollectorRegistry()
    fleet = FleetAssessment(targets=(current,))
    registry.register(CapacityCollector(lambda: fleet, with_target=True))
    documents = StatusDocuments(lambda: fleet, scrape_interval_seconds=5.0)
    documents.newest()
    shown = [
        generate_latest(registry).decode(),
        documents.encoded(EVERYTHING, described).decode(),
        repr(said),
    ]
    assert 'source="log"' in shown[0]
    assert '"source":"log"' in shown[1]
    assert S not in "\n".join(shown)
    assert S not in repr(current)


ASKED = (
    "/api/v1/history",
    f"/api/v1/history?target=https://me:{S}@host",
    "/api/v1/predict?kv_cache_dtype=fp8",
    f"/api/v1/predict?api_key={S}&hf_token={S}",
    f"/api/v1/predict?max_num_seqs=https://me:{S}@host",
    "/api/v1/predict?tensor_parallel_size=3",
)


@settings(max_examples=20, deadline=None)
@given(PLANTED, NAMES)
def test_no_answer_of_history_or_predict_holds_what_was_planted(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], name: str
) -> None:
    log = tmp_path_factory.mktemp("logs") / "vllm.log"
    log.write_text(in_a_log(name))
    watched = Watched(log=log, model_config=MODEL)
    watched.command_lines = [["vllm", "serve", "m", *words]]
    watched.collect()
    watched.collect()
    published = FleetAssessment(targets=(watched.monitor.current(),))
    history = History(5.0)
    history.record(published.targets[0], time.time())
    routes = [history_route(history, lambda: published), predict_route(lambda: published)]
    answers = get_all(ASKED, published, routes)
    assert {answer.status_code for answer in answers} <= {200, 400, 404, 409, 422}
    assert S not in "".join(answer.text for answer in answers)


@given(NAMES)
def test_neither_what_parse_log_writes_nor_a_saved_profile_holds_what_was_planted(
    name: str,
) -> None:
    start_up = read_startup_log(in_a_log(name).splitlines())
    assert S not in json.dumps(as_json(start_up))
    assert S not in json.dumps(calibration_from(start_up, "vllm.log").to_json())


@settings(max_examples=100)
@given(PLANTED)
def test_what_cannot_be_read_of_a_command_line_is_refused_without_it(words: list[str]) -> None:
    for read in (_flags, _pasted):
        with pytest.raises(CapacityError) as caught:
            read(words)
        assert S not in str(caught.value)


def _flags(words: list[str]) -> object:
    return EngineArgs.from_command_line(["serve", *words, "--max-num-seqs", "none"])


def _pasted(words: list[str]) -> object:
    pasted = " ".join(["serve", *words, "--max-num-seqs", "none"])
    return resolve_settings({"target": ["http://x"], "vllm-args": pasted}, {}, {})


def test_passwords_hashes_and_keys_of_the_web_configuration_are_shown_nowhere(
    tmp_path: Path,
) -> None:
    authority = Authority.new(tmp_path)
    server = authority.signs("server")
    config = tmp_path / "web.yml"
    tls = {"cert": server.cert.read_text(), "key": server.key.read_text()}
    good = {"tls_server_config": tls, "basic_auth_users": {"prometheus": HASH}}
    config.write_text(json.dumps(good))
    context = ssl.create_default_context(cafile=str(authority.pem))
    flags = ("--simulate", "--no-nvml", "--log.level", "debug", "--web.config.file", str(config))
    with daemon(*flags) as running:
        url = running.url.replace("http:", "https:")

        def page(path: str, password: str = PASSWORD) -> httpx.Response:
            auth = ("prometheus", password)
            return httpx.get(url + path, auth=auth, verify=context, trust_env=False, timeout=10)

        running.wait_for(lambda: page("/metrics").status_code == 200)
        config.write_text(json.dumps({**good, "basic_auth_users": {"prometheus": S}, S[:4]: S}))
        running.wait_for(lambda: "web_config_reload_success 0.0" in page("/metrics").text)
        pages = [
            page(path, password) for path in ("/", "/metrics", "/x") for password in (PASSWORD, S)
        ]
        running.process.terminate()
        said = running.process.communicate(timeout=20)[1]
    shown = said + "".join(f"{answer.text}{answer.headers}" for answer in pages)
    assert "web configuration cannot be used" in said
    lines = server.key.read_text().splitlines()
    assert not [secret for secret in (S, PASSWORD, HASH, *lines[1:-1]) if secret in shown]
