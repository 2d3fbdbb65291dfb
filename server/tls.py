"""TLS between a socket's transport and its Connection: to the one it is a protocol, to the other a transport.

uvloop has a layer of its own, which does not do here (seen with 0.23): a client whose handshake fails reads a bare end
in place of the alert that says why, one that closes without a goodbye is taken for lost, its answers with it, and after
our goodbye what it sends is discarded without a bound. This one lets a Connection be as patient over TLS as without.

There is no half-close over TLS: after our goodbye nothing is decrypted any more. What a refused client still sends is
discarded as it comes, within the same bounds as without TLS, and TCP's own half-close tells it that this was all. The
client's goodbye, or the bare end of its TCP, ends what it sends; what it sent before is answered.

A handshake has a deadline, which the worker's sweep looks after as it does after all others. Until it is done there is
no connection, to be counted or to be served: one that fails is a line in the log and a count.
"""

import asyncio
import ssl
from typing import cast

from server import scoreboard
from server.connection import LINGER_BYTES, LINGER_S, Connection
from server.worker_context import Client, WorkerContext


class TlsLayer(asyncio.BufferedProtocol):
    """One client's TLS. `due_s`, `look_at_clocks` and `shut_down` are for the worker, until the handshake is done."""

    __slots__ = (
        "_connection",
        "_connections",
        "_discarded",
        "_error",
        "_has_begun",
        "_has_ended",
        "_incoming",
        "_is_done",
        "_is_open",
        "_is_over",
        "_is_paused",
        "_outgoing",
        "_patience_s",
        "_received",
        "_tls",
        "_transport",
        "_worker",
        "due_s",
    )

    _transport: asyncio.Transport

    def __init__(
        self,
        worker: WorkerContext,
        context: ssl.SSLContext,
        received: memoryview,
        connections: set[Client],
        connection: Connection,
        patience_s: float,
    ) -> None:
        """`received` is where ciphertext is read to; all layers of a worker share it. `connections` is the worker's set
        of all that are open, where `connection` takes our place after the handshake, which may take `patience_s`."""
        self._worker = worker
        self._received = received
        self._connections = connections
        self._connection = connection
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._has_begun = False  # the client said something
        self._is_open = False  # the handshake is done
        self._is_paused = False
        self._is_done = False  # the peer said that it sends no more
        self._has_ended = False  # and the connection knows
        self._is_over = False  # we said so, and nothing is decrypted any more
        self._discarded = 0  # bytes, after a handshake that failed
        self._error: ssl.SSLError | None = None
        self._patience_s = patience_s
        self.due_s = worker.clock_s + patience_s

    # ── the loop's callbacks ──

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        self._count_open()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._received

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_over:
            self._discard(nbytes)
            return
        self._has_begun = True
        self._incoming.write(self._received[:nbytes])
        if self._is_open:
            self._decrypt()
        else:
            self._shake_hands()

    def eof_received(self) -> bool:
        """As TCP says it. Without TLS's own goodbye uploads are served as well: a frame tells how long it is."""
        return self._is_open and self._end_of_peer()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_open:
            self._is_over = True
            self._connection.connection_lost(self._error or exc)
            del self._connection  # whose transport this is: a cycle would keep both until they are collected
            return
        if self._has_begun and not self._is_over:  # who just looks whether the port is open has not failed
            self._worker.count_failure("tls_handshake", "the connection ended in the handshake")
        self._connections.discard(self)
        self._count_open()

    def pause_writing(self) -> None:
        if self._is_open:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        if self._is_open:
            self._connection.resume_writing()

    # ── what the worker asks for ──

    def look_at_clocks(self, now_s: float) -> None:
        """The handshake has taken too long, or the client has had its time to read why it failed."""
        if self._is_over:
            self._transport.abort()
        else:
            self._fail(f"not done within {self._patience_s:g} s")

    def shut_down(self) -> None:
        self._is_over = True
        self._transport.abort()

    # ── what the connection asks for ──

    def write(self, data: bytes) -> None:
        if self._is_over or self._error is not None:  # what came before an error is served, but cannot be answered
            return
        view = memoryview(data)
        try:
            while view:
                view = view[self._tls.write(view) :]
        except ssl.SSLError as error:
            self._is_over, self._error = True, error
            self._transport.close()
        else:
            self._send()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str) -> object:
        return self._transport.get_extra_info(name)

    def pause_reading(self) -> None:
        self._is_paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Later: whoever calls this may be about to parse what came before."""
        if self._is_paused:
            self._is_paused = False
            self._worker.loop.call_soon(self._go_on)

    def write_eof(self) -> None:
        """End the TCP connection's sending side, and TLS before it."""
        self._say_goodbye()
        self._transport.write_eof()

    def close(self) -> None:
        self._say_goodbye()
        self._transport.close()

    def abort(self) -> None:
        """The worker may ask for it too."""
        self._transport.abort()

    # ── the handshake ──

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
        except ssl.SSLError as error:  # an alert that says why is on its way out
            self._fail(_told(error))
        else:
            self._send()
            self._connections.discard(self)
            self._is_open = True
            self._worker.accepted()
            self._connection.connection_made(cast(asyncio.BaseTransport, self))
            self._decrypt()

    def _fail(self, why: str) -> None:
        """Count and log it; and let the client read the alert, as it could a refusal."""
        self._worker.count_failure("tls_handshake", why)
        self._is_over = True
        self.due_s = self._worker.clock_s + LINGER_S
        self._send()
        self._transport.write_eof()

    # ── bytes ──

    def _decrypt(self) -> None:
        """Pass on all that can be, unless the connection wants no more of it."""
        while not (self._is_paused or self._is_over or self._is_done):
            count = self._read_into(self._connection.get_buffer(-1))
            if count:
                self._connection.buffer_updated(count)
            elif not self._is_done:
                break
        self._send()  # the protocol's own answers
        if self._error is not None:
            self._is_over = True
            self._transport.close()
        elif self._is_done and not self._is_over and not self._end_of_peer():
            self.close()

    def _read_into(self, buffer: memoryview) -> int:
        """Decrypt as many records as are here and fit; returns their bytes."""
        filled = 0
        try:
            while filled < len(buffer) and (self._incoming.pending or self._tls.pending()):
                count = cast(int, self._tls.read(len(buffer) - filled, buffer[filled:]))  # with a buffer, it counts
                if not count:
                    self._is_done = True
                    break
                filled += count
        except ssl.SSLWantReadError:
            pass  # the rest of a record has still to come
        except ssl.SSLZeroReturnError:
            self._is_done = True
        except ssl.SSLError as error:
            self._is_done, self._error = True, error
        return filled

    def _end_of_peer(self) -> bool:
        """Tell the connection once; returns whether it goes on, to answer what it has."""
        if self._has_ended:
            return True
        self._has_ended = True
        goes_on = self._connection.eof_received()
        if not goes_on:
            self._say_goodbye()
        return goes_on

    def _go_on(self) -> None:
        if not self._is_over:
            self._decrypt()
        if not self._is_paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def _discard(self, nbytes: int) -> None:
        if self._is_open:
            self._connection.buffer_updated(nbytes)  # which counts them only
            return
        self._discarded += nbytes
        if self._discarded > LINGER_BYTES:
            self._transport.pause_reading()

    def _say_goodbye(self) -> None:
        """What was not decrypted yet is dropped: OpenSSL would take it for a mistake of the peer's."""
        if self._is_over:
            return
        self._is_over = True
        self._incoming.read()
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # the peer has not said so yet, and need not
        self._send()

    def _send(self) -> None:
        if self._outgoing.pending and not self._transport.is_closing():
            self._transport.write(self._outgoing.read())

    def _count_open(self) -> None:
        self._worker.record[scoreboard.CONNECTIONS_NOW] = len(self._connections)


def _told(error: ssl.SSLError) -> str:
    """`certificate verify failed: certificate has expired`, without the library's own line numbers."""
    text = (error.reason or str(error)).lower().replace("_", " ")
    if isinstance(error, ssl.SSLCertVerificationError):
        text += f": {error.verify_message}"
    return text
