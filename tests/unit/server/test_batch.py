"""The batch and the connection on it, without sockets: a fake transport, a loop that turns when told to.

What holds for a batch holds for one that makes uploads durable too: the tests that do not look at when run with both.
"""

import asyncio
import errno
import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import eventually
from slow import examples

from server import durable, scoreboard
from server.batch import ARENA_BYTES, AT_ONCE, RECEIVE_BYTES
from server.connection import LINGER_BYTES, LINGER_S, OPEN, Connection, Phase
from server.durable import DurableBatch, make_batch
from server.failure_codes import SERVER_CODES
from server.first_upload import take_first_upload
from server.options import Collision, Durability
from server.protocol import LENGTH_BYTES, Limits, Reply, digest_of
from server.storage.folders import prepare_store
from server.storage.store import FileStore, StoreError
from server.worker_context import Client, Patience, WorkerContext


class Turns:
    """An event loop's `call_soon` and `call_later`, run by hand. Its list may grow from any thread."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    call_soon_threadsafe = call_soon

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> "Turns":
        return self

    def cancel(self) -> None: ...

    def turn(self) -> None:
        callbacks, self.soon = self.soon, []
        for callback in callbacks:
            callback()


class Transport:
    """Keeps what was written; what is written after a close is an error of ours."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.aborted = False
        self.ended = False
        self.paused = False
        self.unsent = 0

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str) -> object:
        return SimpleNamespace(fileno=lambda: -1)  # no socket, so the kernel has nothing

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        assert not self.closed
        self.paused = True

    def resume_reading(self) -> None:
        assert not self.closed
        self.paused = False

    def replies(self) -> list[Reply]:
        found, rest = [], self.written
        while rest:
            end = LENGTH_BYTES + int.from_bytes(rest[:LENGTH_BYTES], "little")
            raw = json.loads(rest[LENGTH_BYTES:end])
            found.append(Reply(**raw))
            rest = rest[end:]
        return found


PATIENCE = Patience(header_s=10, idle_s=75, min_rate=1024, grace_s=10)


class Worker:
    """A store in a folder, a batch, and as many connections as a test wants."""

    def __init__(self, folder: Path, durability: Durability, collision: Collision = "replace") -> None:
        prepare_store(folder, 1)
        self.folder = folder
        self.store = FileStore(folder, 0, collision, durability)
        self.loop = Turns()
        self.record = memoryview(bytearray(8 * (scoreboard.FAILURES + len(SERVER_CODES)))).cast("Q")
        loop: asyncio.AbstractEventLoop = self.loop  # type: ignore[assignment]
        self.context = WorkerContext(0, self.store, Limits(), self.record, 100, PATIENCE, loop)
        self.batch = make_batch(self.context, durability)
        self.connections: set[Client] = set()

    def connect(self) -> tuple[Connection, Transport]:
        connection, transport = Connection(self.context, self.batch, self.connections, 0), Transport()
        connection.connection_made(transport)  # type: ignore[arg-type]
        return connection, transport

    def receive(self, connection: Connection, data: bytes) -> None:
        """What a connection that is not read has sent stays in the kernel."""
        if connection._transport.paused:  # type: ignore[attr-defined]
            self.settle()
        buffer = connection.get_buffer(-1)
        assert len(buffer) >= len(data)
        buffer[: len(data)] = data
        connection.buffer_updated(len(data))

    def end(self, connection: Connection) -> None:
        """Its client half-closes, as what it sent has just been read."""
        if not connection.eof_received():
            connection._transport.close()

    def sweep(self, connection: Connection, now_s: float) -> None:
        """As at a beat of the worker's heart."""
        self.context.clock_s = now_s + 0.5
        if connection.due_s <= now_s:
            connection.look_at_clocks(now_s)

    def settle(self) -> None:
        """Turn until nothing is left to do, here or at the disk."""
        self.loop.turn()
        while self.loop.soon or self.at_disk():
            if self.at_disk():
                wait([self.batch._at_disk[1]])  # type: ignore[attr-defined]
            self.loop.turn()

    def at_disk(self) -> bool:
        return isinstance(self.batch, DurableBatch) and self.batch._at_disk is not None

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir() if path.is_file()}

    def temporary_files(self) -> list[Path]:
        return list((self.folder / ".incoming").glob("*/*"))

    def stored(self) -> int:
        return self.record[scoreboard.UPLOADS_STORED]

    def close(self) -> None:
        self.batch.close()
        self.store.close()


