"""The browser that the tests of pages look with. Without one they are skipped, and playwright is imported by who looks:
a process that only collects tests has not to wait for it."""

from pathlib import Path

import pytest
from servers import DEADLINE_S

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def playwright():
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} is not installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    api.expect.set_options(timeout=DEADLINE_S * 1000)
    return api


@pytest.fixture(scope="module")
def browser(playwright):
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def expect(playwright):
    return playwright.expect
