"""`make bench`: what the recorder costs, beside pidstat and psrecord on the same processes at the same time, and
whether its memory stays the same.

A server of 18 workers, its supervisor and the recorder itself are 20 processes. Each program's CPU is read from the
kernel in nanoseconds, between two moments of its life, so that nobody's start counts.

Needs Debian's sysstat for pidstat; psrecord is measured where it is installed: `.venv/bin/pip install psrecord`.
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
from servers import ROOT, eventually, free_port

from reports import run_folder

WARM_UP_S, SECONDS = 4, 60  # USS and PSS of so many processes are read once in 40 s or so
WORKERS = 18
LIMIT = 0.01
"""Of a core, at a tick of 1 s."""
FEW, MANY = 100, 10_000

pytestmark = pytest.mark.timeout(600)


@contextmanager
def running(command: list[str]) -> Iterator[int]:
    """Its pid."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process.pid
        assert process.poll() is None, f"{command[0]} has ended"
    finally:
        process.terminate()
        process.wait(40)


@contextmanager
def server() -> Iterator[tuple[int, list[int]]]:
    """(its port, its processes, the topmost first)."""
    port = free_port()
    command = [sys.executable, "-m", "server", "--port", str(port), "--workers", str(WORKERS), "--discard"]
    with running(command) as root:
        eventually(lambda: len(psutil.Process(root).children()) == WORKERS, "all workers are there")
        yield port, [root, *(child.pid for child in psutil.Process(root).children())]


def cpu_ns(pid: int) -> int:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


@pytest.mark.skipif(which("pidstat") is None, reason="needs pidstat: apt-get install sysstat")
@pytest.mark.parametrize("interval_s", [1, 0.1])
def test_recorder_beside_others(tmp_path: Path, interval_s: float) -> None:
    with ExitStack() as stack:
        port, pids = stack.enter_context(server())
        ours = [sys.executable, "-m", "reports", "record", "--port", str(port), "--out", str(tmp_path / "run")]
        started = {"recorder": stack.enter_context(running([*ours, "--interval", str(interval_s)]))}
        watched = ",".join(map(str, [*pids, started["recorder"]]))
        if interval_s >= 1:  # pidstat knows whole seconds
            started["pidstat"] = stack.enter_context(running(["pidstat", "-urdwh", "-p", watched, str(interval_s)]))
        if find_spec("psrecord"):
            psrecord = [sys.executable, "-m", "psrecord", str(pids[0]), "--include-children", "--log", os.devnull]
            started["psrecord"] = stack.enter_context(running([*psrecord, "--interval", str(interval_s)]))
        time.sleep(WARM_UP_S)
        before = {name: cpu_ns(pid) for name, pid in started.items()}
        time.sleep(SECONDS)
        used = {name: (cpu_ns(pid) - before[name]) / SECONDS / 1e9 for name, pid in started.items()}
    *_, last = run_folder.read_processes(tmp_path / "run")
    print(
        f"\n{len(last.processes)} processes of {len(psutil.pids())} every {interval_s} s, share of a core: "
        + ", ".join(f"{name} {share:.2%}" for name, share in used.items())
    )
    if interval_s == 1:
        assert used["recorder"] < min(LIMIT, used.get("psrecord", 1))


TICKS = """
import sys, msgspec, psutil
from reports.recording.recorder import Recorder, Subject

class Nowhere:
    def append(self, name, line):
        msgspec.json.encode(line)

recorder = Recorder(Nowhere(), Subject("127.0.0.1", int(sys.argv[1])), load_pid=None)
for number in range(1, int(sys.argv[3]) + 1):
    recorder.tick(whole=number % 100 == 0)
    if number == int(sys.argv[2]):
        print(psutil.Process().memory_info().rss)
print(psutil.Process().memory_info().rss)
"""


def test_memory_after_many_ticks() -> None:
    """One right after the other."""
    with server() as (port, _):
        command = [sys.executable, "-c", TICKS, str(port), str(FEW), str(MANY)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    first, last = map(int, done.stdout.split())
    print(f"\nrecorder, RSS: {first / 2**20:.1f} MiB after {FEW} ticks, {last / 2**20:.1f} MiB after {MANY}")
    assert last < first + (1 << 20)
