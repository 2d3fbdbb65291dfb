"""`make bench`: a report of one hour of 20 processes at a tick of 1 s: how long it takes to build, how large it is, and
how soon a browser shows its first chart. Nothing is asserted but that all of it is there.

Needs Debian's chromium for the last.
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from reports import run_folder
from tests.unit import run_folders

CHROMIUM = Path("/usr/bin/chromium")
FIRST_CHART = "() => document.querySelector('.bk-Figure') !== null"


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
        print(f"first chart in Chromium after {first_chart_s(page):.2f} s")


def first_chart_s(page: Path) -> float:
    """From asking for the page to a chart in it."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page()
        tab.goto("about:blank")
        begun_s = time.monotonic()
        tab.goto(page.as_uri(), wait_until="commit")
        tab.wait_for_function(FIRST_CHART, polling=10)
        took_s = time.monotonic() - begun_s
        browser.close()
    return took_s
