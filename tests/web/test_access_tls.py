"""TLS on real sockets: who gets in, who does not, and certificates that change meanwhile."""

import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from pki import HASH, PASSWORD, Authority, Identity
from vllm_capacity.web import connections
from vllm_capacity.web.access import Access
from vllm_capacity.web.tls import alternative_names
from web_serving import Serving, serving

TLS = "tls_server_config:\n  cert_file: server.pem\n  key_file: server-key.pem\n"
MTLS = TLS + "  client_ca_file: ca.pem\n  client_auth_type: RequireAndVerifyClientCert\n"


def small(access: Access) -> ASGIApp:
    page = Route("/metrics", lambda _: PlainTextResponse("a 1\n"))
    return access.guard(Starlette(routes=[page]))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority.new(tmp_path / "pki")
    made.signs("server")
    return made


def written(authority: Authority, text: str) -> str:
    file = authority.folder / "web.yml"
    aside = file.with_suffix(".new")
    aside.write_text(text)
    aside.replace(file)
    return str(file)


def get(
    served: Serving,
    ca: Authority,
    client: Identity | None = None,
    *,
    prepared: Callable[[ssl.SSLContext], None] = lambda _: None,
    **options: object,
) -> httpx.Response:
    context = ssl.create_default_context(cafile=str(ca.pem))
    if client is not None:
        context.load_cert_chain(client.cert, client.key)
    prepared(context)
    with httpx.Client(verify=context, trust_env=False, timeout=10, **options) as http:  # type: ignore[arg-type]
        return http.get(f"{served.url}/metrics")


def gets_in(served: Serving, ca: Authority, client: Identity | None = None) -> bool:
    try:
        return get(served, ca, client).status_code == 200
    except httpx.TransportError:
        return False


