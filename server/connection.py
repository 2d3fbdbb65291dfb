"""One client: joins the protocol's events to the store, and answers.

Everything happens inside the event loop's callbacks, synchronously. Bytes are read into the worker's arena, which all
its connections share, so no connection owns a buffer and an idle one costs little. A small upload that arrives whole
is left to the worker's batch; one that arrives in pieces is parsed in place, written and hashed before the callback
returns.

Replies keep the order of the uploads, and a batch may take long to answer: one that makes uploads durable waits for the
disk. Until it has answered, nothing more is taken from the connection: it is not read, and what was read already is
kept for then.

A refusal must be readable: when a connection is closed with unread data, TCP sends a reset and the client may never
see the reason. So after a refusal the write side is shut down, and what still arrives is discarded within bounds. The
same goes for the last reply in a drain, whose client knows only then that it shall send no more.

Three clocks end what takes too long: a header's deadline, silence, and a rate below the least. None has a timer of its
own. A connection says when the first of them could run out (`due_s`), and the worker's sweep comes back then; what has
happened meanwhile only leaves a mark, so that serving pays for one assignment.
"""

import asyncio
import logging
import math
import socket
import time
from collections.abc import Callable
from typing import Literal, cast

from msgspec import UNSET

from server import scoreboard
from server.batch import AT_ONCE, RECEIVE_BYTES, Batch
from server.protocol import (
    Data,
    DigestAlgorithm,
    Hasher,
    RemoteProtocolError,
    ServerConnection,
    Timing,
    UploadComplete,
    UploadStarted,
    new_hasher,
)
from server.storage.store import DiscardedFile, Incoming, StoreError
from server.worker_context import Looked, WorkerContext

LINGER_BYTES = 1 << 20
LINGER_S = 2.0

log = logging.getLogger("server")


class _Upload:
    """An upload that arrives in pieces, between its header and its last byte."""

    __slots__ = (
        "begun_s",
        "expected",
        "hashers",
        "header_ns",
        "incoming",
        "keep",
        "received",
        "refusal",
        "started",
        "want",
    )

    def __init__(
        self, started: UploadStarted, incoming: Incoming, begun_s: float, refusal: StoreError | None = None
    ) -> None:
        """One with a `refusal` is received only to be told so: what follows on the connection can be served."""
        header = started.header
        self.started = started
        self.incoming = incoming
        self.refusal = refusal
        self.received = 0
        self.begun_s = begun_s
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

    def trouble(self) -> tuple[str, str] | None:
        """Why it is not to be stored though all of it is here, as code and message."""
        if self.refusal is not None:
            return self.refusal.code, self.refusal.message
        if self.expected is None:
            return None
        algorithm = self.expected.partition(":")[0]
        actual = f"{algorithm}:{self.hashers[algorithm].hexdigest()}"
        if actual == self.expected:
            return None
        return "digest_mismatch", f"the bytes have {actual}, the header said {self.expected}"


