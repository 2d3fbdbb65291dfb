"""`make bench`: what a flood of the status page costs those who upload.

One worker on core 0, with the helper beside it; the sender and the flood are on core 1, the flood only while the sender
does not want it, so that what it takes of the sender is not counted against the helper. One sender uploads all the
time, and the flood is stopped every other half second: a machine's speed wanders by more from run to run than what is
looked for. The flood starts and is stopped by turns, so that neither half is always the first of its pair.
"""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from benches import median_with_interval, our_server, sending
from servers import eventually, free_port

from server.ports.holders import listening_root
from server.scoreboard import Scoreboard, read_state

PAIRS = 120  # what is looked for is small beside what half a second scatters by
SLICE_S = 0.5
UPLOADS = ("--connections", "20", "--size", "4096", "--seconds", f"{2 * PAIRS * SLICE_S + 10:g}")
# Ten connections that ask as fast as they are answered; it prints how often that was when its stdin is closed.
FLOOD = """
import http.client, sys, threading
port, path, answers = int(sys.argv[1]), sys.argv[2], [0]
def ask():
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            while True:
                connection.request("GET", path)
                connection.getresponse().read()
                answers[0] += 1
        except (OSError, http.client.HTTPException):
            pass
for _ in range(10):
    threading.Thread(target=ask, daemon=True).start()
print("started", flush=True)
sys.stdin.read()
print(answers[0])
"""

pytestmark = pytest.mark.timeout(600)


@contextmanager
def flood(port: int, path: str) -> Iterator["subprocess.Popen[str]"]:
    """Stopped at first."""
    command = ["taskset", "-c", "1", "chrt", "--idle", "0", sys.executable, "-c", FLOOD, str(port), path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGSTOP)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def uploading(port: int) -> Iterator[Callable[[], int]]:
    """A sender that goes on until the block ends. Yields what tells how many uploads there were."""
    root = listening_root(port)
    state = read_state(root) if root is not None else None
    assert state is not None
    board = Scoreboard.open(state.scoreboard)
    process = subprocess.Popen(sending(port, "framed", *UPLOADS), stdout=subprocess.DEVNULL)
    try:
        yield lambda: sum(slot.uploads_stored for slot in board.read())
        assert process.poll() is None, "the sender ended before the bench did"
    finally:
        process.kill()
        process.wait()
        board.close()


def uploads_per_s(count: Callable[[], int]) -> float:
    """Over a slice."""
    before, before_s = count(), time.monotonic()
    time.sleep(SLICE_S)
    return (count() - before) / (time.monotonic() - before_s)


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz"])
def test_a_flooded_page(path: str) -> None:
    ratios: list[float] = []
    page = free_port()
    with our_server("--discard", "--status-port", str(page)) as port:
        _wait_for(page)
        with uploading(port) as count, flood(page, path) as asking:
            eventually(lambda: count() > 1000, "the sender has warmed up")
            for pair in range(PAIRS):
                rates = {}
                for is_flooded in (pair % 2 == 0, pair % 2 == 1):
                    asking.send_signal(signal.SIGCONT if is_flooded else signal.SIGSTOP)
                    rates[is_flooded] = uploads_per_s(count)
                ratios.append(rates[True] / rates[False])
            asking.send_signal(signal.SIGCONT)
            out, _ = asking.communicate()
    ratio, low, high = median_with_interval(ratios)
    print(
        f"\nbeside a flood of {path} uploads/s are {ratio:.3f} of those beside an idle page (90 % interval {low:.3f} "
        f"to {high:.3f}, {PAIRS} pairs); it was answered {int(out) / PAIRS / SLICE_S:,.0f} times a second or so"
    )


def _wait_for(page: int) -> None:
    """Its first answer."""
    with socket.create_connection(("127.0.0.1", page), 30) as sock:
        sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert sock.recv(1 << 16).startswith(b"HTTP/1.0 ")
