"""`python -m server` whose workers burn so many microseconds of CPU for each upload they store:

python dear_server.py MICROSECONDS SERVER-OPTION...
"""

import sys
import time

from server.__main__ import main
from server.worker_context import WorkerContext


def make_dear(burn_us: float) -> None:
    stored = WorkerContext.stored

    def dearly(worker: WorkerContext, uploads: int, size_bytes: int) -> None:
        end_ns = time.thread_time_ns() + int(uploads * burn_us * 1000)
        while time.thread_time_ns() < end_ns:
            pass
        stored(worker, uploads, size_bytes)

    WorkerContext.stored = dearly  # type: ignore[method-assign]


if __name__ == "__main__":
    make_dear(float(sys.argv.pop(1)))
    main(prog_name="dear_server.py")
