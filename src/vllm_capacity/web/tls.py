"""TLS of our web server: what Go's words mean to OpenSSL, and a context made of it."""

import ipaddress
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VERSIONS: Mapping[str, ssl.TLSVersion] = {
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
#: What OpenSSL 3 refuses in its default security level, whatever the least version is.
OLD_VERSIONS = ("TLS10", "TLS11")

#: Go's ``tls.CipherSuites()`` of TLS 1.2 (Go 1.22 and later) → OpenSSL's names.
CIPHERS: Mapping[str, str] = {
    f"TLS_ECDHE_{key}_WITH_{go}": f"ECDHE-{key}-{openssl}"
    for key in ("ECDSA", "RSA")
    for go, openssl in (
        ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
        ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"),
        ("AES_128_CBC_SHA", "AES128-SHA"),
        ("AES_256_CBC_SHA", "AES256-SHA"),
    )
}
#: Suites of TLS 1.3 cannot be chosen, in Go as here; the names are known and have no effect.
TLS13_CIPHERS = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
#: The suites without a say: those of forward secrecy that authenticate what they encrypt.
_DEFAULT_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
CURVES: Mapping[str, str] = {
    "CurveP256": "prime256v1",
    "CurveP384": "secp384r1",
    "CurveP521": "secp521r1",
    "X25519": "X25519",
}
#: Policies for client certificates that Python's ssl has. A certificate that is asked for and
#: not verified, as RequestClientCert does, gives nobody more or less than not asking.
CLIENT_AUTH: Mapping[str, ssl.VerifyMode] = {
    "NoClientCert": ssl.CERT_NONE,
    "RequestClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsSettings:
    """What ``tls_server_config`` says, read and checked word by word.

    Attributes:
        certificate_pem: the server's certificate and those between it and its authority.
        key_pem: its key.
        client_ca_pem: authorities of client certificates; None: none is verified.
        client_auth: whether a client needs a certificate.
        client_allowed_sans: alternative names of which a client's certificate needs one; empty:
            any does.
        minimum_version: least version of TLS.
        maximum_version: greatest one.
        ciphers: suites of TLS 1.2 in OpenSSL's words; empty: ours.
        prefers_server_ciphers: whether our order of suites counts, or the client's.
        curve: the one curve of the key exchange, in OpenSSL's words; None: OpenSSL's choice.
    """

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    client_ca_pem: bytes | None = None
    client_auth: ssl.VerifyMode = ssl.CERT_NONE
    client_allowed_sans: frozenset[str] = frozenset()
    minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    maximum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ciphers: tuple[str, ...] = ()
    prefers_server_ciphers: bool = True
    curve: str | None = None


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """The context for new connections.

    Raises:
        ValueError: the certificates and keys cannot be used together, and why.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = settings.minimum_version
    context.maximum_version = settings.maximum_version
    context.set_ciphers(":".join(settings.ciphers) or _DEFAULT_CIPHERS)
    if not settings.prefers_server_ciphers:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    if settings.curve is not None:
        context.set_ecdh_curve(settings.curve)
    _load_certificate(context, settings)
    if settings.client_ca_pem is not None:
        _load_authorities(context, settings.client_ca_pem)
    context.verify_mode = settings.client_auth
    # As in Go, every certificate that is given is trusted as it is, an intermediate one too.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def alternative_names(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """The alternative names of a certificate as Go writes them: of DNS, e-mail, IP and URI.

    Args:
        certificate: as ``ssl.SSLSocket.getpeercert`` tells it; None where there is none.
    """
    names = (certificate or {}).get("subjectAltName", ())
    return frozenset(_as_go_writes(kind, name) for kind, name in names)


def _as_go_writes(kind: str, name: str) -> str:
    if kind != "IP Address":
        return name
    try:
        return str(ipaddress.ip_address(name.strip()))
    except ValueError:
        return name


def _load_certificate(context: ssl.SSLContext, settings: TlsSettings) -> None:
    """Load from memory, what Python's ssl can from files alone; nothing is written to a disk."""
    if b"ENCRYPTED" in settings.key_pem:  # would ask for its password on our terminal
        raise ValueError("the key is encrypted, and must not be")
    descriptor = os.memfd_create("certificate")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(settings.key_pem + b"\n" + settings.certificate_pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except ssl.SSLError as error:
        raise ValueError(_problem_of_pair(error)) from None
    finally:
        os.close(descriptor)


def _problem_of_pair(error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "certificate and key do not belong together"
    reason = (error.reason or "no PEM block").lower().replace("_", " ")
    return f"certificate and key cannot be used: {reason}; they must be PEM"


def _load_authorities(context: ssl.SSLContext, pem: bytes) -> None:
    try:
        context.load_verify_locations(cadata=pem.decode("ascii", "replace"))
    except ssl.SSLError as error:
        reason = (error.reason or "no certificate in it").lower().replace("_", " ")
        raise ValueError(f"client_ca cannot be used: {reason}; it must be PEM") from None
