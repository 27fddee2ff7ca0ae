"""Passwords before everything; guesses that hold up nobody; headers on every answer."""

import asyncio
import base64
import os
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import bcrypt
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from pki import HASH, PASSWORD
from test_daemon import daemon
from vllm_capacity.web import passwords as module
from vllm_capacity.web.access import Access
from vllm_capacity.web.basic_auth import credentials
from vllm_capacity.web.config_file import RateLimit
from vllm_capacity.web.limits import Limits
from vllm_capacity.web.passwords import BusyError, Passwords, problem_of_hash
from vllm_capacity.web.security_headers import SECURITY_HEADERS

PATHS = ("/", "/metrics", "/-/healthy", "/-/ready", "/api/v1/status", "/events", "/crash", "/none")


def application(access: Access) -> ASGIApp:
    def page(request: Request) -> Response:
        return PlainTextResponse(f"secret of {request.url.path}\n")

    def crash(_: Request) -> Response:
        raise ZeroDivisionError

    async def events() -> object:
        yield b"data: secret\n\n"

    stream = Route("/events", lambda _: StreamingResponse(events()))
    routes = [Route(path, page) for path in PATHS[:5]]
    return access.guard(Starlette(routes=[*routes, stream, Route("/crash", crash)]))


def configured(folder: Path, text: str = f"basic_auth_users: {{prometheus: {HASH}}}") -> Access:
    file = folder / "web.yml"
    file.write_text(text)
    return Access(str(file))


def asked(
    access: Access, *paths: str, method: str = "GET", **options: object
) -> list[httpx.Response]:
    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=application(access), raise_app_exceptions=False)
        async with access, httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return [await client.request(method, path, **options) for path in paths]  # type: ignore[arg-type]

    return asyncio.run(ask())


# ---- everything is behind the password ----


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "BREW"])
def test_without_a_password_nothing_is_read_and_nothing_is_learnt(
    tmp_path: Path, method: str
) -> None:
    answers = asked(configured(tmp_path), *PATHS, method=method)
    assert {answer.status_code for answer in answers} == {401}
    texts = {answer.text for answer in answers if "/api/" not in str(answer.url)}
    assert len(texts) == 1
    assert not [answer for answer in answers if "secret" in answer.text]
    problems = [answer for answer in answers if "/api/" in str(answer.url)]
    assert {a.headers["content-type"] for a in problems} == {"application/problem+json"}
    assert {answer.headers["www-authenticate"] for answer in answers} == {
        'Basic realm="vllm-capacity", charset="UTF-8"'
    }


def test_with_the_password_everything_is_as_without_one(tmp_path: Path) -> None:
    answers = asked(configured(tmp_path), *PATHS, auth=("prometheus", PASSWORD))
    assert [answer.status_code for answer in answers] == [200] * 6 + [500, 404]
    assert answers[1].text == "secret of /metrics\n"
    assert [answer.status_code for answer in asked(Access(), *PATHS)] == [200] * 6 + [500, 404]


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "authorization",
    [
        *("", "Basic", "Basic ", "Basic !", "Bearer x", f"Basic {encoded('prometheus')}"),
        f"Basic {encoded(f'prometheus:{PASSWORD}x')}",
        f"Basic {encoded(f'prometheus:{PASSWORD}')[:-4]}",
        f"Basic {encoded(f'Prometheus:{PASSWORD}')}",
        f"Basic {encoded(f':{PASSWORD}')}",
        f"Basic {encoded('prometheus:')}",
        f"Basic {encoded(f'prometheus:{HASH}')}",
        f"Basic {encoded('prometheus:' + 'x' * 9000)}",
        f"Basic {encoded('prometheus:' + chr(0))}",
        f"Basic {base64.b64encode(bytes(range(200, 256)) + b':x').decode()}",
        f"Digest {encoded(f'prometheus:{PASSWORD}')}",
    ],
)
def test_what_is_not_the_password_is_refused(tmp_path: Path, authorization: str) -> None:
    headers = {"Authorization": authorization}
    assert asked(configured(tmp_path), "/metrics", headers=headers)[0].status_code == 401


