"""Addresses as people write them, and as they are written back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.addresses import Address, parse_addresses, write_addresses
from server.units import MAX_UNIX_PATH_BYTES


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:12345", Address("tcp", "127.0.0.1", 12345)),
        ("tcp://127.0.0.1:0", Address("tcp", "127.0.0.1", 0)),
        ("[::1]:65535", Address("tcp", "::1", 65535)),
        ("[fe80::1%eth0]:1", Address("tcp", "fe80::1%eth0", 1)),
        ("tls://[::]:443", Address("tls", "::", 443)),
        (" tls://localhost:443 ", Address("tls", "localhost", 443)),
        ("unix:///run/a.sock", Address("unix", path="/run/a.sock")),
        ("unix:///a b:1", Address("unix", path="/a b:1")),
    ],
)
def test_an_address(text: str, address: Address) -> None:
    assert parse_addresses(text) == (address,)
    assert parse_addresses(str(address)) == (address,)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ",", "a", "1", ":1", "a:", "a:b", "a:-1", "a:65536", "a:999999", "::1:1", "[::1]", "[]:1", "[a]]:1"),
        *(
            "http://a:1",
            "tls:a:1",
            "tls://",
            "://a:1",
            "TLS://a:1",
            "a:1/",
            "a/b:1",
            "a\n:1",
            "a:１",
            "a:1,",
            "tls://tcp://a:1",
        ),
        *("unix:/a", "unix://", "unix://a", "unix:///", "unix:///a/", "unix:///a\0", "unix:///a\nb"),
        "unix:///" + "ö" * 54,
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_addresses(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "tcp://user:hunter2@127.0.0.1:1",
            "hunter2@127.0.0.1:1",
            "tls://hunter2@[::1]:1",
            "[hunter2@::1]:1",
            "a:1?hunter2",
        ),
        *("user:hunter2%40127.0.0.1:1", "user:hunter2\N{FULLWIDTH COMMERCIAL AT}127.0.0.1:1", "a:1#hunter2"),
        *("unix://user:hunter2@a/b", "unix:///hunter2@" + "x" * 108, "a:1,tls:user:hunter2@a:1"),
    ],
)
def test_what_may_be_a_password_is_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="what was given ") as caught:
        parse_addresses(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["a:1,a:1", "tls://a:1,b:2,tls://a:1", "unix:///a,unix:///a"])
def test_the_same_one_twice_is_a_slip(text: str) -> None:
    with pytest.raises(ValueError, match="is given twice"):
        parse_addresses(text)


def test_a_free_port_may_be_wanted_twice() -> None:
    assert len(parse_addresses("a:0,a:0")) == 2


def test_the_longest_path() -> None:
    [address] = parse_addresses("unix:///" + "x" * (MAX_UNIX_PATH_BYTES - 1))
    assert len(address.path) == MAX_UNIX_PATH_BYTES


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        found = parse_addresses(text)
    except ValueError:
        return
    assert parse_addresses(write_addresses(found)) == found
