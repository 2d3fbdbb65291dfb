"""`python -m server --durability power` that stores so many uploads in one trip to the disk, and at its end writes what
it counted to a file:

python probed_server.py REPORT MOST SERVER-OPTION...

REPORT becomes one JSON object: uploads (stored), folder_syncs, longest_gap_s (of the event loop, between two calls of a
timer of 1 ms). With one worker and MOST 1 every upload pays for an fsync of its file and one of the folder.
"""

import json
import sys
import time
from pathlib import Path

from server import durable, scoreboard
from server.__main__ import main
from server.durable import DurableBatch
from server.storage.store import FileStore, StoreError

PROBE_S = 0.001


class ProbedBatch(DurableBatch):
    report: Path

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self._last_s, self._longest_s = time.monotonic(), 0.0
        self._probe()

    def _probe(self) -> None:
        now = time.monotonic()
        if self._worker.record[scoreboard.STATE] == scoreboard.READY and self._worker.record[scoreboard.UPLOADS_STORED]:
            self._longest_s = max(self._longest_s, now - self._last_s)
        self._last_s = now
        self._worker.loop.call_later(PROBE_S, self._probe)

    def close(self) -> None:
        super().close()
        found = {
            "uploads": self._worker.record[scoreboard.UPLOADS_STORED],
            "folder_syncs": folder_syncs,
            "longest_gap_s": self._longest_s,
        }
        self.report.write_text(json.dumps(found))


folder_syncs = 0
sync_root = FileStore._sync_root


def counted(store: FileStore) -> StoreError | None:
    global folder_syncs
    folder_syncs += 1
    return sync_root(store)


if __name__ == "__main__":
    ProbedBatch.report = Path(sys.argv.pop(1))
    durable.AT_ONCE = int(sys.argv.pop(1))
    durable.DurableBatch = ProbedBatch
    FileStore._sync_root = counted
    main(prog_name="probed_server.py")