@pytest.fixture(params=["process", "power"])
def worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path / "store", request.param)
    yield made
    made.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path / "store", "process")
    yield made
    made.close()


@pytest.fixture
def power(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path / "store", "power")
    yield made
    made.close()


class Disk:
    """A disk that takes its time: it begins nothing before it may."""

    def __init__(self, store: FileStore) -> None:
        self._put = store.put_all_durably
        self._may = threading.Semaphore(0)
        self._free = False
        self.trips: list[int] = []
        """How many uploads each trip took."""

    def put_all_durably(self, files: Sequence[object]) -> list[str | StoreError]:
        self.trips.append(len(files))
        if not self._free:
            self._may.acquire()
        return self._put(files)  # type: ignore[arg-type]

    def take_one(self) -> None:
        self._may.release()

    def take_all(self) -> None:
        self._free = True
        self._may.release()


@contextmanager
def slow_disk(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(worker.store)
    monkeypatch.setattr(worker.store, "put_all_durably", disk.put_all_durably)
    try:
        yield disk
    finally:
        disk.take_all()


def frame(name: str, body: bytes, **keys: str) -> bytes:
    header = json.dumps({"file_size": len(body), "file_name": name, **keys}).encode()
    return len(header).to_bytes(LENGTH_BYTES, "little") + header + body


def test_a_turn_stores_what_all_connections_sent_and_answers_each(worker: Worker) -> None:
    clients = [worker.connect() for _ in range(5)]
    for number, (connection, _) in enumerate(clients):
        worker.receive(connection, frame(f"f{number}", b"body %d" % number))
    assert worker.names() == set()
    assert not any(transport.written for _, transport in clients)
    worker.settle()
    for number, (_, transport) in enumerate(clients):
        (reply,) = transport.replies()
        assert (reply.code, reply.file_name) == ("ok", f"f{number}")
        assert reply.digest == digest_of("xxh3_128", b"body %d" % number)
        assert (worker.folder / f"f{number}").read_bytes() == b"body %d" % number
    assert worker.record[scoreboard.UPLOADS_STORED] == 5


def test_replies_keep_the_order_of_pipelined_uploads_whole_and_in_pieces(worker: Worker) -> None:
    connection, transport = worker.connect()
    last = frame("c", b"third")
    worker.receive(connection, frame("a", b"first") + frame("b", b"second") + last[:-2])
    worker.receive(connection, last[-2:] + frame("d", b"fourth"))
    worker.settle()
    assert [reply.file_name for reply in transport.replies()] == ["a", "b", "c", "d"]
    assert worker.names() == {"a", "b", "c", "d"}


def test_the_last_of_equal_names_stays(worker: Worker) -> None:
    connection, _ = worker.connect()
    worker.receive(connection, frame("same", b"old") + frame("same", b"new"))
    worker.settle()
    assert (worker.folder / "same").read_bytes() == b"new"


def test_bodies_stay_until_they_are_stored_however_much_is_read(worker: Worker) -> None:
    """More than the arena holds, in one turn."""
    clients = [worker.connect() for _ in range(40)]
    bodies = [bytes([number]) * (ARENA_BYTES // 16) for number in range(40)]
    for number, (connection, _) in enumerate(clients):
        worker.receive(connection, frame(f"f{number}", bodies[number]))
    worker.settle()
    for number, (_, transport) in enumerate(clients):
        assert transport.replies()[0].code == "ok"
        assert (worker.folder / f"f{number}").read_bytes() == bodies[number]


def test_there_is_always_room_for_a_whole_read(worker: Worker) -> None:
    connection, _ = worker.connect()
    for _ in range(10):
        worker.receive(connection, frame("f", bytes(RECEIVE_BYTES - 200)))
        assert len(connection.get_buffer(-1)) == RECEIVE_BYTES


def test_one_that_cannot_be_stored_does_not_touch_the_others(worker: Worker) -> None:
    (worker.folder / "folder").mkdir()
    clients = [worker.connect() for _ in range(3)]
    for (connection, _), name in zip(clients, ("a", "folder", "b"), strict=True):
        worker.receive(connection, frame(name, b"x"))
    worker.settle()
    assert [transport.replies()[0].code for _, transport in clients] == ["ok", "name_rejected", "ok"]
    assert clients[1][1].ended
    assert not list((worker.folder / ".incoming").glob("*/*"))
    assert worker.record[scoreboard.UPLOADS_STORED] == 2


def test_a_refusal_follows_the_replies_before_it(worker: Worker) -> None:
    connection, transport = worker.connect()
    worker.receive(connection, frame("a", b"x") + b"\xff\xff\xff\xff")
    worker.settle()
    assert [reply.code for reply in transport.replies()] == ["ok", "bad_length"]


def test_nothing_after_an_upload_that_asks_to_close_is_taken(worker: Worker) -> None:
    connection, transport = worker.connect()
    worker.receive(connection, frame("a", b"x", connection="close") + frame("b", b"y"))
    worker.receive(connection, frame("c", b"z"))
    worker.settle()
    assert [reply.file_name for reply in transport.replies()] == ["a"]
    assert transport.closed
    assert worker.names() == {"a"}


def test_a_client_that_is_gone_before_its_reply_has_its_file_stored(worker: Worker) -> None:
    connection, transport = worker.connect()
    worker.receive(connection, frame("a", b"x"))
    transport.close()
    connection.connection_lost(None)
    worker.settle()
    assert worker.names() == {"a"}
    assert not transport.written


def test_half_closing_right_after_the_upload_still_gives_the_reply(worker: Worker) -> None:
    connection, transport = worker.connect()
    worker.receive(connection, frame("a", b"x"))
    worker.end(connection)
    worker.settle()
    assert [reply.code for reply in transport.replies()] == ["ok"]
    assert transport.closed


def test_draining_answers_with_close(worker: Worker) -> None:
    connection, transport = worker.connect()
    worker.receive(connection, frame("a", b"x"))
    worker.context.draining = True
    worker.settle()
    assert [reply.connection for reply in transport.replies()] == ["close"]
    assert transport.ended


@pytest.mark.parametrize("size", [1, RECEIVE_BYTES], ids=["whole", "in pieces"])
def test_a_drain_closes_at_once_only_on_who_asked_for_it(worker: Worker, size: int) -> None:
    """Another may be sending its next upload, and unread data would turn the close into a reset."""
    worker.context.draining = True
    for keys, is_closed in (({}, False), ({"connection": "keep-alive"}, False), ({"connection": "close"}, True)):
        connection, transport = worker.connect()
        upload = frame("a", bytes(size), **keys)
        worker.receive(connection, upload[:RECEIVE_BYTES])
        worker.receive(connection, upload[RECEIVE_BYTES:])
        worker.settle()
        assert [(reply.code, reply.connection) for reply in transport.replies()] == [("ok", "close")]
        assert (transport.closed, transport.ended) == (is_closed, not is_closed)
        if transport.ended:  # another would not be read any more
            worker.receive(connection, frame("second", b"x"))
        worker.settle()
        assert worker.names() == {"a"}


def test_the_end_of_a_drain_cuts_nobody_off_who_may_still_be_reading_its_last_reply(worker: Worker) -> None:
    worker.context.draining = True
    connection, transport = worker.connect()
    worker.receive(connection, frame("a", b"x"))
    connection.shut_down()
    worker.settle()
    assert [reply.code for reply in transport.replies()] == ["ok"]
    connection.shut_down()
    assert not transport.closed


def test_a_digest_to_check_takes_the_long_way(worker: Worker) -> None:
    connection, transport = worker.connect()
    worker.receive(connection, frame("good", b"x", digest=digest_of("sha256", b"x")))
    worker.receive(connection, frame("bad", b"x", digest=digest_of("sha256", b"y")))
    worker.settle()
    assert [reply.code for reply in transport.replies()] == ["ok", "digest_mismatch"]
    assert worker.names() == {"good"}


def test_asking_for_a_buffer_answers_nobody(worker: Worker) -> None:
    """libuv asks in the middle of its own work: a transport that is closed or paused then makes it crash."""
    connection, transport = worker.connect()
    for number in range(20):
        worker.receive(connection, frame(f"f{number}", bytes(ARENA_BYTES // 8)))
        written = transport.written
        connection.get_buffer(-1)
        assert transport.written == written
    worker.settle()
    assert len(transport.replies()) == 20


def test_a_drain_answers_all_that_is_here_and_closes_after_the_last(worker: Worker) -> None:
    connection, transport = worker.connect()
    worker.receive(connection, frame("a", b"x") + frame("b", b"y"))
    worker.context.draining = True
    worker.settle()
    assert [reply.connection for reply in transport.replies()] == ["keep-alive", "close"]


def test_a_store_that_fails_for_no_known_reason_leaves_nobody_waiting(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(files: object) -> list[None]:
        raise RuntimeError("a bug")

    clients = [worker.connect() for _ in range(2)]
    monkeypatch.setattr(worker.store, "put_all", broken)
    monkeypatch.setattr(worker.store, "put_all_durably", broken)
    for connection, _ in clients:
        worker.receive(connection, frame("a", b"x"))
    worker.settle()
    assert [transport.replies()[0].code for _, transport in clients] == ["internal", "internal"]


def test_an_answer_that_fails_for_no_known_reason_ends_its_connection_behind_the_replies_before_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok = WorkerContext.ok

    def broken(context: WorkerContext, name: str, *rest: object) -> bytes:
        if name == "bad":
            raise RuntimeError("a bug")
        return ok(context, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(WorkerContext, "ok", broken)
    connection, transport = worker.connect()
    other, other_transport = worker.connect()
    worker.receive(connection, frame("a", b"x") + frame("bad", b"x") + frame("c", b"x"))
    worker.receive(other, frame("b", b"x"))
    worker.settle()
    assert [reply.file_name for reply in transport.replies()] == ["a"]
    assert transport.closed
    assert [reply.file_name for reply in other_transport.replies()] == ["b"]
    assert not other_transport.closed


@pytest.mark.parametrize("first", [b"", b"in pieces"], ids=["whole", "in pieces"])
def test_a_client_that_sends_thousands_at_once_keeps_nobody_waiting(worker: Worker, first: bytes) -> None:
    """Whose uploads are taken goes by turns; and each is answered, in its order."""
    greedy, transport = worker.connect()
    other, others_transport = worker.connect()
    if first:
        head = frame("first", first)
        worker.receive(greedy, head[:-1])
        worker.loop.turn()
        worker.receive(greedy, head[-1:] + b"".join(frame(f"g{number}", b"") for number in range(1000)))
    else:
        worker.receive(greedy, b"".join(frame(f"g{number}", b"") for number in range(1000)))
    assert greedy._transport.paused  # type: ignore[attr-defined]
    worker.receive(other, frame("other", b"x"))
    worker.loop.turn()
    while worker.at_disk():
        wait([worker.batch._at_disk[1]])  # type: ignore[attr-defined]
        worker.loop.turn()
    assert [reply.file_name for reply in others_transport.replies()] == ["other"]
    assert len(transport.replies()) < 200
    worker.settle()
    names = [reply.file_name for reply in transport.replies()]
    assert names == ["first"] * bool(first) + [f"g{number}" for number in range(1000)]
    assert not transport.paused


def test_a_drain_answers_all_that_a_client_has_sent_by_then(worker: Worker) -> None:
    connection, transport = worker.connect()
    worker.context.draining = True
    worker.receive(connection, b"".join(frame(f"{number}", b"") for number in range(1000)))
    worker.settle()
    replies = transport.replies()
    assert [reply.file_name for reply in replies] == [f"{number}" for number in range(1000)]
    assert [reply.connection for reply in replies] == ["keep-alive"] * 999 + ["close"]


def test_a_drain_answers_more_than_go_at_once(worker: Worker) -> None:
    connection, transport = worker.connect()
    worker.receive(connection, b"".join(frame(f"{number}", b"x") for number in range(AT_ONCE + 5)))
    worker.context.draining = True
    worker.settle()
    assert [reply.connection for reply in transport.replies()] == ["keep-alive"] * (AT_ONCE + 4) + ["close"]


# ── Replies that are not read ──


def drains(worker: Worker, connection: Connection) -> None:
    worker.context.draining = True
    worker.receive(connection, frame("last", b"x"))
    worker.settle()


def is_refused(worker: Worker, connection: Connection) -> None:
    worker.receive(connection, frame("..", b"x"))


def asks_to_close(worker: Worker, connection: Connection) -> None:
    worker.receive(connection, frame("last", b"x", connection="close"))
    worker.settle()


def is_idle(worker: Worker, connection: Connection) -> None:
    worker.sweep(connection, PATIENCE.idle_s + 1)


Ending = Callable[[Worker, Connection], None]
every_end = pytest.mark.parametrize("end", [drains, is_refused, asks_to_close, is_idle])


@every_end
def test_a_connection_that_ends_waits_for_who_reads_slowly(process: Worker, end: Ending) -> None:
    connection, transport = process.connect()
    transport.unsent = 100
    end(process, connection)
    now_s = process.context.clock_s
    while transport.unsent:
        transport.unsent -= 1
        now_s += PATIENCE.idle_s - 1
        process.sweep(connection, now_s)
        assert not transport.aborted
    if not transport.closed:  # it lingers, and begins to only now
        process.sweep(connection, now_s + LINGER_S - 0.1)
        assert not transport.aborted
        process.sweep(connection, now_s + LINGER_S)
        assert transport.aborted


@every_end
def test_a_connection_that_ends_does_not_wait_for_who_reads_nothing(
    process: Worker, end: Ending, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    connection, transport = process.connect()
    transport.unsent = 100
    end(process, connection)
    ended_s = process.context.clock_s
    process.sweep(connection, ended_s + PATIENCE.idle_s - 1)
    assert not transport.aborted
    process.sweep(connection, ended_s + PATIENCE.idle_s)
    assert transport.aborted
    assert [line for line in caplog.messages if "100 bytes of replies unsent" in line]


def test_who_reads_slowly_and_sends_nothing_meanwhile_is_not_idle(process: Worker) -> None:
    connection, transport = process.connect()
    transport.unsent = 100
    connection.pause_writing()
    for now_s in range(10, 1000, 10):
        transport.unsent -= 1
        process.sweep(connection, now_s)
    assert (transport.closed, transport.paused) == (False, True)
    now_s += PATIENCE.idle_s  # and reads no more
    process.sweep(connection, now_s)
    assert transport.aborted


def test_what_waits_for_its_turn_at_the_end_of_a_drain_is_told_so(process: Worker) -> None:
    connection, transport = process.connect()
    process.receive(connection, b"".join(frame(f"{number}", b"") for number in range(AT_ONCE + 1)))
    process.context.draining = True
    connection.shut_down()
    process.settle()
    replies = [(reply.code, reply.connection) for reply in transport.replies()]
    assert replies == [("ok", "keep-alive")] * AT_ONCE + [("shutting_down", "close")]


def test_of_who_does_not_read_nothing_more_is_taken(process: Worker) -> None:
    """Nor of what was read already, in one piece or more: it is served when there is room for its replies."""
    connection, transport = process.connect()
    process.receive(connection, b"".join(frame(f"{number}", b"x") for number in range(AT_ONCE + 1)))
    connection.pause_writing()
    for _ in range(3):
        process.settle()
    assert (len(transport.replies()), transport.paused) == (AT_ONCE, True)
    connection.eof_received()
    assert not transport.ended
    connection.resume_writing()
    process.settle()
    assert [reply.file_name for reply in transport.replies()] == [f"{number}" for number in range(AT_ONCE + 1)]
    assert transport.closed


def test_who_is_refused_and_goes_on_sending_is_read_within_bounds(process: Worker) -> None:
    connection, transport = process.connect()
    process.receive(connection, frame("..", b"x"))
    connection.pause_writing()
    assert (transport.ended, transport.paused) == (True, False)
    for _ in range(LINGER_BYTES // RECEIVE_BYTES):
        process.receive(connection, bytes(RECEIVE_BYTES))
        assert not transport.paused
    process.receive(connection, b"x")
    connection.resume_writing()
    assert transport.paused


# ── Taken names ──


@pytest.fixture(params=["process", "power"])
def rejecting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path / "store", request.param, "reject")
    (made.folder / "taken").write_bytes(b"old")
    yield made
    assert (made.folder / "taken").read_bytes() == b"old"
    assert made.temporary_files() == []
    made.close()


@pytest.mark.parametrize("cut", [1000, 20], ids=["whole", "in pieces"])
@pytest.mark.parametrize("size", [0, 100])
def test_a_taken_name_is_refused_and_the_connection_goes_on(rejecting: Worker, cut: int, size: int) -> None:
    connection, transport = rejecting.connect()
    stream = frame("taken", bytes(size)) + frame("free", b"x") + frame("taken", bytes(size)) + frame("last", b"x")
    rejecting.receive(connection, stream[:cut])
    rejecting.receive(connection, stream[cut:])
    rejecting.settle()
    replies = transport.replies()
    assert [reply.code for reply in replies] == ["exists", "ok", "exists", "ok"]
    assert {(reply.status, reply.connection) for reply in replies[::2]} == {("rejected", "keep-alive")}
    assert [reply.received for reply in replies] == [size, 1, size, 1]
    assert rejecting.names() == {"taken", "free", "last"}
    assert rejecting.record[scoreboard.FAILURES + SERVER_CODES.index("exists")] == 2
    assert rejecting.stored() == 2


def test_a_taken_name_whose_file_is_too_large_to_drain_ends_the_connection(rejecting: Worker) -> None:
    connection, transport = rejecting.connect()
    header = json.dumps({"file_size": LINGER_BYTES + 1, "file_name": "taken"}).encode()
    rejecting.receive(connection, len(header).to_bytes(LENGTH_BYTES, "little") + header + b"the first bytes")
    assert [(reply.code, reply.connection) for reply in transport.replies()] == [("exists", "close")]
    assert transport.ended


def test_one_that_is_refused_and_breaks_off_is_answered_once(rejecting: Worker) -> None:
    connection, transport = rejecting.connect()
    rejecting.receive(connection, frame("taken", bytes(100))[:-1])
    rejecting.end(connection)
    assert [reply.code for reply in transport.replies()] == ["truncated"]
    assert transport.closed


@pytest.mark.parametrize("keys", [{}, {"connection": "close"}], ids=["keep", "close"])
@pytest.mark.parametrize("cut", [1000, 90], ids=["whole", "in pieces"])
def test_a_name_that_is_taken_meanwhile_is_refused_at_the_end(
    rejecting: Worker, cut: int, keys: dict[str, str]
) -> None:
    connection, transport = rejecting.connect()
    stream = frame("late", bytes(100), **keys)
    rejecting.receive(connection, stream[:cut])
    (rejecting.folder / "late").write_bytes(b"old")
    rejecting.receive(connection, stream[cut:])
    rejecting.settle()
    [reply] = transport.replies()
    assert (reply.code, reply.file_name, reply.connection) == ("exists", "late", keys.get("connection", "keep-alive"))
    assert transport.closed == bool(keys)
    assert (rejecting.folder / "late").read_bytes() == b"old"


@pytest.mark.parametrize("durability", ["process", "power"])
def test_the_reply_says_which_name_a_file_got(tmp_path: Path, durability: Durability) -> None:
    worker = Worker(tmp_path / "store", durability, "unique")
    connection, transport = worker.connect()
    stream = frame("a.txt", b"1") + frame("a.txt", b"2", digest=digest_of("sha256", b"2")) + frame("a.txt", b"3")
    worker.receive(connection, stream)
    worker.settle()
    names = [reply.file_name for reply in transport.replies()]
    assert names == ["a.txt", "a-1.txt", "a-2.txt"]
    assert [(worker.folder / str(name)).read_bytes() for name in names] == [b"1", b"2", b"3"]
    worker.close()


# ── Waiting for the disk ──


def send_in_pieces(worker: Worker, connection: Connection, upload: bytes) -> None:
    worker.receive(connection, upload[:-1])
    worker.receive(connection, upload[-1:])


def send_whole(worker: Worker, connection: Connection, upload: bytes) -> None:
    worker.receive(connection, upload)


Send = Callable[[Worker, Connection, bytes], None]
both_ways = pytest.mark.parametrize("send", [send_whole, send_in_pieces])


@both_ways
def test_nothing_is_said_counted_or_visible_before_the_disk_has_it(
    power: Worker, monkeypatch: pytest.MonkeyPatch, send: Send
) -> None:
    with slow_disk(power, monkeypatch) as disk:
        connection, transport = power.connect()
        send(power, connection, frame("a", b"x"))
        power.loop.turn()
        eventually(lambda: disk.trips, "it is at the disk")
        power.loop.turn()
        assert (transport.replies(), power.stored(), power.names()) == ([], 0, set())
        assert transport.paused
        disk.take_one()
        power.settle()
        assert [reply.code for reply in transport.replies()] == ["ok"]
        assert (power.stored(), power.names(), transport.paused) == (1, {"a"}, False)


@both_ways
def test_while_one_group_is_at_the_disk_the_next_one_gathers(
    power: Worker, monkeypatch: pytest.MonkeyPatch, send: Send
) -> None:
    with slow_disk(power, monkeypatch) as disk:
        clients = [power.connect() for _ in range(AT_ONCE + 10)]
        for number, (connection, _) in enumerate(clients):
            send(power, connection, frame(f"{number}", b"x"))
            power.loop.turn()
        disk.take_all()
        power.settle()
    assert disk.trips == [1, AT_ONCE, 9]
    assert {reply.code for _, transport in clients for reply in transport.replies()} == {"ok"}
    assert power.stored() == len(clients)


def test_what_follows_on_a_connection_waits_with_it(power: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a refusal would overtake the replies before it."""
    with slow_disk(power, monkeypatch) as disk:
        connection, transport = power.connect()
        bad = frame("bad", b"x", digest=digest_of("sha256", b"y"))
        power.receive(connection, frame("a", b"x") + bad + frame("b", b"x") + frame("..", b"x"))
        power.loop.turn()
        assert transport.replies() == []
        disk.take_all()
        power.settle()
    codes = [reply.code for reply in transport.replies()]
    assert codes == ["ok", "digest_mismatch", "ok", "name_rejected"]
    assert transport.ended


@both_ways
def test_the_file_of_a_client_that_goes_away_meanwhile_stays(
    power: Worker, monkeypatch: pytest.MonkeyPatch, send: Send
) -> None:
    with slow_disk(power, monkeypatch) as disk:
        connection, transport = power.connect()
        send(power, connection, frame("a", b"x"))
        power.loop.turn()
        transport.close()
        connection.connection_lost(ConnectionResetError())
        disk.take_all()
        power.settle()
    assert (power.names(), power.stored(), transport.written) == ({"a"}, 1, b"")


@both_ways
@pytest.mark.parametrize("keys", [{}, {"connection": "close"}], ids=["keep", "close"])
def test_a_client_that_has_ended_is_answered_and_then_closed(
    power: Worker, monkeypatch: pytest.MonkeyPatch, send: Send, keys: dict[str, str]
) -> None:
    with slow_disk(power, monkeypatch) as disk:
        connection, transport = power.connect()
        send(power, connection, frame("a", b"x", **keys))
        power.end(connection)
        power.loop.turn()
        assert not transport.closed
        disk.take_all()
        power.settle()
    assert [reply.code for reply in transport.replies()] == ["ok"]
    assert transport.closed


def test_a_client_that_has_ended_in_the_middle_of_an_upload_is_told_so_in_its_turn(power: Worker) -> None:
    connection, transport = power.connect()
    power.receive(connection, frame("a", b"x") + frame("b", b"half")[:-2])
    power.end(connection)
    power.settle()
    assert [reply.code for reply in transport.replies()] == ["ok", "truncated"]
    assert transport.closed
    assert power.temporary_files() == []


def test_a_client_that_does_not_read_its_replies_is_not_read_after_the_disk_either(power: Worker) -> None:
    connection, transport = power.connect()
    power.receive(connection, frame("a", b"x"))
    connection.pause_writing()
    power.settle()
    assert transport.paused
    connection.resume_writing()
    assert not transport.paused


def test_room_for_replies_does_not_end_the_wait_for_the_disk(power: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    with slow_disk(power, monkeypatch):
        connection, transport = power.connect()
        power.receive(connection, frame("a", b"x"))
        power.loop.turn()
        connection.pause_writing()
        connection.resume_writing()
        assert transport.paused


def test_the_end_of_a_drain_waits_for_what_is_at_the_disk(power: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    with slow_disk(power, monkeypatch) as disk:
        connection, transport = power.connect()
        power.receive(connection, frame("a", b"x"))
        power.context.draining = True
        power.loop.turn()
        connection.shut_down()
        assert (transport.written, transport.closed, transport.ended) == (b"", False, False)
        disk.take_all()
        power.batch.close()
    assert [(reply.code, reply.connection) for reply in transport.replies()] == [("ok", "close")]
    assert transport.ended
    assert not transport.paused  # what still comes is discarded, or its reply might be lost in a reset
    assert power.stored() == 1


def test_a_first_upload_at_accept_is_answered_when_the_disk_has_it(
    power: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[Phase] = []
    theirs, ours = socket.socketpair()
    with slow_disk(power, monkeypatch) as disk, theirs, ours:
        theirs.sendall(frame("a", b"x"))
        took = take_first_upload(power.context, power.batch, ours, 0, lambda _, __, phase: ends.append(phase))
        power.loop.turn()
        assert (took, ends) == (None, [])
        disk.take_all()
        power.settle()
        assert b'"code":"ok"' in theirs.recv(4096)
    assert ends == [OPEN]


def test_more_than_may_be_held_in_memory_waits_for_the_disk(power: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "GATHERED_BYTES", 100_000)
    clients = [power.connect() for _ in range(5)]
    for number, (connection, _) in enumerate(clients):
        power.receive(connection, frame(f"{number}", bytes(40_000)))
    power.loop.turn()
    assert power.batch._held_bytes <= 100_000  # type: ignore[attr-defined]
    power.settle()
    assert power.stored() == 5
    assert power.batch._held_bytes == 0  # type: ignore[attr-defined]
    assert {reply.code for _, transport in clients for reply in transport.replies()} == {"ok"}


@both_ways
@pytest.mark.parametrize(("number", "code"), [(errno.EIO, "internal"), (errno.ENOSPC, "no_space")])
def test_what_the_disk_does_not_take_is_told_so(
    power: Worker, monkeypatch: pytest.MonkeyPatch, send: Send, number: int, code: str
) -> None:
    def fail(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    connection, transport = power.connect()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        send(power, connection, frame("a", b"x"))
        power.settle()
    assert [(reply.code, reply.connection) for reply in transport.replies()] == [(code, "close")]
    assert transport.ended
    assert (power.names(), power.temporary_files(), power.stored()) == (set(), [], 0)


def test_an_upload_in_pieces_that_fails_for_no_known_reason_leaves_nothing(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError("a bug")

    monkeypatch.setattr(worker.store, "publish", broken)
    connection, transport = worker.connect()
    send_in_pieces(worker, connection, frame("a", b"x"))
    worker.settle()
    assert [reply.code for reply in transport.replies()] == ["internal"]
    assert worker.temporary_files() == []


def test_what_waited_of_a_client_that_went_away_is_forgotten(power: Worker) -> None:
    connection, transport = power.connect()
    power.receive(connection, frame("a", b"x") + frame("b", b"half")[:-1])
    power.loop.turn()
    eventually(lambda: power.loop.soon, "the disk is through")
    power.loop.turn()
    assert [reply.code for reply in transport.replies()] == ["ok"]
    transport.close()
    connection.connection_lost(None)
    power.settle()
    assert (power.names(), power.temporary_files()) == ({"a"}, [])


KINDS = {
    "whole": lambda name: frame(name, b"body"),
    "empty": lambda name: frame(name, b""),
    "checked": lambda name: frame(name, b"body", digest=digest_of("sha256", b"body")),
    "mismatch": lambda name: frame(name, b"body", digest=digest_of("sha256", b"else")),
    "no digest": lambda name: frame(name, b"body", want_digest="none"),
    "folder": lambda name: frame("folder", b"body"),
    "close": lambda name: frame(name, b"body", connection="close"),
    "bad": lambda name: frame("..", b"body"),
}


@examples(60)
@given(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=8), st.data())
def test_a_client_is_told_the_same_at_either_durability(kinds: list[str], data: st.DataObject) -> None:
    stream = b"".join(KINDS[kind](f"{number} {kind}") for number, kind in enumerate(kinds))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    ends = data.draw(st.booleans())

    def told(durability: Durability) -> object:
        with tempfile.TemporaryDirectory() as folder:
            worker = Worker(Path(folder) / "store", durability)
            (worker.folder / "folder").mkdir()
            connection, transport = worker.connect()
            for piece in pieces:
                if not transport.closed:
                    worker.receive(connection, piece)
            if ends and not transport.closed:
                worker.end(connection)
            worker.settle()
            replies = [(reply.code, reply.file_name, reply.digest, reply.connection) for reply in transport.replies()]
            is_over = transport.closed or transport.ended
            connection.connection_lost(None)
            worker.close()
            # What is behind a refusal may be stored or not, and is not answered.
            assert worker.stored() == len(worker.names())
            assert worker.names() >= {reply[1] for reply in replies if reply[0] == "ok"}
            assert worker.temporary_files() == []
            return replies, is_over

    assert told("power") == told("process")
