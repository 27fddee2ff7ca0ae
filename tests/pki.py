"""Certificates for tests, made anew for each run by trustme."""

from dataclasses import dataclass
from pathlib import Path

import bcrypt
import trustme

#: The password of every user of the tests, and its hash; cost 4 so that tests are fast.
PASSWORD = "correct horse"  # noqa: S105 (of no one)
HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$")


@dataclass(frozen=True)
class Identity:
    """A certificate with its key in files."""

    cert: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """Signs certificates into a folder."""

    folder: Path
    ca: trustme.CA

    @classmethod
    def new(cls, folder: Path) -> "Authority":
        folder.mkdir(parents=True, exist_ok=True)
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        return cls(folder, ca)

    @property
    def pem(self) -> Path:
        return self.folder / "ca.pem"

    def signs(self, name: str, *identities: str) -> Identity:
        """A certificate for host names, addresses or e-mails, as ``name``.pem and -key.pem."""
        signed = self.ca.issue_cert(*(identities or ("localhost", "127.0.0.1", "::1")))
        identity = Identity(self.folder / f"{name}.pem", self.folder / f"{name}-key.pem")
        identity.cert.write_bytes(b"".join(blob.bytes() for blob in signed.cert_chain_pems))
        signed.private_key_pem.write_to_path(str(identity.key))
        return identity
