"""The batch and the connection on it, without sockets: a fake transport, a loop that turns when told to."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from server import scoreboard
from server.batch import ARENA_BYTES, RECEIVE_BYTES, Batch
from server.connection import Connection
from server.context import WorkerContext
from server.protocol import FAILURE_CODES, LENGTH_BYTES, Limits, Reply, digest_of
from server.storage import FileStore, prepare_store


class Turns:
    """An event loop's `call_soon` and `call_later`, run by hand."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

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
        self.ended = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None: ...

    def replies(self) -> list[Reply]:
        found, rest = [], self.written
        while rest:
            end = LENGTH_BYTES + int.from_bytes(rest[:LENGTH_BYTES], "little")
            raw = json.loads(rest[LENGTH_BYTES:end])
            found.append(Reply(**raw))
            rest = rest[end:]
        return found


class Worker:
    """A store in a folder, a batch, and as many connections as a test wants."""

    def __init__(self, folder: Path) -> None:
        prepare_store(folder, 1)
        self.folder = folder
        self.store = FileStore(folder, 0)
        self.loop = Turns()
        self.record = memoryview(bytearray(8 * (scoreboard.FAILURES + len(FAILURE_CODES)))).cast("Q")
        loop: asyncio.AbstractEventLoop = self.loop  # type: ignore[assignment]
        self.context = WorkerContext(0, self.store, Limits(), self.record, 100, loop)
        self.batch = Batch(self.context)
        self.connections: set[Connection] = set()

    def connect(self) -> tuple[Connection, Transport]:
        connection, transport = Connection(self.context, self.batch, self.connections), Transport()
        connection.connection_made(transport)  # type: ignore[arg-type]
        return connection, transport

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir() if path.is_file()}


@pytest.fixture
def worker(tmp_path: Path):  # type: ignore[no-untyped-def]
    made = Worker(tmp_path / "store")
    yield made
    made.store.close()


def frame(name: str, body: bytes, **keys: str) -> bytes:
    header = json.dumps({"file_size": len(body), "file_name": name, **keys}).encode()
    return len(header).to_bytes(LENGTH_BYTES, "little") + header + body


def receive(connection: Connection, data: bytes) -> None:
    buffer = connection.get_buffer(-1)
    assert len(buffer) >= len(data)
    buffer[: len(data)] = data
    connection.buffer_updated(len(data))


def test_a_turn_stores_what_all_connections_sent_and_answers_each(worker: Worker) -> None:
    clients = [worker.connect() for _ in range(5)]
    for number, (connection, _) in enumerate(clients):
        receive(connection, frame(f"f{number}", b"body %d" % number))
    assert worker.names() == set()
    assert not any(transport.written for _, transport in clients)
    worker.loop.turn()
    for number, (_, transport) in enumerate(clients):
        (reply,) = transport.replies()
        assert (reply.code, reply.file_name) == ("ok", f"f{number}")
        assert reply.digest == digest_of("xxh3_128", b"body %d" % number)
        assert (worker.folder / f"f{number}").read_bytes() == b"body %d" % number
    assert worker.record[scoreboard.UPLOADS_STORED] == 5


def test_replies_keep_the_order_of_pipelined_uploads_whole_and_in_pieces(worker: Worker) -> None:
    connection, transport = worker.connect()
    last = frame("c", b"third")
    receive(connection, frame("a", b"first") + frame("b", b"second") + last[:-2])
    receive(connection, last[-2:] + frame("d", b"fourth"))
    worker.loop.turn()
    assert [reply.file_name for reply in transport.replies()] == ["a", "b", "c", "d"]
    assert worker.names() == {"a", "b", "c", "d"}


def test_the_last_of_equal_names_stays(worker: Worker) -> None:
    connection, _ = worker.connect()
    receive(connection, frame("same", b"old") + frame("same", b"new"))
    worker.loop.turn()
    assert (worker.folder / "same").read_bytes() == b"new"


