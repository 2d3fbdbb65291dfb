"""`make bench`: our service time beside packet timestamps, taken on loopback by somebody else (tshark).

At 1 and at 50 users, without pauses: the time from the packet that carries an upload to the packet that carries its
reply, over all uploads of the measured phase, beside the p50 of `service` from the report's histograms. Needs Debian's
tshark and the right to capture.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from benches import our_server
from hdrh.histogram import HdrHistogram
from loads import LOCUST
from servers import eventually

from reports import run_folder
from reports.run_folder import HistogramsLine

TSHARK = shutil.which("tshark")
SNAP_BYTES = 96  # headers: nothing here looks at what is uploaded
SECONDS = 4

pytestmark = [
    pytest.mark.skipif(TSHARK is None, reason="needs tshark: apt-get install tshark"),
    pytest.mark.skipif(os.geteuid() != 0, reason="capturing packets needs root"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs a core for the server and one for the load"),
    pytest.mark.timeout(300),
]


@contextmanager
def capture(port: int, file: Path) -> Iterator[None]:
    """All packets of this port until the block ends."""
    command = ["dumpcap", "-q", "-i", "lo", "-f", f"tcp port {port}", "-s", str(SNAP_BYTES), "-w", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("File:"):
                break  # it captures from here on
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def services_us(file: Path, port: int, start_s: float, end_s: float) -> list[float]:
    """Microseconds from each upload's packet to its reply's, of uploads within these wall-clock seconds."""
    fields = ["-T", "fields", "-e", "frame.time_epoch", "-e", "tcp.stream", "-e", "tcp.srcport", "-e", "tcp.len"]
    said = subprocess.run(
        [str(TSHARK), "-r", str(file), "-Y", "tcp.len > 0", *fields], capture_output=True, text=True, check=True
    ).stdout
    asked: dict[str, float] = {}
    found = []
    for line in said.splitlines():
        at, stream, source, _ = line.split("\t")
        if int(source) != port:
            asked[stream] = float(at)
        elif stream in asked and start_s <= asked[stream] <= end_s:
            found.append((float(at) - asked.pop(stream)) * 1e6)
    return found


@pytest.mark.parametrize("users", [1, 50])
def test_service_beside_packets(users: int, tmp_path: Path) -> None:
    folder, file = tmp_path / "run", tmp_path / "packets.pcapng"
    tmp_path.chmod(0o777)  # dumpcap gives its rights away
    with our_server("--discard") as port, capture(port, file):
        command = ["taskset", "-c", "1", *LOCUST, "--headless", "--host", f"tcp://127.0.0.1:{port}"]
        command += ["--users", str(users), "--spawn-rate", "100", "--wait", "0", "--plan", "long", "--warm-up", "1s"]
        command += ["--phase-seconds", str(SECONDS), "--payloads", "4KiB", "--run-folder", str(folder), "--no-report"]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=120)
        size = eventually(lambda: file.stat().st_size, "packets are written")
        assert size
    run = run_folder.read_run(folder)
    phase = next(phase for phase in run.phases if phase.kind == "measure")
    assert phase.end_ns is not None
    to_wall_ns = run.started_wall_ns - run.started_mono_ns
    measured = services_us(file, port, (phase.start_ns + to_wall_ns) / 1e9, (phase.end_ns + to_wall_ns) / 1e9)
    lines = [line for line in run_folder.read_uploads(folder) if isinstance(line, HistogramsLine)]
    [durations] = [line for line in lines if line.phase == phase.name][-1].names.values()
    service = HdrHistogram.decode(durations["service"])
    ours, theirs = service.get_value_at_percentile(50), float(np.median(measured))
    print(
        f"\n{users} user{'s' * (users > 1)}: median service {ours} µs over {service.get_total_count():,} uploads, by "
        f"packets {theirs:.0f} µs over {len(measured):,}: {ours - theirs:+.0f} µs"
    )
    assert len(measured) > 0.5 * service.get_total_count(), "too many packets were lost to tell"
