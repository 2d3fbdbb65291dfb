"""One worker process: an event loop, listening sockets, connections until it is told to stop.

The loop accepts from its own reader callback, in bursts of at most 64: uvloop's `create_server` accepts one
connection per turn of a busy loop, and new connections beside keep-alive load then wait 4 to 5 times as long.

RETIRE drains: the accept queues are emptied first, so that nobody who was already connected is reset, and only then the
scoreboard says so; those of lent sockets wait for the next server. Every upload on the open connections is served and
answered with `"connection": "close"`, until all are gone and have read what they were told. The drain timeout bounds
that: when it has passed, uploads under way are refused, and SHUT_DOWN_GRACE_S later whoever is still there is cut off.
It is a signal that nobody else sends. TERM, INT and their like are ignored: a terminal or a service manager sends them
to the whole process group, and the supervisor decides.
"""

import asyncio
import errno
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import uvloop

from server import scoreboard
from server.batch import AT_ONCE, RECEIVE_BYTES
from server.connection import CLOSED, LINGER_S, OPEN, Connection, Excess, Phase
from server.durable import make_batch
from server.first_upload import take_first_upload
from server.listening.listener import Door
from server.options import ServerConfig
from server.protocol import Limits
from server.scoreboard import Scoreboard
from server.storage.quota import Quota
from server.storage.store import DiscardStore, FileStore, Store
from server.tls import TlsLayer
from server.worker_context import Client, Patience, WorkerContext

RETIRE = signal.SIGRTMIN
ACCEPT_BURST = 64
ACCEPT_PAUSE_S = 0.1
MAX_REFUSALS = 16  # connections beyond the most, while they are told `busy`
OWN_DESCRIPTORS = 32  # the loop's, the store's, the log's
BEAT_S = 0.5
DRAIN_CHECK_S = 0.02
SHUT_DOWN_GRACE_S = LINGER_S + 2 * BEAT_S
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Queue = Literal["more", "empty", "full"]
"""What an accept queue may have left; the worker is what is full."""

log = logging.getLogger("server")


