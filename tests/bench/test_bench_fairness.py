"""`make bench`: what short connections get beside long ones, on one worker.

25 connections that upload once each, alone and then beside 25 keep-alive ones that send without a pause. The long ones
must not starve the short: each turn of the worker's loop serves both.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from bench.test_bench_nginx import SENDER, ours, send

ROUNDS = 7
SHORT = ("--connections", "25", "--size", "4096", "--close", "--seconds", "1")
LONG = ("--connections", "25", "--size", "4096", "--seconds", "1.5")


@pytest.mark.timeout(300)
def test_short_beside_long() -> None:
    folder = Path(tempfile.mkdtemp(prefix="socketswarm-bench-", dir="/dev/shm"))
    shares = []
    try:
        with ours(folder) as port:
            for _ in range(ROUNDS):
                alone = send(port, "framed", *SHORT)
                command = ["taskset", "-c", "1", sys.executable, str(SENDER), "--port", str(port), "--wire", "framed"]
                beside_long = subprocess.Popen([*command, *LONG], stdout=subprocess.DEVNULL)
                beside = send(port, "framed", *SHORT)
                assert beside_long.wait(60) == 0
                shares.append((beside["uploads"] / beside["seconds"]) / (alone["uploads"] / alone["seconds"]))
    finally:
        shutil.rmtree(folder)
    print(f"\n25 short beside 25 long get {statistics.median(shares):.2f} of what they get alone ({ROUNDS} rounds)")
