"""The report in a real browser: charts are drawn, nothing is fetched, and it is legible in any width and colour."""

import itertools
from pathlib import Path

import pytest

from reports import render, run_folder
from tests.unit import run_folders

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
WIDTHS = (400, 900, 1600)
SCHEMES = ("light", "dark")

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser: {CHROMIUM} is not installed")

CHARTS = 7  # six on the run's time, and one by percentile
ALL_DRAWN = f"""() => window.Bokeh && Bokeh.documents.length == 2 && Bokeh.documents.every(found => found.is_idle)
  && Bokeh.documents.reduce((number, found) => number + found.roots().length, 0) == {CHARTS}"""
MODELS = "[...Bokeh.documents[0].roots()].flatMap(root => [...root.references()])"
TAGGED = f"(tag => {MODELS}.find(model => (model.tags ?? []).some(found => String(found).startsWith(tag))))"
AXIS_COLOUR = f"{TAGGED}('major_label').major_label_text_color"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A rich one, with the widest tables: the open model, twenty workers, one of them replaced, some failures,
    conditions held and broken, and a label that wants to be a script."""
    folder = tmp_path_factory.mktemp("report") / "run"
    run_folders.write(
        folder,
        model="open",
        workers=20,
        killed_at_s=17.3,
        failures_per_s=2,
        noise=0.1,
        thresholds=("p99(response) > 2ms", "failures > 1%"),
        label="<script>document.title='taken over'</script> & co",
    )
    render.build(folder)
    return folder / run_folder.REPORT_HTML


@pytest.fixture
def show(browser, report):
    """Open the report; at the end no error was logged and nothing but the file was asked for."""
    opened, complaints, requests = [], [], []

    def make(width=900, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(report.as_uri())
        page.wait_for_function(ALL_DRAWN)
        return page

    yield make
    for context in opened:
        context.close()
    assert [text for text in complaints if "document idle" not in text] == []
    assert {url for url in requests if not url.startswith("data:")} == {report.as_uri()}


@pytest.mark.parametrize(("width", "scheme"), list(itertools.product(WIDTHS, SCHEMES)))
def test_it_fits_and_is_legible(show, width, scheme):
    page = show(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "only tables may scroll sideways"
    charts = page.locator(".bk-Figure").all()
    assert len(charts) == CHARTS
    for chart in charts:
        assert width * 0.5 < chart.bounding_box()["width"] <= width
    colours = page.evaluate("(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))")
    assert contrast(*colours) > 10
    axis, line = page.evaluate(
        f"""() => [{AXIS_COLOUR}, {TAGGED}("line_color=short").line_color].map(found => {{
          const element = document.body.appendChild(document.createElement("i"));
          element.style.color = typeof found == "string" ? found : found.value;
          return getComputedStyle(element).color;
        }})"""
    )
    assert contrast(axis, colours[1]) > 4.5
    assert contrast(line, colours[1]) > 3


def contrast(*colours: str) -> float:
    """Of two `rgb(r, g, b)`, by WCAG 2.1: 1 to 21."""
    light, dark = sorted((luminance(colour) for colour in colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_what_a_label_says_is_shown_and_not_run(show):
    page = show()
    assert page.title().startswith("VALID: <script>")
    assert page.locator("h1").inner_text() == "<script>document.title='taken over'</script> & co"


def test_a_condition_that_was_broken_stands_out(show):
    page = show(400)
    rows = page.locator("tr").filter(has_text="failed")
    row = rows.filter(has_text="p99(response) > 2ms").locator("td").first
    colour, ink = row.evaluate("cell => [getComputedStyle(cell).color, getComputedStyle(document.body).color]")
    assert row.inner_text() == "failed"
    assert colour != ink
    assert row.bounding_box()["x"] + row.bounding_box()["width"] <= 400, "seen without scrolling, on a phone too"


def test_the_charts_share_one_axis_and_go_back_on_double_click(show):
    page = show()
    chart = page.locator(".bk-Figure").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    across = [box["x"] + box["width"] * share for share in (0.4, 0.6)]
    y = box["y"] + box["height"] / 2
    page.mouse.move(across[0], y)
    page.mouse.down()
    page.mouse.move(across[1], y, steps=5)
    page.mouse.up()
    starts = "Bokeh.documents[0].roots().map(root => root.x_range.start)"
    page.wait_for_function(f"new Set({starts}).size == 1 && {starts}[0] > 5")
    page.mouse.dblclick(sum(across) / 2, y)
    page.wait_for_function(f"{starts}.every(start => start == 0)")


def test_pointing_at_an_event_tells_it(show):
    page = show(1600)
    chart = page.locator(".bk-Figure").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    x = page.evaluate("[...Bokeh.index][0].frame.x_scale.compute(17.3)")
    y = box["y"] + 60
    page.mouse.move(box["x"] + x - 20, y)
    page.mouse.move(box["x"] + x, y, steps=4)
    tooltip = page.locator(".bk-Tooltip").get_by_text("was killed by signal 9")
    playwright.expect(tooltip.first).to_be_visible()


def test_a_change_of_the_colour_scheme_repaints_the_charts(show):
    page = show(900, "light")
    before = page.evaluate(AXIS_COLOUR)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"before => {AXIS_COLOUR} != before", arg=before)