class Worker:
    """The parts of one worker that live as long as it does."""

    def __init__(
        self,
        slot: int,
        doors: Sequence[Door],
        config: ServerConfig,
        board: Scoreboard,
        record: memoryview,
        loop: asyncio.AbstractEventLoop,
        place: str,
    ) -> None:
        self._loop = loop
        self._doors = list(doors)
        self._tls = config.tls
        self._ciphertext = memoryview(bytearray(0 if config.tls is None else RECEIVE_BYTES))
        self._record = record
        self._drain_timeout_s = config.drain_timeout_s
        self._opening: set[asyncio.Task[object]] = set()  # a task that nobody holds may be collected
        self._answering: set[socket.socket] = set()  # those whose first upload is answered before they are opened
        self._stopped = loop.create_future()
        self._over = False  # the drain timeout has passed
        most, files = _shares_of_descriptors(config.max_connections)
        store: Store = DiscardStore()
        if config.store is not None:
            quota = Quota(config.max_store, board, record) if config.max_store else None
            store = FileStore(config.store, place, config.collision, config.durability, quota, files)
            if quota and record[scoreboard.BIRTHS] > 1:
                quota.count_again(store.root_fd)  # whoever sat here before may have been killed before it had counted
        limits = Limits(config.max_header_size, config.max_file_size, config.token)
        patience = Patience(config.header_timeout_s, config.idle_timeout_s, config.min_rate, config.min_rate_grace_s)
        self._context = WorkerContext(slot, store, limits, record, most, patience, loop)
        self._beat_s = time.monotonic()  # when the heart beat last
        self._ran_s = 0.0
        self._batch = make_batch(self._context, config.durability)
        self._connections: set[Client] = set()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until RETIRE and the end of the drain. `ready` is called when the first connection would be served."""
        self._loop.add_signal_handler(RETIRE, self._drain)
        for door in self._doors:
            self._loop.add_reader(door.sock, self._accept, door)
        self._beat()
        self._record[scoreboard.STATE] = scoreboard.READY
        ready()
        await self._stopped

    def _beat(self) -> None:
        """Tell the supervisor that the loop turns, and sweep over the connections: a timer for each of them would cost
        as much memory as all the rest of an idle one."""
        now_s = time.monotonic()
        self._record[scoreboard.HEARTBEAT_NS] = int(now_s * 1e9)
        context = self._context
        self._ran_s += min(now_s - self._beat_s, 2 * BEAT_S)
        self._beat_s = now_s
        context.clock_s = self._ran_s + BEAT_S
        for connection in [one for one in self._connections if one.due_s <= self._ran_s]:
            try:
                connection.look_at_clocks(self._ran_s)
            except Exception:  # one connection's trouble must not stop the heart
                log.exception("worker %d: a connection could not be ended", context.slot)
        self._loop.call_later(BEAT_S, self._beat)

    def _accept(self, door: Door) -> Queue:
        """Accept until the queue is empty, at most a burst: the connections that are open want their turn too."""
        if door not in self._doors:
            return "empty"
        for _ in range(ACCEPT_BURST):
            held = len(self._connections) + len(self._opening) + len(self._answering)
            if held >= self._context.max_connections + MAX_REFUSALS:
                self._pause_accepting(door, "more connections than can be told that the worker is busy")
                return "full"
            try:
                client, _ = door.sock.accept()
            except BlockingIOError:
                return "empty"
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    self._pause_accepting(door, str(error.strerror))
                    return "full"
                if error.errno == errno.EINVAL:
                    return "empty"  # it was shut down, as a unix socket is in the end
                continue  # that client is gone already (ECONNABORTED and the like)
            if not door.is_tls:
                self._context.accepted()
            kind = Connection if held < self._context.max_connections else Excess
            if door.is_tls or kind is Excess:
                self._open(client, time.monotonic_ns(), kind=kind, is_tls=door.is_tls)
            else:
                self._serve(client, time.monotonic_ns())
        return "more"

    def _serve(self, client: socket.socket, accepted_ns: int) -> None:
        """Answer its first upload at once if that is here already, otherwise open it."""
        self._answering.add(client)
        try:
            received = take_first_upload(self._context, self._batch, client, accepted_ns, self._go_on)
        except Exception:  # one connection's trouble must not keep the others waiting, nor a drain
            log.exception("worker %d: a connection could not be served", self._context.slot)
            self._answering.discard(client)
            client.close()
            return
        if received is not None:
            self._answering.discard(client)
            self._open(client, accepted_ns, received)

    def _go_on(self, client: socket.socket, accepted_ns: int, phase: Phase) -> None:
        """The first upload of a connection has been answered: open it, for more or to linger, or close it."""
        self._answering.discard(client)
        if phase == CLOSED:
            client.close()
        else:
            self._open(client, accepted_ns, phase=phase)

    def _open(
        self,
        client: socket.socket,
        accepted_ns: int,
        received: bytes = b"",
        *,
        phase: Phase = OPEN,
        kind: type[Connection] = Connection,
        is_tls: bool = False,
    ) -> None:
        connection = kind(self._context, self._batch, self._connections, accepted_ns, received, phase)
        protocol = self._over_tls(connection) if is_tls else connection
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: protocol, client))
        self._opening.add(task)
        task.add_done_callback(partial(self._opened, client))

    def _over_tls(self, connection: Connection) -> TlsLayer:
        """One that is only to be told `busy` must not take long for it."""
        assert self._tls is not None
        patience_s = LINGER_S if isinstance(connection, Excess) else self._context.patience.header_s
        return TlsLayer(self._context, self._tls.context, self._ciphertext, self._connections, connection, patience_s)

    def _opened(self, client: socket.socket, task: asyncio.Task[object]) -> None:
        self._opening.discard(task)
        if not task.cancelled() and task.exception() is not None:
            client.close()  # the exception's traceback would keep it open until garbage is collected
            log.info("worker %d: a connection could not be opened: %s", self._context.slot, task.exception())

    def _pause_accepting(self, door: Door, why: str) -> None:
        log.warning("worker %d: not accepting for %g s: %s", self._context.slot, ACCEPT_PAUSE_S, why)
        self._loop.remove_reader(door.sock)
        self._loop.call_later(ACCEPT_PAUSE_S, self._resume_accepting, door)

    def _resume_accepting(self, door: Door) -> None:
        if not self._context.draining:
            self._loop.add_reader(door.sock, self._accept, door)

    def _drain(self) -> None:
        if self._context.draining:
            return
        self._context.draining = True
        for door in self._doors:
            self._loop.remove_reader(door.sock)
        self._loop.call_later(self._drain_timeout_s, self._shut_down)
        for door in list(self._doors):
            if door.is_lent:
                self._close(door)
            else:
                self._empty_accept_queue(door)

    def _stop_when_idle(self) -> None:
        if self._connections or self._opening or self._answering:
            self._loop.call_later(DRAIN_CHECK_S, self._stop_when_idle)
        else:
            self._stop()

    def _empty_accept_queue(self, door: Door) -> None:
        """A burst a turn, as ever. Where no more can be held, those who wait are accepted when others have gone."""
        queue = self._accept(door)
        if queue == "more":
            self._loop.call_soon(self._empty_accept_queue, door)
        elif queue == "full" and not self._over:
            self._loop.call_later(ACCEPT_PAUSE_S, self._empty_accept_queue, door)
        else:
            self._close(door)

    def _close(self, door: Door) -> None:
        """The last one to be closed begins the drain of what is open."""
        self._doors.remove(door)
        door.sock.close()
        if not self._doors:
            self._record[scoreboard.STATE] = scoreboard.DRAINING
            self._stop_when_idle()

    def _shut_down(self) -> None:
        """Again and again, since who has just sent something is served once more."""
        if not self._over:
            self._over = True
            self._loop.call_later(SHUT_DOWN_GRACE_S, self._stop)
        for client in list(self._connections):
            client.shut_down()
        self._loop.call_later(DRAIN_CHECK_S, self._shut_down)

    def _stop(self) -> None:
        self._batch.close()
        for client in list(self._connections):
            client.abort()
        if not self._stopped.done():
            self._stopped.set_result(None)


def _shares_of_descriptors(connections: int) -> tuple[int, int]:
    """How many connections a worker may hold, and how many files of theirs: descriptors must never run out, because a
    connection that cannot be served cannot be answered either. `connections` is what is wanted, 0 for three in four,
    since most are idle most of the time. OSError when more are wanted than there are descriptors for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = max(2, soft - AT_ONCE - MAX_REFUSALS - OWN_DESCRIPTORS)
    possible = free - max(1, free // 4)
    if connections > possible:
        raise OSError(f"max_connections is {connections}, but {soft} descriptors (ulimit -n) are enough for {possible}")
    most = connections or possible
    return most, free - most


def run_worker(
    slot: int,
    doors: Sequence[Door],
    config: ServerConfig,
    board: Scoreboard,
    record: memoryview,
    ready: Callable[[], None],
    place: str,
) -> None:
    """Be worker `slot` until RETIRE, with temporary files in folder `place`. OSError when that cannot be opened."""
    os.umask(config.umask)
    loop = uvloop.new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        worker = Worker(slot, doors, config, board, record, loop, place)
        loop.run_until_complete(worker.run(ready))
    finally:
        loop.close()
