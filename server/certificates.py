"""The server's certificate and key, and whom it trusts to vouch for clients: read by the supervisor, at the start and
at each reload, before a worker sees them.

A worker gets what was read, and never looks at the files: one that replaces another in the middle of the night must not
meet a certificate that is just being changed. All workers share one context, so that a session of TLS 1.2 that began at
one goes on at another.
"""

import hashlib
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_WHOLE = re.compile(rb"^-----BEGIN CERTIFICATE-----\s*$.*?^-----END CERTIFICATE-----", re.MULTILINE | re.DOTALL)
"""One as OpenSSL finds it: what a comment says of it does not count."""
_KEY = b"PRIVATE KEY-----"
# With a key of another kind, OpenSSL looks for a certificate of that kind, and says that there is none.
_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
_UTC_TIME = 0x17  # ASN.1: a time with two digits for the year


class CertificateError(Exception):
    """A file cannot be used. `option` is the one that names it; the text says why, as the end of a sentence."""

    def __init__(self, option: str, why: str) -> None:
        super().__init__(why)
        self.option = option


@dataclass(frozen=True, slots=True)
class Tls:
    """What a server speaks TLS with. Two are equal when the same was read for both."""

    digest: str
    """SHA-256 of all that was read, in hexadecimal."""
    asks_clients: bool
    """Whether a client must show a certificate."""
    expires_s: float
    """When the certificate does, in seconds since the epoch."""
    context: "ssl.SSLContext" = field(compare=False, repr=False)

    def expired(self) -> str | None:
        """When that was; None as long as it has not."""
        if time.time() < self.expires_s:
            return None
        return datetime.fromtimestamp(self.expires_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def load(cert: Path, key: Path | None, client_ca: Path | None) -> Tls:
    """Read a certificate with its chain, its key, which may be in the same file, and the certificates that clients'
    must be signed by. All are PEM. CertificateError when they cannot be used."""
    import ssl  # 10 ms that a server without TLS does not wait for

    read = [_read("tls_cert", cert, _CERTIFICATE, "certificate")]
    key_option = "tls_cert" if key is None else "tls_key"
    read.append(_read(key_option, key or cert, _KEY, "private key"))
    if client_ca is not None:
        read.append(_read("tls_client_ca", client_ca, _CERTIFICATE, "certificate"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # TLS 1.3 sends tickets after the handshake. A client that never reads closes with them unread, and its kernel then
    # sends a reset in place of the end of its upload.
    context.num_tickets = 0

    def no_passphrase() -> str:
        raise CertificateError(key_option, "whose key has a passphrase, which nobody is there to type")

    try:
        context.load_cert_chain(cert, key or cert, no_passphrase)
    except ssl.SSLError as error:
        if error.reason in _MISMATCHES:
            raise CertificateError(key_option, "whose key does not belong to the certificate") from None
        raise CertificateError("tls_cert", f"which cannot be used: {_reason(error)}") from None
    except OSError as error:  # it was there a moment ago
        raise _unreadable(key_option if cert.exists() else "tls_cert", error) from None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError as error:
            raise CertificateError("tls_client_ca", f"which cannot be used: {_reason(error)}") from None
        except OSError as error:
            raise _unreadable("tls_client_ca", error) from None
        context.verify_mode = ssl.CERT_REQUIRED
    try:
        own, *_ = _WHOLE.findall(read[0])  # those that signed it follow
        expires_s = _expiry_s(ssl.PEM_cert_to_DER_cert(own.decode()))
    except (ValueError, IndexError):  # half of it was there when it was read, and all when OpenSSL looked
        raise CertificateError("tls_cert", "whose expiry cannot be read: it may just be being changed") from None
    digest = hashlib.sha256(b"\0".join(read)).hexdigest()
    return Tls(digest, client_ca is not None, expires_s, context)


def _read(option: str, path: Path, mark: bytes, what: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(option, error) from None
    if mark not in content:
        raise CertificateError(option, f"which holds no {what} (PEM)")
    return content


def _unreadable(option: str, error: OSError) -> CertificateError:
    return CertificateError(option, f"which cannot be read: {error.strerror}")


def _reason(error: "ssl.SSLError") -> str:
    return (error.reason or str(error)).lower().replace("_", " ")


def _expiry_s(der: bytes) -> float:
    """`notAfter` of a certificate (RFC 5280, 4.1), in seconds since the epoch; the ssl module tells only peers'."""
    _, at, _ = _element(der, 0)  # Certificate
    _, at, _ = _element(der, at)  # tbsCertificate
    tag, _, end = _element(der, at)
    if tag == 0xA0:  # its version, which may be left out
        at = end
    for _ in ("serialNumber", "signature", "issuer"):
        _, _, at = _element(der, at)
    _, at, _ = _element(der, at)  # validity
    _, _, at = _element(der, at)  # notBefore
    tag, start, end = _element(der, at)
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(der[start:end].decode(), form).replace(tzinfo=UTC).timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag of the element at `at`, and where its content starts and ends."""
    tag, length, start = der[at], der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(der[start : start + size], "big")
        start += size
    return tag, start, start + length
