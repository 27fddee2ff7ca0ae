"""TLS towards vLLM, against real servers that want certificates, and what is never sent."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from pki import Authority
from test_daemon import daemon
from vllm_capacity.errors import SettingsError, SourceError
from vllm_capacity.settings import resolve_settings
from vllm_capacity.sources.client_tls import RenewingTransport, TlsFiles
from vllm_capacity.sources.vllm_http import VllmHttp, new_client
from vllm_capacity.web.access import Access
from web_serving import Serving, serving

PAGE = (Path(__file__).parent.parent / "data" / "vllm-0.32-metrics.txt").read_bytes()
TOKEN = "Pl4nted-53cret-9f8e7d"  # noqa: S105 (planted)
TLS = "tls_server_config:\n  cert_file: server.pem\n  key_file: server-key.pem\n"
MTLS = TLS + "  client_ca_file: ca.pem\n  client_auth_type: RequireAndVerifyClientCert\n"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority.new(tmp_path / "pki")
    made.signs("server")
    return made


class Engine:
    """A server that remembers who asked, and may send them elsewhere."""

    def __init__(self, elsewhere: str | None = None) -> None:
        self.elsewhere, self.authorizations = elsewhere, list[str | None]()

    def application(self, access: Access) -> ASGIApp:
        def page(request: Request) -> Response:
            self.authorizations.append(request.headers.get("authorization"))
            if self.elsewhere:
                return RedirectResponse(f"{self.elsewhere}/metrics")
            return PlainTextResponse(PAGE)

        return access.guard(Starlette(routes=[Route("/metrics", page)]))


@contextmanager
def engine(
    authority: Authority, text: str = TLS, elsewhere: str | None = None
) -> Iterator[tuple[Serving, Engine]]:
    config = authority.folder / "web.yml"
    config.write_text(text)
    asked = Engine(elsewhere)
    with serving(asked.application, web_config=str(config)) as served:
        yield served, asked


def ask(url: str, files: dict[str, Any], times: int = 1, **options: Any) -> bytes:
    async def run() -> bytes:
        async with new_client(**files) as client:
            vllm = VllmHttp(
                url, client=client, timeout_seconds=10, max_body_bytes=1 << 20, **options
            )
            return [await vllm.metrics() for _ in range(times)][-1]

    return asyncio.run(run())


def failure(url: str, files: dict[str, Any], **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        ask(url, files, **options)
    assert "\n" not in str(caught.value)
    return f"{caught.value.reason}: {caught.value}"


def ours(authority: Authority, *names: str) -> dict[str, str]:
    client = authority.signs("client", *(names or ("exporter@example.org",)))
    return {
        "ca_file": str(authority.pem),
        "client_cert_file": str(client.cert),
        "client_key_file": str(client.key),
    }


def test_a_server_that_wants_a_certificate_gets_ours(authority: Authority) -> None:
    files = ours(authority)
    with engine(authority, MTLS) as (served, _):
        assert ask(served.url, files) == PAGE
        both = authority.folder / "both.pem"
        both.write_bytes(
            b"".join(Path(files[f"client_{x}_file"]).read_bytes() for x in ("key", "cert"))
        )
        assert ask(served.url, {"ca_file": files["ca_file"], "client_cert_file": str(both)}) == PAGE
        said = failure(served.url, {"ca_file": files["ca_file"]})
        assert said.endswith(" a client-cert-file")


def test_a_server_of_an_unknown_authority_is_not_trusted_and_the_remedy_is_named(
    authority: Authority,
) -> None:
    with engine(authority) as (served, asked):
        said = failure(served.url, {})
        assert "cannot connect: [SSL: CERTIFICATE_VERIFY_FAILED]" in said
        assert "; name its authority, or its own certificate, in ca-file" in said
        assert not asked.authorizations


def test_a_servers_own_certificate_may_be_the_one_that_is_trusted(authority: Authority) -> None:
    with engine(authority) as (served, _):
        assert ask(served.url, {"ca_file": str(authority.folder / "server.pem")}) == PAGE


def test_the_name_in_the_certificate_may_be_another_than_the_address(authority: Authority) -> None:
    authority.signs("server", "vllm.internal")
    files = {"ca_file": str(authority.pem)}
    with engine(authority) as (served, _):
        assert "CERTIFICATE_VERIFY_FAILED" in failure(served.url, files)
        assert ask(served.url, files, tls_server_name="vllm.internal") == PAGE
        assert "Hostname mismatch" in failure(served.url, files, tls_server_name="other.internal")


def test_certificates_are_read_again_when_they_change(authority: Authority, tmp_path: Path) -> None:
    other = Authority.new(tmp_path / "other")
    wrong, right = other.signs("client"), authority.signs("client")
    paths = [str(tmp_path / name) for name in ("ca.pem", "cert.pem", "key.pem")]
    files = dict(zip(("ca_file", "client_cert_file", "client_key_file"), paths, strict=True))

    def put(ca: Authority, cert: Path, key: Path) -> None:
        for path, source in zip(paths, (ca.pem, cert, key), strict=True):
            aside = Path(path + ".new")
            shutil.copy(source, aside)
            aside.replace(path)

    async def run(url: str) -> None:
        async with new_client(**files) as client:
            vllm = VllmHttp(url, client=client, timeout_seconds=10, max_body_bytes=1 << 20)
            with pytest.raises(SourceError, match="CERTIFICATE_VERIFY_FAILED"):
                await vllm.metrics()
            put(authority, wrong.cert, wrong.key)
            with pytest.raises(SourceError):
                await vllm.metrics()
            put(authority, right.cert, wrong.key)
            with pytest.raises(SourceError, match="client_cert_file: cannot be used") as caught:
                await vllm.metrics()
            assert caught.value.reason == "invalid"
            shutil.move(paths[2], tmp_path / "gone.pem")
            with pytest.raises(SourceError, match="client_cert_file: cannot be used"):
                await vllm.metrics()
            put(authority, right.cert, right.key)
            assert await vllm.metrics() == PAGE

    put(other, wrong.cert, wrong.key)
    with engine(authority, MTLS) as (served, _):
        asyncio.run(run(served.url))


def test_connections_with_old_files_are_closed_after_a_while(authority: Authority) -> None:
    now, made = [0.0], []

    class Recorded(httpx.AsyncBaseTransport):
        closed = False

        async def handle_async_request(self, _: httpx.Request) -> httpx.Response:
            return httpx.Response(200)

        async def aclose(self) -> None:
            self.closed = True

    def connect(_: object) -> httpx.AsyncBaseTransport:
        made.append(Recorded())
        return made[-1]

    async def run() -> None:
        transport = RenewingTransport(
            TlsFiles(ca_file=str(authority.pem)), connect, clock=lambda: now[0]
        )
        request = httpx.Request("GET", "https://x")
        for at, changed in ((0.0, False), (1.0, True), (50.0, False), (62.0, False)):
            now[0] = at
            if changed:
                authority.pem.write_bytes(authority.pem.read_bytes() + b"\n")
            await transport.handle_async_request(request)
            assert [one.closed for one in made] == {0.0: [False], 62.0: [True, False]}.get(
                at, [False, False]
            )
        await transport.aclose()
        assert all(one.closed for one in made)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"ca_file": "nowhere.pem"}, "ca_file: cannot be used: No such file or directory"),
        ({"client_cert_file": "nowhere.pem"}, "client_cert_file: cannot be used with its key: No"),
        ({"client_cert_file": "ca.pem"}, "client_cert_file: cannot be used with its key: "),
        (
            {"client_cert_file": "server.pem", "client_key_file": "ca.pem"},
            "client_cert_file: cannot be used with its key: ",
        ),
    ],
)
def test_files_that_cannot_be_used_are_refused_at_the_start(
    authority: Authority, files: dict[str, str], said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        new_client(**{key: str(authority.folder / name) for key, name in files.items()})
    assert said in str(caught.value)


def test_an_encrypted_key_asks_nobody(authority: Authority) -> None:
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key((authority.folder / "server-key.pem").read_bytes(), None)
    locked = authority.folder / "locked.pem"
    locked.write_bytes(
        key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"x"))
    )
    with pytest.raises(SettingsError, match="the key not encrypted"):
        new_client(
            client_cert_file=str(authority.folder / "server.pem"), client_key_file=str(locked)
        )


# ---- credentials ----


def test_a_token_is_read_again_for_every_request(authority: Authority, tmp_path: Path) -> None:
    token = tmp_path / "token"

    async def run(url: str) -> None:
        async with new_client(ca_file=str(authority.pem)) as client:
            vllm = VllmHttp(
                url,
                client=client,
                timeout_seconds=10,
                max_body_bytes=1 << 20,
                bearer_token_file=str(token),
            )
            for word in ("first", "second"):
                token.write_text(word)
                await vllm.metrics()

    with engine(authority) as (served, asked):
        asyncio.run(run(served.url))
        assert asked.authorizations == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("credential", ["token", "password"])
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_redirect_takes_no_credential_to_another_server(
    authority: Authority, tmp_path: Path, credential: str, scheme: str
) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    with engine(authority, TLS if scheme == "https" else "{}") as (thief, robbed):
        other = Authority(authority.folder / "second", authority.ca)
        other.folder.mkdir()
        other.signs("server")
        with engine(other, TLS, elsewhere=thief.url) as (served, asked):
            files = {"ca_file": str(authority.pem)}
            if credential == "token":
                said = failure(served.url, files, bearer_token_file=str(token))
            else:
                said = failure(served.url.replace("://", f"://me:{TOKEN}@"), files)
            assert f"a redirect to {thief.url}/metrics; give the final address" in said
            assert TOKEN not in said
            assert len(asked.authorizations) == 1
            assert robbed.authorizations == []


def test_a_target_may_have_tls_of_its_own_and_the_rest_share_one() -> None:
    file = {
        "ca-file": "/common.pem",
        "targets": [
            {"url": "https://a"},
            {
                "url": "https://b",
                "ca-file": "/b.pem",
                "client-cert-file": "/b-cert.pem",
                "client-key-file": "/b-key.pem",
                "tls-server-name": "b.internal",
            },
        ],
    }
    a, b = resolve_settings({}, {}, file).targets
    assert (a.ca_file, a.client_cert_file, a.tls_server_name) == ("/common.pem", None, None)
    assert (b.ca_file, b.client_cert_file, b.client_key_file, b.tls_server_name) == (
        *("/b.pem", "/b-cert.pem", "/b-key.pem"),
        "b.internal",
    )


def test_a_key_without_its_certificate_is_a_fault() -> None:
    with pytest.raises(SettingsError, match="client-key-file: needs client-cert-file"):
        resolve_settings({"target": ["https://a"], "client-key-file": "/key.pem"}, {}, {})


def test_there_is_no_way_to_trust_just_anybody() -> None:
    entry = {"url": "https://a", "insecure-skip-verify": True}
    with pytest.raises(SettingsError, match="insecure-skip-verify: is not one of"):
        resolve_settings({}, {}, {"targets": [entry]})


def test_the_daemon_watches_servers_with_tls_of_their_own(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority.new(tmp_path / "other")
    other.signs("server")
    token = tmp_path / "token"
    token.write_text(TOKEN)
    with engine(authority, MTLS) as (first, _), engine(other) as (second, asked):
        settings = tmp_path / "settings.yml"
        mine = {key.replace("_", "-"): path for key, path in ours(authority).items()}
        entries = [
            {"url": first.url, "name": "first", **mine},
            {"url": second.url, "name": "second", "ca-file": str(other.pem)},
            {"url": second.url, "name": "untrusted"},
        ]
        settings.write_text(str({"targets": entries, "bearer-token-file": str(token)}))
        flags = ("--config.file", str(settings), "--no-nvml", "--scrape-interval", "1s")
        with daemon(*flags) as running:

            def up(name: str) -> float | None:
                labels = frozenset({"target": name, "source": "vllm"}.items())
                return running.series().get(("source_up", labels))

            running.wait_for(
                lambda: [up(name) for name in ("first", "second", "untrusted")] == [1, 1, 0]
            )
            pages = [running.get(path).text for path in ("/metrics", "/")]
            running.process.terminate()
            said = running.process.communicate(timeout=20)[1]
    assert set(asked.authorizations) == {f"Bearer {TOKEN}"}
    assert "CERTIFICATE_VERIFY_FAILED" in said
    assert TOKEN not in "".join([*pages, said])
