"""`make bench`: what clients that take and do not give cost the others.

One worker on core 0. The crowd and the honest users are on core 1: the crowd takes little of it, and what it takes is
the same in both runs of a pair only if it is there, so the sender's own share is printed too.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from benches import BENCH, median_with_interval, our_server, send

from server.ports.holders import listening_root

ROUNDS = 7
IDLE_ROUNDS = 9
HONEST = ("--connections", "20", "--size", "4096", "--seconds", "1")

pytestmark = pytest.mark.timeout(600)


@contextmanager
def crowd(port: int, connections: int, kind: str, seconds: float) -> Iterator["subprocess.Popen[str]"]:
    command = ["taskset", "-c", "1", sys.executable, str(BENCH / "slow_crowd.py"), "--port", str(port)]
    command += ["--connections", str(connections), "--kind", kind, "--seconds", str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def honest(port: int) -> float:
    done = send(port, "framed", *HONEST)
    return done["uploads"] / done["seconds"]


@pytest.mark.parametrize("kind", ["header", "body", "both"])
def test_two_thousand_that_dribble(folder: Path, kind: str) -> None:
    shares, cut_off = [], {}
    with our_server("--store", str(folder), "--max-store", "0") as port:
        honest(port)
        for _ in range(ROUNDS):
            alone = honest(port)
            with crowd(port, 2000, kind, 30) as process:
                during = [honest(port) for _ in range(8)]  # 10 s and a little: until they are cut off
                out, _ = process.communicate(timeout=60)
                cut_off = json.loads(out)
            shares.append(sorted(during)[len(during) // 2] / alone)
    share, low, high = median_with_interval(shares)
    print(
        f"\nbeside 2,000 that dribble ({kind}) others get {share:.3f} of their uploads/s (90 % interval {low:.3f} to "
        f"{high:.3f}, {ROUNDS} rounds); how these ended: {cut_off}"
    )


def test_ten_thousand_idle(folder: Path) -> None:
    shares, each = [], []
    with our_server("--store", str(folder)) as port:
        root = listening_root(port)
        assert root is not None
        [worker] = psutil.Process(root).children()
        honest(port)
        for _ in range(IDLE_ROUNDS):
            before = honest(port)
            uss = worker.memory_full_info().uss
            with crowd(port, 10_000, "idle", 60):
                each.append((worker.memory_full_info().uss - uss) / 10_000)
                during = honest(port)
            shares.append(during / ((before + honest(port)) / 2))
    share, low, high = median_with_interval(shares)
    print(f"\n10,000 idle connections: {each[0]:,.0f} bytes of USS each (limit 2,048), others get {share:.3f} of their")
    print(f"uploads/s before and after (90 % interval {low:.3f} to {high:.3f}, {IDLE_ROUNDS} rounds)")
