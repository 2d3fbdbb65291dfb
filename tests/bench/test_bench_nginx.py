"""`make bench`: one worker of ours beside one nginx worker that stores the same bytes, PUT for upload.

Both are pinned to core 0 and write to the same tmpfs; one raw sender on core 1 replays prebuilt bytes to each in turn.
Machines are noisy and shared, so what counts is the ratio within a pair of runs that follow each other, alternating
who goes first; the figure is the median of 15 such ratios with its 90 % interval (bootstrap). Nothing is asserted but
that the bench was valid: speed is read, not tested.

Needs Debian's nginx-light, at least 2 cores and /dev/shm.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

PAIRS = 15
SECONDS = 1.0
SENDER = Path(__file__).with_name("raw_sender.py")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="needs nginx: apt-get install nginx-light"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs a core for the server and one for the sender"),
    pytest.mark.timeout(600),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


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
def ours(folder: Path) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "server", "--port", str(port), "--workers", "1", "--store", str(folder / "ours")]
    with pinned(command, port):
        yield port


@contextmanager
def nginx(folder: Path) -> Iterator[int]:
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
            server {{ listen 127.0.0.1:{port}; root {folder}/store; location / {{ dav_methods PUT; }} }}
        }}"""
    )
    with pinned([str(NGINX), "-e", f"{folder}/error.log", "-c", str(config)], port):
        yield port


@pytest.fixture
def both() -> Iterator[tuple[int, int]]:
    """Ports of our server and of nginx, storing on the same tmpfs."""
    folder = Path(tempfile.mkdtemp(prefix="socketswarm-bench-", dir="/dev/shm"))
    try:
        with ExitStack() as stack:
            yield stack.enter_context(ours(folder)), stack.enter_context(nginx(folder))
    finally:
        shutil.rmtree(folder)


def send(port: int, wire: str, *options: str) -> dict[str, float]:
    command = ["taskset", "-c", "1", sys.executable, str(SENDER), "--port", str(port), "--wire", wire, *options]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120).stdout)


def median_with_interval(values: list[float]) -> tuple[float, float, float]:
    """The median and its 90 % bootstrap interval."""
    samples = np.random.default_rng(1).choice(values, size=(10_000, len(values)))
    low, high = np.quantile(np.median(samples, axis=1), [0.05, 0.95])
    return float(np.median(values)), float(low), float(high)


@pytest.mark.parametrize(
    ("title", "options"),
    [
        ("4 KiB, 50 keep-alive connections", ("--size", "4096")),
        ("4 KiB, a connection for each upload, 50 at a time", ("--size", "4096", "--close")),
        ("64 MiB, 2 keep-alive connections", ("--size", str(64 << 20), "--connections", "2")),
    ],
)
def test_uploads_beside_nginx(both: tuple[int, int], title: str, options: tuple[str, ...]) -> None:
    our_port, nginx_port = both
    ratios, busiest = [], 0.0
    rates: dict[str, list[float]] = {"framed": [], "http": []}
    send(our_port, "framed", "--seconds", "0.5", *options)  # both have their files and caches before it counts
    send(nginx_port, "http", "--seconds", "0.5", *options)
    for pair in range(PAIRS):
        order = [("framed", our_port), ("http", nginx_port)]
        result = {
            wire: send(port, wire, "--seconds", str(SECONDS), *options) for wire, port in order[:: 1 - 2 * (pair % 2)]
        }
        for wire, measured in result.items():
            rates[wire].append(measured["uploads"] / measured["seconds"])
            busiest = max(busiest, measured["sender_cpu"])
        ratios.append(rates["framed"][-1] / rates["http"][-1])
    median, low, high = median_with_interval(ratios)
    print(
        f"\n{title}: ours / nginx = {median:.3f} (90 % interval {low:.3f} to {high:.3f}, {PAIRS} pairs); "
        f"ours {np.median(rates['framed']):,.0f}/s, nginx {np.median(rates['http']):,.0f}/s; "
        f"sender at most {busiest:.0%} of its core"
    )
    if busiest > 0.8:
        print("  the sender was over 80 % busy: it may have been the limit, the ratio is not valid")
