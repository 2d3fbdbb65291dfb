"""One real worker in a process of its own, with something wrong inside it, for tests/integration/test_worker.py.

    python one_worker.py LISTENER-FD STORE SCOREBOARD FAULT [FD BYTES-IN-HEX]

A script, and not a fork of the test: the test's process has threads.
"""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from server.failure_codes import SERVER_CODES
from server.listening.listener import Door
from server.options import ServerConfig
from server.protocol import ServerConnection
from server.scoreboard import Scoreboard
from server.storage.store import FileStore, StoreError
from server.worker import run_worker
from server.worker_context import WorkerContext

DRAIN_TIMEOUT_S = 300.0  # longer than any test: a connection that is kept for ever fails it


def more_comes_meanwhile(fd: str, data: str) -> None:
    """While an upload is stored, these bytes arrive: `fd` is its client's end."""
    put_all = FileStore.put_all

    def broken(store: FileStore, files: Sequence[tuple[str, memoryview]]) -> list[str | StoreError]:
        os.write(int(fd), bytes.fromhex(data))
        return put_all(store, files)

    FileStore.put_all = broken  # type: ignore[method-assign]


def bad_answer() -> None:
    """Of the file `bad`."""
    ok = WorkerContext.ok

    def broken(worker: WorkerContext, name: str, *rest: object) -> bytes:
        if name == "bad":
            raise RuntimeError("a bug")
        return ok(worker, name, *rest)  # type: ignore[arg-type]

    WorkerContext.ok = broken  # type: ignore[assignment, method-assign]


def bad_parse() -> None:
    """Of the file `bad`, when it is there at accept."""
    take_whole = ServerConnection.take_whole

    def broken(parser: ServerConnection, view: memoryview) -> object:
        if b"bad" in bytes(view):
            raise RuntimeError("a bug")
        return take_whole(parser, view)

    ServerConnection.take_whole = broken  # type: ignore[assignment, method-assign]


FAULTS = {"more": more_comes_meanwhile, "answer": bad_answer, "parse": bad_parse}


def main(listener: str, store: str, board: str, fault: str, *arguments: str) -> None:
    FAULTS[fault](*arguments)
    config = ServerConfig(port=0, workers=1, store=Path(store), drain_timeout_s=DRAIN_TIMEOUT_S)
    shared = Scoreboard.create(Path(board), 1, SERVER_CODES)
    run_worker(0, [Door(socket.socket(fileno=int(listener)))], config, shared, shared.record(0), lambda: None, "0")


if __name__ == "__main__":
    main(*sys.argv[1:])