def eventually(what: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"did not come true within {seconds} s"
        time.sleep(0.1)


def test_every_address_speaks_tls_and_none_speaks_plain_http(authority: Authority) -> None:
    addresses = ("127.0.0.1:0", "127.0.0.1:0", "[::1]:0")
    with serving(small, web_config=written(authority, TLS), addresses=addresses) as served:
        for url in served.urls:
            assert url.startswith("https://")
            context = ssl.create_default_context(cafile=str(authority.pem))
            assert httpx.get(f"{url}metrics", verify=context, trust_env=False).text == "a 1\n"
            with pytest.raises(httpx.TransportError):
                httpx.get(url.replace("https", "http") + "metrics", trust_env=False)


@pytest.mark.parametrize(
    ("policy", "admitted"),
    [
        ("NoClientCert", ("own", "none", "foreign")),
        ("RequestClientCert", ("own", "none", "foreign")),
        ("VerifyClientCertIfGiven", ("own", "none")),
        ("RequireAndVerifyClientCert", ("own",)),
    ],
)
def test_a_client_needs_the_certificate_that_the_policy_says(
    authority: Authority, tmp_path: Path, policy: str, admitted: tuple[str, ...]
) -> None:
    ca = "  client_ca_file: ca.pem\n" if policy.startswith(("Verify", "RequireAnd")) else ""
    config = written(authority, f"{TLS}{ca}  client_auth_type: {policy}\n")
    name = "prometheus.example.org"
    clients = {
        "own": authority.signs("client", name),
        "none": None,
        "foreign": Authority.new(tmp_path / "foreign").signs("client", name),
    }
    with serving(small, web_config=config) as served:
        getting = [which for which, one in clients.items() if gets_in(served, authority, one)]
    assert tuple(getting) == admitted


@pytest.mark.parametrize(
    ("identities", "admitted"),
    [
        (("prometheus.example.org",), True),
        (("other.example.org", "prometheus.example.org"), True),
        (("192.0.2.1",), True),
        (("2001:db8::1",), True),
        (("me@example.org",), True),
        (("Prometheus.example.org.evil.org",), False),
        (("*.example.org",), False),
        (("192.0.2.10",), False),
    ],
)
def test_a_client_needs_one_of_the_allowed_names_exactly(
    authority: Authority, identities: tuple[str, ...], admitted: bool
) -> None:
    names = "[prometheus.example.org, 192.0.2.1, '2001:db8::1', me@example.org]"
    config = written(authority, f"{MTLS}  client_allowed_sans: {names}\n")
    client = authority.signs("client", *identities)
    with serving(small, web_config=config) as served:
        assert gets_in(served, authority, client) is admitted


def test_alternative_names_are_written_as_go_writes_them() -> None:
    certificate = {
        "subjectAltName": (
            *(
                ("DNS", "a.example"),
                ("IP Address", "2001:DB8:0:0:0:0:0:1"),
                ("URI", "spiffe://a/b"),
            ),
            *(("email", "me@example.org"), ("IP Address", "no address")),
        )
    }
    assert alternative_names(certificate) == {
        *("a.example", "2001:db8::1", "spiffe://a/b", "me@example.org", "no address")
    }
    assert alternative_names(None) == alternative_names({}) == frozenset()


def test_versions_suites_and_curves_are_those_of_the_file(authority: Authority) -> None:
    text = f"{TLS}  min_version: TLS13\n  curve_preferences: [CurveP384]\n"
    with serving(small, web_config=written(authority, text)) as served:

        def older(context: ssl.SSLContext) -> None:
            context.maximum_version = ssl.TLSVersion.TLSv1_2

        def another_curve(context: ssl.SSLContext) -> None:
            context.set_ecdh_curve("prime256v1")

        assert get(served, authority).status_code == 200
        for prepared in (older, another_curve):
            with pytest.raises(httpx.ConnectError):
                get(served, authority, prepared=prepared)


def test_old_versions_and_weak_suites_are_refused_without_a_word_in_the_file(
    authority: Authority,
) -> None:
    with serving(small, web_config=written(authority, TLS)) as served:

        def weak(context: ssl.SSLContext) -> None:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers("ECDHE+AES256+SHA:AES256-SHA")

        with pytest.raises(httpx.ConnectError):
            get(served, authority, prepared=weak)


# ---- changes while serving ----


def test_a_renewed_certificate_is_used_by_new_connections_and_old_ones_go_on(
    authority: Authority,
) -> None:
    with serving(small, web_config=written(authority, TLS)) as served:
        context = ssl.create_default_context(cafile=str(authority.pem))
        with httpx.Client(verify=context, trust_env=False) as old:
            assert old.get(f"{served.url}/metrics").status_code == 200
            renewed = Authority.new(authority.folder / "renewed")
            fresh = renewed.signs("server")
            for ours, theirs in (("server.pem", fresh.cert), ("server-key.pem", fresh.key)):
                theirs.replace(authority.folder / ours)
            eventually(lambda: gets_in(served, renewed))
            assert not gets_in(served, authority)
            assert old.get(f"{served.url}/metrics").status_code == 200


def test_a_client_authority_that_goes_takes_its_clients_along(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority.new(tmp_path / "other")
    first, second = authority.signs("client"), other.signs("client")
    clients = authority.folder / "clients.pem"
    clients.write_bytes(authority.pem.read_bytes())
    text = MTLS.replace("ca.pem", "clients.pem")
    with serving(small, web_config=written(authority, text)) as served:
        assert [gets_in(served, authority, who) for who in (first, second)] == [True, False]
        clients.write_bytes(other.pem.read_bytes())
        eventually(lambda: gets_in(served, authority, second))
        assert not gets_in(served, authority, first)


def test_tls_can_be_turned_on_while_serving(authority: Authority) -> None:
    with serving(small, web_config=written(authority, "{}")) as served:
        assert httpx.get(f"{served.url}/metrics", trust_env=False).status_code == 200
        written(authority, TLS)
        https = Serving(
            tuple(url.replace("http:", "https:") for url in served.urls), *_rest(served)
        )
        eventually(lambda: gets_in(https, authority))
        assert not gets_in(served, authority)


def _rest(served: Serving) -> tuple[tuple[int, ...], object, Access]:
    return served.ports, served.server, served.access


@pytest.mark.parametrize(
    ("before", "broken"),
    [
        (TLS, "tls_server_config: ["),
        (TLS, ""),
        (TLS, "{}"),
        (TLS, TLS.replace("server-key", "missing-key")),
        (MTLS, TLS),
        (MTLS, MTLS.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven")),
        (MTLS + "  client_allowed_sans: [localhost]\n", MTLS),
    ],
    ids=["no YAML", "empty", "nothing", "no key", "no policy", "less policy", "no names"],
)
def test_what_is_broken_or_opens_the_door_is_not_taken_and_what_mends_it_is(
    authority: Authority, before: str, broken: str
) -> None:
    client = authority.signs("client")
    stranger = Authority.new(authority.folder / "stranger").signs("client")
    with serving(small, web_config=written(authority, before)) as served:
        assert gets_in(served, authority, client)
        written(authority, broken)
        eventually(lambda: served.access.reload_succeeded is False)
        assert gets_in(served, authority, client)
        if before != TLS:
            assert not gets_in(served, authority)
            assert not gets_in(served, authority, stranger)
        written(authority, before)
        eventually(lambda: served.access.reload_succeeded is True)
        assert gets_in(served, authority, client)


def test_a_key_that_comes_later_than_the_file_that_names_it_is_found(authority: Authority) -> None:
    with serving(small, web_config=written(authority, TLS)) as served:
        later = authority.signs("later")
        hidden = later.key.rename(authority.folder / "hidden.pem")
        written(authority, TLS.replace("server", "later").replace("tls_later", "tls_server"))
        eventually(lambda: served.access.reload_succeeded is False)
        hidden.rename(later.key)
        eventually(lambda: served.access.reload_succeeded is True)
        assert gets_in(served, authority)


def test_a_broken_file_is_logged_once(
    authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(small, web_config=written(authority, TLS)) as served:
        written(authority, "basic_auth_users: {a: Pl4nted}")
        eventually(lambda: served.access.reload_succeeded is False)
        time.sleep(2.5)
    said = capsys.readouterr().out
    assert said.count("web configuration cannot be used, the old one stays") == 1
    assert "Pl4nted" not in said


# ---- the wire ----


@pytest.mark.parametrize("says", ["nothing", "half a hello", "TLS", "TLS and half a head"])
def test_tls_that_is_not_finished_or_not_used_ends(
    authority: Authority, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        connections, "LIMITS_SECONDS", dict.fromkeys(connections.LIMITS_SECONDS, 0.5)
    )
    monkeypatch.setattr(connections, "_SWEEP_SECONDS", 0.1)
    context = ssl.create_default_context(cafile=str(authority.pem))
    with serving(small, web_config=written(authority, TLS)) as served:
        client = socket.create_connection(("127.0.0.1", served.port), timeout=20)
        eventually(lambda: served.open_connections == 1)
        if says.startswith("TLS"):
            client = context.wrap_socket(client, server_hostname="localhost")
        client.sendall(
            {"half a hello": b"\x16\x03\x01\x02", "TLS and half a head": b"GET"}.get(says, b"")
        )
        with client:
            eventually(lambda: served.open_connections == 0)
            with suppress(OSError):  # reset, or cut in the middle of TLS: closed all the same
                assert client.recv(1) == b""


def test_answers_wait_for_no_delayed_acknowledgement_and_no_client_that_is_gone(
    authority: Authority,
) -> None:
    for text in ("{}", TLS):
        with serving(small, web_config=written(authority, text)) as served:
            client = socket.create_connection(("127.0.0.1", served.port))
            with client:
                eventually(lambda: served.open_connections == 1)
                [connection] = served.server._connections._all
                accepted = connection._socket
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


def test_users_come_and_go_and_change_their_passwords_while_serving(authority: Authority) -> None:
    import bcrypt

    def status(user: str, password: str) -> int:
        answer = httpx.get(f"{served.url}/metrics", auth=(user, password), trust_env=False)
        return answer.status_code

    changed = bcrypt.hashpw(b"changed", bcrypt.gensalt(4)).decode()
    config = written(authority, f"basic_auth_users: {{a: {HASH}, b: {HASH}}}")
    with serving(small, web_config=config) as served:
        assert (status("a", PASSWORD), status("b", PASSWORD), status("c", PASSWORD)) == (
            *(200, 200),
            401,
        )
        written(authority, f"basic_auth_users: {{a: {changed}, c: {HASH}}}")
        eventually(lambda: status("a", "changed") == 200)
        assert (status("a", PASSWORD), status("b", PASSWORD), status("c", PASSWORD)) == (
            *(401, 401),
            200,
        )
        written(authority, "basic_auth_users: {}")
        eventually(lambda: served.access.reload_succeeded is False)
        assert httpx.get(f"{served.url}/metrics", trust_env=False).status_code == 401


def test_requests_go_on_while_certificates_change_all_the_time(authority: Authority) -> None:
    ended, failures = threading.Event(), []
    with serving(small, web_config=written(authority, TLS)) as served:

        def ask() -> None:
            while not ended.is_set():
                if not gets_in(served, authority):
                    failures.append(time.monotonic())

        asking = threading.Thread(target=ask)
        asking.start()
        for i in range(4):
            fresh = authority.signs(f"fresh{i}")
            fresh.key.replace(authority.folder / "server-key.pem")
            fresh.cert.replace(authority.folder / "server.pem")
            time.sleep(1.2)
        ended.set()
        asking.join()
        assert not failures
        assert served.access.reload_succeeded