def test_the_scheme_may_be_written_small_and_passwords_may_hold_anything(tmp_path: Path) -> None:
    password = "pä:ss wörd " * 9  # longer than bcrypt reads
    hashed = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4)).decode()
    access = configured(tmp_path, f"basic_auth_users: {{grüße: '{hashed}'}}")
    headers = {"Authorization": f"basic {encoded(f'grüße:{password}')}"}
    assert asked(access, "/metrics", headers=headers)[0].status_code == 200


@given(st.text(max_size=30))
def test_any_header_is_read_as_credentials_or_as_none(header: str) -> None:
    found = credentials(header)
    assert found is None or header.lower().startswith("basic ")
    given_ = credentials(f"Basic {encoded(f'user:{header}')}")
    assert given_ == (b"user", header.encode())


@pytest.mark.parametrize(
    "hashed", [HASH, HASH.replace("2y", "2b"), HASH.replace("2y", "2a"), HASH.replace("$04", "$18")]
)
def test_hashes_of_htpasswd_and_others_are_taken(hashed: str) -> None:
    assert problem_of_hash(hashed) is None


@pytest.mark.parametrize(
    "hashed", ["", "secret", HASH[:-1], HASH + "x", HASH.upper(), None, [HASH]]
)
def test_what_is_no_hash_is_told(hashed: object) -> None:
    assert problem_of_hash(hashed) is not None


# ---- how passwords are checked ----


