"""`make bench`: one worker of ours beside one nginx worker that stores the same bytes, PUT for upload.

Both are pinned to core 0 and write to the same tmpfs; one raw sender on core 1 replays prebuilt bytes to each in turn.
Machines are noisy and shared, so what counts is the ratio within a pair of runs that follow each other, alternating
who goes first; the figure is the median of 15 such ratios with its 90 % interval (bootstrap). Nothing is asserted but
that the bench was valid: speed is read, not tested.

Needs Debian's nginx-light, at least 2 cores and /dev/shm.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from benches import NGINX, PAIRS, median_with_interval, nginx, our_server, send

SECONDS = 1.0

pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="needs nginx: apt-get install nginx-light"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs a core for the server and one for the sender"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def both() -> Iterator[tuple[int, int]]:
    """Ports of our server and of nginx, storing on the same tmpfs."""
    folder = Path(tempfile.mkdtemp(prefix="socketswarm-bench-", dir="/dev/shm"))
    try:
        with ExitStack() as stack:
            ours = stack.enter_context(our_server("--store", str(folder / "ours")))
            yield ours, stack.enter_context(nginx(folder, "dav_methods PUT;"))
    finally:
        shutil.rmtree(folder)


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
