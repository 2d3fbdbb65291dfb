"""What goes over a connection: how an upload is asked for, and how its answer is read. The seam for protocols.

A `Wire` is one connection's protocol, sans-IO: it has no socket and no clock, so a protocol of your own is three short
methods, and everything else (payloads, schedules, durations, report) stays. Name it `--wire MODULE:CLASS`; it is made
anew for each connection, with the target as its only argument:

    class MyWire:
        def __init__(self, target): ...
        def encode(self, name, size_bytes, *, close):     # bytes to send before the file's own
            return f"PUT {name} {size_bytes}\\n".encode()
        def decode(self, data):                           # bytes that arrived; an Answer once it is whole, else None
            return Answer("ok") if data.endswith(b"\\n") else None
        def end(self):                                    # the server closed; raise WireError if an answer is missing
            raise WireError("connection_lost")

Without it the host's scheme decides: `tcp://`, `tls://` and `unix://` are the framed upload protocol, `http://` is PUT.
"""

import importlib
import os
import re
from collections.abc import Callable
from functools import partial
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from reports.run_folder import NO_LOCAL_PORT
from server.protocol import ClientConnection, RemoteProtocolError, UploadHeader

FRAMED = ("tcp", "tls", "unix")
"""Schemes of the framed upload protocol: it goes over any stream."""

LONGEST_PATH_BYTES = 107  # of a unix socket: what sockaddr_un holds, linux/un.h, without the NUL

# What a client can see go wrong, beside the codes of the server's replies. Texts are constant: people group by them.
CLIENT_FAILURES = {
    "connect_refused": "nobody listens at the address",
    "connect_failed": "the connection could not be made",
    "tls_failed": "no TLS with the server: its certificate is not to be trusted, or the handshake failed",
    NO_LOCAL_PORT: "every local port is taken, by connections or in TIME_WAIT",
    "connection_lost": "the server closed the connection before it replied",
    "timeout": "no answer in time",
    "bad_reply": "the reply broke the protocol",
    "unfinished": "no answer when the run ended",
    "client_failed": "a mistake in the load's own code, or in a wire of yours; the log has it",
    "dropped": "due while the most uploads were in flight",
    "digest_differs": "the server reports another digest than the bytes have",
    "size_differs": "the server reports another number of bytes than were sent",
}


class HostError(ValueError):
    """A host that is none of what Target says."""


class WireNameError(ValueError):
    """A `--wire` that cannot be had; the text says why."""


class WireError(Exception):
    """The server broke the protocol. `code` is one of CLIENT_FAILURES."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a server said of one upload: `code` is "ok" or why not, a short constant that failures are counted under;
    `message` is for people. None for what the protocol does not tell."""

    code: str
    message: str = ""
    digest: str | None = None
    """`xxh3_128:<hex>` of the bytes it has."""
    received: int | None = None
    """How many it has."""
    keeps_open: bool = True
    """Whether another upload may follow on this connection."""


class Target(msgspec.Struct, frozen=True):
    """Where uploads go: `tcp://HOST:PORT`, `tls://HOST:PORT`, `unix:///PATH` or `http://HOST:PORT/PATH`."""

    scheme: str
    host: str
    """Empty for unix, whose port is 0."""
    port: int
    path: str = "/"
    """Of http: the folder that names are put into; ends in a slash. Of unix: the socket."""

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port


class Wire(Protocol):
    """One connection's protocol; see this file's first lines."""

    def encode(self, name: str, size_bytes: int, *, close: bool) -> bytes:
        """The bytes that go before the file's own. `close`: ask the server to close after its answer."""

    def decode(self, data: bytes) -> Answer | None:
        """Take what arrived; the answer to the upload once it is whole. WireError when it never will be."""

    def end(self) -> Answer | None:
        """The server has closed: an answer that ends so, or WireError `connection_lost`."""


WireFactory = Callable[[Target], Wire]


class FramedWire:
    """The framed upload protocol of `server.protocol`; with a token, if there is one, in each header."""

    __slots__ = ("_connection", "_new_header")

    def __init__(self, target: Target, token: str | None = None) -> None:
        self._connection = ClientConnection()
        self._new_header: Callable[..., UploadHeader] = UploadHeader
        if token is not None:
            self._new_header = partial(UploadHeader, token=token)

    def encode(self, name: str, size_bytes: int, *, close: bool) -> bytes:
        header = self._new_header(size_bytes, name, connection="close" if close else "keep-alive")
        return self._connection.send_upload(header)

    def decode(self, data: bytes) -> Answer | None:
        try:
            for reply in self._connection.receive_data(data):
                digest = reply.digest or ""  # of a stored file the protocol promises one
                return Answer(reply.code, reply.message, digest, reply.received, reply.connection != "close")
        except RemoteProtocolError as error:
            raise WireError("bad_reply") from error
        return None

    def end(self) -> Answer | None:
        raise WireError("connection_lost")


def parse_target(host: str) -> Target:
    """HostError says what is wrong with a text that names no target."""
    if host.startswith("unix:"):
        return _parse_unix(host)
    try:
        parts = urlsplit(host)
        name, port = parts.hostname, parts.port
        (name or "").encode("idna")  # what a lookup would stumble over later
    except ValueError:  # UnicodeError is one
        name, port, parts = None, None, urlsplit("")
    if parts.scheme == "http":
        port = port or 80
    elif parts.scheme not in ("tcp", "tls") or parts.path not in ("", "/"):
        name = None
    path = parts.path.rstrip("/") + "/"
    if not name or not port or parts.query or parts.fragment or not re.fullmatch(r"[!-~]+", path):
        raise HostError(
            f"{host!r} is not a host: write tcp://HOST:PORT, such as tcp://127.0.0.1:12345, tls://HOST:PORT, "
            "unix:///PATH or http://HOST:PORT/PATH"
        )
    return Target(parts.scheme, name, port, path)


def _parse_unix(host: str) -> Target:
    """A path may have any character, so nothing in it is taken for anything else."""
    path = host.removeprefix("unix://")
    try:
        length = len(os.fsencode(path))
    except UnicodeError:
        length = 0
    if not path.startswith("/") or path.endswith("/") or "\0" in path or not 0 < length <= LONGEST_PATH_BYTES:
        raise HostError(
            f"{host!r} is not a host: write unix:///PATH of a socket, such as unix:///run/uploads.sock, of at most "
            f"{LONGEST_PATH_BYTES} bytes"
        )
    return Target("unix", "", 0, path)


def wire_of(target: Target, name: str = "", token: str | None = None) -> WireFactory:
    """The wire `name` (MODULE:CLASS), or the one of the target's scheme, whose headers carry `token`. WireNameError
    when there is none such."""
    if not name:
        if target.scheme in FRAMED:
            return FramedWire if token is None else _framed_with(token)
        from loadtest.http_put import HttpPutWire  # its parser comes with gevent, which the plain client does not need

        return HttpPutWire
    module, colon, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise WireNameError(f"wire {name!r} cannot be had: {error}") from None
    except Exception as error:  # a module that is imported may do anything
        raise WireNameError(f"wire {name!r} cannot be had: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise WireNameError(f"wire is {name!r}: write MODULE:CLASS, such as my_wire:MyWire")
    return found  # type: ignore[no-any-return]  # what it returns is its author's promise


def _framed_with(token: str) -> WireFactory:
    """A function and no `partial`, whose repr would show the token."""

    def framed(target: Target) -> FramedWire:
        return FramedWire(target, token)

    return framed
