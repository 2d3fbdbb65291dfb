"""The hiccup meter as the load process sees it: a child (`hiccups.py`), whose delays are taken once a second."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

import numpy as np

from loadtest.telemetry import Nanoseconds


class HiccupMeter:
    """Runs from its making to `close`. Without it a run goes on: its report then has no hiccups."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("hiccups.py")
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", str(script)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us
        )
        self._fd = cast(IO[bytes], self._process.stdout).fileno()
        os.set_blocking(self._fd, False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def take(self) -> Nanoseconds:
        """How late its sleeps ended since the last call, in microseconds."""
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            data = b""
        return np.frombuffer(data, dtype=np.uint32).astype(np.int64)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        cast(IO[bytes], self._process.stdout).close()
