"""Signals before there is a supervisor, at a moment that no test can hit from outside."""

import signal
import subprocess
import sys

from servers import ROOT

LOST = """
import os, signal
from server import processes

class Dies:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000): pass  # here Python runs the handler, and drops what it raises

processes.hold_signals()
Dies()
print("goes on", flush=True)
processes.Wakeups().catch_signals()
print("serves", flush=True)
"""


def test_a_stop_whose_exit_is_lost_in_a_destructor_is_an_exit_nevertheless() -> None:
    done = subprocess.run([sys.executable, "-c", LOST], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("goes on\n", 128 + signal.SIGTERM)
    assert "Stopped by SIGTERM\n" in done.stderr
