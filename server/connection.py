"""One client: joins the protocol's events to the store, and answers.

Everything happens inside the event loop's callbacks, synchronously: bytes are read into one buffer that all
connections of a worker share, parsed in place, written to the store and hashed before the callback returns. So no
connection owns a buffer, and an idle one costs little.

A refusal must be readable: when a connection is closed with unread data, TCP sends a reset and the client may never
see the reason. So after a refusal the write side is shut down, and what still arrives is discarded within bounds.
"""

import asyncio
import logging
import os
import socket
import time
from dataclasses import dataclass, field
from typing import cast

from msgspec import UNSET

from server import scoreboard
from server.protocol import (
    FAILURE_CODES,
    Data,
    DigestAlgorithm,
    Hasher,
    KeepOrClose,
    Limits,
    RemoteProtocolError,
    Reply,
    ServerConnection,
    Timing,
    UploadStarted,
    digest_of,
    encode_reply,
    new_hasher,
)
from server.scoreboard import BYTES_STORED, CONNECTIONS_ACCEPTED, UPLOADS_STORED
from server.storage import Incoming, Store, StoreError

LINGER_BYTES = 1 << 20
LINGER_S = 2.0
RECEIVE_BUFFER_BYTES = 256 << 10

log = logging.getLogger("server")

_FAILURE_WORD = {code: scoreboard.FAILURES + i for i, code in enumerate(FAILURE_CODES)}
# Refused by what was asked; anything else failed on the way.
_REJECTIONS = frozenset(
    {"bad_length", "bad_header", "unauthorized", "name_rejected", "too_large", "exists", "busy", "shutting_down"}
)


@dataclass(slots=True)
class WorkerContext:
    """What all connections of one worker share."""

    slot: int
    store: Store
    limits: Limits
    record: memoryview
    """The slot's words of the scoreboard."""
    max_connections: int
    loop: asyncio.AbstractEventLoop
    draining: bool = False
    connections: set["Connection"] = field(default_factory=set)
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(RECEIVE_BUFFER_BYTES)))
    pid: int = field(default_factory=os.getpid)


class _Upload:
    """An upload whose header was accepted and whose reply is not sent yet."""

    __slots__ = ("expected", "hashers", "header_ns", "incoming", "keep", "name", "received", "want")

    def __init__(self, started: UploadStarted, incoming: Incoming) -> None:
        header = started.header
        self.incoming = incoming
        self.name = started.file_name
        self.received = 0
        self.header_ns = time.monotonic_ns()
        self.keep = header.connection != "close"
        self.want: DigestAlgorithm | None = "xxh3_128"
        if header.want_digest is not UNSET:
            self.want = None if header.want_digest == "none" else header.want_digest
        self.hashers: dict[str, Hasher] = {}
        if self.want:
            self.hashers[self.want] = new_hasher(self.want)
        self.expected: str | None = None
        if header.digest is not UNSET:
            self.expected = header.digest.lower()
            algorithm: DigestAlgorithm = "sha256" if self.expected.startswith("sha256") else "xxh3_128"
            self.hashers.setdefault(algorithm, new_hasher(algorithm))

    def write(self, view: memoryview) -> None:
        self.incoming.write(view)
        self.received += len(view)
        for hasher in self.hashers.values():
            hasher.update(view)

    def digest(self) -> str | None:
        return f"{self.want}:{self.hashers[self.want].hexdigest()}" if self.want else None

    def mismatch(self) -> str | None:
        """What is wrong with the bytes, if the client said what they should be."""
        if self.expected is None:
            return None
        algorithm = self.expected.partition(":")[0]
        actual = f"{algorithm}:{self.hashers[algorithm].hexdigest()}"
        return None if actual == self.expected else f"the bytes have {actual}, the header said {self.expected}"


