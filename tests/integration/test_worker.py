"""One real worker in a process of its own, forked from the test: so a test can say what goes wrong inside, or what
happens on a connection at a moment that cannot be hit from outside."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers import Client, eventually

from server import scoreboard
from server.config import ServerConfig
from server.context import WorkerContext
from server.listener import close_all, listen_per_slot
from server.protocol import FAILURE_CODES, ServerConnection, UploadHeader
from server.scoreboard import Scoreboard
from server.storage import FileStore, StoreError, prepare_store
from server.worker import run_worker


class Bench:
    """A store and a listening socket, which a client may connect to before the worker is there."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self.board = Scoreboard.create(folder / "scoreboard", 1, FAILURE_CODES)
        self.record = self.board.record(0)
        prepare_store(self.store, 1)
        [self.listener] = listen_per_slot("127.0.0.1", 0, 1, 16)
        self.port: int = self.listener.getsockname()[1]

    @contextmanager
    def working(self) -> Iterator[None]:
        """A worker that serves, until it was told to drain and ended because nobody was connected any more."""
        drain_timeout_s = 300.0  # longer than any test: a connection that is kept for ever fails it
        config = ServerConfig(host="", port=0, workers=1, store=self.store, drain_timeout_s=drain_timeout_s)
        pid = os.fork()
        if pid == 0:
            try:
                run_worker(0, self.listener, config, self.record, lambda: None)
                os._exit(0)
            finally:
                os._exit(1)
        try:
            eventually(lambda: self.record[scoreboard.STATE] == scoreboard.READY, "the worker serves")
            yield
            os.kill(pid, signal.SIGTERM)
            _, status = eventually(lambda: ended if (ended := os.waitpid(pid, os.WNOHANG))[0] else None, "it ended")
            pid = 0
            assert status == 0
        finally:
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def close(self) -> None:
        self.record.release()
        self.board.close()
        close_all([self.listener])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def test_a_refusal_at_accept_is_readable_though_the_client_sends_more_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unread data would turn the close into a reset, which may overtake the reply."""
    (bench.store / "folder").mkdir()
    put_all = FileStore.put_all
    with Client(bench.port) as client:
        second = client.connection.send_upload(UploadHeader(3, "second")) + b"abc"

        def put_all_and_more_comes(
            store: FileStore, files: Sequence[tuple[str, memoryview]]
        ) -> list[StoreError | None]:
            client.sock.sendall(second)  # the worker has the client's socket too: it was forked
            return put_all(store, files)

        monkeypatch.setattr(FileStore, "put_all", put_all_and_more_comes)
        client.send(b"x", "folder")
        with bench.working():
            reply = client.reply()
            assert (reply.code, reply.connection) == ("name_rejected", "close")
            client.expect_eof()
            client.half_close()
    assert not (bench.store / "second").exists()


def test_an_answer_that_fails_for_no_known_reason_ends_its_connection_and_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok = WorkerContext.ok

    def broken(worker: WorkerContext, name: str, *rest: object) -> bytes:
        if name == "bad":
            raise RuntimeError("a bug")
        return ok(worker, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(WorkerContext, "ok", broken)
    with Client(bench.port) as at_accept, Client(bench.port) as later, Client(bench.port) as other:
        at_accept.send(b"abc", "bad")
        with bench.working():
            at_accept.expect_eof()
            assert later.upload(b"abc", "good").code == "ok"
            later.send(b"abc", "bad")
            later.expect_eof()
            assert other.upload(b"abc", "good").code == "ok"
            for client in (at_accept, later, other):
                client.half_close()


def test_a_failure_at_accept_for_no_known_reason_ends_its_connection_and_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_whole = ServerConnection.take_whole

    def broken(parser: ServerConnection, view: memoryview) -> object:
        if b"bad" in bytes(view):
            raise RuntimeError("a bug")
        return take_whole(parser, view)

    monkeypatch.setattr(ServerConnection, "take_whole", broken)
    with Client(bench.port) as client, Client(bench.port) as other:
        client.send(b"abc", "bad")
        with bench.working():
            client.expect_eof()
            assert other.upload(b"abc", "good").code == "ok"
            for one in (client, other):
                one.half_close()
