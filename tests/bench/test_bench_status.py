"""`make bench`: what a flood of the status page costs those who upload.

One worker on core 0, with the helper beside it; the sender and the flood are on core 1, the flood only while the sender
does not want it, so that what it takes of the sender is not counted against the helper. A pair is one second beside an
idle page and one beside a flooded one, alternating who goes first.
"""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from benches import median_with_interval, our_server, send
from servers import free_port

PAIRS = 60  # what is looked for is small beside what a second scatters by
UPLOADS = ("--connections", "20", "--size", "4096", "--seconds", "1")
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
def flooded(port: int, path: str, answers: list[int]) -> Iterator[None]:
    command = ["taskset", "-c", "1", "chrt", "--idle", "0", sys.executable, "-c", FLOOD, str(port), path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    try:
        yield
    finally:
        out, _ = process.communicate()
        answers.append(int(out))


def uploads_per_s(port: int) -> float:
    done = send(port, "framed", *UPLOADS)
    return done["uploads"] / done["seconds"]


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz"])
def test_a_flooded_page(path: str) -> None:
    ratios: list[float] = []
    answers: list[int] = []
    page = free_port()
    with our_server("--discard", "--status-port", str(page)) as port:
        _wait_for(page)
        uploads_per_s(port)
        for pair in range(PAIRS):
            rates = {}
            for is_flooded in (pair % 2 == 0, pair % 2 == 1):
                if is_flooded:
                    with flooded(page, path, answers):
                        rates[is_flooded] = uploads_per_s(port)
                else:
                    rates[is_flooded] = uploads_per_s(port)
            ratios.append(rates[True] / rates[False])
    ratio, low, high = median_with_interval(ratios)
    print(
        f"\nbeside a flood of {path} uploads/s are {ratio:.3f} of those beside an idle page (90 % interval {low:.3f} "
        f"to {high:.3f}, {PAIRS} pairs); it was answered {sum(answers) / len(answers):,.0f} times a second or so"
    )


def _wait_for(page: int) -> None:
    """Its first answer."""
    with socket.create_connection(("127.0.0.1", page), 30) as sock:
        sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert sock.recv(1 << 16).startswith(b"HTTP/1.0 ")
