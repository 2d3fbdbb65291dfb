"""`make bench`: is what is recorded what was used? Six servers under load, ours and others', whose workers are killed
meanwhile where they are replaced.

What was used is the kernel's own count: of a control group (version 2) that each server is started in, in which nothing
is rounded and nobody is lost, or where there is none, of /proc. Memory is compared when the load has ended.
"""

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import servers
import servers_of_others as others
from servers import ROOT, eventually, free_port

from reports import run_folder
from reports.__main__ import cli

KILLS, EVERY_S = 20, 1.5
CLOSE = 0.03

Kill = Callable[[psutil.Process], None]
Load = Callable[[int], None]


def ours(folder: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "server", "--port", str(port), "--workers", "4", "--store", str(folder / "store")]


def upload(port: int) -> None:
    servers.upload(port, b"x" * (1 << 20))


def get(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/")
    connection.getresponse().read()
    connection.close()


def pipeline(port: int) -> None:
    """As one `get` costs nginx next to nothing."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" * 500 + b"GET / HTTP/1.0\r\n\r\n")
        while sock.recv(1 << 16):
            pass


def set_keys(port: int) -> None:
    run(["redis-benchmark", "-p", str(port), "-t", "set", "-n", "50000", "-q"])


def query(port: int) -> None:
    select = "select sum(number) from generate_series(1, 500000) number"
    run(["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-c", select])


def run(command: list[str]) -> None:
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, check=False)


def kill_worker(root: psutil.Process) -> None:
    random.choice(eventually(root.children, "a worker")).kill()


def end_backend(root: psutil.Process) -> None:
    """One killed by SIGKILL would take all others with it."""

    def backends() -> list[psutil.Process]:
        with suppress(psutil.Error):
            return [child for child in root.children() if "127.0.0.1" in " ".join(child.cmdline())]
        return []

    random.choice(eventually(backends, "a backend")).terminate()


@contextmanager
def control_group() -> Iterator[Path | None]:
    """A new one below the mounted version 2; None where we may not make one."""
    mounts = [mount.mountpoint for mount in psutil.disk_partitions(all=True) if mount.fstype == "cgroup2"]
    group = Path(*mounts[:1], f"socketswarm-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        yield group if mounts else None
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text(), "all processes have ended")
        group.rmdir()


def used_s(root: psutil.Process, group: Path | None) -> float:
    if group is not None:
        return int((group / "cpu.stat").read_text().split()[1]) / 1e6
    everybody = [root, *root.children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in everybody) + sum(root.cpu_times()[2:4])


def pss(root: psutil.Process) -> int:
    return sum(process.memory_full_info().pss for process in [root, *root.children(recursive=True)])


def keep_busy(load: Load, port: int, over: threading.Event) -> None:
    while not over.is_set():
        with suppress(Exception):  # whatever comes of a worker that is killed
            load(port)


def settled(folder: Path, since_ns: int) -> bool:
    """Whether the last two ticks since then have the same processes with the same memory."""
    ticks = [tick for tick in run_folder.read_processes(folder) if tick.mono_ns > since_ns]
    there = [{sample.pid: sample.rss_bytes for sample in tick.processes if is_server(sample)} for tick in ticks[-2:]]
    return len(there) == 2 and there[0] == there[1]


def is_server(sample: run_folder.ProcessSample) -> bool:
    return sample.role.startswith("server-")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("server", "load", "kill"),
    [
        pytest.param(ours, upload, kill_worker, id="ours"),
        pytest.param(others.nginx, pipeline, kill_worker, id="nginx", marks=others.needs_nginx),
        pytest.param(others.redis, set_keys, None, id="redis", marks=others.needs_redis),
        pytest.param(others.postgres, query, end_backend, id="postgres", marks=others.needs_postgres),
        pytest.param(others.gunicorn, get, kill_worker, id="gunicorn", marks=others.needs_gunicorn),
        pytest.param(others.threaded, get, None, id="threaded"),
    ],
)
def test_what_is_recorded_was_used(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    server: Callable[[Path, int], list[str]],
    load: Load,
    kill: Kill | None,
) -> None:
    port, folder = free_port(), tmp_path / "run"
    with ExitStack() as stack:
        group = stack.enter_context(control_group())
        own = stack.enter_context(others.public_folder())
        root = stack.enter_context(started(server(own, port), group))
        ours = [sys.executable, "-m", "reports", "record", "--port", str(port), "--out", str(folder)]
        recorder = subprocess.Popen([*ours, "--interval", "1"], cwd=ROOT, stderr=subprocess.DEVNULL)
        stack.callback(recorder.kill)
        eventually(lambda: recorded(folder, root.pid), "the server listens and was found")
        over = threading.Event()
        busy = [threading.Thread(target=keep_busy, args=(load, port, over)) for _ in range(2)]
        for thread in busy:
            thread.start()
        for _ in range(KILLS):
            time.sleep(EVERY_S)
            if kill:
                kill(root)
        over.set()
        for thread in busy:
            thread.join()
        idle_ns = time.monotonic_ns()
        eventually(lambda: settled(folder, idle_ns), "whoever was killed last is replaced, and all are at rest")
        memory = pss(root)  # before the recorder goes: it shares libraries' pages with the servers
        recorder.send_signal(signal.SIGINT)
        assert recorder.wait(30) == 0
        cpu_s = used_s(root, group)
    cli(["build", str(folder)], standalone_mode=False)
    seen_s = json.loads((folder / run_folder.SUMMARY).read_text())["server"]["cpu_total_s"]
    *_, last = run_folder.read_processes(folder)
    seen = sum(sample.pss_bytes or 0 for sample in last.processes if is_server(sample))
    print(
        f"\n{request.node.callspec.id}: {seen_s:.2f} s of CPU recorded, {cpu_s:.2f} s used: {seen_s / cpu_s - 1:+.2%}; "
        f"PSS {seen / 2**20:.1f} MiB, {memory / 2**20:.1f} MiB: {seen / memory - 1:+.2%}"
        + (f"; {KILLS} workers killed" if kill else "")
    )
    assert seen_s == pytest.approx(cpu_s, rel=CLOSE)
    assert seen == pytest.approx(memory, rel=CLOSE)


@contextmanager
def started(command: list[str], group: Path | None) -> Iterator[psutil.Process]:
    """The server, from its first moment on in the group."""
    enter = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"] if group else []
    cwd = ROOT if "server" in command else "/"
    process = subprocess.Popen([*enter, *command], cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def recorded(folder: Path, pid: int) -> bool:
    return any(sample.pid == pid for tick in run_folder.read_processes(folder) for sample in tick.processes)
