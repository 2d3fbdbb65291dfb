"""The upload client: connect, upload, close, each phase timed. Knows nothing of Locust, and works without it.

    start ─ connect ─► connected ─ send ─► sent ─ wait ─► reply in kernel ─ read lag ─► acked ─ close ─► closed

The reply's time is when the kernel received it (SO_TIMESTAMPNS, read with recvmsg; no privilege needed): with 50 users
in one process, 0.31 of the 0.43 ms of a naively timed upload were the generator's own delay in reading it. That delay
is a duration of its own here, `read_lag`, so that it is never taken for the server's.

Under Locust the sockets are gevent's: everything here blocks only the calling user.
"""

import errno
import socket
import struct
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from server.protocol import ClientConnection, KeepOrClose, RemoteProtocolError, Reply, UploadHeader

SEND_PIECE_BYTES = 1 << 20  # a larger upload lets the other users of this process have a turn
JOIN_BYTES = 64 << 10  # up to here header and body are one send: apart they would meet Nagle and delayed ACK, 40 ms

_RECEIVE_BYTES = 64 << 10
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; SCM_TIMESTAMPNS has the same number
_TIMESPEC = struct.Struct("@ll")
_TIMESTAMP_SPACE = socket.CMSG_SPACE(_TIMESPEC.size)
_TCP_ESTABLISHED = 1  # first byte of struct tcp_info, linux/tcp.h

# What a client can see go wrong, beside the codes of the server's replies. Texts are constant: people group by them.
CLIENT_FAILURES = {
    "connect_refused": "nobody listens at the address",
    "connect_failed": "the connection could not be made",
    "connection_lost": "the server closed the connection before it replied",
    "timeout": "no answer in time",
    "bad_reply": "the reply broke the protocol",
    "unfinished": "no answer when the run ended",
    "digest_differs": "the server reports another digest than the bytes have",
}


class HostError(ValueError):
    """A host that is not `tcp://HOST:PORT`."""


class UploadError(Exception):
    """An upload failed. `code` is one of the server's failure codes or of CLIENT_FAILURES; `message` is for people."""

    def __init__(self, code: str, message: str = "", reply: Reply | None = None) -> None:
        self.code = code
        self.message = message or CLIENT_FAILURES.get(code, "")
        self.reply = reply
        super().__init__(f"{code}: {self.message}")