class Connection(asyncio.BufferedProtocol):
    """The loop's callbacks for one client."""

    __slots__ = (
        "_batch",
        "_closing",
        "_connections",
        "_has_ended",
        "_header_s",
        "_heard_s",
        "_is_counted",
        "_is_ending",
        "_is_full",
        "_is_over",
        "_is_too_many",
        "_lingered",
        "_lingers",
        "_parser",
        "_received",
        "_transport",
        "_upload",
        "_waits",
        "_worker",
        "accepted_ns",
        "due_s",
        "unanswered",
    )

    _transport: asyncio.Transport

    def __init__(
        self,
        worker: WorkerContext,
        batch: Batch,
        connections: set[Looked],
        received: bytes = b"",
        *,
        accepted_ns: int | None = None,
        is_over: bool = False,
        is_too_many: bool = False,
    ) -> None:
        """`connections` is the worker's set of all that are open; `received` has been read from the socket already.
        With `accepted_ns` its first upload was answered at accept, and it is counted; one that `is_over` had its last
        answer there and only lingers. One that `is_too_many` is told so."""
        self._worker = worker
        self._batch = batch
        self._connections = connections
        self._received = received  # and not parsed yet
        self._parser = ServerConnection(worker.limits)
        self._upload: _Upload | None = None
        self.unanswered = 0  # uploads of ours that are in the batch
        self._waits = False  # for the batch, and is not read meanwhile
        self._has_ended = False  # the peer has, while we waited
        self._is_full = False  # of replies that the peer does not read
        self._closing = False
        self._is_ending = False  # there is nothing more to say; `due_s` is when the patience with the peer ends
        self._lingers = False  # until then, what it still sends is discarded
        self._lingered = 0  # bytes
        self._heard_s = worker.clock_s
        self._header_s: float | None = None  # when a header began that arrives in pieces
        self.due_s = worker.clock_s
        """When to look at the clocks."""
        self._is_counted = accepted_ns is not None
        self._is_over = is_over
        self._is_too_many = is_too_many
        self.accepted_ns = time.monotonic_ns() if accepted_ns is None else accepted_ns

    # ── the loop's callbacks ──

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        worker = self._worker
        self._connections.add(self)
        if not self._is_counted:
            worker.accepted()
        worker.record[scoreboard.CONNECTIONS_NOW] = len(self._connections)
        if self._is_too_many:
            self._refuse("busy", f"this worker holds {worker.max_connections} connections, its most")
        if self._is_over:
            self._linger()
        self._take_received()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._batch.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            self._discard(nbytes)
            return
        self._heard_s = self._worker.clock_s
        view = self._batch.received(nbytes)
        if self._waits:  # uvloop begins to read after connection_made(), whatever was paused there
            self._received += bytes(view)
            self._transport.pause_reading()
            return
        while whole := self._parser.take_whole(view):
            started, body, view = whole
            self.unanswered += 1
            self._batch.add(self, started, body)
            if started.header.connection == "close":
                self._closing = True  # what follows is not an upload
                break
            if self.unanswered >= AT_ONCE:
                self._let_others_go_first(view)
                view = view[:0]
        if view and not self._closing:
            self._take_pieces(view)
        if self.unanswered:
            self._batch.claim(nbytes)

    def eof_received(self) -> bool:
        """Returning False lets the transport close after what was written has been sent."""
        self._answer_batched()
        if self.unanswered or self._waits:
            self._has_ended = True
            return True
        if not self._closing:
            try:
                self._parser.receive_eof()
            except RemoteProtocolError as error:
                self._fail(error.code, error.message)
        self._begin_to_end(self._worker.patience.idle_s)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closing and self._parser.in_upload:
            self._worker.count_failure("truncated", f"the connection was lost: {exc or 'closed'}")
        self._closing = True
        self._abort_upload()
        self._connections.discard(self)
        self._worker.record[scoreboard.CONNECTIONS_NOW] = len(self._connections)

    def pause_writing(self) -> None:
        """A client that pipelines and does not read its replies gets no more of our memory."""
        self._is_full = True
        if not self._closing:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_full = False
        if not self._closing and not self._waits:
            self._transport.resume_reading()

    # ── what the batch asks for ──

    def has_more(self) -> bool:
        return self.unanswered > 1 or bool(self._received)

    def answer(self, reply: bytes, *, keep: bool) -> None:
        self.unanswered -= 1
        if self._transport.is_closing() or self._lingers:
            return  # the client is gone, or was refused before; its file is stored all the same
        self._transport.write(reply)
        if not keep:
            self._end(is_asked=self._closing)
        elif self._waits and not self.unanswered:
            self._go_on()

    def refuse(self, error: StoreError, upload: UploadStarted, timing: Timing, *, keep: bool) -> None:
        if self._transport.is_closing() or self._lingers:
            self.unanswered -= 1
            self._worker.count_failure(error.code, error.message)
            return
        size = upload.header.file_size
        self.answer(self._worker.failed(error.code, error.message, timing, upload.file_name, size, keep), keep=keep)

    def wait(self) -> None:
        self._waits = True
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def close(self) -> None:
        """Close when what was written is sent."""
        self._begin_to_end(self._worker.patience.idle_s)
        self._transport.close()

    # ── what the worker asks for ──

    def shut_down(self) -> None:
        """The drain timeout has passed: refuse what is under way, close what is idle."""
        self._answer_batched()
        if self._closing or self.unanswered:
            return  # its last reply is on the way
        if self._parser.in_upload:
            self._refuse("shutting_down", "the server is shutting down")
        else:
            self.close()

    def look_at_clocks(self, now_s: float) -> None:
        """`due_s` has come: end what has taken too long, or find when to look again."""
        patience = self._worker.patience
        if self._is_ending:
            self._transport.abort()
            return
        if self.unanswered:
            self._heard_s = now_s  # it waits for us
        upload = self._upload
        silent_s = self._heard_s + patience.idle_s
        header_s = slow_s = math.inf
        if upload is not None:
            if patience.min_rate:
                slow_s = upload.begun_s + max(patience.grace_s, upload.received / patience.min_rate)
        elif self._header_s is not None:
            header_s = self._header_s + patience.header_s
        if now_s >= header_s:
            self._refuse("header_timeout", f"the header was not whole within {patience.header_s:g} s")
        elif upload is not None and now_s >= slow_s:
            took_s = now_s - upload.begun_s
            self._refuse("too_slow", f"{upload.received} bytes in {took_s:.0f} s, the least is {patience.min_rate}/s")
        elif now_s >= silent_s:
            self._end_silent()
        else:
            self.due_s = min(header_s, slow_s, silent_s)

    def _end_silent(self) -> None:
        """Between uploads without a word: it would be read as the answer to the next one."""
        if self._is_full:
            self._transport.abort()  # it has not read its replies, and reads no more of them
        elif self._parser.in_upload:
            self._refuse("idle_timeout", f"nothing was heard for {self._worker.patience.idle_s:g} s")
        else:
            self.close()

    # ── an upload in pieces ──

    def _take_pieces(self, view: memoryview) -> None:
        self._answer_batched()
        if self._closing:
            return
        if self.unanswered:
            self._received = bytes(view) + self._received
            return
        try:
            for event in self._parser.receive_data(view):
                kind = type(event)
                if kind is Data:
                    cast(_Upload, self._upload).write(cast(Data, event).view)
                elif kind is UploadComplete:
                    self._complete()
                    if self._closing:
                        return
                    if self.unanswered:
                        self._received = bytes(view[self._parser.consumed :]) + self._received
                        return
                    if self._parser.consumed < len(view):
                        self._let_others_go_first(view[self._parser.consumed :])
                        return
                else:
                    self._header_s = None
                    self._upload = self._begin(cast(UploadStarted, event))
                    self.due_s = 0.0  # other clocks run now
            if self._upload is None and self._header_s is None and self._parser.in_upload:
                self._header_s = self._worker.clock_s
                self.due_s = 0.0
        except (RemoteProtocolError, StoreError) as error:
            self._refuse(error.code, error.message)
        except Exception:
            log.exception("worker %d: an upload failed for a reason nobody foresaw", self._worker.slot)
            self._refuse("internal", "the server made a mistake; its log says which")

    def _let_others_go_first(self, rest: memoryview) -> None:
        """Take no more in this turn of the loop: a read can have thousands of tiny uploads, and libuv reads up to 32
        times before it looks at anybody else."""
        self._received = bytes(rest) + self._received
        self.wait()
        if not self.unanswered:
            self._worker.loop.call_soon(self._take_what_waited)

    def _begin(self, started: UploadStarted) -> _Upload:
        """StoreError when the upload is refused at once. One whose name is taken is so only when it is too large to be
        received for nothing."""
        size, now_s = started.header.file_size, self._worker.clock_s
        try:
            return _Upload(started, self._worker.store.begin(started.file_name, size), now_s)
        except StoreError as error:
            if error.code != "exists" or size > LINGER_BYTES:
                raise
            return _Upload(started, DiscardedFile(started.file_name), now_s, error)

    def _complete(self) -> None:
        upload = self._upload
        assert upload is not None
        trouble = upload.trouble()
        if trouble is not None:
            keep = upload.keep and not self._worker.draining
            self._fail(*trouble, keep=keep)
            if not keep:
                self._end(is_asked=not upload.keep)
            return
        self._upload = None
        self._closing = not upload.keep  # what follows is not an upload
        self.unanswered += 1
        self._batch.complete(self, upload.started, upload.incoming, upload.digest(), upload.header_ns)

    def _answer_batched(self) -> None:
        """Replies keep the order of the uploads. There may be unanswered ones all the same: they are at the disk."""
        if self.unanswered:
            self._batch.flush()

    def _go_on(self) -> None:
        """All that we waited for is answered. Later, when something must be parsed: a batch that is answering must not
        be read into."""
        self._heard_s = self._worker.clock_s
        if self._received or self._has_ended:
            self._worker.loop.call_soon(self._take_what_waited)
        else:
            self._read_again()

    def _take_what_waited(self) -> None:
        if self._closing:
            return
        self._read_again()
        self._take_received()
        if self._has_ended and not self.eof_received():
            self._transport.close()

    def _take_received(self) -> None:
        while self._received and not self._waits:
            received, self._received = self._received[:RECEIVE_BYTES], self._received[RECEIVE_BYTES:]
            self._batch.buffer()[: len(received)] = received
            self.buffer_updated(len(received))

    def _read_again(self) -> None:
        self._waits = False
        if not self._is_full and not self._has_ended:
            self._transport.resume_reading()

    # ── how a connection ends ──

    def _end(self, *, is_asked: bool) -> None:
        """End after the last reply. A client that asked for that has sent everything, and closing before it does saves
        a wake-up; another, in a drain, may be sending its next upload already."""
        if is_asked:
            self.close()
        else:
            self._linger()

    def _refuse(self, code: str, message: str, name: str | None = None, received: int = 0) -> None:
        self._fail(code, message, name, received)
        self._linger()

    def _linger(self) -> None:
        """Say that no more will be sent, and discard what still comes for a while: the last reply must be readable."""
        self._begin_to_end(LINGER_S)
        self._lingers = True
        if self._waits:
            self._read_again()
        if self._transport.can_write_eof() and not self._has_ended:
            self._transport.write_eof()
        else:
            self._transport.close()

    def _begin_to_end(self, patience_s: float) -> None:
        self._closing = self._is_ending = True
        self.due_s = self._worker.clock_s + patience_s

    def _discard(self, nbytes: int) -> None:
        self._lingered += nbytes
        if self._lingered > LINGER_BYTES:
            self._transport.pause_reading()  # let the peer block and read its reply; the sweep ends it

    def _fail(self, code: str, message: str, name: str | None = None, received: int = 0, *, keep: bool = False) -> None:
        """Drop the upload, if one is arriving in pieces, and reply with the failure."""
        upload, header_ns = self._upload, None
        if upload is not None:
            name, received, header_ns = upload.started.file_name, upload.received, upload.header_ns
            self._abort_upload()
        timing = Timing(self.accepted_ns, header_ns)
        self._transport.write(self._worker.failed(code, message, timing, name, received, keep))

    def _abort_upload(self) -> None:
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.incoming.abort()


