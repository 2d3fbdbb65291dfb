"""One connection, timed by the kernel where the kernel knows better. Knows no protocol.

The socket never blocks; how its owner waits is a `Waiter` of its own. `PollWaiter`, here, blocks the thread: enough for
the plain client. Under Locust `gevent_sockets.HubWaiter` lets the other users run meanwhile. The socket is the
interpreter's own C object, not gevent's: waiting first and reading once, instead of reading in vain first, and no timer
for each wait made an upload cost the generator half (39 instead of 80 µs of CPU, 4 KiB, 50 users in one process).

- When bytes arrived is when the kernel received them (SO_TIMESTAMPNS, read with recvmsg; no privilege needed). A kernel
  begins to stamp a moment after the host's first socket asked (net_enable_timestamp in net/core/dev.c defers it to a
  work queue); bytes before that have the time at which they were read.
- How long the handshake took is the kernel's SYN to SYN-ACK time (tcp_info.tcpi_rtt right after connect), which has
  none of the caller's own delays in it.

That is TCP. Of a unix socket (`UnixLink`) the kernel tells neither. TLS is `tls_link.py`.
"""

import _socket  # the C module: `socket.socket` is gevent's under Locust
import errno
import os
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

LEFT_WITHIN_S = 1.0
SEND_PIECE_BYTES = 1 << 20  # then others get a turn: one large upload must not hold up the other users

_RECEIVE_BYTES = 64 << 10
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; SCM_TIMESTAMPNS has the same number
_TIMESPEC = struct.Struct("@ll")
_TIMESTAMP_SPACE = socket.CMSG_SPACE(_TIMESPEC.size)
_TCP_ESTABLISHED = 1  # first byte of struct tcp_info, linux/tcp.h
_RTT_OFFSET = 68  # of tcpi_rtt there, a u32 in microseconds
_LINUX = sys.platform == "linux"

Address = tuple[socket.AddressFamily, Any]


def lookup(host: str, port: int) -> list[Address]:
    """The addresses of a host, best first; at least one. OSError when it has none. One that is written as a number is
    read here: gevent asks a thread, which takes 4 ms the first time."""
    try:
        numeric = _socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
        return [(socket.AddressFamily(family), where) for family, _, _, _, where in numeric]
    except socket.gaierror:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(family, where) for family, _, _, _, where in found]


def leave(sock: socket.socket) -> None:
    """End a connection that was only a question, once the server has let it in and closed it as well. Whoever counts
    from now on does not count it: a busy server lets it in later than the kernel connects it. Another's server may not
    care for ends; it is left after a second."""
    sock.settimeout(LEFT_WITHIN_S)
    with suppress(OSError):
        if isinstance(sock, ssl.SSLSocket):
            sock.unwrap()  # sends our goodbye and waits for theirs
        else:
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)


class Waiter(Protocol):
    """How the owner of one descriptor waits for it. Both raise TimeoutError when that took `timeout_s`."""

    timeout_s: float

    def readable(self) -> None: ...
    def writable(self) -> None: ...
    def close(self) -> None:
        """Forget the descriptor, which is closed right afterwards."""


WaiterFactory = Callable[[int, float], Waiter]
"""(descriptor, silence limit in seconds) -> its waiter."""


class PollWaiter:
    """Blocks the thread."""

    def __init__(self, fd: int, timeout_s: float) -> None:
        self._fd, self.timeout_s = fd, timeout_s
        self._poll = select.poll()

    def readable(self) -> None:
        self._wait(select.POLLIN)

    def writable(self) -> None:
        self._wait(select.POLLOUT)

    def _wait(self, event: int) -> None:
        self._poll.register(self._fd, event)
        if not self._poll.poll(self.timeout_s * 1000):
            raise TimeoutError

    def close(self) -> None:
        pass


