"""Servers of the framed protocol over TLS, with certificates of their own, and one that says what it got.

They are scripts for `headless.serving`, each connection in a thread. asyncio would not do: it closes without the alert
by which a server tells a client why it does not accept its certificate.
"""

import datetime
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY, socket
from typing import Any

import trustme
from servers import DEADLINE_S

from loadtest.client import UploadClient
from loadtest.wires import parse_target
from server.protocol import (
    Data,
    Limits,
    RemoteProtocolError,
    Reply,
    ServerConnection,
    Timing,
    UploadComplete,
    UploadStarted,
    digest_of,
    encode_reply,
)

HERE = ("127.0.0.1", "localhost")
LONG_AGO = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
NO_TIME = Timing(accepted=1)

Script = Callable[[socket], None]


class Certificates:
    """An authority of its own, and what it signs, as files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self._folder = folder
        self.ca = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca)

    def server(self, *names: str, expired: bool = False, asks: bool = False) -> ssl.SSLContext:
        """Of a server with a certificate for `names`; which asks clients for one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        until = LONG_AGO if expired else None
        self._authority.issue_cert(*(names or HERE), not_after=until).configure_cert(context)
        if asks:
            context.verify_mode = ssl.CERT_REQUIRED
            self._authority.configure_trust(context)
        return context

    def client(self, name: str = "load") -> tuple[Path, Path, Path]:
        """Files with a certificate, its key, and both."""
        issued = self._authority.issue_cert(f"{name}@example.org")
        cert, key, both = (self._folder / f"{name}-{what}.pem" for what in ("cert", "key", "both"))
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)
        issued.private_key_and_cert_chain_pem.write_to_path(both)
        return cert, key, both

    def trusting(self) -> ssl.SSLContext:
        """Of a client that trusts this authority only."""
        return ssl.create_default_context(cafile=self.ca)


def over_tls(context: ssl.SSLContext, script: Script) -> Script:
    """The script after a handshake; at its end the server says that it is done, and waits for the client to say so."""

    def play(sock: socket) -> None:
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)  # or an answer waits for the ACK of what TLS sends by itself
        # A twin: whoever ends the server shuts the original.
        with context.wrap_socket(sock.dup(), server_side=True, suppress_ragged_eofs=False) as secure:
            script(secure)
            secure.unwrap()

    return play


class Store:
    """A server that keeps what it gets, and answers as the real one does; `cut` is how many bytes of an answer it sends
    at a time, over TLS each in a record of its own."""

    def __init__(self, token: str | None = None, cut: int = 1 << 16) -> None:
        self.files: dict[str, bytes] = {}
        self.connections = 0
        self._limits = Limits(token=token)
        self._cut = cut

    def serve(self, sock: socket) -> None:
        """One connection, until the client or an answer ends it."""
        served = self._connected(sock)
        while (data := sock.recv(1 << 16)) and served.take(data):
            pass

    def serve_one(self, sock: socket) -> None:
        """One upload; then the server closes without having been asked to."""
        served = self._connected(sock)
        while not served.stored and (data := sock.recv(1 << 16)):
            served.take(data)

    def _connected(self, sock: socket) -> "_Served":
        self.connections += 1
        return _Served(self.files, sock, self._limits, self._cut)


class _Served:
    """One of its connections: each is in a thread of its own."""

    def __init__(self, files: dict[str, bytes], sock: socket, limits: Limits, cut: int) -> None:
        self.stored = 0
        self._files = files
        self._sock = sock
        self._cut = cut
        self._connection = ServerConnection(limits)

    def take(self, data: bytes) -> bool:
        """Whether the connection goes on."""
        try:
            return all(self._heed(event) for event in self._connection.receive_data(data))
        except RemoteProtocolError as error:
            self._say(Reply("rejected", error.code, error.message, None, 0, None, "close", 0, 1, NO_TIME))
            return False

    def _heed(self, event: UploadStarted | Data | UploadComplete) -> bool:
        if isinstance(event, UploadStarted):
            self._started, self._body = event, bytearray()
        elif isinstance(event, Data):
            self._body += event.view
        else:
            return self._store(self._started, bytes(self._body))
        return True

    def _store(self, started: UploadStarted, body: bytes) -> bool:
        self._files[started.file_name] = body
        self.stored += 1
        connection = started.header.connection or "keep-alive"
        digest = digest_of("xxh3_128", body)
        self._say(Reply("stored", "ok", "", started.file_name, len(body), digest, connection, 0, 1, NO_TIME))
        return connection == "keep-alive"

    def _say(self, reply: Reply) -> None:
        answer = encode_reply(reply)
        for start in range(0, len(answer), self._cut):
            self._sock.sendall(answer[start : start + self._cut])


@dataclass
class Bytes:
    """A body for a client to upload."""

    data: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def pieces(self) -> Iterator[memoryview]:
        yield memoryview(self.data)

    def digest(self) -> str:
        return digest_of("xxh3_128", self.data)


@contextmanager
def client_of(host: str, tls: ssl.SSLContext | None, **options: Any) -> Iterator[UploadClient]:
    client = UploadClient(parse_target(host), tls=tls, **{"timeout_s": DEADLINE_S} | options)
    try:
        yield client
    finally:
        client.close()
