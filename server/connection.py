"""One client: joins the protocol's events to the store, and answers.

Everything happens inside the event loop's callbacks, synchronously. Bytes are read into the worker's arena, which all
its connections share, so no connection owns a buffer and an idle one costs little. A small upload that arrives whole
is left to the worker's batch; one that arrives in pieces is parsed in place, written and hashed before the callback
returns.

Replies keep the order of the uploads, and a batch may take long to answer: one that makes uploads durable waits for the
disk. Until it has answered, nothing more is taken from the connection: it is not read, and what was read already is
kept for then. The same where the peer does not read its replies: what it can have of our memory is one read, and the
replies to one turn's uploads over the transport's mark.

A connection goes through phases, never back:

    phase         what it means                                              after its last reply
    OPEN          uploads are taken as they arrive                           LINGERING
    HALF_CLOSED   the peer has sent its end; what it sent is still served    CLOSED
    ENDING        an upload asked to close; what follows is discarded        CLOSED
    LINGERING     all has been said; what arrives is discarded in bounds     CLOSED, when the peer sends its end
    CLOSED        nothing is read; the transport goes when all is sent

A refusal must be readable, and so must what a drain says to a client that knows only then that it shall send no more:
when a connection is closed with unread data, TCP sends a reset, and the client may never see the reason. So LINGERING
shuts the write side, and discards what still arrives for a while. Who has said that it sends no more is closed, which
saves a wake-up.

What was written is sent nevertheless, as long as the peer takes some of it within the idle timeout: the while begins
when the last byte is out of the kernel, too. Only `abort` gives replies up, after that timeout or when the worker
ends, and logs it.

Three clocks end what takes too long: a header's deadline, silence, and a rate below the least. None has a timer of its
own. A connection says when the first of them could run out (`due_s`), and the worker's sweep comes back then; what has
happened meanwhile only leaves a mark, so that serving pays for one assignment.
"""

import asyncio
import fcntl
import logging
import math
import sys
import termios
from typing import cast

from server import scoreboard
from server.batch import AT_ONCE, RECEIVE_BYTES, Batch, InPieces
from server.printing import in_words
from server.protocol import Data, RemoteProtocolError, ServerConnection, Timing, UploadComplete, UploadStarted
from server.storage.store import DiscardedFile, StoreError
from server.worker_context import Client, WorkerContext

LINGER_BYTES = 1 << 20
LINGER_S = 2.0

Phase = int  # compared twice an upload: members of an IntEnum would take 35 ns for it instead of 5
OPEN, HALF_CLOSED, ENDING, LINGERING, CLOSED = range(5)

log = logging.getLogger("server")


