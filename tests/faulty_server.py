"""`python -m server` with something wrong inside its workers, for tests of how it is looked after:

    python faulty_server.py FAULT SERVER-OPTION...

The faults `loop` and `die` wait for an upload of the file `bad`, and `reload` for a file in the working directory.
"""

import json
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from server import worker as worker_module
from server.__main__ import main
from server.fleet import Change, Fleet, Fork, Wait
from server.pid_file import PidFile
from server.scoreboard import EventLog, ServerState
from server.settings import Settings, Sources
from server.status import page_process as helper_module
from server.storage.store import DiscardStore, Incoming, StoreError


def _at_bad(do: Callable[[], None]) -> None:
    put_all = DiscardStore.put_all

    def broken(store: DiscardStore, files: Sequence[tuple[str, memoryview]]) -> list[StoreError | None]:
        if any(name == "bad" for name, _ in files):
            do()
        return put_all(store, files)

    DiscardStore.put_all = broken  # type: ignore[method-assign]
    begin = DiscardStore.begin

    def broken_begin(store: DiscardStore, file_name: str, size_bytes: int) -> Incoming:
        """Of an upload that arrives in pieces."""
        if file_name == "bad":
            do()
        return begin(store, file_name, size_bytes)

    DiscardStore.begin = broken_begin  # type: ignore[method-assign]


def loop() -> None:
    """For ever, as a bug would."""

    def for_ever() -> None:
        while True:
            pass

    _at_bad(for_ever)


def die() -> None:
    _at_bad(lambda: os._exit(9))


def start() -> None:
    def broken(*_: object) -> tuple[int, int]:
        raise OSError(5, "the disk is broken")

    worker_module._shares_of_descriptors = broken  # type: ignore[assignment]


def reload() -> None:
    """A new worker cannot start once the file `broken` is in the working directory."""
    original = worker_module._shares_of_descriptors

    def broken(wanted: int) -> tuple[int, int]:
        if os.path.exists("broken"):  # noqa: PTH110
            raise OSError(5, "the disk is broken")
        return original(wanted)

    worker_module._shares_of_descriptors = broken


def reread() -> None:
    """The configuration can be read once, and never again."""
    original = Sources.read

    def broken(sources: Sources) -> Settings:
        raise ValueError("a mistake\nof ours")

    def once(sources: Sources) -> Settings:
        Sources.read = broken  # type: ignore[method-assign]
        return original(sources)

    Sources.read = once  # type: ignore[method-assign]


def full() -> None:
    """Nothing more can be written down of what happens, once the server is there."""
    append = EventLog.append

    def broken(events: EventLog, kind: str, **fields: object) -> None:
        if kind not in ("server-started", "worker-started", "worker-ready"):
            raise OSError(28, "No space left on device")
        append(events, kind, **fields)

    EventLog.append = broken  # type: ignore[method-assign]


def pid() -> None:
    """The pid file cannot be put in its place."""

    def broken(file: PidFile) -> None:
        raise OSError(30, "Read-only file system")

    PidFile.publish = broken  # type: ignore[method-assign]


def slow() -> None:
    """A worker starts only when the file `go` is in the working directory."""
    original = worker_module._shares_of_descriptors

    def waiting(wanted: int) -> tuple[int, int]:
        while not os.path.exists("go"):  # noqa: PTH110
            time.sleep(0.01)
        return original(wanted)

    worker_module._shares_of_descriptors = waiting


def leave() -> None:
    """New connections are steered away from a worker that is to leave until somebody thinks better of it."""
    original = Fleet.next_step

    def waiting(fleet: Fleet, now_s: float) -> Fork | Change | Wait:
        step = original(fleet, now_s)
        return Wait(now_s + 0.01) if step is Change.REMOVE_SLOT else step

    Fleet.next_step = waiting  # type: ignore[method-assign]


def page() -> None:
    """The status helper is one of ours."""
    helper_module.COMMAND = (sys.executable, "-P", __file__, "status")


def status() -> None:
    """It also answers `/stuck`, never, and `/attack`, with what came of all that it tried. It cannot start while the
    working directory has a file `broken`."""
    from flask import Response

    from server.status import page

    views = page._views

    def stuck() -> Response:
        while True:
            time.sleep(1)

    def with_more(source: page.Source) -> dict[str, Callable[[], Response]]:
        if Path("broken").exists():
            raise RuntimeError("it is broken")

        def attack() -> Response:
            return Response(json.dumps(_attack(source.state())), mimetype="application/json")

        return views(source) | {"/stuck": stuck, "/attack": attack}

    page._views = with_more
    page.main()


def _attack(state: ServerState) -> dict[str, str]:
    """Everything that somebody who has taken the helper over would try: "done", or how it failed."""
    store = Path(str(state.store))
    kept, new = store / "kept", store / "new"
    tries = {
        "read": kept.read_bytes,
        "list": lambda: list(store.iterdir()),
        "create": lambda: new.write_bytes(b""),
        "overwrite": lambda: kept.write_bytes(b"overwritten"),
        "change": lambda: os.pwrite(os.open(kept, os.O_WRONLY), b"X", 0),
        "append": lambda: kept.open("ab").write(b"X"),
        "truncate": lambda: os.truncate(kept, 0),
        "rename": lambda: kept.rename(new),
        "link": lambda: new.hardlink_to(kept),
        "symlink": lambda: new.symlink_to(kept),
        "unlink": kept.unlink,
        "mkdir": new.mkdir,
        "fifo": lambda: os.mkfifo(new),
        "rmdir": lambda: (store / ".incoming" / "0").rmdir(),
        "temporary": lambda: (store / ".incoming" / "0" / "99").write_bytes(b"X"),
        "scoreboard": lambda: os.open(state.scoreboard, os.O_RDWR),
        "events": lambda: os.open(state.events, os.O_WRONLY | os.O_APPEND),
        "elsewhere": lambda: Path("/tmp/socketswarm-attack").write_bytes(b"X"),
        "secrets": Path("/etc/shadow").read_bytes,
        "connect": lambda: socket.create_connection(("127.0.0.1", state.port), 5),
        "signal": lambda: os.kill(state.pid, 0),
        "fork": os.fork,
        "root": lambda: os.setuid(0),
        "limits": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1)),
        "chmod": lambda: kept.chmod(0),
    }
    return {name: _outcome(attempt) for name, attempt in tries.items()}


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except (OSError, ValueError) as error:
        return type(error).__name__
    return "done"


if __name__ == "__main__":
    faults = (loop, die, start, reload, reread, full, pid, slow, leave, page, status)
    {fault.__name__: fault for fault in faults}[sys.argv.pop(1)]()
    main(prog_name="faulty_server.py")
