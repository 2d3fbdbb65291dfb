"""`make bench`: uploads that survive the loss of power, in groups beside one by one.

One worker on core 0 and one raw sender with 50 connections on core 1; what is compared is the same server with as many
uploads in a trip to the disk as have gathered, and with one: fsync of the file, rename, fsync of the folder, upload
after upload. Pairs of runs, alternating who goes first; the figure is the median of the pairs' ratios. Nothing is
asserted but that a bench was valid.

Needs a temporary folder on a disk (`pytest --basetemp`): on tmpfs fsync does nothing.
"""

import json
import os
import statistics
import sys
from pathlib import Path

import psutil
import pytest
from benches import median_with_interval, our_server, pinned, send
from servers import free_port

from server.batch import AT_ONCE

PROBED = Path(__file__).with_name("probed_server.py")
CONNECTIONS, SECONDS, PAIRS = 50, 2.0, 7

pytestmark = [
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs a core for the server and one for the sender"),
    pytest.mark.timeout(300),
]


def file_system(folder: Path) -> str:
    mounts = [mount for mount in psutil.disk_partitions(all=True) if folder.is_relative_to(mount.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype


def measure(folder: Path, most: int, size: str) -> dict[str, float]:
    """A run of one server with `most` uploads in a trip: what it counted, and its `rate` in uploads a second."""
    port, report = free_port(), folder / "report.json"
    options = ["--port", str(port), "--workers", "1", "--store", str(folder / "store"), "--durability", "power"]
    with pinned([sys.executable, str(PROBED), str(report), str(most), *options], port):
        sent = send(port, "framed", "--connections", str(CONNECTIONS), "--size", size, "--seconds", str(SECONDS))
    found = json.loads(report.read_text())
    assert found["uploads"] >= sent["uploads"]
    return {**found, "rate": sent["uploads"] / sent["seconds"]}


@pytest.mark.parametrize("size", [4 << 10, 1 << 20], ids=["whole", "in pieces"])
def test_groups_beside_one_by_one(tmp_path: Path, size: int) -> None:
    kind = file_system(tmp_path)
    if kind == "tmpfs":
        pytest.skip("the temporary folder is in memory: name one on a disk with pytest --basetemp")
    runs: dict[int, list[dict[str, float]]] = {AT_ONCE: [], 1: []}
    for pair in range(PAIRS):
        for most in [AT_ONCE, 1][:: 1 - 2 * (pair % 2)]:
            runs[most].append(measure(tmp_path, most, str(size)))
    grouped, single = runs[AT_ONCE], runs[1]
    ratio, low, high = median_with_interval([a["rate"] / b["rate"] for a, b in zip(grouped, single, strict=True)])
    with our_server("--store", str(tmp_path / "store")) as port:
        sent = send(port, "framed", "--connections", str(CONNECTIONS), "--size", str(size), "--seconds", str(SECONDS))
    print(
        f"\n{size >> 10} KiB, {CONNECTIONS} connections, {kind}: groups / one by one = {ratio:.2f} (90 % interval "
        f"{low:.2f} to {high:.2f}, {PAIRS} pairs); {statistics.median(run['rate'] for run in grouped):,.0f}/s, "
        f"{statistics.median(run['rate'] for run in single):,.0f}/s; durability process: "
        f"{sent['uploads'] / sent['seconds']:,.0f}/s\n  folder fsyncs per upload "
        f"{statistics.median(run['folder_syncs'] / run['uploads'] for run in grouped):.3f}, longest gap of the loop "
        f"{max(run['longest_gap_s'] for run in grouped) * 1e3:.1f} ms"
    )