class Connection(asyncio.BufferedProtocol):
    __slots__ = (
        "_batch",
        "_connections",
        "_header_s",
        "_heard_s",
        "_is_full",
        "_lingered",
        "_parser",
        "_phase",
        "_received",
        "_transport",
        "_unsent",
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
        connections: set[Client],
        accepted_ns: int,
        received: bytes = b"",
        phase: Phase = OPEN,
    ) -> None:
        """`connections` is the worker's set of all that are open; `received` has been read from the socket already.
        One whose last reply was sent at accept begins LINGERING."""
        self._worker = worker
        self._batch = batch
        self._connections = connections
        self._received = received  # and not parsed yet
        self._parser = ServerConnection(worker.limits)
        self._upload: InPieces | None = None
        self._phase = phase
        self.unanswered = 0  # uploads of ours that are in the batch
        self._waits = False  # for the batch or for its turn: nothing is parsed
        self._is_full = False  # of replies that the peer does not read
        self._unsent = 0  # bytes of replies, when we last looked
        self._lingered = 0  # bytes discarded
        self._heard_s = worker.clock_s  # when the peer last sent something, or took some of what we had written
        self._header_s: float | None = None  # when a header began that arrives in pieces
        self.due_s = worker.clock_s
        """When to look at the clocks."""
        self.accepted_ns = accepted_ns

    # ── the loop's callbacks ──

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._connections.add(self)
        self._worker.record[scoreboard.CONNECTIONS_NOW] = len(self._connections)
        if self._phase == LINGERING:
            self._enter(LINGERING)
        if self._received:
            self._take_what_waited()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._batch.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._phase >= ENDING:
            self._lingered += nbytes
            if self._lingered > LINGER_BYTES:
                self._set_reading()  # no more: the peer blocks and reads its reply, or the sweep ends it
            return
        self._heard_s = self._worker.clock_s
        view = self._batch.received(nbytes)
        if self._waits or self._is_full:  # uvloop begins to read after connection_made(), whatever was paused there
            self._received += bytes(view)
            self._set_reading()
            return
        while whole := self._parser.take_whole(view):
            started, body, view = whole
            self.unanswered += 1
            self._batch.add(self, started, body)
            if started.header.connection == "close":
                self._enter(ENDING)
                break
            if self.unanswered >= AT_ONCE:
                self._let_others_go_first(view)
                view = view[:0]
        if view and self._phase < ENDING:
            self._take_pieces(view)
        if self.unanswered:
            self._batch.claim(nbytes)

    def eof_received(self) -> bool:
        """Returning True keeps the transport open: something has still to be said."""
        self._answer_batched()
        if self._phase == OPEN:
            self._enter(HALF_CLOSED)
        if self._phase == LINGERING:
            self._enter(CLOSED)
        elif self._phase == HALF_CLOSED and not (self.unanswered or self._waits or self._received):
            try:
                self._parser.receive_eof()
            except RemoteProtocolError as error:
                self._refuse(error.code, error.message)
            else:
                self._enter(CLOSED)
        return self._phase != CLOSED

    def connection_lost(self, exc: Exception | None) -> None:
        if self._phase < ENDING and self._parser.in_upload:
            self._worker.count_failure("truncated", f"the connection was lost: {in_words(exc) if exc else 'closed'}")
        self._phase = CLOSED
        self._abort_upload()
        self._connections.discard(self)
        self._worker.record[scoreboard.CONNECTIONS_NOW] = len(self._connections)

    def pause_writing(self) -> None:
        """A client that pipelines and does not read its replies gets no more of our memory: nothing more is read, and
        nothing of what was, parsed."""
        self._is_full = True
        self.due_s = 0.0  # whether it takes some of them is looked at from now on
        self._set_reading()

    def resume_writing(self) -> None:
        self._is_full = False
        if self._received and not self._waits:
            self._waits = True
            self._worker.loop.call_soon(self._take_what_waited)
        else:
            self._set_reading()

    # ── what the batch asks for ──

    def has_more(self) -> bool:
        return self.unanswered > 1 or bool(self._received)

    def answer(self, reply: bytes, *, keep: bool) -> None:
        self.unanswered -= 1
        if self._phase >= LINGERING:
            return  # the client is gone, or was refused before; its file is stored all the same
        self._transport.write(reply)
        if not keep:
            self._end()
        elif self._waits and not self.unanswered:
            self._go_on()

    def wait(self) -> None:
        self._waits = True
        self._set_reading()

    def close(self) -> None:
        self._enter(CLOSED)

    # ── what the worker asks for ──

    def shut_down(self) -> None:
        self._answer_batched()
        if self._phase >= ENDING or self.unanswered:
            return  # its last reply is on the way
        arrived, upload = self._ask_kernel(termios.FIONREAD), self._upload
        if upload is not None and upload.started.header.file_size - upload.received <= arrived:
            return  # the next turn reads all the rest of it
        if self._parser.in_upload or self._received:
            self._refuse("shutting_down", "the server is shutting down")
        elif not arrived:  # or the next turn reads it, and this is looked at again
            self._end()

    def abort(self) -> None:
        """End at once. Replies that were not sent yet are lost."""
        if unsent := self._transport.get_write_buffer_size():
            slot = self._worker.slot
            message = "worker %d: a client that does not read is cut off, with %d bytes of replies unsent"
            log.info(message, slot, unsent, extra={"slot": slot})
        self._transport.abort()

    def look_at_clocks(self, now_s: float) -> None:
        patience = self._worker.patience
        unsent, before = self._bytes_unsent(), self._unsent
        self._unsent = unsent
        if unsent < before or (self.unanswered and self._phase < LINGERING):
            self._heard_s = now_s  # it reads, or waits for us
        silent_s = self._heard_s + (LINGER_S if self._phase >= LINGERING and not unsent else patience.idle_s)
        header_s = slow_s = math.inf
        upload = self._upload
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
            self.due_s = now_s if unsent else min(header_s, slow_s, silent_s)

    def _bytes_unsent(self) -> int:
        """Of replies. Once all is said, also what the kernel has still to send (TCP: what is not acknowledged; unix:
        not read), since an end with something unread would throw it away; the same where nothing goes out, to see
        whether the peer reads at all: a kernel's full buffer takes no more before a third of it is free."""
        unsent = self._transport.get_write_buffer_size()
        return unsent + self._ask_kernel(termios.TIOCOUTQ) if unsent or self._phase >= LINGERING else 0

    def _ask_kernel(self, question: int) -> int:
        """A number of bytes: TIOCOUTQ not sent yet, FIONREAD arrived and not read. See tcp(7) and unix(7)."""
        fd = self._transport.get_extra_info("socket").fileno()
        return int.from_bytes(fcntl.ioctl(fd, question, bytes(4)), sys.byteorder) if fd >= 0 else 0

    def _end_silent(self) -> None:
        """Cut off who is silent; between uploads without a word, which would be read as the answer to the next."""
        if self._is_full or self._phase >= LINGERING:
            self.abort()
        elif self._parser.in_upload:
            self._refuse("idle_timeout", f"nothing was heard for {self._worker.patience.idle_s:g} s")
        else:
            self._enter(CLOSED)

    # ── an upload in pieces ──

    def _take_pieces(self, view: memoryview) -> None:
        self._answer_batched()
        if self._phase >= ENDING:
            return
        if self.unanswered:
            self._let_others_go_first(view)
            return
        try:
            for event in self._parser.receive_data(view):
                kind = type(event)
                if kind is Data:
                    cast(InPieces, self._upload).write(cast(Data, event).view)
                elif kind is UploadComplete:
                    self._complete()
                    rest = view[self._parser.consumed :]
                    if rest and self._phase < ENDING:
                        self._let_others_go_first(rest)
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
        times before it looks at anybody else. Nor until our uploads are back from the disk, if they are there."""
        self._received = bytes(rest) + self._received
        self.wait()
        if not self.unanswered:
            self._worker.loop.call_soon(self._take_what_waited)

    def _begin(self, started: UploadStarted) -> InPieces:
        """StoreError when the upload is refused at once: for a name that is taken only if it is a large one."""
        size, now_s = started.header.file_size, self._worker.clock_s
        try:
            return InPieces(started, self._worker.store.begin(started.file_name, size), now_s)
        except StoreError as error:
            if error.code != "exists" or size > LINGER_BYTES:
                raise
            return InPieces(started, DiscardedFile(started.file_name), now_s, error)

    def _complete(self) -> None:
        upload = self._upload
        assert upload is not None
        if not upload.keep:
            self._enter(ENDING)
        if trouble := upload.trouble():
            self._refuse(*trouble, keep=upload.keep and not self._worker.draining)
            return
        self._upload = None
        self.unanswered += 1
        self._batch.complete(self, upload)

    def _answer_batched(self) -> None:
        """Replies keep the order of the uploads. There may be unanswered ones all the same: they are at the disk."""
        if self.unanswered:
            self._batch.flush()

    def _go_on(self) -> None:
        """All that we waited for is answered. Parse later, since a batch that is answering must not be read into."""
        self._heard_s = self._worker.clock_s
        if self._received or self._phase == HALF_CLOSED:
            self._worker.loop.call_soon(self._take_what_waited)
        else:
            self._take_what_waited()

    def _take_what_waited(self) -> None:
        self._waits = False
        while self._received and not (self._waits or self._is_full):
            received, self._received = self._received[:RECEIVE_BYTES], self._received[RECEIVE_BYTES:]
            self._batch.buffer()[: len(received)] = received
            self.buffer_updated(len(received))
        if self._phase == HALF_CLOSED:
            self.eof_received()
        else:
            self._set_reading()

    # ── whether it is read, and how it ends ──

    def _set_reading(self) -> None:
        """Read, or leave what comes in the kernel, which lets the peer wait: nothing else pauses or resumes."""
        if self._phase == CLOSED:
            return
        if self._phase == OPEN:
            reads = not (self._waits or self._is_full)
        else:
            reads = self._phase == LINGERING and self._lingered <= LINGER_BYTES
        if reads:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _enter(self, phase: Phase) -> None:
        """Everything is said when it is LINGERING or CLOSED: `answer` writes no more."""
        self._phase = phase
        if phase < LINGERING:
            return
        self._heard_s, self.due_s = self._worker.clock_s, 0.0  # other clocks run now
        if phase == LINGERING:
            self._transport.write_eof()
            self._set_reading()
        else:
            self._transport.close()

    def _end(self) -> None:
        """The last reply is written."""
        self._enter(LINGERING if self._phase == OPEN else CLOSED)

    def _refuse(self, code: str, message: str, *, keep: bool = False) -> None:
        """Drop the upload, if one is arriving in pieces, reply with the failure, and end unless `keep`."""
        name, received, header_ns = None, 0, None
        upload = self._upload
        if upload is not None:
            name, received, header_ns = upload.started.file_name, upload.received, upload.header_ns
            self._abort_upload()
        self._header_s = None
        timing = Timing(self.accepted_ns, header_ns)
        self._transport.write(self._worker.failed(code, message, timing, name, received, keep))
        if not keep:
            self._end()

    def _abort_upload(self) -> None:
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.incoming.abort()


class Excess(Connection):
    """One more than the worker may hold, which is told so."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._refuse("busy", f"this worker holds {self._worker.max_connections} connections, its most")
