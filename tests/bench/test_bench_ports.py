"""How long the port helper takes: `show` beside lsof on a machine with 2,000 connections, and freeing a port.

The two commands take turns, so that whatever else the machine does falls on both; what counts is the ratio of the
medians. Both times include starting the program, since that is what a person waits for.
"""

import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import pytest

from server import scoreboard

ROOT = Path(__file__).parents[2]
CONNECTIONS = 2000
TURNS = 15

# Both ends of the connections live in processes of their own, as they would beside a person who runs lsof.
CONNECTED = """
import os, resource, socket, sys
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
port, count, kept = listener.getsockname()[1], int(sys.argv[1]), []
if os.fork() == 0:
    listener.close()
    kept = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
else:
    kept = [listener.accept() for _ in range(count)]
    print(port, flush=True)
sys.stdin.read()
"""


@contextmanager
def running(*command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A program in a session of its own, and its first line; the session is killed in the end."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline()
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # all of it has ended


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run from compiled files, as after the first use of an installed program, even where Python must not write any."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("compiled")))
        seconds(sys.executable, "-c", "import server.ports")  # `-m` alone does not store what it runs
        seconds(sys.executable, "-m", "server.ports", "show", "1")
        yield


def seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


@pytest.mark.skipif(which("lsof") is None, reason="needs lsof")
def test_show_keeps_up_with_lsof() -> None:
    with running(sys.executable, "-c", CONNECTED, str(CONNECTIONS)) as (_, line):
        port = line.strip()
        lsof, show = [], []
        for _ in range(TURNS):
            lsof.append(seconds("lsof", "-nP", "-i", f":{port}"))
            show.append(seconds(sys.executable, "-m", "server.ports", "show", port))
    ratio = statistics.median(show) / statistics.median(lsof)
    print(
        f"\nshow {statistics.median(show) * 1e3:.0f} ms, lsof {statistics.median(lsof) * 1e3:.0f} ms, "
        f"ratio {ratio:.2f} (medians of {TURNS} alternating turns, {CONNECTIONS} connections)"
    )
    assert ratio <= 1.2


@pytest.mark.parametrize(("wedged", "limit_s"), [(False, 0.3), (True, 1.5 + 1.0)])
def test_a_port_is_free_in_time(wedged: bool, limit_s: float) -> None:
    """From the start of the helper until its end: under 0.3 s by TERM, within the grace and 1 s by KILL."""
    command = (sys.executable, "-m", "server", "--port", "0", "--workers", "4", "--discard")
    with running(*command) as (process, line):
        port = line.split()[2].rpartition(":")[2]
        with socket.create_connection(("127.0.0.1", int(port))):
            if wedged:
                os.killpg(process.pid, signal.SIGSTOP)
            took_s = seconds(sys.executable, "-m", "server.ports", "release", port, "--grace", "1.5s")
    scoreboard.remove_runtime_folder(scoreboard.runtime_root(os.geteuid()) / str(process.pid))  # KILL leaves it behind
    print(f"\nrelease of a {'wedged' if wedged else 'healthy'} server: {took_s:.2f} s, limit {limit_s} s")
    assert took_s <= limit_s
