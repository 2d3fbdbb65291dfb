"""A connection's first upload, answered before the connection has a transport.

On a busy worker a client's bytes are there when it is accepted. If they are one whole upload, it goes into the batch at
once. A short connection then never needs a transport: it costs two thirds of the CPU and one turn of the loop instead
of three, so that it does not starve beside long ones. A long one gets it after the reply: where hundreds wait, as after
a stall, none waits for the others' transports.
"""

import socket
from collections.abc import Callable

from server.batch import Batch
from server.connection import CLOSED, LINGERING, OPEN, Phase
from server.protocol import ServerConnection
from server.worker_context import WorkerContext

OnAnswered = Callable[[socket.socket, int, Phase], None]
"""Called with the socket, the time at which it was accepted in monotonic nanoseconds, and how its connection goes on:
OPEN; LINGERING, where a second upload may have arrived meanwhile, which would be unread; or CLOSED."""


class FirstUpload:
    """Who sent it, for the batch."""

    __slots__ = ("_asks_to_close", "_on_answered", "_socket", "accepted_ns")

    def __init__(self, sock: socket.socket, accepted_ns: int, on_answered: OnAnswered, *, asks_to_close: bool) -> None:
        self._socket = sock
        self._on_answered = on_answered
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
            self._on_answered(self._socket, self.accepted_ns, OPEN if keep else LINGERING)

    def wait(self) -> None:
        """It is not read before it is opened."""

    def close(self) -> None:
        self._on_answered(self._socket, self.accepted_ns, CLOSED)


def take_first_upload(
    worker: WorkerContext, batch: Batch, sock: socket.socket, accepted_ns: int, on_answered: OnAnswered
) -> bytes | None:
    """Look once at a connection just accepted. Returns None when its first upload is taken, or the client is gone;
    otherwise the bytes that were read, for a Connection to go on with."""
    try:
        count = sock.recv_into(batch.buffer(), 0, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""
    except OSError:
        count = 0
    if not count:
        on_answered(sock, accepted_ns, CLOSED)
        return None
    view = batch.received(count)
    whole = ServerConnection(worker.limits).take_whole(view)
    if whole is None or whole[2]:
        return bytes(view)
    started, body, _ = whole
    asks_to_close = started.header.connection == "close"
    batch.add(FirstUpload(sock, accepted_ns, on_answered, asks_to_close=asks_to_close), started, body)
    batch.claim(count)
    return None
