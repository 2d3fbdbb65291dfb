"""The files that say who the load is and whom it trusts: each mistake has one clear sentence, and no token is shown."""

import os
import re
import ssl

import pytest
from certificates import locked
from hypothesis import given
from hypothesis import strategies as st
from secure import Certificates

from loadtest import credentials
from loadtest.credentials import FIELDS, Credentials
from loadtest.option_error import OptionError
from loadtest.options import DEFAULTS, OPTIONS, validate
from loadtest.wires import FramedWire, parse_target, wire_of
from server.protocol import MAX_TOKEN

TOKEN = "a-token-that-nobody-may-see"
NONE = dict.fromkeys(FIELDS, "")
TCP, TLS, UNIX, HTTP = map(parse_target, ("tcp://h:1", "tls://h:1", "unix:///run/s", "http://h:1"))


def read(target=TLS, wire="", **fields):
    return credentials.read(target, NONE | {name: str(path) for name, path in fields.items()}, wire=wire)


@pytest.fixture(scope="module")
def issued(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return path


# ── what is read ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("target", [TCP, UNIX, HTTP], ids=lambda target: target.scheme)
def test_nothing_is_named(target):
    assert read(target) == Credentials(None, None)


def test_tls_verifies_certificates_and_names(issued):
    for found in (read(), read(ca=issued.ca)):
        assert found.tls.verify_mode == ssl.CERT_REQUIRED
        assert found.tls.check_hostname
        assert found.tls.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_an_authority_is_trusted_instead_of_the_systems(issued):
    assert len(read(ca=issued.ca).tls.get_ca_certs()) == 1


def test_a_file_of_authorities_may_have_other_text_in_it(issued, tmp_path):
    path = tmp_path / "bundle.pem"
    path.write_text(f"Née 1999\n{issued.ca.read_text()}\n# the end\n", encoding="utf-8")
    assert len(read(ca=path).tls.get_ca_certs()) == 1


def test_a_certificate_of_ones_own(issued):
    cert, key, both = issued.client()
    assert read(cert=both).tls
    assert read(cert=cert, key=key).tls


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("target", [TCP, TLS, UNIX], ids=lambda target: target.scheme)
def test_a_token(tmp_path, target, end):
    path = tmp_path / "token"
    path.write_bytes(f"grüße : {TOKEN}{end}".encode())
    assert read(target, token_file=path).token == f"grüße : {TOKEN}"


@pytest.mark.parametrize("token", ["x" * MAX_TOKEN, "é" * 600, "😀" * MAX_TOKEN], ids=lambda token: token[0])
def test_a_long_token_is_read_whole(tmp_path, token):
    path = tmp_path / "token"
    path.write_bytes(f"{token}\r\n".encode())
    assert read(token_file=path).token == token


def test_a_token_goes_into_each_header():
    wire = wire_of(TCP, token=TOKEN)(TCP)
    for name in ("a", "b"):
        assert f'"token":"{TOKEN}"'.encode() in wire.encode(name, 1, close=False)
    assert b"token" not in wire_of(TCP)(TCP).encode("a", 1, close=False)


def test_no_repr_shows_the_token(token_file):
    found = read(token_file=token_file)
    options = validate("tcp://h:1", DEFAULTS | {"token_file": str(token_file)})
    wire = options.wire(TCP)
    assert isinstance(wire, FramedWire)
    for shown in (found, options, options.wire, wire):
        assert TOKEN not in repr(shown)


def test_all_of_it_is_said_on_the_command_line_only():
    """A page that many may see shall not have files of this machine sent somewhere, nor show where secrets are."""
    own = [option for option in OPTIONS if option.field in FIELDS]
    assert tuple(option.field for option in own) == FIELDS
    assert all(option.reads_files and not option.in_form for option in own)


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", f"is no token: write 1 to {MAX_TOKEN} characters on one line"),
        (b"\n", "is no token"),
        (b"x" * (MAX_TOKEN + 1), "is no token"),
        (b"x" * 5_000_000, "is no token"),
        ("é".encode() * (MAX_TOKEN + 1), "is no token"),
        (b"one\ntwo", "is no token"),
        (b"tab\t", "is no token"),
        (b"\xff\xfe", "is not UTF-8: write the token as text"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_token(tmp_path, content, said):
    path = tmp_path / "token"
    path.write_bytes(content)
    mistake(f"token file: .*{re.escape(repr(str(path)))} ?.*{said}", token_file=path)


def mistake(said, target=TLS, **fields):
    with pytest.raises(OptionError, match=f"^{said}") as caught:
        read(target, **fields)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count(TOKEN) == 0


@pytest.mark.parametrize("name", ["token_file", "ca", "cert", "key"])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no/such/file", "'no/such/file' cannot be read: No such file or directory"),
        ("/", "'/' cannot be read: Is a directory"),
        ("a\0b", r"'a\\x00b' is no path"),
        ("\ud800", r"'\\ud800' is no path"),
        ("x" * 5000, "'xxx.*' cannot be read: File name too long"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_file(issued, name, path, said):
    others = {"cert": issued.client()[0]} if name == "key" else {}
    mistake(f"{name.replace('_', ' ')}: {said}", **others, **{name: path})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(token_file):
    token_file.chmod(0)
    mistake("token file: .* cannot be read: Permission denied", token_file=token_file)


@pytest.mark.parametrize("target", [TCP, UNIX, HTTP], ids=lambda target: target.scheme)
@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_certificates_without_tls(issued, target, name):
    mistake(f"{name} is for hosts of tls://, and this one is of {target.scheme}://", target, **{name: issued.ca})


def test_a_token_that_no_header_would_carry(token_file):
    mistake("token file: only the framed protocol carries a token", HTTP, token_file=token_file)
    mistake("token file: only the framed protocol carries a token", wire="line_wire:LineWire", token_file=token_file)


def test_a_key_of_nothing(issued):
    mistake("key: say which certificate it is the key of: --cert", key=issued.client()[1])


def test_what_is_no_certificate(issued, token_file):
    cert, key, _ = issued.client()
    mistake("ca: there is no certificate in '/dev/null'", ca="/dev/null")
    mistake(f"ca: there is no certificate in '{token_file}'", ca=token_file)
    mistake(f"ca: there is no certificate in '{key}'", ca=key)
    mistake(f"cert: there is no certificate in '{token_file}' with its key", cert=token_file)
    mistake(f"cert: there is no certificate in '{cert}' with its key", cert=cert)
    mistake(f"cert: there is no certificate in '{cert}' with the key in '{token_file}'", cert=cert, key=token_file)


def test_a_key_of_another_certificate(issued):
    mistake("cert: there is no .*: key values mismatch", cert=issued.client()[0], key=issued.client("other")[1])


def test_a_key_with_a_password_is_not_asked_for(issued):
    """Nobody could answer: a load process has no terminal."""
    cert, key, _ = issued.client()
    secret = locked(key)
    mistake(f"cert: the key in '{secret}' has a password: decrypt it", cert=cert, key=secret)


@given(st.sampled_from(FIELDS), st.text(), st.sampled_from(["tcp://h:1", "tls://h:1", "unix:///s", "http://h:1"]))
def test_any_text_is_a_file_or_an_option_error(field, text, host):
    if text.strip().startswith("/"):
        return  # of this machine's own files some never end
    try:
        validate(host, DEFAULTS | {field: text})
    except OptionError as error:
        assert "\n" not in str(error)
