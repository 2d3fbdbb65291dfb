"""`make bench`: a server that stalls for one second, as the open model sees it and as the closed model hides it.

All four workers are stopped together in the middle of a measure of 20 s, at 500 uploads a second or with 20 users.
With N arrivals at a rate of λ the open model must show a maximum of S = 1 s and a p99 of S − 0.01·N/λ. With chromium
there is a picture of both besides, the one in README.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from bokeh.embed import file_html
from bokeh.models import FixedTicker
from bokeh.plotting import figure
from bokeh.resources import INLINE
from hdrh.histogram import HdrHistogram
from loads import LOCUST
from servers import Server, eventually, running

from reports import run_folder
from reports.run_folder import HistogramsLine

RATE, MEASURE_S, STALL_S = 500, 20, 1.0
PERCENTILES = 100 - np.geomspace(100, 0.01, 400)


def stall(server: Server, folder: Path, *options: str) -> HdrHistogram:
    """The responses, or transactions, of a run with a stall in the middle of its measured phase."""
    command = [*LOCUST, "--headless", "--only-summary", "--host", f"tcp://127.0.0.1:{server.port}", "--plan", "long"]
    command += ["--phase-seconds", str(MEASURE_S), "--payloads", "4KiB", "--run-folder", str(folder), *options]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def measuring() -> bool:
        path = folder / run_folder.RUN
        return path.exists() and any(phase.kind == "measure" for phase in run_folder.read_run(folder).phases)

    try:
        eventually(measuring, "the measured phase")
        threading.Event().wait(MEASURE_S / 2)
        workers = server.workers()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        threading.Event().wait(STALL_S)
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        print(f"\nstalled for {time.monotonic() - stopped:.3f} s", end="")
        assert run.wait(120) in (0, 4)
    finally:
        run.kill()
        run.wait()
    lines = [line for line in run_folder.read_uploads(folder) if isinstance(line, HistogramsLine)]
    [durations] = [line for line in lines if line.phase == "long-1"][-1].names.values()
    return HdrHistogram.decode(durations.get("response", durations["transaction"]))


@pytest.mark.timeout(300)
def test_a_stall_in_both_models(tmp_path: Path) -> None:
    with running(workers=4) as server:
        opened = stall(server, tmp_path / "open", "--arrival-rate", str(RATE))
        closed = stall(server, tmp_path / "closed", "--users", "20", "--spawn-rate", "100")
    expected_s = STALL_S - 0.01 * opened.get_total_count() / RATE
    print(
        f"\nopen model: max {opened.get_max_value() / 1e6:.3f} s (a stall of {STALL_S} s), "
        f"p99 {opened.get_value_at_percentile(99) / 1e6:.3f} s (S - 0.01 N/λ = {expected_s:.3f} s)"
        f"\nclosed model of the same stall: max {closed.get_max_value() / 1e6:.3f} s, "
        f"p99 {closed.get_value_at_percentile(99) / 1e6:.6f} s"
    )
    _draw(tmp_path / "stall.html", opened, closed)


def _draw(page: Path, opened: HdrHistogram, closed: HdrHistogram) -> None:
    plot = figure(
        width=900,
        height=380,
        x_axis_type="log",
        y_axis_type="log",
        x_axis_label="share of uploads that took longer",
        y_axis_label="latency (ms)",
        title=f"The same stall of {STALL_S:g} s, {MEASURE_S} s measured",
        toolbar_location=None,
    )
    beyond = (100 - PERCENTILES) / 100
    for histogram, name, color in (
        (opened, f"open model, {RATE} arrivals/s: response", "#c0392b"),
        (closed, "closed model, 20 users: transaction", "#2471a3"),
    ):
        values = [max(1, histogram.get_value_at_percentile(percentile)) / 1000 for percentile in PERCENTILES]
        plot.line(beyond, values, legend_label=name, color=color, line_width=2.5)
    shares = {1.0: "100 %", 0.1: "10 % (p90)", 0.01: "1 % (p99)", 0.001: "0.1 % (p99.9)", 0.0001: "0.01 %"}
    plot.x_range.start, plot.x_range.end = 1.0, 0.0001  # type: ignore[attr-defined]
    plot.xaxis.ticker = FixedTicker(ticks=list(shares))
    plot.xaxis.major_label_overrides = shares
    plot.yaxis.ticker = FixedTicker(ticks=[0.1, 1, 10, 100, 1000])
    plot.yaxis.major_label_overrides = {0.1: "0.1", 1: "1", 10: "10", 100: "100", 1000: "1,000"}
    plot.legend.location = "bottom_right"
    page.write_text(file_html(plot, INLINE, "The stall"))
    chromium = shutil.which("chromium")
    if chromium is None:
        print(f"picture: {page}")
        return
    picture = page.with_suffix(".png")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=920,400"]
    command += [f"--user-data-dir={page.parent / 'chromium'}", f"--screenshot={picture}", page.as_uri()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
    print(f"picture: {picture}", file=sys.stdout)
