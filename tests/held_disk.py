"""`python -m server` on a disk that somebody holds, for tests/integration/test_durability.py:

    python held_disk.py HOLD SERVER-OPTION...

While the file HOLD is there no fsync returns, or each fails if an errno's name is in it; HOLD.asked appears when one
waits or fails.
"""

import errno
import os
import sys
import time
from pathlib import Path

from server.__main__ import main

POLL_S = 0.002


def held_by(hold: Path) -> str | None:
    try:
        return hold.read_text()
    except FileNotFoundError:
        return None


def hold_disk(hold: Path) -> None:
    fsync = os.fsync

    def held(fd: int) -> None:
        while (name := held_by(hold)) is not None:
            hold.with_suffix(".asked").touch()
            if name:
                number = getattr(errno, name)
                raise OSError(number, os.strerror(number))
            time.sleep(POLL_S)
        fsync(fd)

    os.fsync = held


if __name__ == "__main__":
    hold_disk(Path(sys.argv[1]))
    del sys.argv[1]
    main(prog_name="python -m server")
