"""One real worker (tests/one_worker.py) with something wrong inside, or with something that happens on a connection at
a moment that cannot be hit from outside."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from servers import DEADLINE_S, ROOT, Client, eventually

from server import scoreboard
from server.addresses import Address
from server.listening.listener import Group
from server.protocol import UploadHeader
from server.scoreboard import Scoreboard
from server.storage.folders import prepare_store
from server.worker import RETIRE

SCRIPT = ROOT / "tests" / "one_worker.py"


class Bench:
    """A store and a listening socket, which a client may connect to before the worker is there."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self._board = folder / "scoreboard"
        prepare_store(self.store, 1)
        self.listeners = Group.open(Address("tcp", "127.0.0.1", 0), 1, 16, "per-worker")
        self.listener = self.listeners.door_of(0).sock
        self.port = self.listeners.port

    @contextmanager
    def working(self, fault: str, *arguments: str, fds: tuple[int, ...] = ()) -> Iterator[None]:
        """A worker that serves, until it was told to drain and ended because nobody was connected any more."""
        listener = self.listener.fileno()
        command = [sys.executable, str(SCRIPT), str(listener), str(self.store), str(self._board), fault, *arguments]
        with subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, pass_fds=(listener, *fds)) as process:
            try:
                eventually(self._is_ready, "the worker serves")
                yield
                process.send_signal(RETIRE)
                assert process.wait(DEADLINE_S) == 0
            finally:
                process.kill()

    def _is_ready(self) -> bool:
        try:
            with closing(Scoreboard.open(self._board)) as board, board.record(0) as record:
                return bool(record[scoreboard.STATE] == scoreboard.READY)
        except (OSError, ValueError):  # not there yet, or not all of it
            return False


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.listeners.close()


def send_whole(client: Client, body: bytes, name: str) -> None:
    """An upload in one piece: what comes in several takes another way through the server."""
    client.sock.sendall(client.connection.send_upload(UploadHeader(len(body), name)) + body)


def test_a_refusal_at_accept_is_readable_though_the_client_sends_more_meanwhile(bench: Bench) -> None:
    """Unread data would turn the close into a reset, which may overtake the reply."""
    (bench.store / "folder").mkdir()
    with Client(bench.port) as client:
        send_whole(client, b"x", "folder")
        second = client.connection.send_upload(UploadHeader(3, "second")) + b"abc"
        fd = client.sock.fileno()
        with bench.working("more", str(fd), second.hex(), fds=(fd,)):
            reply = client.reply()
            assert (reply.code, reply.connection) == ("name_rejected", "close")
            client.expect_eof()
            client.half_close()
    assert not (bench.store / "second").exists()


def test_an_answer_that_fails_for_no_known_reason_ends_its_connection_and_no_other(bench: Bench) -> None:
    with Client(bench.port) as at_accept, Client(bench.port) as later, Client(bench.port) as other:
        send_whole(at_accept, b"abc", "bad")
        with bench.working("answer"):
            at_accept.expect_eof()
            assert later.upload(b"abc", "good").code == "ok"
            send_whole(later, b"abc", "bad")
            later.expect_eof()
            assert other.upload(b"abc", "good").code == "ok"
            for client in (at_accept, later, other):
                client.half_close()


def test_a_failure_at_accept_for_no_known_reason_ends_its_connection_and_no_other(bench: Bench) -> None:
    with Client(bench.port) as client, Client(bench.port) as other:
        send_whole(client, b"abc", "bad")
        with bench.working("parse"):
            client.expect_eof()
            assert other.upload(b"abc", "good").code == "ok"
            for one in (client, other):
                one.half_close()
