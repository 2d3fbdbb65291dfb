"""The status page in a real browser: it is legible in any width and colour, needs no script, fetches nothing but its
style, and shows what strangers chose as text.
"""

import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import PATIENCE_S, helper
from servers import Client, Server, eventually, running, upload

from tests.browser.test_report import contrast

WIDTHS, SCHEMES = (400, 820, 1600), ("light", "dark")
HOSTILE = "<img src=x onerror=\"document.title='taken over'\">"
COLOURS = """selectors => {
  const channels = colour => colour.match(/[0-9.]+/g).slice(0, 3).map(Number);
  const ground = channels(getComputedStyle(document.body).backgroundColor);
  return [ground, ...selectors.map(name => channels(getComputedStyle(document.querySelector(name)).color))];
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that has something to tell: a worker that was killed, uploads that failed, a store and an event that want to
    be markup, and clients that try the same."""
    store = tmp_path_factory.mktemp("status") / HOSTILE.replace("/", "")
    options = ("--status-port", "0", "--max-store", "1GiB", "--max-connections", "500")
    with running(*options, store=store, workers=4) as started:
        helper(started)
        for number in range(40):
            upload(started.port, bytes(100 * number), f"{HOSTILE}-{number}")
        upload(started.port, b"abc", "..")
        upload(started.port, b"abc", "file", digest="xxh3_128:" + "0" * 32)
        with Client(started.port) as client:
            client.sock.sendall(b"GET /<script>alert(1)</script> HTTP/1.1\r\n\r\n")
            client.sock.recv(1 << 16)
        victim = started.workers()[2]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: victim not in started.workers() and len(started.workers()) == 4, "it is replaced")
        event = {"wall_ns": time.time_ns() - 90 * 10**9, "kind": "reload-failed", "text": f"not reloaded: {HOSTILE}"}
        with (started.folder / "events.jsonl").open("a") as events:
            events.write(json.dumps(event) + "\n")
        yield started


@pytest.fixture(scope="module")
def show(browser: Any, server: Server) -> Iterator[Any]:
    complaints, requests = [], []
    with browser.new_context() as context:
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))

        def opened(width: int = 1600, scheme: str = "light") -> Any:
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            page.goto(server.state().page)
            return page

        yield opened
    assert complaints == []
    url = server.state().page
    assert {each for each in requests if not each.startswith("data:")} == {url, f"{url}status.css"}


LIGHT_AND_DARK = ((400, "light"), (820, "dark"), (1600, "light"))
ALIKE = set(itertools.product(WIDTHS, SCHEMES)) - set(LIGHT_AND_DARK)


@pytest.mark.parametrize(
    ("width", "scheme"),
    [*LIGHT_AND_DARK, *(pytest.param(*each, marks=pytest.mark.slow) for each in sorted(ALIKE))],
)
def test_it_fits_and_is_legible(show: Any, width: int, scheme: str) -> None:
    page = show(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "only tables may scroll sideways"
    quiet = ("header p", "td.state", "td.some", "dt", ".note", ".health strong")
    ground, ink, *others = page.evaluate(COLOURS, ["body", *quiet])
    assert contrast(ink, ground) > 10
    assert min(contrast(other, ground) for other in others) > 4.5
    assert page.locator("h1").bounding_box()["width"] <= width
    if shots := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(shots) / f"status-{width}-{scheme}.png", full_page=True)


def test_what_strangers_chose_is_text(show: Any, expect: Any) -> None:
    page = show()
    assert page.title().startswith("READY: 127.0.0.1:")
    assert page.locator("img").count() == page.locator("script").count() == 0
    assert HOSTILE.replace("/", "") in page.locator("header p").inner_text()
    expect(page.get_by_text(f"not reloaded: {HOSTILE}")).to_be_visible()


def test_it_tells_what_happened_to_workers_and_uploads(show: Any) -> None:
    page = show()
    row = page.locator("table").first.locator("tbody tr").nth(2)
    assert row.locator("td.state").inner_text() == "ready"
    assert "was ended by SIGKILL from somebody else" in row.inner_text()
    total = page.locator("tr.all").inner_text().split()
    assert total[:3] == ["all", "40", "3"]
    codes = page.locator("table").nth(1).locator("tbody th").all_inner_texts()
    assert codes == ["bad_length", "digest_mismatch", "name_rejected"]
    facts = page.locator("dl").first.inner_text().split("\n")
    shown = dict(zip(facts[::2], facts[1::2], strict=True))
    assert shown["max store"] == "1GiB"
    assert shown["max connections"] == "500"
    assert shown["idle timeout"] == "75s"
    assert shown["min rate"] == "1KiB/s"


def test_it_renews_itself(show: Any) -> None:
    page = show()
    with page.expect_navigation(timeout=PATIENCE_S * 1000):
        pass
    assert page.title().startswith("READY")
