"""`make bench`: what the recorder costs, beside pidstat and psrecord on the same processes at the same time.

A server of 18 workers, its supervisor and the recorder itself are 20 processes. Each program's CPU is read from the
kernel in nanoseconds, between two moments of its life, so that nobody's start counts. Nothing is asserted but that
all of them ran.

Needs Debian's sysstat for pidstat; psrecord is measured where it is installed.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import psutil
import pytest
from servers import eventually, free_port

from reports import run_folder

WARM_UP_S, SECONDS = 4, 60  # USS and PSS of so many processes are read once in 40 s or so
WORKERS = 18

pytestmark = [
    pytest.mark.skipif(which("pidstat") is None, reason="needs pidstat: apt-get install sysstat"),
    pytest.mark.timeout(300),
]


@contextmanager
def running(command: list[str]) -> Iterator[int]:
    """Its pid."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process.pid
        assert process.poll() is None, f"{command[0]} has ended"
    finally:
        process.terminate()
        process.wait(40)


def cpu_ns(pid: int) -> int:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


@pytest.mark.parametrize("interval_s", [1, 0.1])
def test_recorder_beside_others(tmp_path: Path, interval_s: float) -> None:
    port = free_port()
    server = [sys.executable, "-m", "server", "--port", str(port), "--workers", str(WORKERS), "--discard"]
    with ExitStack() as stack:
        root = stack.enter_context(running(server))
        eventually(lambda: len(psutil.Process(root).children()) == WORKERS, "all workers are there")
        pids = [root, *(child.pid for child in psutil.Process(root).children())]
        ours = [sys.executable, "-m", "reports", "record", "--port", str(port), "--out", str(tmp_path / "run")]
        started = {"recorder": stack.enter_context(running([*ours, "--interval", str(interval_s)]))}
        watched = ",".join(map(str, [*pids, started["recorder"]]))
        if interval_s >= 1:  # pidstat knows whole seconds
            started["pidstat"] = stack.enter_context(running(["pidstat", "-urdwh", "-p", watched, str(interval_s)]))
        if find_spec("psrecord"):
            psrecord = [sys.executable, "-m", "psrecord", str(root), "--include-children", "--log", os.devnull]
            started["psrecord"] = stack.enter_context(running([*psrecord, "--interval", str(interval_s)]))
        time.sleep(WARM_UP_S)
        before = {name: cpu_ns(pid) for name, pid in started.items()}
        time.sleep(SECONDS)
        used = {name: (cpu_ns(pid) - before[name]) / SECONDS / 1e9 for name, pid in started.items()}
    [first, *_, last] = run_folder.read_processes(tmp_path / "run")
    print(
        f"\n{len(last.processes)} processes every {interval_s} s, share of a core: "
        + ", ".join(f"{name} {share:.2%}" for name, share in used.items())
        + f"; recorder, RSS: {rss_mib(first):.1f} MiB at first, {rss_mib(last):.1f} MiB at last"
    )


def rss_mib(tick: run_folder.ProcessTick) -> float:
    [sample] = [sample for sample in tick.processes if sample.role == "recorder"]
    return (sample.rss_bytes or 0) / (1 << 20)