class AtAccept:
    """A connection whose first upload was there whole when it was accepted: answered before it has a transport."""

    __slots__ = ("_asks_to_close", "_go_on", "_socket", "_worker", "accepted_ns")

    def __init__(
        self, worker: WorkerContext, sock: socket.socket, accepted_ns: int, go_on: "GoOn", *, asks_to_close: bool
    ) -> None:
        self._worker = worker
        self._socket = sock
        self._go_on = go_on
        self._asks_to_close = asks_to_close
        self.accepted_ns = accepted_ns

    def has_more(self) -> bool:
        return False

    def answer(self, reply: bytes, *, keep: bool) -> None:
        try:
            self._socket.send(reply)  # a few hundred bytes always fit a fresh socket's buffer
        except OSError:
            self.close()  # the client is gone; its file is stored all the same
            return
        if self._asks_to_close:
            self.close()  # it has sent everything, and nothing is unread
        else:
            self._go_on(self._socket, self.accepted_ns, "serve" if keep else "linger")

    def refuse(self, error: StoreError, upload: UploadStarted, timing: Timing, *, keep: bool) -> None:
        size = upload.header.file_size
        self.answer(self._worker.failed(error.code, error.message, timing, upload.file_name, size, keep), keep=keep)

    def wait(self) -> None:
        """It is not read before it is opened."""

    def close(self) -> None:
        self._go_on(self._socket, self.accepted_ns, "close")


