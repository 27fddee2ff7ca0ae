"""``--web.config.file``: read as the exporter-toolkit's, refused with every fault at once."""

import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pki import HASH, Authority
from vllm_capacity.errors import SettingsError
from vllm_capacity.web.config_file import RateLimit, WebConfig, lost_protection, read_web_config
from vllm_capacity.web.tls import CIPHERS, CURVES, TLS13_CIPHERS

FULL = Path(__file__).parent.parent / "data" / "web-config" / "full.yml"
SECRET = "Pl4nted-53cret-9f8e7d"  # noqa: S105 (planted)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority.new(tmp_path_factory.mktemp("pki"))
    made.signs("server")
    made.signs("other")
    return made


def read(authority: Authority, text: str) -> WebConfig:
    file = authority.folder / "web.yml"
    file.write_text(text)
    return read_web_config(str(file))


def refused(authority: Authority, text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read(authority, text)
    assert SECRET not in str(caught.value)
    return [str(fault) for fault in caught.value.faults]


TLS = "tls_server_config:\n  cert_file: server.pem\n  key_file: server-key.pem\n"


def test_a_file_that_says_everything_is_read_whole(authority: Authority) -> None:
    shutil.copy(FULL, authority.folder / "full.yml")
    config = read_web_config(str(authority.folder / "full.yml"))
    assert config.tls is not None
    assert config.tls.client_auth is ssl.CERT_REQUIRED
    assert config.tls.client_allowed_sans == {"prometheus.example.org", "192.0.2.1"}
    assert config.tls.ciphers == ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-GCM-SHA384")
    assert config.tls.curve == "X25519"
    assert set(config.users) == {"prometheus", "123"}
    assert config.headers["X-XSS-Protection"] == "1"
    assert config.rate_limit == RateLimit(interval_seconds=0.1, burst=20)
    assert not config.http2
    assert {file.name for file in config.files} == {
        *("full.yml", "server.pem", "server-key.pem", "ca.pem")
    }


@pytest.mark.parametrize("text", ["", "{}", "# nothing", "tls_server_config:", "rate_limit: {}"])
def test_a_file_that_says_nothing_lets_everybody_in(authority: Authority, text: str) -> None:
    config = read(authority, text)
    assert (config.tls, config.context, config.users, config.rate_limit) == (None, None, {}, None)


def test_certificate_and_key_may_stand_in_the_file(authority: Authority) -> None:
    document = {
        "tls_server_config": {
            "cert": (authority.folder / "server.pem").read_text(),
            "key": (authority.folder / "server-key.pem").read_text(),
        }
    }
    assert read(authority, yaml.safe_dump(document)).context is not None


FAULTS: dict[str, tuple[str, str]] = {
    "unknown key": ("tls_server_konfig: {}", "tls_server_konfig: is not one of tls_server_config"),
    "unknown inside": ("tls_server_config: {cert_filse: x}", "cert_filse: is not one of cert,"),
    "no mapping": ("- a", "web.config.file: must be a mapping"),
    "no TLS mapping": ("tls_server_config: yes", "tls_server_config: must be a mapping"),
    "a key twice": ("rate_limit: {}\nrate_limit: {}", "a key twice"),
    "no YAML": ("a: [", "is not YAML that can be used at line"),
    "no certificate": ("tls_server_config: {key_file: server-key.pem}", "cert: is missing"),
    "no key": ("tls_server_config: {cert_file: server.pem}", "key: is missing"),
    "versions alone": ("tls_server_config: {min_version: TLS12}", "cert: is missing"),
    "no such file": (
        "tls_server_config: {cert_file: none.pem, key_file: server-key.pem}",
        "cert_file: cannot be read: No such file or directory (got 'none.pem')",
    ),
    "another's key": (
        "tls_server_config: {cert_file: server.pem, key_file: other-key.pem}",
        "certificate and key do not belong together",
    ),
    "no PEM": (
        "tls_server_config: {cert_file: web.yml, key_file: web.yml}",
        "certificate and key cannot be used",
    ),
    "both": (TLS + "  cert: x\n", "cert: must not stand beside cert_file"),
    "old TLS": (TLS + "  min_version: TLS10\n", "min_version: is broken"),
    "no version": (TLS + "  min_version: TLS14\n", "must be one of TLS12, TLS13 (got 'TLS14')"),
    "max under min": (
        TLS + "  min_version: TLS13\n  max_version: TLS12\n",
        "max_version: must not be less than min_version (got 'TLS12')",
    ),
    "invented cipher": (
        TLS + "  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA2048]\n",
        "cipher_suites: must be of TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    ),
    "only ciphers of 1.3": (
        TLS + "  cipher_suites: [TLS_AES_128_GCM_SHA256]\n",
        "cipher_suites: names no suite of TLS 1.2",
    ),
    "invented curve": (TLS + "  curve_preferences: [CurveP257]\n", "must be of CurveP256"),
    "two curves": (
        TLS + "  curve_preferences: [CurveP256, X25519]\n",
        "curve_preferences: can be one curve here",
    ),
    "no policy": (TLS + "  client_auth_type: x\n", "client_auth_type: must be one of NoClientCert"),
    "unverified": (
        TLS + "  client_auth_type: RequireAnyClientCert\n",
        "client_auth_type: cannot be had, and proves nothing",
    ),
    "no authority": (
        TLS + "  client_auth_type: RequireAndVerifyClientCert\n",
        "client_auth_type: needs client_ca_file or client_ca",
    ),
    "authority without policy": (
        TLS + "  client_ca_file: ca.pem\n",
        "client_auth_type: must be VerifyClientCertIfGiven or",
    ),
    "no such authority": (
        TLS + "  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: none.pem\n",
        "client_ca_file: cannot be read",
    ),
    "an authority that is none": (
        TLS + "  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: web.yml\n",
        "client_ca cannot be used",
    ),
    "names without a policy": (
        TLS + "  client_allowed_sans: [a]\n",
        "client_allowed_sans: needs client_auth_type RequireAndVerifyClientCert",
    ),
    "another header": (
        "http_server_config: {headers: {Content-Type: foo}}",
        "headers.Content-Type: is not one of Strict-Transport-Security",
    ),
    "a header's value": (
        "http_server_config: {headers: {X-Frame-Options: foo}}",
        "headers.X-Frame-Options: must be one of deny, sameorigin (got 'foo')",
    ),
    "a header of two lines": (
        'http_server_config: {headers: {X-XSS-Protection: "1\\r\\nSet-Cookie: a"}}',
        "headers.X-XSS-Protection: must be printable ASCII in one line",
    ),
    "http2 in words": ("http_server_config: {http2: maybe}", "http2: must be true or false"),
    "a password": (f"basic_auth_users: {{a: {SECRET}}}", "basic_auth_users.a: must be a bcrypt"),
    "a costly hash": (
        f"basic_auth_users: {{a: {HASH.replace('$04$', '$31$')}}}",
        "basic_auth_users.a: must have a cost from 4 to 18",
    ),
    "a user with a colon": (f'basic_auth_users: {{"a:b": {HASH}}}', "without a colon"),
    "users in a list": (f"basic_auth_users: [{SECRET}]", "basic_auth_users: must be a mapping"),
    "no unit": ("rate_limit: {interval: 5, burst: 1}", "interval: must be a duration with its"),
    "no burst": ("rate_limit: {interval: 5s}", "burst: must be at least 1"),
    "half a burst": ("rate_limit: {interval: 5s, burst: 1.5}", "burst: must be a whole number"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_names_the_key_and_what_to_do(authority: Authority, case: str) -> None:
    text, said = FAULTS[case]
    assert said in "\n".join(refused(authority, text))


def test_every_fault_is_told_at_once(authority: Authority) -> None:
    faults = refused(
        authority,
        f"tls_server_config: {{key: '{SECRET}', min_version: TLS9, client_auth_type: y}}\n"
        f"http_server_config: {{headers: {{X: '{SECRET}'}}, http3: true}}\n"
        f"basic_auth_users: {{a: {SECRET}, b: '', c: [{SECRET}]}}\n"
        f"rate_limit: {{interval: soon}}\n{SECRET[:3]}: {SECRET}\n",
    )
    keys = {fault.partition(": ")[0] for fault in faults}
    assert keys >= {
        *("Pl4", "tls_server_config.cert", "tls_server_config.min_version"),
        *("tls_server_config.client_auth_type", "http_server_config.http3"),
        *("http_server_config.headers.X", "rate_limit.interval"),
        *(f"basic_auth_users.{user}" for user in "abc"),
    }


def test_a_file_that_is_not_there_or_no_text_is_one_fault(authority: Authority) -> None:
    for path in (authority.folder / "nowhere.yml", authority.folder):
        with pytest.raises(SettingsError, match=r"web\.config\.file: cannot be read"):
            read_web_config(str(path))
    (authority.folder / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="is not UTF-8"):
        read_web_config(str(authority.folder / "binary"))
    (authority.folder / "deep").write_text("[" * 100_000)
    with pytest.raises(SettingsError, match="nested too deep"):
        read_web_config(str(authority.folder / "deep"))


@pytest.mark.parametrize("name", [*CIPHERS, *TLS13_CIPHERS])
def test_every_suite_that_go_calls_secure_can_be_named(authority: Authority, name: str) -> None:
    config = read(authority, f"{TLS}  min_version: TLS13\n  cipher_suites: [{name}]\n")
    assert config.context is not None
    if name in CIPHERS:
        older = read(authority, f"{TLS}  max_version: TLS12\n  cipher_suites: [{name}]\n").context
        assert older is not None
        ours = {c["name"] for c in older.get_ciphers() if c["protocol"] != "TLSv1.3"}
        assert ours == {CIPHERS[name]}


@pytest.mark.parametrize("name", CURVES)
def test_every_curve_of_go_can_be_chosen(authority: Authority, name: str) -> None:
    assert read(authority, f"{TLS}  curve_preferences: [{name}]\n").context is not None


def test_an_encrypted_key_is_refused_and_asks_nobody(authority: Authority) -> None:
    from cryptography.hazmat.primitives import serialization as s

    plain = (authority.folder / "server-key.pem").read_bytes()
    key = s.load_pem_private_key(plain, None)
    locked = key.private_bytes(
        s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"locked")
    )
    (authority.folder / "locked.pem").write_bytes(locked)
    text = "tls_server_config: {cert_file: server.pem, key_file: locked.pem}"
    assert "the key is encrypted, and must not be" in refused(authority, text)[0]


# ---- laws ----

_TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
_KEYS = (
    st.sampled_from(
        (
            *(
                "tls_server_config",
                "http_server_config",
                "basic_auth_users",
                "rate_limit",
                "headers",
            ),
            *("cert_file", "key_file", "cert", "key", "client_ca", "client_auth_type", "burst"),
            *(
                "interval",
                "http2",
                "cipher_suites",
                "curve_preferences",
                "min_version",
                "X-Frame-Options",
            ),
        )
    )
    | _TEXTS
)
_VALUES = st.recursive(
    st.sampled_from(("", SECRET, HASH, "true", "1s", "5", "TLS12", "server.pem", "NoClientCert"))
    | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


_CHOICES = {
    *("client_auth_type", "cipher_suites", "curve_preferences", "min_version", "http2"),
    *("interval", "burst", "X-Frame-Options", "cert_file", "key_file"),
}


@given(st.dictionaries(_KEYS, _VALUES, max_size=4))
def test_any_document_is_read_or_refused_without_repeating_a_secret(
    authority: Authority, document: dict[str, object]
) -> None:
    try:
        config = read(authority, yaml.safe_dump(document, allow_unicode=True))
    except SettingsError as error:
        told = [fault for fault in error.faults if SECRET in str(fault.value)]
        # A word of a list of choices is repeated; what may be a key or a password is not.
        assert {fault.key.rpartition(".")[2] for fault in told} <= _CHOICES
    else:
        assert config.users == document.get("basic_auth_users", {}) or not config.users
        assert bool(config.context) == bool(config.tls)
        assert SECRET not in repr(config)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(authority: Authority, content: bytes) -> None:
    file = authority.folder / "bytes.yml"
    file.write_bytes(content)
    try:
        config = read_web_config(str(file))
    except SettingsError as error:
        told = error.faults
        assert told
    else:
        assert config.tls is None
        assert not config.users


@given(st.integers(min_value=0))
def test_no_beginning_of_a_good_file_opens_the_door(authority: Authority, cut: int) -> None:
    shutil.copy(FULL, authority.folder / "full.yml")
    whole = read_web_config(str(authority.folder / "full.yml"))
    text = FULL.read_text()
    try:
        now = read(authority, text[: cut % len(text)])
    except SettingsError:
        return
    if not lost_protection(whole, now):
        assert now.users
        assert now.tls is not None
        assert now.tls.client_auth is ssl.CERT_REQUIRED


def test_serve_says_every_fault_and_serves_nothing(tmp_path: Path) -> None:
    config = tmp_path / "web.yml"
    config.write_text(f"basic_auth_users: {{a: {SECRET}}}\nrate_limit: {{interval: soon}}\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vllm_capacity.cli", "serve", "--simulate"),
            *("--web.config.file", str(config), "--web.listen-address", "127.0.0.1:0"),
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 2
    assert "basic_auth_users.a: must be a bcrypt hash" in done.stderr
    assert "rate_limit.interval: must be a duration" in done.stderr
    assert SECRET not in done.stderr
