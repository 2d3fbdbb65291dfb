"""Certificates for tests: an authority of their own, and what it signs, as files and as a client's context."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

NAMES = ("127.0.0.1", "::1", "localhost")


class Authority:
    """One that signs. Files go to `folder`, readable by their owner only."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self.file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def server(self, name: str = "server", *, days: int = 30, kind: trustme.KeyType = trustme.KeyType.ECDSA) -> Path:
        """A certificate for this machine with its key, in one file; expired when `days` is negative."""
        return self._write(name, self._issue(*NAMES, days=days, kind=kind))

    def client(self, name: str = "client", *, days: int = 30) -> Path:
        return self._write(name, self._issue("somebody@example.org", days=days))

    def context(self, certificate: Path | None = None) -> ssl.SSLContext:
        """For a client that trusts this authority, and shows this certificate."""
        context = ssl.create_default_context(cafile=self.file)
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context

    def _issue(self, *names: str, days: int, kind: trustme.KeyType = trustme.KeyType.ECDSA) -> trustme.LeafCert:
        now = datetime.now(UTC)
        start, end = sorted((now - timedelta(days=2 * abs(days)), now + timedelta(days=days)))
        return self._ca.issue_cert(*names, not_before=start, not_after=end, key_type=kind)

    def _write(self, name: str, certificate: trustme.LeafCert) -> Path:
        path = self._folder / f"{name}.pem"
        new = path.with_suffix(".new")
        new.touch(mode=0o600)
        certificate.private_key_and_cert_chain_pem.write_to_path(new)
        return new.rename(path)


def locked(key: Path) -> Path:
    """The same key in a file beside it, with a passphrase."""
    private = load_pem_private_key(key.read_bytes(), None)
    path = key.with_suffix(".locked")
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"sesame")))
    return path