def test_bodies_stay_until_they_are_stored_however_much_is_read(worker: Worker) -> None:
    """More than the arena holds, in one turn."""
    clients = [worker.connect() for _ in range(40)]
    bodies = [bytes([number]) * (ARENA_BYTES // 16) for number in range(40)]
    for number, (connection, _) in enumerate(clients):
        receive(connection, frame(f"f{number}", bodies[number]))
    worker.loop.turn()
    for number, (_, transport) in enumerate(clients):
        assert transport.replies()[0].code == "ok"
        assert (worker.folder / f"f{number}").read_bytes() == bodies[number]


def test_there_is_always_room_for_a_whole_read(worker: Worker) -> None:
    connection, _ = worker.connect()
    for _ in range(10):
        receive(connection, frame("f", bytes(RECEIVE_BYTES - 200)))
        assert len(connection.get_buffer(-1)) == RECEIVE_BYTES


def test_one_that_cannot_be_stored_does_not_touch_the_others(worker: Worker) -> None:
    (worker.folder / "folder").mkdir()
    clients = [worker.connect() for _ in range(3)]
    for (connection, _), name in zip(clients, ("a", "folder", "b"), strict=True):
        receive(connection, frame(name, b"x"))
    worker.loop.turn()
    assert [transport.replies()[0].code for _, transport in clients] == ["ok", "name_rejected", "ok"]
    assert clients[1][1].ended
    assert not list((worker.folder / ".incoming").glob("*/*"))
    assert worker.record[scoreboard.UPLOADS_STORED] == 2


def test_a_refusal_follows_the_replies_before_it(worker: Worker) -> None:
    connection, transport = worker.connect()
    receive(connection, frame("a", b"x") + b"\xff\xff\xff\xff")
    assert [reply.code for reply in transport.replies()] == ["ok", "bad_length"]


def test_nothing_after_an_upload_that_asks_to_close_is_taken(worker: Worker) -> None:
    connection, transport = worker.connect()
    receive(connection, frame("a", b"x", connection="close") + frame("b", b"y"))
    receive(connection, frame("c", b"z"))
    worker.loop.turn()
    assert [reply.file_name for reply in transport.replies()] == ["a"]
    assert transport.closed
    assert worker.names() == {"a"}


def test_a_client_that_is_gone_before_its_reply_has_its_file_stored(worker: Worker) -> None:
    connection, transport = worker.connect()
    receive(connection, frame("a", b"x"))
    transport.close()
    connection.connection_lost(None)
    worker.loop.turn()
    assert worker.names() == {"a"}
    assert not transport.written


def test_half_closing_right_after_the_upload_still_gives_the_reply(worker: Worker) -> None:
    connection, transport = worker.connect()
    receive(connection, frame("a", b"x"))
    connection.eof_received()
    assert [reply.code for reply in transport.replies()] == ["ok"]


def test_draining_answers_with_close(worker: Worker) -> None:
    connection, transport = worker.connect()
    receive(connection, frame("a", b"x"))
    worker.context.draining = True
    worker.loop.turn()
    assert [reply.connection for reply in transport.replies()] == ["close"]
    assert transport.ended


@pytest.mark.parametrize("size", [1, RECEIVE_BYTES], ids=["whole", "in pieces"])
def test_a_drain_closes_at_once_only_on_who_asked_for_it(worker: Worker, size: int) -> None:
    """Another may be sending its next upload, and unread data would turn the close into a reset."""
    worker.context.draining = True
    for keys, is_closed in (({}, False), ({"connection": "keep-alive"}, False), ({"connection": "close"}, True)):
        connection, transport = worker.connect()
        upload = frame("a", bytes(size), **keys)
        receive(connection, upload[:RECEIVE_BYTES])
        receive(connection, upload[RECEIVE_BYTES:])
        worker.loop.turn()
        assert [(reply.code, reply.connection) for reply in transport.replies()] == [("ok", "close")]
        assert (transport.closed, transport.ended) == (is_closed, not is_closed)
        receive(connection, frame("second", b"x"))
        worker.loop.turn()
        assert worker.names() == {"a"}


def test_the_end_of_a_drain_cuts_nobody_off_who_may_still_be_reading_its_last_reply(worker: Worker) -> None:
    worker.context.draining = True
    connection, transport = worker.connect()
    receive(connection, frame("a", b"x"))
    connection.shut_down()
    assert [reply.code for reply in transport.replies()] == ["ok"]
    connection.shut_down()
    assert not transport.closed


def test_a_digest_to_check_takes_the_long_way(worker: Worker) -> None:
    connection, transport = worker.connect()
    receive(connection, frame("good", b"x", digest=digest_of("sha256", b"x")))
    receive(connection, frame("bad", b"x", digest=digest_of("sha256", b"y")))
    assert [reply.code for reply in transport.replies()] == ["ok", "digest_mismatch"]
    assert worker.names() == {"good"}


def test_asking_for_a_buffer_answers_nobody(worker: Worker) -> None:
    """libuv asks in the middle of its own work: a transport that is closed or paused then makes it crash."""
    connection, transport = worker.connect()
    for number in range(20):
        receive(connection, frame(f"f{number}", bytes(ARENA_BYTES // 8)))
        written = transport.written
        connection.get_buffer(-1)
        assert transport.written == written
    worker.loop.turn()
    assert len(transport.replies()) == 20


def test_a_drain_answers_all_that_is_here_and_closes_after_the_last(worker: Worker) -> None:
    connection, transport = worker.connect()
    receive(connection, frame("a", b"x") + frame("b", b"y"))
    worker.context.draining = True
    worker.loop.turn()
    assert [reply.connection for reply in transport.replies()] == ["keep-alive", "close"]


def test_a_store_that_fails_for_no_known_reason_leaves_nobody_waiting(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(files: object) -> list[None]:
        raise RuntimeError("a bug")

    clients = [worker.connect() for _ in range(2)]
    monkeypatch.setattr(worker.store, "put_all", broken)
    for connection, _ in clients:
        receive(connection, frame("a", b"x"))
    worker.loop.turn()
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
    receive(connection, frame("a", b"x") + frame("bad", b"x") + frame("c", b"x"))
    receive(other, frame("b", b"x"))
    worker.loop.turn()
    assert [reply.file_name for reply in transport.replies()] == ["a"]
    assert transport.closed
    assert [reply.file_name for reply in other_transport.replies()] == ["b"]
    assert not other_transport.closed
