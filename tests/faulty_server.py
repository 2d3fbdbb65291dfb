"""`python -m server` with something wrong inside its workers, for tests of how it is looked after:

    python faulty_server.py FAULT SERVER-OPTION...

The faults `loop` and `die` wait for an upload of the file `bad`, and `reload` for a file in the working directory.
"""

import os
import sys
from collections.abc import Callable, Sequence

from server import worker as worker_module
from server.__main__ import main
from server.scoreboard import EventLog
from server.storage import DiscardStore, Incoming, StoreError


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
    def broken(*_: object) -> int:
        raise OSError(5, "the disk is broken")

    worker_module._max_connections = broken  # type: ignore[assignment]


def reload() -> None:
    """A new worker cannot start once the file `broken` is in the working directory."""
    original = worker_module._max_connections

    def broken(wanted: int) -> int:
        if os.path.exists("broken"):  # noqa: PTH110
            raise OSError(5, "the disk is broken")
        return original(wanted)

    worker_module._max_connections = broken


def full() -> None:
    """Nothing more can be written down of what happens, once the server is there."""
    append = EventLog.append

    def broken(events: EventLog, kind: str, **fields: object) -> None:
        if kind not in ("server-started", "worker-started", "worker-ready"):
            raise OSError(28, "No space left on device")
        append(events, kind, **fields)

    EventLog.append = broken  # type: ignore[method-assign]


if __name__ == "__main__":
    {"loop": loop, "die": die, "start": start, "reload": reload, "full": full}[sys.argv.pop(1)]()
    main(prog_name="faulty_server.py")
