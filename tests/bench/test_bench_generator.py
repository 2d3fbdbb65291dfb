"""`make bench`: what an upload costs the generator, beside a request of Locust's fast HTTP user.

Both run headless on core 1 with 50 users and no pause, 4 KiB each, against a server on core 0 that discards: ours, and
nginx answering 204. Of ours everything is switched on: kernel timestamps, digests, histograms, Locust's tables, and the
hiccup meter's CPU counts as the generator's. Then one open-model run at 2,000 arrivals a second, for the lag.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from benches import NGINX, median_with_interval, nginx, our_server
from loads import USERS_PY

from reports import run_folder

PAIRS = 7
SECONDS = 5
RUNS = 5

pytestmark = [
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs a core for the server and one for the load"),
    pytest.mark.timeout(900),
]
LOCUST = ["taskset", "-c", "1", sys.executable, "-m", "locust", "--headless", "--only-summary"]


def ours(port: int, folder: Path, *options: str) -> Path:
    """A run's folder."""
    command = [*LOCUST, "-f", str(USERS_PY), "--host", f"tcp://127.0.0.1:{port}", "--run-folder", str(folder)]
    command += ["--plan", "long", "--warm-up", "1s", "--payloads", "4KiB", *options]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=120)
    assert run_folder.read_run(folder).ended is not None
    return folder


def cpu_us_per_upload(folder: Path) -> float:
    """CPU of the load process and its hiccup meter over the ticks within the measured phase, per upload then."""
    phase = next(phase for phase in run_folder.read_run(folder).phases if phase.kind == "measure")
    assert phase.end_ns is not None
    ticks = [tick for tick in run_folder.read_processes(folder) if phase.start_ns <= tick.mono_ns <= phase.end_ns]
    used = [
        sum(
            (sample.cpu_user_s or 0) + (sample.cpu_system_s or 0)
            for sample in tick.processes
            if sample.role in ("load-master", "hiccup-meter")
        )
        for tick in (ticks[0], ticks[-1])
    ]
    share = (used[1] - used[0]) / (ticks[-1].mono_ns - ticks[0].mono_ns) * 1e9
    uploads = json.loads((folder / run_folder.SUMMARY).read_text())["modes"][0]["uploads_per_s"]
    return float(share / uploads * 1e6)


def fast_http(port: int) -> float:
    script = Path(__file__).with_name("fast_http_user.py")
    command = [*LOCUST, "-f", str(script), "--host", f"http://127.0.0.1:{port}", "--users", "50"]
    command += ["--spawn-rate", "100", "--run-time", str(SECONDS + 1)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found = re.search(r"cpu_us_per_request=([0-9.]+)", said)
    assert found is not None, said
    return float(found[1])


@pytest.mark.skipif(NGINX is None, reason="needs nginx: apt-get install nginx-light")
def test_an_upload_beside_a_fast_http_request(tmp_path: Path) -> None:
    (tmp_path / "nginx").mkdir()
    ratios, costs = [], []
    with our_server("--discard") as our_port, nginx(tmp_path / "nginx", "return 204;") as nginx_port:
        for pair in range(PAIRS):
            options = ("--users", "50", "--spawn-rate", "100", "--wait", "0", "--phase-seconds", str(SECONDS))
            first = fast_http(nginx_port) if pair % 2 else 0.0
            upload = cpu_us_per_upload(ours(our_port, tmp_path / f"run-{pair}", *options))
            request = first or fast_http(nginx_port)
            ratios.append(upload / request)
            costs.append((upload, request))
    median, low, high = median_with_interval(ratios)
    upload, request = (sorted(column)[len(column) // 2] for column in zip(*costs, strict=True))
    print(
        f"\ngenerator CPU per 4-KiB upload: ours / FastHttpUser = {median:.3f} (90 % interval {low:.3f} to {high:.3f}, "
        f"{PAIRS} pairs); ours {upload:.1f} µs, FastHttpUser {request:.1f} µs"
    )


def test_the_open_model_keeps_its_schedule(tmp_path: Path) -> None:
    beyond = []
    with our_server("--discard") as port:
        for number in range(RUNS):
            options = ("--arrival-rate", "2000", "--phase-seconds", "30")
            folder = ours(port, tmp_path / f"run-{number}", *options)
            summary = json.loads((folder / run_folder.SUMMARY).read_text())
            phase = next(phase for phase in summary["phases"] if phase["kind"] == "measure")
            lag, hiccup = phase["schedule_lag_us"]["p99"], phase["hiccup_us"]["p99"]
            beyond.append(lag - hiccup)
            print(
                f"\n2,000 arrivals/s for 30 s: achieved {phase['achieved_share']:.5f} of offered; schedule lag p99 "
                f"{lag:,.0f} µs, hiccup p99 {hiccup:,.0f} µs; CPU {cpu_us_per_upload(folder):.0f} µs per upload"
            )
    print(f"schedule lag p99 beyond hiccup p99: median of {RUNS} runs {sorted(beyond)[RUNS // 2]:+,.0f} µs")
