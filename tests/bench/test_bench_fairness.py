"""`make bench`: what short connections get beside long ones, on one worker.

25 connections that upload once each, alone and then beside 25 keep-alive ones that send without a pause. The long ones
must not starve the short: each turn of the worker's loop serves both.
"""

import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

import pytest
from benches import our_server, send, sending

ROUNDS = 7
SHORT = ("--connections", "25", "--size", "4096", "--close", "--seconds", "1")
LONG = ("--connections", "25", "--size", "4096", "--seconds", "1.5")


@pytest.mark.timeout(300)
def test_short_beside_long() -> None:
    folder = Path(tempfile.mkdtemp(prefix="socketswarm-bench-", dir="/dev/shm"))
    shares = []
    try:
        with our_server("--store", str(folder)) as port:
            for _ in range(ROUNDS):
                alone = send(port, "framed", *SHORT)
                beside_long = subprocess.Popen(sending(port, "framed", *LONG), stdout=subprocess.DEVNULL)
                beside = send(port, "framed", *SHORT)
                assert beside_long.wait(60) == 0
                shares.append((beside["uploads"] / beside["seconds"]) / (alone["uploads"] / alone["seconds"]))
    finally:
        shutil.rmtree(folder)
    print(f"\n25 short beside 25 long get {statistics.median(shares):.2f} of what they get alone ({ROUNDS} rounds)")
