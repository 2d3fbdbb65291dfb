"""A certificate, its key and its clients' authority: read whole, or refused with the file and the reason."""

from pathlib import Path
from typing import Any

import pytest
import trustme
from certificates import Authority, locked
from cryptography import x509

from server import certificates
from server.options import ConfigError
from server.settings import Settings, Sources


def read(**flags: Any) -> Settings:
    return Sources({"discard": True} | {name: str(path) for name, path in flags.items()}, {}).read()


def problem(**flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(**flags)
    [told] = caught.value.problems
    assert told.isprintable()
    return told


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def parts(certificate: Path) -> tuple[Path, Path]:
    """The certificate and its key, in files of their own."""
    text = certificate.read_bytes()
    at = text.index(b"-----BEGIN CERTIFICATE-----")
    cert, key = certificate.with_suffix(".crt"), certificate.with_suffix(".key")
    cert.write_bytes(text[at:])
    key.touch(mode=0o600)
    key.write_bytes(text[:at])
    return cert, key


def test_key_and_certificate_may_be_in_one_file_or_in_two(authority: Authority) -> None:
    certificate = authority.server()
    cert, key = parts(certificate)
    for settings in (read(tls_cert=certificate), read(tls_cert=cert, tls_key=key)):
        assert settings.warnings == ()
        tls = settings.config.tls
        assert tls is not None
        assert not tls.asks_clients
        assert [str(address) for address in settings.config.addresses] == ["tls://127.0.0.1:12345"]


def test_what_was_read_twice_is_equal_and_what_changed_is_not(authority: Authority) -> None:
    certificate = authority.server()
    first = read(tls_cert=certificate).config
    assert read(tls_cert=certificate).config == first
    assert read(tls_cert=certificate, tls_client_ca=authority.file).config != first
    authority.server()
    assert read(tls_cert=certificate).config != first


def test_clients_may_be_asked(authority: Authority) -> None:
    tls = read(tls_cert=authority.server(), tls_client_ca=authority.file).config.tls
    assert tls is not None and tls.asks_clients


def test_what_cannot_be_used_is_told_with_its_file_and_its_reason(authority: Authority, tmp_path: Path) -> None:
    certificate, another = authority.server(), authority.server("another")
    cert, key = parts(certificate)
    _, wrong_key = parts(another)
    none = tmp_path / "none"
    (tmp_path / "broken").write_text("-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\nPRIVATE KEY-----")
    broken = tmp_path / "broken"
    assert problem(tls_cert=none) == (
        f"tls_cert is {none} (from --tls-cert), which cannot be read: No such file or directory"
    )
    assert problem(tls_cert=cert) == f"tls_cert is {cert} (from --tls-cert), which holds no private key (PEM)"
    assert (
        problem(tls_cert=key, tls_key=key) == f"tls_cert is {key} (from --tls-cert), which holds no certificate (PEM)"
    )
    assert (
        problem(tls_cert=cert, tls_key=cert) == f"tls_key is {cert} (from --tls-key), which holds no private key (PEM)"
    )
    assert problem(tls_cert=cert, tls_key=wrong_key) == (
        f"tls_key is {wrong_key} (from --tls-key), whose key does not belong to the certificate"
    )
    assert problem(tls_cert=broken).startswith(f"tls_cert is {broken} (from --tls-cert), which cannot be used: ")
    assert problem(tls_cert=certificate, tls_client_ca=key) == (
        f"tls_client_ca is {key} (from --tls-client-ca), which holds no certificate (PEM)"
    )
    assert problem(tls_cert=certificate, tls_client_ca=broken).startswith(
        f"tls_client_ca is {broken} (from --tls-client-ca), which cannot be used: "
    )
    assert problem(tls_key=key) == f"tls_key is {key} (from --tls-key), but there is no tls_cert"
    assert problem(tls_client_ca=cert) == f"tls_client_ca is {cert} (from --tls-client-ca), but there is no tls_cert"
    assert problem(tls_cert=certificate, listen="127.0.0.1:0") == (
        "listen is 127.0.0.1:0 (from --listen), but there is a tls_cert: write tls:// for it"
    )


def test_a_key_of_another_kind_does_not_belong_to_the_certificate(authority: Authority) -> None:
    cert, _ = parts(authority.server())
    _, rsa_key = parts(authority.server("rsa", kind=trustme.KeyType.RSA))
    assert problem(tls_cert=cert, tls_key=rsa_key) == (
        f"tls_key is {rsa_key} (from --tls-key), whose key does not belong to the certificate"
    )


@pytest.mark.parametrize("gone", ["tls_cert", "tls_key", "tls_client_ca"])
def test_a_file_that_goes_while_they_are_read_is_told(
    gone: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = parts(authority.server())
    files = {"tls_cert": cert, "tls_key": key, "tls_client_ca": authority.file}
    read_bytes = Path.read_bytes

    def read_and_removed(path: Path) -> bytes:
        content = read_bytes(path)
        if path == files[gone]:
            path.unlink()
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_removed)
    assert problem(**files).startswith(f"{gone} is {files[gone]} (from --")
    assert not files[gone].exists()


@pytest.mark.parametrize("bytes_read", [30, 300, 301, 302, 303])
def test_half_a_certificate_that_is_whole_a_moment_later_is_told(
    bytes_read: int, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = parts(authority.server())
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read_bytes(path)[: bytes_read if path == cert else None])
    assert problem(tls_cert=cert, tls_key=key) == (
        f"tls_cert is {cert} (from --tls-cert), whose expiry cannot be read: it may just be being changed"
    )


@pytest.mark.parametrize("comment", ["# -----BEGIN CERTIFICATE----- follows", "-----END CERTIFICATE----- precedes", ""])
@pytest.mark.parametrize("end", ["\n", " \r\n"])
def test_a_comment_is_no_certificate(comment: str, end: str, authority: Authority) -> None:
    cert, key = parts(authority.server())
    plain = certificates.load(cert, key, None)
    cert.write_text(f"{comment}\n{cert.read_text()}".replace("\n", end))
    assert certificates.load(cert, key, None).expires_s == plain.expires_s


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(authority: Authority) -> None:
    cert, key = parts(authority.server())
    secret = locked(key)
    assert problem(tls_cert=cert, tls_key=secret) == (
        f"tls_key is {secret} (from --tls-key), whose key has a passphrase, which nobody is there to type"
    )


def test_an_expired_one_is_warned_of(authority: Authority) -> None:
    [warning] = read(tls_cert=authority.server(days=-3)).warnings
    assert " expired on 20" in warning
    assert warning.endswith(" UTC: clients will refuse it")


def test_a_key_that_is_open_to_others_is_warned_of(authority: Authority) -> None:
    cert, key = parts(authority.server())
    cert.chmod(0o644)
    assert read(tls_cert=cert, tls_key=key).warnings == ()
    key.chmod(0o640)
    assert read(tls_cert=cert, tls_key=key).warnings == (
        f"{key} (from --tls-key) is open to other users: chmod 600 it",
    )


@pytest.mark.parametrize("days", [1, 30, 10_000])
def test_when_it_expires_is_what_another_reader_says(authority: Authority, days: int) -> None:
    """Later than 2049 a time is written in another form."""
    certificate = authority.server(days=days)
    found = certificates.load(certificate, None, None).expires_s
    [first, *_] = x509.load_pem_x509_certificates(certificate.read_bytes())
    assert found == first.not_valid_after_utc.timestamp()
