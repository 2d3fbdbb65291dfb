"""For the benches: servers pinned to one core, what is measured on the other, and medians with their interval.

Machines are shared and noisy. So two things are compared in pairs of runs that follow each other, alternating who goes
first, and the figure is the median of the pairs' ratios. Nothing is asserted but that a bench was valid.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from bench.raw_sender import framed
from servers import free_port

from server.ports.holders import listening_root

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
BENCH = Path(__file__).with_name("bench")
SENDER, FLOOR = BENCH / "raw_sender.py", BENCH / "floor_server.py"
RECEIVE_CORES = Path("/sys/class/net/lo/queues/rx-0/rps_cpus")
PAIRS = 15


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"nobody listens on {port}"
            time.sleep(0.01)


@contextmanager
def pinned(command: list[str], port: int) -> Iterator[int]:
    """A server on core 0 until the block ends."""
    process = subprocess.Popen(["taskset", "-c", "0", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield port
    finally:
        process.terminate()
        process.wait(40)


@contextmanager
def our_server(*options: str) -> Iterator[int]:
    """The port of a server of ours with one worker."""
    port = free_port()
    with pinned([sys.executable, "-m", "server", "--port", str(port), "--workers", "1", *options], port):
        yield port


@contextmanager
def received_on_core_0() -> Iterator[bool]:
    """Let the kernel do the receiver's work of loopback on the server's core, as it does with a network card whose
    interrupts go there (Receive Packet Steering, Documentation/networking/scaling.rst). Otherwise whoever sends does
    it: of short connections, whose handshakes are most of the work, the sender's core is then busier than the server's.
    Yields whether that could be had: it needs root."""
    try:
        before = RECEIVE_CORES.read_text()
        RECEIVE_CORES.write_text("1")
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        RECEIVE_CORES.write_text(before)


@contextmanager
def floor_server(folder: Path, size: int, close: bool) -> Iterator[int]:
    """The port of the bare loop that takes only such uploads."""
    port = free_port()
    frame = len(framed("bench-000-0.bin", bytes(size), close))
    command = [sys.executable, str(FLOOR), "--port", str(port), "--store", str(folder)]
    with pinned([*command, "--frame", str(frame), "--body", str(size), *["--close"] * close], port):
        yield port


@contextmanager
def uvicorn(folder: Path) -> Iterator[int]:
    """The port of one uvicorn worker that stores what is PUT."""
    port = free_port()
    folder.mkdir()
    command = ["env", f"STORE={folder}", sys.executable, "-m", "uvicorn", "--app-dir", str(BENCH), "asgi_store:app"]
    with pinned([*command, "--port", str(port), "--no-access-log", "--log-level", "critical"], port):
        yield port


def cpu_s(port: int) -> float:
    """CPU that all processes of the server on this port have used so far, in seconds, as the scheduler counts it."""
    root = listening_root(port)
    assert root is not None, f"nobody listens on {port}"
    there = [root, *(child.pid for child in psutil.Process(root).children(recursive=True))]
    tasks = [task for pid in there for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def nginx(folder: Path, location: str) -> Iterator[int]:
    """The port of an nginx with one worker, which does what `location` says; its files are in `folder`."""
    port = free_port()
    for name in ("store", "incoming"):
        (folder / name).mkdir()
    user = "user root;" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(
        f"""daemon off; worker_processes 1; {user} pid {folder}/pid; error_log {folder}/error.log;
        events {{ worker_connections 1024; }}
        http {{
            access_log off; keepalive_requests 1000000000; client_max_body_size 0;
            client_body_temp_path {folder}/incoming;
            server {{ listen 127.0.0.1:{port}; root {folder}/store; location / {{ {location} }} }}
        }}"""
    )
    with pinned([str(NGINX), "-e", f"{folder}/error.log", "-c", str(config)], port):
        yield port


def sending(port: int, wire: str, *options: str) -> list[str]:
    """The raw sender's command, on core 1. At its end it prints what it did."""
    return ["taskset", "-c", "1", sys.executable, str(SENDER), "--port", str(port), "--wire", wire, *options]


def send(port: int, wire: str, *options: str) -> dict[str, float]:
    return json.loads(
        subprocess.run(sending(port, wire, *options), stdout=subprocess.PIPE, check=True, timeout=120).stdout
    )


def median_with_interval(values: list[float]) -> tuple[float, float, float]:
    """The median and its 90 % bootstrap interval."""
    samples = np.random.default_rng(1).choice(values, size=(10_000, len(values)))
    low, high = np.quantile(np.median(samples, axis=1), [0.05, 0.95])
    return float(np.median(values)), float(low), float(high)
