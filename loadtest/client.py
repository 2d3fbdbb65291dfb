"""The upload client: connect, upload, close, each phase timed as README.md says. Knows nothing of Locust, and works
without it.

The reply's time is when the kernel received it: with 50 users in one process, 0.31 of the 0.43 ms of a naively timed
upload were the generator's own delay in reading it. That delay is a duration of its own here, `read_lag`, so that it is
never taken for the server's. What a connection is, `link.py` and `tls_link.py` say; what is said over it, `wires.py`.

    tcp    Link       handshake is TCP's, which the kernel has timed
    tls    TlsLink    connect has TLS's handshake too; bytes arrive when their record does
    unix   UnixLink   there is no handshake, and no read_lag: bytes arrive when they are read
"""

import errno
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from loadtest.link import Address, Link, PollWaiter, UnixLink, WaiterFactory, lookup
from loadtest.option_error import OptionError
from loadtest.tls_link import TlsError, TlsLink
from loadtest.wires import Answer, Target, Wire, WireError, WireFactory, wire_of
from server.failure_codes import BY_CODE, NO_LOCAL_PORT
from server.printing import one_line

JOIN_BYTES = 64 << 10  # up to here header and body are one send: apart they would meet Nagle and delayed ACK, 40 ms
CLOSE_LIMIT_S = 1.0  # for a server to close after its last answer; then we do
NOT = -1  # of a duration: it did not happen
_NOTHING = memoryview(b"")

Closer = Literal["server", "client"]
Close = Literal["fin", "rst"]

AnyLink = Link | TlsLink
LinkFactory = Callable[[Address, float, WaiterFactory], AnyLink]


class UploadError(Exception):
    """An upload failed. `code` is one of `failure_codes`, or of another server or wire; `message` is for people."""

    def __init__(self, code: str, message: str = "") -> None:
        self.code = one_line(code)  # both may be a server's words, and are shown
        self.message = one_line(message) or (BY_CODE[code].text if code in BY_CODE else "")
        super().__init__(f"{code}: {self.message}")


def name_of(path: Path) -> str:
    """Under which name a file is uploaded: its own, as UTF-8 whatever the locale's encoding. OptionError when it is
    none."""
    try:
        return os.fsencode(path.name).decode()
    except UnicodeDecodeError:
        raise OptionError(f"{str(path)!r} cannot be uploaded: its name is not UTF-8") from None


class Body(Protocol):
    """What is uploaded. `pieces` is taken once, in order; `digest` is asked afterwards, None means: do not compare."""

    @property
    def size_bytes(self) -> int: ...
    def pieces(self) -> Iterable[memoryview]: ...
    def digest(self) -> str | None: ...


