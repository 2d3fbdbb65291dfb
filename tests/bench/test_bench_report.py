"""`make bench`: a report of one hour of 20 processes at a tick of 1 s: how long it takes to build, how large it is, and
how soon a browser shows its first chart. Nothing is asserted but that all of it is there.

Needs Debian's chromium for the last.
"""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest

from reports import run_folder
from tests.unit.reports import run_folders

CHROMIUM = Path("/usr/bin/chromium")
ROUNDS = 7
# Runs in the page from its start on, since a question from outside would wait for the charts that come after.
WHEN_PAINTED = """
  const look = () => {
    const painted = window.Bokeh && Bokeh.index.roots.some(view => view.model.type == "Figure" && view.has_finished());
    if (painted) setTimeout(() => window.firstChart = Date.now());
    else requestAnimationFrame(look);
  };
  look();
"""


@pytest.mark.timeout(300)
def test_a_report_of_an_hour(tmp_path: Path) -> None:
    plan = (("long-1", "measure", 0), ("short-1", "measure", 1))
    folder = run_folders.write(tmp_path / "run", workers=17, plan=plan, phase_s=1800, interval_s=1, noise=0.2)
    begun_s = time.monotonic()
    subprocess.run([sys.executable, "-m", "reports", "build", str(folder)], stdout=subprocess.DEVNULL, check=True)
    built_s = time.monotonic() - begun_s
    page = folder / run_folder.REPORT_HTML
    processes = len(next(run_folder.read_processes(folder)).processes)
    print(f"\n1 h of {processes} processes: built in {built_s:.1f} s, {page.stat().st_size / (1 << 20):.2f} MiB")
    if CHROMIUM.exists():
        took_s = [first_chart_s(page) for _ in range(ROUNDS)]
        print(f"first chart in Chromium after {median(took_s):.2f} s ({min(took_s):.2f} to {max(took_s):.2f})")


def first_chart_s(page: Path) -> float:
    """From asking for the page to a chart that is painted in it, in a browser that was just started."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page()
        tab.add_init_script(WHEN_PAINTED)
        begun_s = time.time()
        tab.goto(page.as_uri(), wait_until="commit")
        painted_ms = tab.wait_for_function("() => window.firstChart").json_value()
        browser.close()
    return float(painted_ms) / 1000 - begun_s
