"""The hiccup meter as the load process sees it: a child (`hiccups.py`), whose delays are taken once a second."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

import numpy as np

from loadtest.hiccups import SLEEP_NS
from loadtest.telemetry import Nanoseconds

SLEEP_US = SLEEP_NS // 1000
LONGEST_US = 60_000_000  # of a pause, in the sleeps that it is taken to have cost


def with_missed(delays_us: Nanoseconds) -> Nanoseconds:
    """As if a sleep had begun each millisecond: those that should have ended while one was late were late too, each by
    what was left of it. Without them a pause of a second would be one late sleep among thousands (the sleeper's own
    coordinated omission; HdrHistogram's recordValueWithExpectedInterval is the same)."""
    late = delays_us[delays_us > SLEEP_US]
    missed = [np.arange(delay - SLEEP_US, 0, -SLEEP_US) for delay in np.minimum(late, LONGEST_US).tolist()]
    return np.concatenate([delays_us, *missed])


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
        """How late its sleeps ended since the last call, in microseconds, with those that it missed meanwhile."""
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            data = b""
        return with_missed(np.frombuffer(data, dtype=np.uint32).astype(np.int64))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        cast(IO[bytes], self._process.stdout).close()