class Upload(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One upload that was acknowledged, or that failed. Moments are CLOCK_MONOTONIC, all is in nanoseconds; NOT for a
    duration that did not happen. What each is, run_folder.DURATIONS says."""

    error: UploadError | None
    start_ns: int
    end_ns: int
    """When it was acknowledged, or given up."""
    connected: bool
    """Whether this upload opened a connection."""
    connect_ns: int = NOT
    handshake_ns: int = NOT
    send_ns: int = NOT
    wait_ns: int = NOT
    read_lag_ns: int = NOT
    close_ns: int = NOT
    service_ns: int = NOT
    transaction_ns: int = NOT
    file_name: str | None = None
    """The name that a stored file got, where the server tells."""


class UploadClient:
    """One user's connection to the server; connects when it must. Not shared between threads or greenlets."""

    def __init__(
        self,
        target: Target,
        *,
        wire: WireFactory | None = None,
        tls: ssl.SSLContext | None = None,
        waiter: WaiterFactory = PollWaiter,
        timeout_s: float = 30.0,
        closer: Closer = "server",
        close: Close = "fin",
        addresses: dict[Target, Address] | None = None,
    ) -> None:
        """`tls` is for a target of that scheme; without it the system's authorities are trusted. `timeout_s` is how
        long the server may be silent. A connection's last upload asks the server to close first; with `closer` "client"
        we do, by `close`. Clients that share `addresses` look a host up once: under gevent that costs 200 µs."""
        self._target = target
        self._new_wire = wire or wire_of(target)
        self._new_link = _links_to(target, tls)
        self._new_waiter = waiter
        self._timeout_s = timeout_s
        self._server_closes = closer == "server"
        self._resets = close == "rst"
        self._addresses = {} if addresses is None else addresses
        self._link: AnyLink | None = None
        self._wire: Wire

    def upload(self, name: str, body: Body, *, last: bool = False) -> Upload:
        """Upload one file. Failures are in the result, never raised; after one the connection is closed. After the
        `last` of a connection it is closed, and the result includes that. If the server closed it before, the upload is
        the first of another one instead, which stays."""
        start_ns = first_byte_ns = time.monotonic_ns()
        connect_ns = handshake_ns = NOT
        try:
            link = self._link
            if link is None or not link.established():  # one that the server closed meanwhile is replaced, not counted
                last = last and link is None
                link = self._connect()
                first_byte_ns = time.monotonic_ns()
                connect_ns, handshake_ns = first_byte_ns - start_ns, link.handshake_ns
            prefix = self._wire.encode(name, body.size_bytes, close=last and self._server_closes)
            send_error = _send(link, prefix, body)
            sent_ns = time.monotonic_ns()
            answer, in_kernel_ns = self._receive_answer(link, send_error)
            acked_ns = time.monotonic_ns()
            _check(answer, body)
            close_ns = NOT
            if last or not answer.keeps_open:
                self._finish(link)
                close_ns = time.monotonic_ns() - acked_ns
        except UploadError as error:
            self.close()
            return Upload(
                error=error,
                start_ns=start_ns,
                end_ns=time.monotonic_ns(),
                connected=connect_ns != NOT,
                connect_ns=connect_ns,
                handshake_ns=handshake_ns,
            )
        except BaseException:
            self.close()  # a user stopped in the middle must not leave half an upload on a connection
            raise
        return Upload(
            error=None,
            start_ns=start_ns,
            end_ns=acked_ns,
            connected=connect_ns != NOT,
            connect_ns=connect_ns,
            handshake_ns=handshake_ns,
            send_ns=sent_ns - first_byte_ns,
            wait_ns=max(0, in_kernel_ns - sent_ns),  # a reply may be there before our last send returns
            read_lag_ns=acked_ns - in_kernel_ns if link.stamps else NOT,
            close_ns=close_ns,
            service_ns=max(0, in_kernel_ns - first_byte_ns),
            transaction_ns=acked_ns - start_ns + max(0, close_ns),
            file_name=answer.file_name,
        )

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _connect(self) -> AnyLink:
        """A new connection in place of the old one, if any. UploadError when there is none to be had."""
        self.close()
        try:
            link = self._link = self._open()
        except ConnectionRefusedError:
            raise UploadError("connect_refused") from None
        except TimeoutError:
            raise UploadError("timeout") from None
        except TlsError as error:
            raise UploadError("tls_failed", str(error)) from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UploadError(NO_LOCAL_PORT) from None
            raise UploadError("connect_failed", error.strerror or str(error)) from None
        self._wire = self._new_wire(self._target)
        return link

    def _open(self) -> AnyLink:
        """Connect to the first address of the host that answers, and keep to it. OSError of the last otherwise."""
        known = self._addresses.get(self._target)
        if known is not None:
            return self._new_link(known, self._timeout_s, self._new_waiter)
        found = _addresses_of(self._target)
        for number, address in enumerate(found, 1):
            try:
                link = self._new_link(address, self._timeout_s, self._new_waiter)
            except TlsError:
                raise  # this address answered
            except OSError:
                if number == len(found):
                    raise
            else:
                self._addresses[self._target] = address
                return link
        raise AssertionError("a lookup finds an address or fails")

    def _receive_answer(self, link: AnyLink, send_error: OSError | None) -> tuple[Answer, int]:
        """The answer, and when the kernel had it."""
        try:
            while True:
                data, in_kernel_ns = link.receive()
                answer = self._wire.decode(data) if data else self._wire.end()
                if answer is not None:
                    return answer, in_kernel_ns
        except WireError as error:
            raise UploadError(error.code) from None
        except TlsError as error:
            raise UploadError("tls_failed", str(error)) from None
        except TimeoutError:
            raise UploadError("timeout") from None
        except OSError as error:
            raise _lost(send_error or error) from None

    def _finish(self, link: AnyLink) -> None:
        """End a connection whose last answer is in hand: whatever happens to it now changes nothing."""
        if self._server_closes:
            link.limit(CLOSE_LIMIT_S)
            try:
                while link.receive()[0]:
                    pass
            except OSError:
                pass
        self._link = None
        link.close(reset=self._resets)


def _links_to(target: Target, tls: ssl.SSLContext | None) -> LinkFactory:
    if target.scheme == "unix":
        return UnixLink
    if target.scheme == "tls":
        return partial(TlsLink, context=tls or ssl.create_default_context(), server_name=target.host)
    return Link


def _addresses_of(target: Target) -> list[Address]:
    return [(socket.AF_UNIX, target.path)] if target.scheme == "unix" else lookup(*target.address)


def _send(link: AnyLink, prefix: bytes, body: Body) -> OSError | None:
    """Send an upload. An error is returned, not raised: its reason may be waiting in a reply."""
    for piece in _with_prefix(prefix, iter(body.pieces())):
        try:
            link.send(piece)
        except TimeoutError:
            raise UploadError("timeout") from None
        except OSError as error:
            return error
    return None


def _with_prefix(prefix: bytes, pieces: Iterator[memoryview]) -> Iterator[bytes | memoryview]:
    """The pieces with `prefix` before the first, joined when that is small."""
    first = next(pieces, _NOTHING)
    if len(first) <= JOIN_BYTES:
        yield prefix + first
    else:
        yield prefix
        yield first
    yield from pieces


def _check(answer: Answer, body: Body) -> None:
    if answer.code != "ok":
        raise UploadError(answer.code, answer.message)
    if answer.received is not None and answer.received != body.size_bytes:
        raise UploadError("size_differs")
    digest = body.digest()
    if digest is not None and answer.digest is not None and answer.digest != digest:
        raise UploadError("digest_differs")


def _lost(error: OSError) -> UploadError:
    if isinstance(error, ConnectionError) or error.errno in (errno.EPIPE, errno.ENOTCONN):
        return UploadError("connection_lost")
    return UploadError("connection_lost", error.strerror or str(error))
