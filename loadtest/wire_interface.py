"""What a wire is: how an upload is asked for on one connection, and how its answer is read. The seam for protocols.

A `Wire` is one connection's protocol, sans-IO: it has no socket and no clock, so a protocol of your own is three short
methods, and everything else (payloads, schedules, durations, report) stays. Name it `--wire MODULE:CLASS`; it is made
anew for each connection, with the target as its only argument:

    from loadtest.wires import Answer, WireError

    class MyWire:
        def __init__(self, target): ...
        def encode(self, name, size_bytes, *, close):     # bytes to send before the file's own
            return f"PUT {name} {size_bytes}\\n".encode()
        def decode(self, data):                           # bytes that arrived; an Answer once it is whole, else None
            return Answer("ok") if data.endswith(b"\\n") else None
        def end(self):                                    # the server closed; raise WireError if an answer is missing
            raise WireError("connection_lost")
"""

from collections.abc import Callable
from typing import Protocol

import msgspec


class Target(msgspec.Struct, frozen=True):
    """Where uploads go: `tcp://HOST:PORT`, `tls://HOST:PORT`, `unix:///PATH` or `http://HOST:PORT/PATH`."""

    scheme: str
    host: str
    """Empty for unix, whose port is 0."""
    port: int
    path: str = "/"
    """For http the folder that names are put into, which ends in a slash; for unix the socket."""

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port


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
    file_name: str | None = None
    """Under which name it has them."""


class WireError(Exception):
    """The server broke the protocol. `code` is one of `failure_codes`, or your own."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Wire(Protocol):
    """One connection's protocol; see this file's first lines."""

    def encode(self, name: str, size_bytes: int, *, close: bool) -> bytes:
        """The bytes that go before the file's own. `close`: ask the server to close after its answer."""

    def decode(self, data: bytes) -> Answer | None:
        """Take what arrived; the answer to the upload once it is whole. WireError when it never will be."""

    def end(self) -> Answer | None:
        """The server has closed: an answer that ends so, or WireError `connection_lost`."""


WireFactory = Callable[[Target], Wire]
