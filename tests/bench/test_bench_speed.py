"""`make bench`: one worker of ours beside one nginx worker and one uvicorn worker that store the same bytes, PUT for
upload, and beside the floor: the same system calls in a bare loop.

All are pinned to core 0 and write to the same tmpfs; one raw sender on core 1 replays prebuilt bytes to each in turn.
Machines are noisy and shared, so what counts is the ratio within a round of runs that follow each other, in turned
order; the figure is the median of 15 such ratios with its 90 % interval (bootstrap). Nothing is asserted but that the
bench was valid: speed is read, not tested.

Needs Debian's nginx-light, uvicorn with httptools, at least 2 cores and /dev/shm.
"""

import os
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from benches import (
    NGINX,
    PAIRS,
    cpu_s,
    floor_server,
    median_with_interval,
    nginx,
    our_server,
    received_on_core_0,
    send,
    uvicorn,
)

SECONDS = 1.0
WIRES = {"ours": "framed", "nginx": "http", "uvicorn": "http", "floor": "framed"}

pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="needs nginx: apt-get install nginx-light"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs a core for the server and one for the sender"),
    pytest.mark.timeout(600),
]


@pytest.mark.parametrize(
    ("title", "size", "options"),
    [
        ("4 KiB, 50 keep-alive connections", 4096, ()),
        ("4 KiB, a connection for each upload, 50 at a time", 4096, ("--close",)),
        ("64 MiB, 2 keep-alive connections", 64 << 20, ("--connections", "2")),
    ],
)
def test_uploads_a_second(folder: Path, title: str, size: int, options: tuple[str, ...]) -> None:
    with ExitStack() as stack:
        steered = "--close" in options and stack.enter_context(received_on_core_0())
        ports = {
            "ours": stack.enter_context(our_server("--store", str(folder / "ours"))),
            "nginx": stack.enter_context(nginx(folder, "dav_methods PUT;")),
            "floor": stack.enter_context(floor_server(folder / "floor", size, "--close" in options)),
        }
        if size < 1 << 20 and find_spec("uvicorn"):
            ports["uvicorn"] = stack.enter_context(uvicorn(folder / "uvicorn"))
        rates: dict[str, list[float]] = {name: [] for name in ports}
        costs: dict[str, list[float]] = {name: [] for name in ports}
        busiest = 0.0
        for round_number in range(PAIRS + 1):
            for name in list(ports)[:: 1 - 2 * (round_number % 2)]:
                before_s = cpu_s(ports[name])
                result = send(
                    ports[name],
                    WIRES[name],
                    "--size",
                    str(size),
                    "--seconds",
                    str(SECONDS if round_number else 0.5),
                    *options,
                )
                if round_number:  # in the first, each makes its files and warms its caches
                    rates[name].append(result["uploads"] / result["seconds"])
                    costs[name].append((cpu_s(ports[name]) - before_s) / result["uploads"] * 1e6)
                    busiest = max(busiest, result["sender_cpu"])
    where = " (the kernel receives on the server's core)" * steered
    print(f"\n{title}, {PAIRS} rounds; the sender{where} was busy for at most {busiest:.0%} of its core:")
    for name in ports:
        ratio, low, high = median_with_interval(
            [ours / other for ours, other in zip(rates["ours"], rates[name], strict=True)]
        )
        print(
            f"  {name:<7} {np.median(rates[name]):>8,.0f} uploads/s {np.median(costs[name]):>9,.1f} CPU-µs an upload"
            + (
                f"   ours is {ratio:.3f} times as fast (90 % interval {low:.3f} to {high:.3f})"
                if name != "ours"
                else ""
            )
        )
    if busiest > 0.8:
        print("  the sender was over 80 % busy: it may have been the limit, the ratios are not valid")
