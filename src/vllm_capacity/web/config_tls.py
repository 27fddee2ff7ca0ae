"""``tls_server_config`` of the web configuration."""

import ssl
from pathlib import Path
from typing import Any

from vllm_capacity.errors import Fault
from vllm_capacity.secrecy import HIDDEN
from vllm_capacity.web.config_section import Section, switch
from vllm_capacity.web.tls import (
    CIPHERS,
    CLIENT_AUTH,
    CURVES,
    OLD_VERSIONS,
    TLS13_CIPHERS,
    VERSIONS,
    TlsSettings,
)

_WHERE = "tls_server_config"
_KEYS = (
    *("cert", "key", "client_ca", "cert_file", "key_file", "client_ca_file"),
    *("client_auth_type", "client_allowed_sans", "min_version", "max_version"),
    *("cipher_suites", "prefer_server_cipher_suites", "curve_preferences"),
)
_MAX_PEM_BYTES = 1 << 20
_UNVERIFIED = ("RequireAnyClientCert", "RequireClientCert")


def read_tls(
    value: Any, folder: Path, faults: list[Fault]
) -> tuple[TlsSettings | None, tuple[Path, ...]]:
    """The settings, None for plain HTTP, and the files that they were read from.

    Args:
        value: what stands in the file; nothing means plain HTTP, and so does an empty mapping.
        folder: where relative paths start.
        faults: grows.
    """
    tls = Section(_WHERE, value, _KEYS, faults)
    if not list(tls):
        return None, ()
    files: list[Path] = []
    certificate = _pem(tls, "cert", folder, files)
    key = _pem(tls, "key", folder, files)
    client_ca = _pem(tls, "client_ca", folder, files)
    minimum, maximum = _version(tls, "min_version"), _version(tls, "max_version")
    for name, pem in (("cert", certificate), ("key", key)):
        if pem is None and not tls.value(name) and not tls.value(f"{name}_file"):
            tls.fault(name, None, f"is missing; name it in {name}_file, or write it here")
    if minimum is not None and maximum is not None and minimum > maximum:
        tls.fault("max_version", tls.value("max_version"), "must not be less than min_version")
    client_auth = _client_auth(tls, has_ca=bool(tls.value("client_ca") or client_ca is not None))
    settings = TlsSettings(
        certificate_pem=certificate or b"",
        key_pem=key or b"",
        client_ca_pem=client_ca,
        client_auth=client_auth,
        client_allowed_sans=_allowed_sans(tls, client_auth),
        minimum_version=minimum or ssl.TLSVersion.TLSv1_2,
        maximum_version=maximum or ssl.TLSVersion.TLSv1_3,
        ciphers=_ciphers(tls, minimum or ssl.TLSVersion.TLSv1_2),
        prefers_server_ciphers=tls.parsed("prefer_server_cipher_suites", switch, default=True),
        curve=_curve(tls),
    )
    return (settings if certificate and key else None), tuple(files)


def _pem(tls: Section, name: str, folder: Path, files: list[Path]) -> bytes | None:
    """What ``name`` holds, or the file that ``name_file`` names; None where neither does."""
    inline, path = tls.text(name), tls.text(f"{name}_file")
    if inline and path:
        tls.fault(name, HIDDEN, f"must not stand beside {name}_file")
        return None
    if inline:
        return inline.encode()
    if not path:
        return None
    file = folder / path
    files.append(file)
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_PEM_BYTES + 1)
    except OSError as error:
        tls.fault(f"{name}_file", path, f"cannot be read: {error.strerror or error}")
        return None
    if not content or len(content) > _MAX_PEM_BYTES:
        tls.fault(f"{name}_file", path, f"must hold PEM, at most {_MAX_PEM_BYTES} bytes")
        return None
    return content


def _version(tls: Section, key: str) -> ssl.TLSVersion | None:
    word = tls.text(key)
    if word in OLD_VERSIONS:
        tls.fault(key, word, "is broken, and refused by OpenSSL 3; use TLS12 or TLS13")
        return None
    return tls.one_of(key, VERSIONS, None)


def _client_auth(tls: Section, *, has_ca: bool) -> ssl.VerifyMode:
    word = tls.text("client_auth_type")
    if word in _UNVERIFIED:
        problem = "cannot be had, and proves nothing: use RequireAndVerifyClientCert"
        tls.fault("client_auth_type", word, problem)
        return ssl.CERT_NONE
    policy = tls.one_of("client_auth_type", CLIENT_AUTH, ssl.CERT_NONE)
    if policy is not ssl.CERT_NONE and not has_ca and not tls.text("client_ca_file"):
        problem = "needs client_ca_file or client_ca; the system's authorities sign for everybody"
        tls.fault("client_auth_type", word, problem)
    if policy is ssl.CERT_NONE and (has_ca or tls.text("client_ca_file")):
        problem = "must be VerifyClientCertIfGiven or RequireAndVerifyClientCert with a client_ca"
        tls.fault("client_auth_type", word or None, problem)
    return policy


def _allowed_sans(tls: Section, client_auth: ssl.VerifyMode) -> frozenset[str]:
    names = tls.texts("client_allowed_sans")
    if names and client_auth is not ssl.CERT_REQUIRED:
        problem = "needs client_auth_type RequireAndVerifyClientCert"
        tls.fault("client_allowed_sans", list(names), problem)
    return frozenset(names)


def _ciphers(tls: Section, minimum: ssl.TLSVersion) -> tuple[str, ...]:
    names = tls.texts("cipher_suites")
    for name in names:
        if name not in CIPHERS and name not in TLS13_CIPHERS:
            tls.fault("cipher_suites", name, f"must be of {', '.join((*CIPHERS, *TLS13_CIPHERS))}")
    chosen = tuple(CIPHERS[name] for name in names if name in CIPHERS)
    if names and not chosen and minimum < ssl.TLSVersion.TLSv1_3:
        problem = "names no suite of TLS 1.2; suites of TLS 1.3 need min_version: TLS13"
        tls.fault("cipher_suites", list(names), problem)
    return chosen


def _curve(tls: Section) -> str | None:
    names = tls.texts("curve_preferences")
    for name in names:
        if name not in CURVES:
            tls.fault("curve_preferences", name, f"must be of {', '.join(CURVES)}")
    if len(names) > 1:
        problem = "can be one curve here; leave it out for OpenSSL's own order, X25519 first"
        tls.fault("curve_preferences", list(names), problem)
    return CURVES.get(names[0]) if names else None
