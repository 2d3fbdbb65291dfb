"""Listening sockets: made by the supervisor, inherited by the workers.

Two ways to accept, which scale alike and differ in balance:

    per-worker   one socket per worker slot, all on one port with SO_REUSEPORT: the kernel spreads new connections over
                 them, so 8 workers got 110 to 148 of 1,000 connections each
    shared       one socket for all: whoever is awake first accepts, which gave the first two of 8 nearly all. For
                 sockets that cannot be made anew, and where one worker that is slow must not hold a queue of its own

Because the supervisor keeps them, the queue of a killed worker waits for its replacement and no connection is reset.

SO_REUSEPORT has a trap: a second server of the same user would silently share the port. So the first socket is bound
without it, which fails when the port is in use; only then is the option set, and the others join.
"""

import errno
import logging
import socket
from collections.abc import Callable

from server import sockets, steering
from server.config import AcceptMode

log = logging.getLogger("server")

SYN_RECEIVED = 1 << 3  # as a mask of TCP states: handshakes that wait for their last packet


class PortInUseError(Exception):
    """Somebody listens on the port already."""

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} is in use")
        self.port = port


class AddressError(Exception):
    """The address cannot be listened on; the text says why."""


class Listeners:
    """The sockets of one port. In mode `per-worker` the kernel numbers those of a port in the order in which they began
    to listen, and goes on so when the last one leaves: that is why slots are added and removed at the end."""

    def __init__(self, found: list[socket.socket], mode: AcceptMode, backlog: int) -> None:
        self._sockets = found
        self._mode = mode
        self._backlog = backlog
        self.address = format_address(found[0])
        self.port: int = found[0].getsockname()[1]

    @classmethod
    def open(cls, host: str, port: int, slots: int, backlog: int, mode: AcceptMode = "per-worker") -> "Listeners":
        """Listen, close-on-exec and non-blocking; port 0 takes a free one. PortInUseError or AddressError, after which
        no socket is left open."""
        family, address = _resolve(host, port)
        found: list[socket.socket] = []
        try:
            found.append(_bind(family, address, reuse_port=False))
            if mode == "per-worker":
                found[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                bound = found[0].getsockname()
                while len(found) < slots:
                    found.append(_bind(family, bound, reuse_port=True))
            for sock in found:
                sock.listen(backlog)
        except OSError as error:
            _close_all(found)
            if error.errno == errno.EADDRINUSE:
                raise PortInUseError(port) from None
            raise AddressError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        return cls(found, mode, backlog)

    def of(self, slot: int) -> socket.socket:
        """Where the worker in this slot accepts."""
        return self._sockets[slot if self._mode == "per-worker" else 0]

    def keep_only(self, slot: int) -> socket.socket:
        """In a worker: close all but its own."""
        own = self.of(slot)
        _close_all([sock for sock in self._sockets if sock is not own])
        return own

    def add(self) -> None:
        """For one slot more. OSError when there can be none."""
        if self._mode == "per-worker":
            first = self._sockets[0]
            added = _bind(first.family, first.getsockname(), reuse_port=True)
            added.listen(self._backlog)
            self._sockets.append(added)

    def steer_away(self, slots: int) -> None:
        """Send new connections to the first `slots` only: the others are about to go."""
        if self._mode == "per-worker":
            self._try(lambda: steering.steer(self._sockets[0], slots))

    def remove_last(self) -> None:
        """Close the last slot's socket here; its worker has a copy until it ends."""
        if self._mode == "per-worker":
            self._sockets.pop().close()

    def steer_to_all(self) -> None:
        if self._mode == "per-worker":
            self._try(lambda: steering.unsteer(self._sockets[0]))

    def ignore_new(self) -> None:
        """Before the end: nobody may connect any more, so that nobody is reset when these are closed."""
        for sock in self._sockets:
            self._try(lambda sock=sock: steering.ignore_new(sock))  # type: ignore[misc]

    def _try(self, steer: Callable[[], None]) -> None:
        """Not every sandbox knows these options; without them, some connection may be reset."""
        try:
            steer()
        except OSError as error:
            log.warning("new connections cannot be steered: %s", error.strerror)

    def is_quiet(self) -> bool:
        """Whether no connection is just being made. What the kernel does not tell is taken for quiet."""
        try:
            return not any(sockets.diagnosed(SYN_RECEIVED, local=self.port))
        except OSError:
            return True

    def close(self) -> None:
        _close_all(self._sockets)


def _close_all(found: list[socket.socket]) -> None:
    for sock in found:
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