class Counted:
    """bcrypt with its calls counted, and as slow as is wished."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> None:
        self.hashes: list[str] = []
        self.at_once = self.most_at_once = 0
        check = module._matches

        def counted(password: bytes, hashed: str) -> bool:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.hashes.append(hashed)
            time.sleep(seconds)
            self.at_once -= 1
            return check(password, hashed)

        monkeypatch.setattr(module, "_matches", counted)


@pytest.fixture
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_REST_SECONDS", 0.0)


def checked(work: Callable[[Passwords], Awaitable[object]]) -> None:
    async def run() -> None:
        passwords = Passwords()
        try:
            await work(passwords)
        finally:
            passwords.close()

    asyncio.run(run())


USERS = {"prometheus": HASH}
RIGHT = PASSWORD.encode()


@pytest.mark.usefixtures("_no_rest")
def test_right_and_wrong_answers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)

    async def work(passwords: Passwords) -> None:
        for _ in range(3):
            assert await passwords.admit(b"prometheus", RIGHT, USERS, "a")
            assert not await passwords.admit(b"prometheus", b"wrong", USERS, "a")
            assert not await passwords.admit(b"nobody", RIGHT, USERS, "a")
        assert len(counted.hashes) == 3
        changed = {"prometheus": bcrypt.hashpw(b"changed", bcrypt.gensalt(4)).decode()}
        assert not await passwords.admit(b"prometheus", RIGHT, changed, "a")
        assert await passwords.admit(b"nobody", RIGHT, {"nobody": HASH}, "a")

    checked(work)


@pytest.mark.usefixtures("_no_rest")
def test_no_number_of_guesses_makes_a_right_answer_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_CACHED_WRONG", 5)

    async def work(passwords: Passwords) -> None:
        assert await passwords.admit(b"prometheus", RIGHT, USERS, "a")
        for i in range(20):
            assert not await passwords.admit(b"prometheus", b"%d" % i, USERS, "a")
        counted = Counted(monkeypatch)
        assert await passwords.admit(b"prometheus", RIGHT, USERS, "a")
        assert not counted.hashes
        assert len(passwords._wrong) == 5

    checked(work)


@pytest.mark.usefixtures("_no_rest")
def test_who_does_not_exist_costs_what_one_of_the_users_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Counted(monkeypatch)
    costly = bcrypt.hashpw(b"x", bcrypt.gensalt(5)).decode()
    users = {"a": HASH, "b": costly}

    async def work(passwords: Passwords) -> None:
        for i in range(40):
            assert not await passwords.admit(b"nobody%d" % i, b"x", users, "a")
        assert set(counted.hashes) == {HASH, costly}
        counted.hashes.clear()
        for i in range(10):
            assert not await passwords.admit(b"nobody1", b"x%d" % i, users, "a")
        assert len(set(counted.hashes)) == 1

    checked(work)


@pytest.mark.usefixtures("_no_rest")
def test_one_guess_is_checked_at_a_time_and_one_of_each_client_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Counted(monkeypatch, seconds=0.02)

    async def work(passwords: Passwords) -> None:
        guesses = [
            passwords.admit(b"prometheus", b"%d" % i, USERS, f"client {i % 30}") for i in range(60)
        ]
        answers = await asyncio.gather(*guesses, return_exceptions=True)
        assert answers.count(False) == 16
        assert sum(isinstance(answer, BusyError) for answer in answers) == 44
        assert counted.most_at_once == 1

    checked(work)


def test_the_same_guess_of_many_requests_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch, seconds=0.05)

    async def work(passwords: Passwords) -> None:
        same = [passwords.admit(b"prometheus", RIGHT, USERS, "a") for _ in range(50)]
        assert await asyncio.gather(*same) == [True] * 50
        assert len(counted.hashes) == 1

    checked(work)


def test_a_wrong_guess_is_followed_by_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    Counted(monkeypatch, seconds=0.05)

    async def work(passwords: Passwords) -> None:
        begun = time.monotonic()
        assert not await passwords.admit(b"prometheus", b"wrong", USERS, "a")
        assert time.monotonic() - begun > 10 * 0.05 * 0.9

    checked(work)


def test_too_many_guesses_are_told_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(*_: object) -> bool:
        raise BusyError

    monkeypatch.setattr(Passwords, "admit", busy)
    [answer] = asked(configured(tmp_path), "/metrics", auth=("prometheus", "guess"))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


def test_a_flood_of_guesses_does_not_keep_prometheus_from_scraping(tmp_path: Path) -> None:
    hashed = bcrypt.hashpw(RIGHT, bcrypt.gensalt(10)).decode()  # as costly as in real life
    config = tmp_path / "web.yml"
    config.write_text(f"basic_auth_users: {{prometheus: {hashed}}}\n")
    with daemon("--simulate", "--no-nvml", "--web.config.file", str(config)) as running:
        url = f"{running.url}/metrics"
        client = httpx.Client(auth=("prometheus", PASSWORD), timeout=20, trust_env=False)
        with client:
            running.wait_for(lambda: client.get(url).status_code == 200)

            def typical() -> tuple[float, float]:
                times, spent = [], cpu_seconds(running.process.pid)
                begun = time.perf_counter()
                for _ in range(30):
                    at = time.perf_counter()
                    assert client.get(url).status_code == 200
                    times.append(time.perf_counter() - at)
                    time.sleep(0.1)
                spent = cpu_seconds(running.process.pid) - spent
                return statistics.median(times), spent / (time.perf_counter() - begun)

            alone, _ = typical()
            statuses: list[int] = []
            with flood(url, statuses):
                time.sleep(1.0)
                beside, core = typical()
    assert set(statuses) <= {401, 429}
    assert 0 < statuses.count(401) < len(statuses)
    assert beside < max(20 * alone, 1.0), f"{alone:.3f} s alone, {core:.0%} of a core"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class flood:  # noqa: N801 (reads as a word)
    """Guesses from four threads, each another one."""

    def __init__(self, url: str, statuses: list[int]) -> None:
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._guess, args=(url, i, statuses)) for i in range(4)
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _guess(self, url: str, number: int, statuses: list[int]) -> None:
        with httpx.Client(timeout=20, trust_env=False) as client:
            guess = 0
            while not self._ended.wait(0.005):
                guess += 1
                auth = ("prometheus", f"{number}-{guess}")
                statuses.append(client.get(url, auth=auth).status_code)


# ---- headers and rates ----


@pytest.mark.parametrize("password", [PASSWORD, "wrong"])
def test_every_answer_carries_the_security_headers(tmp_path: Path, password: str) -> None:
    for answer in asked(configured(tmp_path), *PATHS, auth=("prometheus", password)):
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers.get_list(name) == [value]
        assert answer.headers["cache-control"] == "no-store"
        assert "strict-transport-security" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers
        assert "unsafe" not in answer.headers["content-security-policy"]


def test_headers_of_the_file_stand_in_place_of_ours(tmp_path: Path) -> None:
    headers = {
        "Strict-Transport-Security": "max-age=31536000",
        "X-Frame-Options": "sameorigin",
        "Content-Security-Policy": "",
    }
    text = "http_server_config: {headers: " + str(headers) + "}"
    [answer] = asked(configured(tmp_path, text), "/metrics")
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert answer.headers.get_list("x-frame-options") == ["sameorigin"]
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "content-security-policy" not in answer.headers


def test_a_rate_limit_counts_every_request_the_wrong_ones_too(tmp_path: Path) -> None:
    text = f"basic_auth_users: {{prometheus: {HASH}}}\nrate_limit: {{interval: 1h, burst: 3}}\n"
    answers = asked(configured(tmp_path, text), *["/metrics"] * 5)
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]


def test_a_bucket_fills_again_and_never_over_its_burst() -> None:
    now = [0.0]
    limit = RateLimit(interval_seconds=2.0, burst=2)
    limits = Limits(lambda *_: asyncio.sleep(0), lambda: limit, clock=lambda: now[0])
    taken = []
    for at in (0, 0, 0, 1.9, 2.1, 2.2, 100, 100, 100):
        now[0] = at
        taken.append(limits._within_rate())
    assert taken == [True, True, False, False, True, False, True, True, False]


@given(
    st.floats(0.001, 10.0),
    st.integers(1, 20),
    st.lists(st.floats(0.0, 3.0), min_size=1, max_size=60),
)
def test_no_span_of_time_sees_more_than_its_share(
    interval: float, burst: int, pauses: list[float]
) -> None:
    now, taken = [0.0], 0
    limit = RateLimit(interval_seconds=interval, burst=burst)
    limits = Limits(lambda *_: asyncio.sleep(0), lambda: limit, clock=lambda: now[0])
    for pause in pauses:
        now[0] += pause
        taken += limits._within_rate()
        assert taken <= burst + now[0] / interval + 1e-6


@pytest.fixture
def served_metrics(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], str]]]:
    config = tmp_path / "web.yml"
    config.write_text(f"basic_auth_users: {{prometheus: {HASH}}}\n")
    with daemon("--simulate", "--no-nvml", "--web.config.file", str(config)) as running:

        def page() -> str:
            auth = ("prometheus", PASSWORD)
            answer = httpx.get(f"{running.url}/metrics", auth=auth, trust_env=False)
            assert answer.status_code == 200
            return answer.text

        running.wait_for(lambda: bool(page()))
        yield config, page


def test_a_broken_file_is_seen_in_the_metrics(
    served_metrics: tuple[Path, Callable[[], str]],
) -> None:
    config, page = served_metrics
    good = config.read_text()
    for text, value in ((good, 1), ("basic_auth_users: {", 0), (good, 1)):
        config.write_text(text)
        end = time.monotonic() + 10
        while f"\nvllm_capacity_web_config_reload_success {value}.0\n" not in page():
            assert time.monotonic() < end
            time.sleep(0.2)


def test_without_a_file_the_metrics_say_nothing_of_it() -> None:
    with daemon("--simulate", "--no-nvml") as running:
        running.wait_for(lambda: running.get("/metrics").status_code == 200)
        assert "\nvllm_capacity_web_config_reload_success " not in running.get("/metrics").text
