"""Addresses to listen on, as people write them: `127.0.0.1:12345`, `tls://[::1]:12345`, `unix:///run/upload.sock`.

A leaf. `parse_` reads what a person typed, and what is written reads back as the same value. What cannot be an address
is a ValueError whose text says what would be right, and repeats nothing that may be a password.
"""

import os
import re
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from server.printing import quoted
from server.units import MAX_UNIX_PATH_BYTES

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

_HOST_PORT = re.compile(r"(?:\[([^\[\]@?#]+)\]|([^:\[\]/@?#]+)):([0-9]{1,5})", re.ASCII)

Scheme = Literal["tcp", "tls", "unix"]


class Address(NamedTuple):
    """Host and port of TCP, without or with TLS; or the path of a unix socket."""

    scheme: Scheme
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.path}"
        return ("tls://" if self.scheme == "tls" else "") + write_host_port(self.host, self.port)


def write_host_port(host: str, port: int) -> str:
    """`127.0.0.1:12345` or `[::1]:12345`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def overlap(one: Address, other: Address) -> bool:
    """Whether only one of the two can be listened on. Port 0 takes a free one. Of names only localhost is known: others
    would have to be looked up."""
    if "unix" in (one.scheme, other.scheme) or not one.port == other.port != 0:
        return False
    return one.host == other.host or any(
        a == b or (a.version == b.version and (a.is_unspecified or b.is_unspecified))  # :: takes no IPv4 here
        for a in _numbers(one.host)
        for b in _numbers(other.host)
    )


def _numbers(host: str) -> "list[IPv4Address | IPv6Address]":
    from ipaddress import ip_address  # 3 ms that only a server with two equal ports waits for

    try:
        return [ip_address(each) for each in (("127.0.0.1", "::1") if host.lower() == "localhost" else (host,))]
    except ValueError:
        return []


def parse_addresses(text: str) -> tuple[Address, ...]:
    """One or more, with commas between them. ValueError when one of them is none, or given twice."""
    found = tuple(_parse(part.strip()) for part in text.split(","))
    for address in found:
        if found.count(address) > 1 and (address.path or address.port):
            raise ValueError(f"{str(address)!r} is given twice")
    return found


def write_addresses(addresses: tuple[Address, ...]) -> str:
    return ",".join(map(str, addresses)) or "none"


def _parse(text: str) -> Address:
    scheme, _, place = text.partition("://") if "://" in text else ("tcp", "", text)
    if scheme == "unix":
        return Address("unix", path=_unix_path(text, place))
    match = _HOST_PORT.fullmatch(place)
    if scheme not in ("tcp", "tls") or match is None or not place.isprintable() or int(match[3]) > 65_535:
        raise ValueError(
            f"{quoted(text)} is not an address: write HOST:PORT or [IPV6]:PORT, with tls:// before it for TLS, or unix:///PATH"
        )
    return Address(cast(Scheme, scheme), match[1] or match[2], int(match[3]))


def _unix_path(text: str, path: str) -> str:
    if not path.startswith("/") or path.endswith("/") or not path.isprintable():
        raise ValueError(f"{quoted(text)} is not the path of a socket: write unix:///PATH, from the root on")
    if (length := len(os.fsencode(path))) > MAX_UNIX_PATH_BYTES:
        raise ValueError(
            f"{quoted(text)} has {length} bytes in its path, and a socket's may have {MAX_UNIX_PATH_BYTES}"
        )
    return path
