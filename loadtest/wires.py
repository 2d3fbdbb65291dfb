"""Which wires there are: the framed upload protocol, HTTP PUT, or one of your own, see `wire_interface.py`.

Without `--wire` the host's scheme decides: `tcp://`, `tls://` and `unix://` are the framed upload protocol, `http://`
is PUT. Here is also how hosts are written. Wires of your own import what they need from here.
"""

import importlib
import os
import re
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

from loadtest.option_error import OptionError
from loadtest.wire_interface import Answer, Target, Wire, WireError, WireFactory
from server.printing import quoted
from server.protocol import ClientConnection, RemoteProtocolError, UploadHeader
from server.units import MAX_UNIX_PATH_BYTES

__all__ = [
    "Answer", "FramedWire", "Target", "Wire", "WireError", "WireFactory", "parse_target", "wire_of",
]  # fmt: skip

FRAMED = ("tcp", "tls", "unix")
"""Schemes of the framed upload protocol: it goes over any stream."""

_NOT_SENT = "is never sent and would stand in every report: leave it out (the framed protocol's token has --token-file)"


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
                keeps_open = reply.connection != "close"
                return Answer(reply.code, reply.message, digest, reply.received, keeps_open, reply.file_name)
        except RemoteProtocolError as error:
            raise WireError("bad_reply") from error
        return None

    def end(self) -> Answer | None:
        raise WireError("connection_lost")


def parse_target(host: str) -> Target:
    """OptionError says what is wrong with a text that names no target, without repeating what may be a password."""
    if host.startswith("unix:"):
        return _parse_unix(host)
    try:
        parts = urlsplit(host)
        name, port = parts.hostname, parts.port
        (name or "").encode("idna")  # what a lookup would stumble over later
    except ValueError:  # UnicodeError is one
        name, port, parts = None, None, urlsplit("")
    if "@" in parts.netloc:
        raise OptionError(f"what was given is not a host: it has a user or a password before its @, which {_NOT_SENT}")
    if parts.query or parts.fragment:
        raise OptionError(
            f"what was given is not a host: it has a query or a fragment (behind ? or #), which {_NOT_SENT}"
        )
    if parts.scheme == "https":
        raise OptionError(
            "https:// is not supported: write http://HOST:PORT/PATH; over TLS goes the framed protocol, tls://HOST:PORT"
        )
    if parts.scheme == "http":
        port = port or 80
    elif parts.scheme not in ("tcp", "tls") or parts.path not in ("", "/"):
        name = None
    path = parts.path.rstrip("/") + "/"
    if not name or not port or not re.fullmatch(r"[!-~]+", path):
        raise OptionError(
            f"{quoted(host)} is not a host: write tcp://HOST:PORT, such as tcp://127.0.0.1:12345, tls://HOST:PORT, "
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
    if not path.startswith("/") or path.endswith("/") or "\0" in path or not 0 < length <= MAX_UNIX_PATH_BYTES:
        raise OptionError(
            f"{quoted(host)} is not a host: write unix:///PATH of a socket, such as unix:///run/uploads.sock, of at "
            f"most {MAX_UNIX_PATH_BYTES} bytes"
        )
    return Target("unix", "", 0, path)


def wire_of(target: Target, name: str = "", token: str | None = None) -> WireFactory:
    """The wire `name` (MODULE:CLASS), or the one of the target's scheme, whose headers carry `token`. OptionError
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
        raise OptionError(f"wire {name!r} cannot be had: {error}") from None
    except Exception as error:  # a module that is imported may do anything
        raise OptionError(f"wire {name!r} cannot be had: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise OptionError(f"wire is {name!r}: write MODULE:CLASS, such as my_wire:MyWire")
    return found  # type: ignore[no-any-return]  # what it returns is its author's promise


def _framed_with(token: str) -> WireFactory:
    """A function and no `partial`, whose repr would show the token."""

    def framed(target: Target) -> FramedWire:
        return FramedWire(target, token)

    return framed