class Link:
    """A TCP connection. OSError, and TimeoutError among them, for whatever the network does."""

    __slots__ = ("_sock", "_waiter", "handshake_ns")

    stamps = _LINUX
    """Whether the kernel says when bytes arrived; if not, it is when they were read."""

    def __init__(self, address: Address, timeout_s: float, waiter: WaiterFactory) -> None:
        family, where = address
        self._sock = _socket.socket(family, socket.SOCK_STREAM)
        self._waiter = waiter(self._sock.fileno(), timeout_s)
        try:
            self._sock.setblocking(False)
            self._connect(where)
            self.handshake_ns = self._handshake_ns()
        except BaseException:
            self.close()
            raise

    def _connect(self, where: Any) -> None:
        sock = self._sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if _LINUX:
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        error = sock.connect_ex(where)
        if error == errno.EINPROGRESS:  # on loopback it is over when connect() says so: ask again, not wait
            error = sock.connect_ex(where)
        if error == errno.EALREADY:
            self._waiter.writable()
            error = sock.connect_ex(where)
        if error:
            raise OSError(error, os.strerror(error))  # of the subclass that fits the number

    def _handshake_ns(self) -> int:
        if not _LINUX:
            return -1
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_OFFSET + 4)
        return int.from_bytes(info[_RTT_OFFSET:], sys.byteorder) * 1000 if len(info) == _RTT_OFFSET + 4 else -1

    def established(self) -> bool:
        """Whether neither side has closed, asked of the kernel: one system call, no byte is taken."""
        return not _LINUX or self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_ESTABLISHED

    def peek(self) -> bytes | None:
        """A byte of what has arrived, which stays there; b"" when the peer has closed, None when there is nothing."""
        try:
            return self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return None

    def offer(self, data: bytes) -> None:
        """Send what the kernel takes at once, if it takes any: last words, whose loss changes nothing."""
        try:
            self._sock.send(data)
        except OSError:
            pass

    def send(self, data: bytes | memoryview) -> None:
        """All of it."""
        try:
            sent = self._sock.send(data if len(data) <= SEND_PIECE_BYTES else memoryview(data)[:SEND_PIECE_BYTES])
        except BlockingIOError:
            sent = 0
        while sent < len(data):
            self._waiter.writable()
            try:
                sent += self._sock.send(memoryview(data)[sent : sent + SEND_PIECE_BYTES])
            except BlockingIOError:
                pass

    def receive(self) -> tuple[bytes, int]:
        """What has arrived, once something has, and when the kernel had the last of it on our monotonic clock. No bytes
        when the peer has closed."""
        while True:
            self._waiter.readable()
            try:
                if not _LINUX:
                    return self._sock.recv(_RECEIVE_BYTES), time.monotonic_ns()
                data, ancillary, _, _ = self._sock.recvmsg(_RECEIVE_BYTES, _TIMESTAMP_SPACE)
            except BlockingIOError:  # readable, and then not: rare, but allowed
                continue
            now_ns, wall_ns = time.monotonic_ns(), time.time_ns()
            for level, kind, value in ancillary:
                if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                    seconds, nanoseconds = _TIMESPEC.unpack(value)
                    # Stamped in wall time; both clocks are read here, so a step of it costs one sample at most.
                    lag_ns = wall_ns - (seconds * 1_000_000_000 + nanoseconds)
                    return data, now_ns - lag_ns if lag_ns > 0 else now_ns
            return data, now_ns

    def limit(self, timeout_s: float) -> None:
        """Let the peer be silent for no longer than this from now on."""
        self._waiter.timeout_s = min(self._waiter.timeout_s, timeout_s)

    def close(self, *, reset: bool = False) -> None:
        """Close; with `reset` by an RST instead of a FIN, which leaves no TIME_WAIT."""
        self._waiter.close()
        if reset:
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                pass  # reset by the peer already
        self._sock.close()


class UnixLink(Link):
    """A unix stream socket, which has no handshake, and of whose bytes the kernel does not say when they arrived."""

    __slots__ = ()

    stamps = False

    def _connect(self, where: Any) -> None:
        """This never waits: BlockingIOError when the server's queue is full."""
        try:
            self._sock.connect(where)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, "the server's queue of connections is full") from None

    def _handshake_ns(self) -> int:
        return -1

    def established(self) -> bool:
        """Whether the connection is still there; an end is only seen behind all that came before it."""
        try:
            return self.peek() != b""
        except OSError:
            return False