class Body(Protocol):
    """What is uploaded. `pieces` is taken once, in order; `digest` is asked afterwards, None means: do not compare."""

    @property
    def size_bytes(self) -> int: ...
    def pieces(self) -> Iterable[memoryview]: ...
    def digest(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Upload:
    """One upload that was acknowledged, or that failed. Durations in nanoseconds; None for what did not happen.

    `service_ns` ends when the reply was in the kernel; `transaction_ns` runs from start to acknowledged, with connect
    and close where they happened.
    """

    reply: Reply | None
    error: UploadError | None
    start_ns: int
    bytes_sent: int
    connected: bool
    """Whether this upload opened a connection."""
    connect_ns: int | None = None
    send_ns: int | None = None
    wait_ns: int | None = None
    read_lag_ns: int | None = None
    close_ns: int | None = None
    service_ns: int | None = None
    transaction_ns: int | None = None


def parse_host(host: str) -> tuple[str, int]:
    """(host, port) of `tcp://HOST:PORT`. HostError says what is wrong with another text."""
    try:
        parts = urlsplit(host)
        name, port = parts.hostname, parts.port
        (name or "").encode("idna")  # what a lookup would stumble over later
    except ValueError:  # UnicodeError is one
        name, port = None, None
    else:
        if parts.scheme != "tcp" or parts.path not in ("", "/") or parts.query:
            name = None
    if not name or not port:
        raise HostError(f"{host!r} is not a host: write tcp://HOST:PORT, such as tcp://127.0.0.1:12345")
    return name, port


@dataclass(slots=True)
class _Marks:
    """Moments of one upload, CLOCK_MONOTONIC nanoseconds; 0 for not reached."""

    start: int = 0
    connected: int = 0
    first_byte: int = 0
    sent: int = 0
    in_kernel: int = 0
    acked: int = 0
    closed: int = 0


class UploadClient:
    """One user's connection to the server; connects when it must. Not shared between threads or greenlets."""

    def __init__(self, host: str, port: int, timeout_s: float = 30.0) -> None:
        self._host, self._port = host, port
        self._timeout_s = timeout_s
        self._resolved: tuple[socket.AddressFamily, Any] | None = None  # looked up once: under gevent it costs 200 µs
        self._socket: socket.socket | None = None
        self._protocol = ClientConnection()

    def upload(self, name: str, body: Body, *, close: bool = False) -> Upload:
        """Upload one file. Failures are in the result, never raised; after one the connection is closed.

        With `close` the server is asked to close after its reply, and the result includes that.
        """
        marks = _Marks(start=time.monotonic_ns())
        bytes_sent, fresh, reply = 0, False, None
        try:
            fresh = self._connect_if_needed(marks)
            connection: KeepOrClose = "close" if close else "keep-alive"
            prefix = self._protocol.send_upload(UploadHeader(body.size_bytes, name, connection=connection))
            marks.first_byte = time.monotonic_ns()
            error = None
            for piece in _with_prefix(prefix, body.pieces()):
                try:
                    self._sendall(piece)
                except OSError as failed:
                    error = failed  # the reason may be waiting in a reply
                    break
                bytes_sent += len(piece)
            marks.sent = time.monotonic_ns()
            reply = self._receive_reply(marks, error)
            _check(reply, body)
            if close or reply.connection == "close":
                self._await_close()
                marks.closed = time.monotonic_ns()
        except UploadError as failed:
            self.close()
            return _result(marks, fresh, reply, failed, bytes_sent)
        except BaseException:
            self.close()  # a user stopped in the middle must not leave half an upload on a connection
            raise
        return _result(marks, fresh, reply, None, bytes_sent)

    def close(self) -> None:
        """Close the connection, if there is one."""
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def _connect_if_needed(self, marks: _Marks) -> bool:
        """Whether a connection was made. One that the server closed meanwhile is stale: it is replaced, not counted."""
        if self._socket is not None:
            if sys.platform != "linux" or self._established(self._socket):
                return False
            self.close()
        try:
            self._connect()
        except ConnectionRefusedError:
            raise UploadError("connect_refused") from None
        except TimeoutError:
            raise UploadError("timeout") from None
        except OSError as error:
            raise UploadError("connect_failed", error.strerror or str(error)) from None
        self._protocol = ClientConnection()
        marks.connected = time.monotonic_ns()
        return True

    def _connect(self) -> None:
        """Connect to the first address of the host that answers, and keep to it. OSError of the last otherwise."""
        if self._resolved is not None:
            self._socket = self._open(*self._resolved)
            return
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        for number, (family, _, _, _, address) in enumerate(found, 1):
            try:
                self._socket = self._open(family, address)
            except OSError:
                if number == len(found):
                    raise
            else:
                self._resolved = family, address
                return

    def _open(self, family: socket.AddressFamily, address: Any) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(self._timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if sys.platform == "linux":
                sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock

    @staticmethod
    def _established(sock: socket.socket) -> bool:
        """Whether neither side has closed, asked of the kernel: one system call, no byte is taken."""
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_ESTABLISHED

    def _sendall(self, piece: memoryview) -> None:
        assert self._socket is not None
        for start in range(0, len(piece), SEND_PIECE_BYTES):
            self._socket.sendall(piece[start : start + SEND_PIECE_BYTES])

    def _receive_reply(self, marks: _Marks, send_error: OSError | None) -> Reply:
        try:
            while True:
                data, in_kernel_ns = self._receive()
                if not data:
                    self._protocol.receive_eof()
                    raise UploadError("connection_lost")
                for reply in self._protocol.receive_data(data):
                    marks.in_kernel = in_kernel_ns
                    marks.acked = time.monotonic_ns()
                    return reply
        except RemoteProtocolError as error:
            raise UploadError(error.code if error.code in CLIENT_FAILURES else "bad_reply") from None
        except TimeoutError:
            raise UploadError("timeout") from None
        except OSError as error:
            raise _lost(send_error or error) from None

    def _receive(self) -> tuple[bytes, int]:
        """Bytes, and when the kernel had the last of them on our monotonic clock."""
        assert self._socket is not None
        if sys.platform != "linux":
            return self._socket.recv(_RECEIVE_BYTES), time.monotonic_ns()
        data, ancillary, _, _ = self._socket.recvmsg(_RECEIVE_BYTES, _TIMESTAMP_SPACE)
        now_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                seconds, nanoseconds = _TIMESPEC.unpack(value[: _TIMESPEC.size])
                # The kernel stamps in wall time; both clocks are read here, so a step of it costs one sample at most.
                lag_ns = max(0, wall_ns - (seconds * 1_000_000_000 + nanoseconds))
                return data, now_ns - lag_ns
        return data, now_ns

    def _await_close(self) -> None:
        """The server closes first; our end follows. A reset here changes nothing: the reply is in hand."""
        assert self._socket is not None
        try:
            while self._socket.recv(_RECEIVE_BYTES):
                pass
        except OSError:
            pass
        self.close()


def _with_prefix(prefix: bytes, pieces: Iterable[memoryview]) -> Iterable[memoryview]:
    """The pieces with `prefix` before the first, joined when that is small."""
    iterator = iter(pieces)
    first = next(iterator, None)
    if first is None:
        yield memoryview(prefix)
    elif len(first) <= JOIN_BYTES:
        yield memoryview(prefix + bytes(first))
    else:
        yield memoryview(prefix)
        yield first
    yield from iterator


def _check(reply: Reply, body: Body) -> None:
    if reply.code != "ok":
        raise UploadError(reply.code, reply.message, reply)
    digest = body.digest()
    if digest is not None and reply.digest != digest:
        raise UploadError("digest_differs", reply=reply)


def _lost(error: OSError) -> UploadError:
    if isinstance(error, ConnectionError) or error.errno in (errno.EPIPE, errno.ENOTCONN):
        return UploadError("connection_lost")
    return UploadError("timeout") if isinstance(error, TimeoutError) else UploadError("connection_lost", str(error))


def _result(marks: _Marks, fresh: bool, reply: Reply | None, error: UploadError | None, bytes_sent: int) -> Upload:
    if error is not None:
        return Upload(
            reply, error, marks.start, bytes_sent, fresh, connect_ns=marks.connected - marks.start if fresh else None
        )
    service_from = marks.connected if fresh else marks.first_byte
    return Upload(
        reply=reply,
        error=None,
        start_ns=marks.start,
        bytes_sent=bytes_sent,
        connected=fresh,
        connect_ns=marks.connected - marks.start if fresh else None,
        send_ns=marks.sent - marks.first_byte,
        wait_ns=max(0, marks.in_kernel - marks.sent),  # a reply may be there before our last send returns
        read_lag_ns=marks.acked - marks.in_kernel,
        close_ns=marks.closed - marks.acked if marks.closed else None,
        service_ns=max(0, marks.in_kernel - service_from),
        transaction_ns=(marks.closed or marks.acked) - marks.start,
    )