Next = Literal["serve", "linger", "close"]
"""What becomes of a connection after its first upload. One that ends lingers where the second upload may have arrived
meanwhile: that would be unread."""

GoOn = Callable[[socket.socket, int, Next], None]
"""Told the time at which the connection was accepted, in monotonic nanoseconds."""


def serve_at_once(worker: WorkerContext, batch: Batch, sock: socket.socket, go_on: GoOn) -> bytes | None:
    """Look once at a connection just accepted: on a busy worker the client's bytes are there already.

    If they are one whole upload, it goes into the batch before the connection has a transport. A short connection never
    needs one: it costs two thirds of the CPU and one turn of the loop instead of three, so that it does not starve
    beside long ones. A long one gets it after the reply: where hundreds wait, as after a stall, none waits for the
    others' transports. Returns None when the upload is taken, otherwise the bytes that were read, for a Connection to
    go on with.
    """
    accepted_ns = time.monotonic_ns()
    try:
        count = sock.recv_into(batch.buffer(), 0, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""
    except OSError:
        count = 0
    if not count:
        worker.accepted()
        go_on(sock, accepted_ns, "close")
        return None
    view = batch.received(count)
    whole = ServerConnection(worker.limits).take_whole(view)
    if whole is None or whole[2]:
        return bytes(view)
    worker.accepted()
    asks_to_close = whole[0].header.connection == "close"
    batch.add(AtAccept(worker, sock, accepted_ns, go_on, asks_to_close=asks_to_close), whole[0], whole[1])
    batch.claim(count)
    return None