def store_whole(
    worker: WorkerContext, started: UploadStarted, body: memoryview, accepted_ns: int
) -> tuple[bytes, bool]:
    """Store an upload whose bytes are all at hand. Returns the reply and whether the connection stays open.

    Raises StoreError.
    """
    arrived_ns = time.monotonic_ns()
    header = started.header
    want = "xxh3_128" if header.want_digest is UNSET else header.want_digest
    digest = None if want == "none" else digest_of(want, body)
    worker.store.put(started.file_name, body)
    keep = header.connection != "close" and not worker.draining
    timing = Timing(accepted_ns, arrived_ns, arrived_ns, time.monotonic_ns())
    return _acknowledge(worker, started.file_name, len(body), digest, keep, timing), keep


def _acknowledge(
    worker: WorkerContext, name: str, size_bytes: int, digest: str | None, keep: bool, timing: Timing
) -> bytes:
    """Count a stored upload, and the reply that says so."""
    record = worker.record
    record[UPLOADS_STORED] += 1
    record[BYTES_STORED] += size_bytes
    connection: KeepOrClose = "keep-alive" if keep else "close"
    return encode_reply(
        Reply("stored", "ok", "", name, size_bytes, digest, connection, worker.slot, worker.pid, timing)
    )


def serve_at_once(worker: WorkerContext, sock: socket.socket) -> bytes | None:
    """Look once at a connection just accepted: on a busy worker the client's bytes are there already.

    If they are one whole upload that asks to close, serve it here, without a transport: a short connection then costs
    half the CPU and one turn of the loop instead of three, so that it does not starve beside long ones. Returns None
    when the connection is finished and closed, otherwise the bytes that were read, for a Connection to go on with.
    """
    accepted_ns = time.monotonic_ns()
    try:
        count = sock.recv_into(worker.buffer, 0, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""
    except OSError:
        count = 0
    reply = b""
    if count:
        view = worker.buffer[:count]
        whole = ServerConnection(worker.limits).take_whole(view)
        if whole is None or whole[0].header.connection != "close" or whole[2]:
            return bytes(view)
        try:
            reply, _ = store_whole(worker, whole[0], whole[1], accepted_ns)
        except StoreError:
            return bytes(view)  # the long way meets the same error, and makes it readable
    worker.record[CONNECTIONS_ACCEPTED] += 1
    with sock:
        try:
            sock.send(reply)  # a few hundred bytes always fit a fresh socket's buffer
        except OSError:
            pass  # the client is gone; its file is stored all the same
    return None


class Connection(asyncio.BufferedProtocol):
    """The loop's callbacks for one client."""

    __slots__ = (
        "_accepted_ns",
        "_closing",
        "_linger_timer",
        "_lingered",
        "_parser",
        "_received",
        "_transport",
        "_upload",
        "_worker",
    )

    _transport: asyncio.Transport

    def __init__(self, worker: WorkerContext, received: bytes = b"") -> None:
        """`received` has been read from the socket already."""
        self._worker = worker
        self._received = received
        self._parser = ServerConnection(worker.limits)
        self._upload: _Upload | None = None
        self._closing = False
        self._lingered = 0
        self._linger_timer: asyncio.TimerHandle | None = None
        self._accepted_ns = time.monotonic_ns()

    # ── the loop's callbacks ──

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        worker = self._worker
        worker.connections.add(self)
        worker.record[CONNECTIONS_ACCEPTED] += 1
        worker.record[scoreboard.CONNECTIONS_NOW] = len(worker.connections)
        if len(worker.connections) > worker.max_connections:
            self._refuse("busy", f"this worker holds {worker.max_connections} connections, its most")
        received, self._received = self._received, b""
        if received:
            worker.buffer[: len(received)] = received
            self.buffer_updated(len(received))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._worker.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            self._discard(nbytes)
            return
        view = self._worker.buffer[:nbytes]
        try:
            while whole := self._parser.take_whole(view):
                started, body, view = whole
                self._store_whole(started, body)
                if self._closing or not view:
                    return
            for event in self._parser.receive_data(view):
                kind = type(event)
                if kind is Data:
                    self._upload.write(event.view)  # type: ignore[union-attr]  # a Data follows an UploadStarted
                elif kind is UploadStarted:
                    self._upload = _Upload(event, self._worker.store.begin(event.file_name))  # type: ignore[arg-type,union-attr]
                else:
                    self._complete()
                    if self._closing:
                        return
        except (RemoteProtocolError, StoreError) as error:
            self._refuse(error.code, error.message)
        except Exception:
            log.exception("worker %d: an upload failed for a reason nobody foresaw", self._worker.slot)
            self._refuse("internal", "the server made a mistake; its log says which")

    def eof_received(self) -> None:
        """Returning None lets the transport close after what was written has been sent."""
        if self._closing:
            return
        try:
            self._parser.receive_eof()
        except RemoteProtocolError as error:
            self._fail(error.code, error.message)
        self._closing = True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        if not self._closing and self._parser.in_upload:
            self._count_failure("truncated", f"the connection was lost: {exc or 'closed'}")
        self._abort_upload()
        worker = self._worker
        worker.connections.discard(self)
        worker.record[scoreboard.CONNECTIONS_NOW] = len(worker.connections)

    def pause_writing(self) -> None:
        """A client that pipelines and does not read its replies gets no more of our memory."""
        if not self._closing:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._closing:
            self._transport.resume_reading()

    # ── what the worker asks for ──

    def shut_down(self) -> None:
        """The drain timeout has passed: refuse what is under way, close what is idle."""
        if self._closing:
            self._transport.abort()
        elif self._parser.in_upload:
            self._refuse("shutting_down", "the server is shutting down")
        else:
            self._closing = True
            self._transport.close()

    # ── how an upload ends ──

    def _store_whole(self, started: UploadStarted, body: memoryview) -> None:
        """The usual small upload, without the bookkeeping of one that arrives in pieces."""
        reply, keep = store_whole(self._worker, started, body, self._accepted_ns)
        self._transport.write(reply)
        if not keep:
            self._close_first()

    def _complete(self) -> None:
        """The last byte of an upload that arrived in pieces is here."""
        upload = self._upload
        assert upload is not None
        last_byte_ns = time.monotonic_ns()
        mismatch = upload.mismatch()
        if mismatch is None:
            upload.incoming.commit()
            self._upload = None
            timing = Timing(self._accepted_ns, upload.header_ns, last_byte_ns, time.monotonic_ns())
            keep = upload.keep and not self._worker.draining
            self._transport.write(
                _acknowledge(self._worker, upload.name, upload.received, upload.digest(), keep, timing)
            )
            if not keep:
                self._close_first()
            return
        keep = upload.keep and not self._worker.draining
        self._fail("digest_mismatch", mismatch, keep=keep)
        if not keep:
            self._close_first()

    def _close_first(self) -> None:
        """Close after the reply is sent, before the client does: that saves a wake-up."""
        self._closing = True
        self._transport.close()

    def _refuse(self, code: str, message: str) -> None:
        """Answer, say that no more will be sent, and discard what still comes for a while."""
        self._fail(code, message)
        self._closing = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._linger_timer = self._worker.loop.call_later(LINGER_S, self._transport.abort)
        else:
            self._transport.close()

    def _discard(self, nbytes: int) -> None:
        self._lingered += nbytes
        if self._lingered > LINGER_BYTES:
            self._transport.pause_reading()  # let the peer block and read its reply; the timer ends it

    def _fail(self, code: str, message: str, *, keep: bool = False) -> None:
        """Drop the upload, count the failure and reply with it."""
        upload = self._upload
        self._abort_upload()
        self._count_failure(code, message)
        connection: KeepOrClose = "keep-alive" if keep else "close"
        reply = Reply(
            "rejected" if code in _REJECTIONS else "failed",
            code,
            message,
            upload.name if upload else None,
            upload.received if upload else 0,
            None,
            connection,
            self._worker.slot,
            self._worker.pid,
            Timing(self._accepted_ns, upload.header_ns if upload else None),
        )
        self._transport.write(encode_reply(reply))

    def _abort_upload(self) -> None:
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.incoming.abort()

    def _count_failure(self, code: str, message: str) -> None:
        self._worker.record[_FAILURE_WORD[code]] += 1
        log.info("worker %d: %s: %s", self._worker.slot, code, message)
