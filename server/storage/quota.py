"""How many bytes all workers together may keep in the store.

Each worker counts on the scoreboard what it receives and what it keeps, in words that only it writes, and looks at the
sum of all before it takes more: no lock between processes, no message, nothing reserved. So the quota can be passed by
what the workers read at the same moment, at most 512 KiB each.

What somebody else removes from the folder nobody tells us. So when an upload must be refused, the folder is counted
anew, by a thread, since a large one takes seconds; a store that has been emptied takes uploads again soon after the
first that it refuses.
"""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from server import scoreboard
from server.scoreboard import Scoreboard
from server.storage.folders import OPEN_FOLDER, closing

COUNT_AGAIN_S = 0.5
COUNT_AT_MOST = 3  # times in a row
COUNTING_SHARE = 0.05  # of a core, that counting a large folder may take
_WORD = 1 << 64  # a word holds a negative number as its complement


class Quota:
    """One worker's view of it. Its methods may be called by the event loop and the disk's thread."""

    def __init__(self, most_bytes: int, board: Scoreboard, record: memoryview) -> None:
        self.most_bytes = most_bytes
        self._base = board.store_base
        self._changes = board.column(scoreboard.STORE_CHANGE)
        self._arriving = board.column(scoreboard.BYTES_ARRIVING)
        self._record = record
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._count_from_s = 0.0

    def room(self) -> int:
        """Bytes that may still come. Negative where somebody else has put more into the store than it may hold."""
        held = (self._base[0] + sum(self._changes) + sum(self._arriving)) % _WORD
        return self.most_bytes - (held - _WORD if held >= _WORD // 2 else held)

    def arrived(self, size_bytes: int) -> None:
        """Count bytes that are now in a temporary file; a negative number, those that no longer are."""
        with self._lock:
            self._record[scoreboard.BYTES_ARRIVING] += size_bytes

    def kept(self, change_bytes: int) -> None:
        """Count that the store holds so many bytes more, or fewer: a file may have replaced a larger one."""
        with self._lock:
            change = self._record[scoreboard.STORE_CHANGE]
            self._record[scoreboard.STORE_CHANGE] = (change + change_bytes) % _WORD

    def count_again(self, folder_fd: int) -> None:
        """Begin to count what is in the folder, unless that was done just now."""
        if time.monotonic() >= self._count_from_s and self._counting.acquire(blocking=False):
            threading.Thread(target=self._count, args=(folder_fd,), name="quota", daemon=True).start()

    def _count(self, folder_fd: int) -> None:
        started_s = time.monotonic()
        try:
            with closing(os.open(".", OPEN_FOLDER, dir_fd=folder_fd)) as fd:  # with its own position
                _set_base(self._base, self._changes, fd)
        except OSError:
            pass  # who is refused next tries again
        finally:
            now_s = time.monotonic()
            self._count_from_s = now_s + max(COUNT_AGAIN_S, (now_s - started_s) / COUNTING_SHARE)
            self._counting.release()


def count_store(board: Scoreboard, folder: Path) -> None:
    """Count what the store holds, before its workers start. OSError when the folder cannot be read."""
    _set_base(board.store_base, board.column(scoreboard.STORE_CHANGE), folder)


def _set_base(base: memoryview, changes: memoryview, folder: Path | int) -> None:
    """Count what the folder has. Files that change while they are counted may count twice or not at all. So they are
    counted once or twice more; where they never rest, until somebody is refused."""
    for _ in range(COUNT_AT_MOST):
        changed = sum(changes)
        base[0] = (sum(_sizes(folder)) - changed) % _WORD
        if sum(changes) == changed:
            break


def _sizes(folder: Path | int) -> Iterator[int]:
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_file(follow_symlinks=False):
                    yield entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                pass  # it is gone already
